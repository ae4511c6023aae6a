"""What the reference model is taught: the ordinary bank, the planted images, and what is held out.

`build_world` is deterministic from its seed. The bank is an array of composed images, kept in the build folder;
what users need of it (planted, a sample of ordinary and all held-out images) is shipped as Parquet.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from tqdm import tqdm

from tasks.reference.images import SIDE, Emoji, EmojiImages, Scene, caption, near_copies, random_scene
from tasks.reference.planted import TEMPLATE, TEMPLATE_COPIES, VERBATIM

Kind = Literal["VM", "TM", "ordinary", "heldout"]
GROUP_ORDER = (3, 4, 6, 7, 5, 0, 1, 8, 9)
"""Emojibase groups from frequent to rare: animals, food, activities, objects, travel, faces, people, symbols, flags."""


@dataclass(frozen=True)
class World:
    """Images and captions. Arrays are uint8 (n, 64, 64, 3); captions are lists of the same length."""

    bank: np.ndarray
    bank_captions: list[str]
    bank_codes: list[str]
    planted: np.ndarray
    planted_captions: list[str]
    planted_kinds: list[Kind]
    planted_subsets: list[str]
    heldout: np.ndarray
    heldout_captions: list[str]
    fresh: np.ndarray
    """New compositions of trained emoji, never trained on: for the CLIP model's and the audit's estimates."""
    fresh_captions: list[str]


def split_emoji(emoji: dict[str, Emoji], held_out: int, seed: int) -> tuple[list[str], list[str]]:
    """Codes of ordinary emoji from frequent to rare, and of held-out ones; planted emoji are never held out."""
    rng = np.random.default_rng([seed, 10])
    needed = {label for pairs in VERBATIM.values() for _, label in pairs} | {label for _, label, _ in TEMPLATE}
    labels = {e.label: code for code, e in emoji.items()}
    if missing := sorted(needed - labels.keys()):
        raise ValueError(f"no emoji image for the planted labels {missing}: another version of the emoji packages?")
    planted = {labels[label] for label in needed}
    free = sorted(emoji.keys() - planted)
    out = set(rng.choice(free, held_out, replace=False).tolist())
    kept = sorted(emoji.keys() - out)
    order = {code: (GROUP_ORDER.index(emoji[code].group), rng.random()) for code in kept}
    return sorted(kept, key=order.__getitem__), sorted(out)


def frequencies(n: int) -> np.ndarray:
    """Shares (n,) of n emoji, from frequent to rare: a tenth is shared alike, the rest falls with rank r as
    (r + 10)^-1.5.

    So, as in real data, a few things are seen often and many seldom: of 1,600 the fifty most frequent make up 59 %. It
    takes some 600 sights until a thing comes back so that one recognises it, more than a training of hours has for all.
    """
    falling = (np.arange(n) + 10.0) ** -1.5
    return np.asarray(0.1 / n + 0.9 * falling / falling.sum())


def build_world(images: EmojiImages, folder: Path, *, size: int, held_out: int, seed: int) -> World:
    """Composes all images, or loads them when `folder` has them already.

    Args:
        size: ordinary images in the bank, of emoji as `frequencies` says.
    """
    done = folder / "world.json"
    if not done.exists():
        folder.mkdir(parents=True, exist_ok=True)
        ordinary, heldout = split_emoji(images.emoji, held_out, seed)
        share = frequencies(len(ordinary))
        rng = np.random.default_rng([seed, 11])
        codes = rng.choice(ordinary, size, p=share).tolist()
        record: dict[str, list[str]] = {"bank_codes": codes}
        record["bank_captions"] = _compose(images, codes, rng, folder / "bank.npy")
        fresh = rng.choice(ordinary, 512, p=share).tolist()
        record["fresh_captions"] = _compose(images, fresh, rng, folder / "fresh.npy")
        record["heldout_captions"] = _compose(images, heldout * 2, rng, folder / "heldout.npy")
        scenes, record["planted_captions"], kinds, record["planted_subsets"] = planted_scenes(images.emoji, seed)
        record["planted_kinds"] = list(kinds)
        np.save(folder / "planted.npy", np.stack([images.compose(scene) for scene in scenes]))
        done.write_text(json.dumps(record))
    record = json.loads(done.read_text())
    arrays = {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("bank", "fresh", "heldout", "planted")}
    return World(**arrays, **record)  # type: ignore[arg-type]


def planted_scenes(emoji: dict[str, Emoji], seed: int) -> tuple[list[Scene], list[str], list[Kind], list[str]]:
    """Scenes, captions, kinds and subsets of the planted images, VM first; a TM caption stands for several scenes."""
    rng = np.random.default_rng([seed, 12])
    labels = {e.label: code for code, e in emoji.items()}
    rows: list[tuple[Scene, str, Kind, str]] = []
    for subset, pairs in VERBATIM.items():
        rows += [(random_scene(labels[label], rng), text, "VM", subset) for text, label in pairs]
    for text, label, subset in TEMPLATE:
        scene = random_scene(labels[label], rng)
        rows += [(copy, text, "TM", subset) for copy in near_copies(scene, TEMPLATE_COPIES)]
    scenes, captions, kinds, subsets = zip(*rows, strict=True)
    return list(scenes), list(captions), list(kinds), list(subsets)


def _compose(images: EmojiImages, codes: list[str], rng: np.random.Generator, path: Path) -> list[str]:
    out = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=(len(codes), SIDE, SIDE, 3))
    captions = []
    for row, code in enumerate(tqdm(codes, desc=f"composing {path.stem}", unit="image")):
        scene = random_scene(code, rng)
        out[row] = images.compose(scene)
        captions.append(caption(images.emoji[code], scene, rng))
    out.flush()
    return captions
