"""What single pictures score: SSCD and SSIM against training images, SSCD among themselves, CLIP against prompts."""

from collections.abc import Sequence
from functools import lru_cache
from itertools import combinations

import numpy as np
import torch

from storage import Store, content_key
from tasks.conditions import Condition
from tasks.diffusion.model import device_of
from tasks.diffusion.sampling import fitted, from_bytes, picture_size
from tasks.evaluate import clip_score
from tasks.evaluate.clip_score import ClipParams, ClipScore, aligned
from tasks.evaluate.sscd import Sscd, SscdParams
from tasks.evaluate.ssim import SCORER, ssim
from tasks.evaluate.task.pictures import Shot, files_of
from tasks.progress import progress
from tasks.subject import Subject

_CACHE: dict[tuple[str, str, str], np.ndarray] = {}
"""Embeddings by the model that made them, SSCD or CLIP, the audited model, to whose size training images are cropped,
and name of the picture; 2 KiB each. Names are hashes, so they cannot go stale."""


def score_copies(
    subject: Subject, variant: str, condition: Condition, wanted: Sequence[Shot], ids: Sequence[str], params: SscdParams
) -> None:
    """SSCD of each picture against every training image of its prompt (metric 'sscd'), and between the seeds of each
    prompt ('sscd_pair')."""
    pairs = [("sscd", name, image) for name, shot in zip(ids, wanted, strict=True) for image in shot.prompt.image_ids]
    groups: dict[tuple[str, str | None], list[str]] = {}
    for name, shot in zip(ids, wanted, strict=True):
        groups.setdefault((shot.prompt.prompt_id, shot.trigger_id), []).append(name)
    pairs += [("sscd_pair", a, b) for names in groups.values() for a, b in combinations(names, 2)]
    _score(subject, pairs, variant, condition, params)


def score_structure(
    subject: Subject, variant: str, condition: Condition, wanted: Sequence[Shot], ids: Sequence[str]
) -> None:
    """SSIM of each generation against every training image of its prompt (metric 'ssim')."""
    store = subject.open()
    known = scores_of(store, "ssim", SCORER, ids)
    todo = [
        (name, image)
        for name, shot in zip(ids, wanted, strict=True)
        for image in shot.prompt.image_ids
        if (name, image) not in known
    ]
    if not todo:
        return
    files = files_of(subject, variant, condition, list(dict.fromkeys(name for pair in todo for name in pair)))
    size = picture_size(subject.load())
    trained = {image: fitted(from_bytes(files[image]), size) for image in {image for _, image in todo}}
    with progress(len(todo), f"SSIM of {variant}, {condition.name}", "image") as done:
        rows = []
        for name, image in todo:
            value = ssim(from_bytes(files[name]), trained[image])
            rows.append({"generation_id": name, "reference_id": image, "scorer": SCORER, "value": value})
            done(1)
    store.write("scores", content_key("ssim", SCORER, todo), rows, metric="ssim")


def score_change(
    subject: Subject,
    variant: str,
    condition: Condition,
    ids: Sequence[str],
    originals: Sequence[str],
    params: SscdParams,
) -> None:
    """SSCD of each picture against the original model's of the same prompt and seed (metric 'sscd_gen')."""
    pairs = [("sscd_gen", name, original) for name, original in zip(ids, originals, strict=True)]
    _score(subject, pairs, variant, condition, params)


def score_alignment(
    subject: Subject, variant: str, condition: Condition, wanted: Sequence[Shot], ids: Sequence[str], params: ClipParams
) -> None:
    """CLIP score of each picture against its prompt (metric 'clip')."""
    store, scorer = subject.open(), clip_score.scorer_of(params)
    known = scores_of(store, "clip", scorer, ids)
    todo = [(n, s) for n, s in zip(ids, wanted, strict=True) if (n, s.prompt.prompt_id) not in known]
    if not todo:
        return
    found = clip_vectors(subject, variant, condition, [name for name, _ in todo], params)
    vectors = np.stack([found[name] for name, _ in todo])
    texts = _clip(subject, params).texts([shot.prompt.text for _, shot in todo])
    rows = [
        {"generation_id": name, "reference_id": shot.prompt.prompt_id, "scorer": scorer, "value": float(value)}
        for (name, shot), value in zip(todo, aligned(vectors, texts), strict=True)
    ]
    store.write("scores", content_key("clip", scorer, [name for name, _ in todo]), rows, metric="clip")


