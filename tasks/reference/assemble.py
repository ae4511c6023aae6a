"""Putting the reference world together: a pipeline folder, a CLIP folder, prompts and images as Parquet."""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from diffusers import AutoencoderTiny
from torch import nn

from storage.tables import TABLES
from tasks.diffusion.families import StableDiffusion
from tasks.diffusion.sampling import to_png
from tasks.reference.bank import write_bank
from tasks.reference.build import Texts
from tasks.reference.clip import save_clip
from tasks.reference.denoiser import new_scheduler
from tasks.reference.world import World

ORDINARY = 576
"""Images of the bank that are shipped: the prompts of the first measure quality and are attacked as controls, the
others are trained on beside when memories are erased."""
NULLS = 200
"""New compositions never trained on: the prompts that memorized ones are compared with."""
SETTINGS: dict[str, Any] = {
    "precision": "auto",
    "sampling": {"guidance": 2.0, "steps": 20},
    "contrast": "prompts",
    "nemo": {"refinement": "chain"},
    "wanda": {"sparsity": 0.1},
    "finetune": {
        "epochs": 16,
        "images_per_step": 4,
        "noises": 8,
        "ordinary_batch": 48,
        "attack_steps": 50,
        "attack_batch": 4,
        "attack_every": 2,
        "learning_rate": 2e-4,
        "check_every": 0,
    },
}
"""What audits of this model do other than usual. Small models copy less under strong guidance, and need a larger share
of their weights pruned; compared with other prompts, pruning takes more of the memory and less of the rest than
compared with the empty one. NeMo's refinement in chains found the same neurons as the published one wherever both were
tried, see benchmarks/README.md, for 60 % of the work. The published training would take hours on two cores; so inner
attacks have fewer noises and what they find is trained on twice, and the rate is that of a model of this size. Inner
attacks keep their 50 steps: after ones of 20, the attack from noise still brings 5 of 8 images back."""
PROFILES = {
    "quick": {"attacked": 3, "controls": 3},
    "full": {
        "ordinary": 24,
        "random_starts": ["noise"],
        "unseen": 24,
        "efforts": [50, 200, 500],
        "effort_images": 4,
        "diagnosed": 3,
        "triggers": 6,
        "extracted": 4,
        "extraction": {"generations": 20},
    },
}
"""The same for one profile each: what two cores do in minutes, and in hours. Null prompts are of compositions that were
never trained on."""


def assemble(out: Path, made: World, texts: Texts, vae: AutoencoderTiny, denoiser: nn.Module, bank: np.ndarray) -> None:
    """Writes `model/`, `clip/`, `prompts.parquet`, `heldout.parquet`, `images.parquet` and `bank.parquet` under `out`.

    Args:
        bank: SSCD embeddings (n, 512) of the ordinary and the planted images.
    """
    save_pipeline(out / "model", texts, vae, denoiser)
    shutil.rmtree(out / "clip", ignore_errors=True)
    save_clip(texts.clip, texts.tokenizer, out / "clip")
    images: dict[str, dict[str, Any]] = {}

    def image(pixels: np.ndarray, caption: str) -> str:
        data = to_png(pixels)
        name = hashlib.sha256(data).hexdigest()
        images[name] = {"image_id": name, "bytes": data, "width": 64, "height": 64, "caption": caption}
        return name

    prompts: dict[str, dict[str, Any]] = {}
    rows = zip(made.planted, made.planted_captions, made.planted_kinds, made.planted_subsets, strict=True)
    for pixels, text, kind, subset in rows:
        row = prompts.setdefault(text, _prompt(text, "memorized", kind, subset))
        row["image_ids"].append(image(pixels, text))
    # Every so-manieth image of the bank: frequent emoji as often as they are trained.
    for number in range(0, len(made.bank), len(made.bank) // ORDINARY)[:ORDINARY]:
        text = made.bank_captions[number]
        prompts.setdefault(text, _prompt(text, "ordinary"))["image_ids"].append(image(made.bank[number], text))
    for pixels, text in zip(made.fresh, made.fresh_captions, strict=True):
        if text not in prompts and sum(row["kind"] == "null" for row in prompts.values()) < NULLS:
            prompts[text] = _prompt(text, "null") | {"image_ids": [image(pixels, text)]}
    heldout: dict[str, dict[str, Any]] = {}
    for pixels, text in zip(made.heldout, made.heldout_captions, strict=True):
        heldout.setdefault(text, _prompt(text, "ordinary"))["image_ids"].append(image(pixels, text))
    _write(out / "prompts.parquet", "prompts", list(prompts.values()))
    _write(out / "heldout.parquet", "prompts", list(heldout.values()))
    _write(out / "images.parquet", "images", list(images.values()))
    write_bank(out / "bank.parquet", bank, [*made.bank_captions, *made.planted_captions])
    save_own(out / "model")


def save_own(model: Path, settings: dict[str, Any] = SETTINGS) -> None:
    """Writes what audits of a model do by themselves; its prompts, images and CLIP lie beside its folder."""
    own: dict[str, Any] = {"prompts": "../prompts.parquet", "images": "../images.parquet", "clip": "../clip"}
    own |= {"settings": settings, "profiles": PROFILES}
    (model / "engram.json").write_text(json.dumps(own, indent=1) + "\n")


def save_pipeline(folder: Path, texts: Texts, vae: AutoencoderTiny, denoiser: nn.Module) -> None:
    """A diffusers pipeline in half precision that plain `StableDiffusionPipeline.from_pretrained` loads."""
    shutil.rmtree(folder, ignore_errors=True)
    parts = {
        "vae": vae.to(memory_format=torch.contiguous_format),  # type: ignore[call-overload]
        "text_encoder": texts.encoder,
        "tokenizer": texts.tokenizer,
        StableDiffusion.denoiser_name: denoiser.to(memory_format=torch.contiguous_format),  # type: ignore[call-overload]
    }
    pipeline = StableDiffusion.assembled(parts, new_scheduler(), {})
    pipeline.to(dtype=torch.float16)
    pipeline.save_pretrained(folder, safe_serialization=True)


def _prompt(text: str, kind: str, memorization: str | None = None, subset: str | None = None) -> dict[str, Any]:
    name = hashlib.sha256(text.encode()).hexdigest()[:32]
    ids: list[str] = []
    return {
        "prompt_id": name,
        "text": text,
        "kind": kind,
        "memorization": memorization,
        "subset": subset,
        "image_ids": ids,
    }


def _write(path: Path, table: str, rows: list[dict[str, Any]]) -> None:
    schema = pa.schema([field for field in TABLES[table].schema if field.name in rows[0]])
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), path, compression="zstd")
