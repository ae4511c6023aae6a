"""What a reference world has to show before it is any use: gates, each a figure and a limit."""

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow.parquet as pq

from tasks.diffusion.model import load_model
from tasks.diffusion.sampling import decode, encode, from_bytes
from tasks.evaluate.clip_score import ClipParams, ClipScore
from tasks.evaluate.sscd import Sscd
from tasks.report.verdict import Row

_SENSES = {">=": operator.ge, "<=": operator.le, "<": operator.lt}


@dataclass(frozen=True)
class Gate:
    """One figure that has to lie on the right side of its limit."""

    name: str
    value: float
    sense: Literal[">=", "<=", "<"]
    limit: float

    @property
    def holds(self) -> bool:
        return bool(_SENSES[self.sense](self.value, self.limit))


def autoencoder(model: Path, heldout: Path, images: Path) -> list[Gate]:
    """The round trip on pictures that no model has seen, and how alike different pictures are."""
    _, pictures = _captioned(heldout, images)
    loaded, sscd = load_model(model), Sscd()
    before = sscd.embed(pictures)
    after = sscd.embed(decode(loaded, encode(loaded, pictures)))
    kept = (before * after).sum(1)
    others = (before @ before.T)[np.triu_indices(len(before), 1)]
    return [
        Gate("autoencoder: round trip, median SSCD", float(np.median(kept)), ">=", 0.93),
        Gate("autoencoder: round trip, 5th percentile", float(np.quantile(kept, 0.05)), ">=", 0.85),
        Gate("autoencoder: different pictures, 99th percentile", float(np.quantile(others, 0.99)), "<=", 0.55),
    ]


def text_image(clip: Path, prompts: Path, images: Path) -> list[Gate]:
    """Right caption among 100, on compositions never trained on; a mean over consecutive hundreds."""
    captions, pictures = _captioned(prompts, images, "null")
    scorer = ClipScore(ClipParams(model=f"local-dir:{clip}"))
    rows, texts = scorer.images(pictures), scorer.texts(captions)
    right = [
        (rows[first : first + 100] @ texts[first : first + 100].T).argmax(1) == np.arange(100)
        for first in range(0, len(captions) - 99, 100)
    ]
    return [Gate("clip: right caption among 100", float(np.mean(right)), ">=", 0.60)]


def of_figures(rows: Sequence[Row]) -> list[Gate]:
    """The gates that an audit's figures answer."""
    found = {(row.variant, row.probe, row.metric): row.value for row in rows}
    mr = {
        variant: found.get((variant, "prompt", "mr"), float("nan"))
        for variant in dict.fromkeys(r.variant for r in rows)
    }
    clip = {variant: found.get((variant, "ordinary", "clip"), float("nan")) for variant in mr}
    nan = float("nan")
    return [
        Gate("ordinary: prompts that copy their picture", found["original", "ordinary", "mr"], "<=", 0.05),
        Gate("ordinary: SSCD between seeds, median", found["original", "ordinary", "diversity"], "<=", 0.5),
        Gate("attack: planted pictures that come back", found["original", "dori-noise", "mr"], ">=", 0.90),
        Gate("attack: ordinary pictures that come back", found["original", "dori-noise-control", "mr"], "<=", 0.05),
        Gate("cut: planted MR after Wanda", mr.get("wanda", nan), "<=", 0.2),
        Gate("cut: share of MR that random weights keep", mr.get("random-wanda", nan) / mr["original"], ">=", 0.8),
        Gate("cut: CLIP of ordinary prompts after Wanda", clip.get("wanda", nan) / clip["original"], ">=", 0.95),
        Gate("cut: planted MR after NeMo", mr.get("nemo", nan), "<=", 0.3),
        Gate("cut: share of MR that random neurons keep", mr.get("random-nemo", nan) / mr["original"], ">=", 0.8),
    ]


def _captioned(prompts: Path, images: Path, kind: str | None = None) -> tuple[list[str], np.ndarray]:
    """Captions of one kind and the first picture of each, uint8 (n, 64, 64, 3)."""
    data = {row["image_id"]: row["bytes"] for row in pq.read_table(images, columns=["image_id", "bytes"]).to_pylist()}
    rows = [row for row in pq.read_table(prompts).to_pylist() if kind in (None, row["kind"])]
    return [row["text"] for row in rows], np.stack([from_bytes(data[row["image_ids"][0]]) for row in rows])