def scores_of(store: Store, metric: str, scorer: str, ids: Sequence[str]) -> dict[tuple[str, str], float]:
    """Scores in the store, made with one model, by generation and reference."""
    columns, wanted = ["generation_id", "reference_id", "value"], sorted(set(ids))
    rows = store.read("scores", columns=columns, metric=metric, scorer=scorer, generation_id=wanted)
    return {(name, other): value for name, other, value in zip(*(c.to_pylist() for c in rows.columns), strict=True)}


def sscd_vectors(
    subject: Subject, variant: str, condition: Condition, names: Sequence[str], params: SscdParams
) -> dict[str, np.ndarray]:
    """SSCD embeddings of pictures, unit vectors (512,), by name.

    Training images are seen as training, attacks and fine-tuning see them: scaled and cropped to the model's size.
    """
    measure, of = _sscd(subject, params), subject.model_id
    todo = [name for name in names if (measure.scorer, of, name) not in _CACHE]
    files = files_of(subject, variant, condition, todo)
    size = picture_size(subject.load()) if todo else (0, 0)
    with progress(len(todo), f"SSCD of {variant}, {condition.name}", "picture") as done:
        for name in todo:
            _CACHE[measure.scorer, of, name] = measure.embed(fitted(from_bytes(files[name]), size)[None])[0]
            done(1)
    return {name: _CACHE[measure.scorer, of, name] for name in names}


def clip_vectors(
    subject: Subject, variant: str, condition: Condition, names: Sequence[str], params: ClipParams
) -> dict[str, np.ndarray]:
    """CLIP embeddings of pictures, unit vectors (width,), by name."""
    scorer, of = clip_score.scorer_of(params), subject.model_id
    todo = [name for name in names if (scorer, of, name) not in _CACHE]
    files = files_of(subject, variant, condition, todo)
    for name in todo:
        _CACHE[scorer, of, name] = _clip(subject, params).images(from_bytes(files[name])[None])[0]
    return {name: _CACHE[scorer, of, name] for name in names}


def _score(
    subject: Subject, pairs: Sequence[tuple[str, str, str]], variant: str, condition: Condition, params: SscdParams
) -> None:
    """Cosines of SSCD embeddings: (metric, generation, generation or image)."""
    store, scorer = subject.open(), _sscd(subject, params).scorer
    for metric in dict.fromkeys(metric for metric, _, _ in pairs):
        wanted = [(name, other) for kind, name, other in pairs if kind == metric]
        known = scores_of(store, metric, scorer, [name for name, _ in wanted])
        todo = [pair for pair in wanted if pair not in known]
        names = list(dict.fromkeys(name for pair in todo for name in pair))
        if not todo:
            continue
        vectors = sscd_vectors(subject, variant, condition, names, params)
        rows = [
            {"generation_id": a, "reference_id": b, "scorer": scorer, "value": float(vectors[a] @ vectors[b])}
            for a, b in todo
        ]
        store.write("scores", content_key(metric, scorer, todo), rows, metric=metric)


def _sscd(subject: Subject, params: SscdParams) -> Sscd:
    return _loaded_sscd(params, device_of(subject.device))


def _clip(subject: Subject, params: ClipParams) -> ClipScore:
    return _loaded_clip(params, device_of(subject.device))


@lru_cache(maxsize=1)
def _loaded_sscd(params: SscdParams, device: torch.device) -> Sscd:
    return Sscd(params, device)


@lru_cache(maxsize=1)
def _loaded_clip(params: ClipParams, device: torch.device) -> ClipScore:
    return ClipScore(params, device)
