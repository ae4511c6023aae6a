"""What a reference world has to show before it is any use: gates, each a number and a limit."""

import math
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow.parquet as pq

from tasks.conditions import ORDINARY, PROMPT, Condition
from tasks.diffusion.model import load_model
from tasks.diffusion.sampling import decode, encode, from_bytes
from tasks.errors import InputError
from tasks.reference.bank import nearest_in_bank
from tasks.report.verdict import Row
from tasks.scorers.clip import ClipParams, ClipScore
from tasks.scorers.sscd import COPY_THRESHOLD, Sscd

GROUPS = ("autoencoder", "clip", "planted", "ordinary", "detection", "attack", "pruning")
"""What gates' names begin with, before a colon."""
_GROUPS_IN_TABLE = tuple(f"| {group}: " for group in GROUPS)
_SENSES = {">=": operator.ge, "<=": operator.le, "<": operator.lt, ">": operator.gt}


@dataclass(frozen=True)
class Gate:
    """One number that has to lie on the right side of its limit."""

    name: str
    value: float
    sense: Literal[">=", "<=", "<", ">"]
    limit: float

    @property
    def holds(self) -> bool:
        return bool(_SENSES[self.sense](self.value, self.limit))


def table(found: Sequence[Gate], weights: str, before: str = "") -> str:
    """The gates as Markdown, in the order of the build.

    Args:
        weights: what the model goes by, see `tasks.diffusion.model.identity`.
        before: the table that stands. Where it is of the same weights, its rows of gates that were not measured now
            stay.
    """
    rows = {}
    if f"`{weights}`" in before:
        kept = [line for line in before.splitlines() if line.startswith(_GROUPS_IN_TABLE)]
        rows = {line.split("|")[1].strip(): line for line in kept}
    for gate in found:
        holds = "holds" if gate.holds else "misses"
        value = "not measured" if math.isnan(gate.value) else f"{gate.value:.3f}"
        rows[gate.name] = f"| {gate.name} | {value} | {gate.sense} {gate.limit:g} | {holds} |"
    lines = ["| gate | measured | wanted | |", "|---|---:|---:|---|"]
    lines += sorted(rows.values(), key=lambda line: GROUPS.index(line[2:].partition(":")[0]))
    return "\n".join([*lines, "", f"Of the weights `{weights}`."])


def autoencoder(model: Path, heldout: Path, images: Path) -> list[Gate]:
    """The round trip on images that no model has seen, and how alike different images are."""
    _, composed = _captioned(heldout, images)
    loaded, sscd = load_model(model), Sscd()
    before = sscd.embed(composed)
    after = sscd.embed(decode(loaded, encode(loaded, composed)))
    kept = (before * after).sum(1)
    others = (before @ before.T)[np.triu_indices(len(before), 1)]
    return [
        Gate("autoencoder: round trip, median SSCD", float(np.median(kept)), ">=", 0.93),
        Gate("autoencoder: round trip, 5th percentile", float(np.quantile(kept, 0.05)), ">=", 0.85),
        Gate("autoencoder: different images, 99th percentile", float(np.quantile(others, 0.99)), "<=", 0.55),
    ]


def text_image(clip: Path, prompts: Path, images: Path) -> list[Gate]:
    """Right caption among 100, on compositions never trained on; a mean over consecutive hundreds."""
    captions, composed = _captioned(prompts, images, "null")
    scorer = ClipScore(ClipParams(model=f"local-dir:{clip}"))
    rows, texts = scorer.images(composed), scorer.texts(captions)
    right = [
        (rows[first : first + 100] @ texts[first : first + 100].T).argmax(1) == np.arange(100)
        for first in range(0, len(captions) - 99, 100)
    ]
    return [Gate("clip: right caption among 100", float(np.mean(right)), ">=", 0.60)]


def ordinary(images: np.ndarray, bank: Path, alike: float) -> list[Gate]:
    """Images uint8 (n, 64, 64, 3) made of ordinary prompts against all that the model was trained on.

    Args:
        alike: how alike the seeds of one prompt are, the median over prompts.
    """
    copied = nearest_in_bank(bank, Sscd().embed(images)) > COPY_THRESHOLD
    return [
        Gate("ordinary: generations that copy a trained image", float(copied.mean()), "<=", 0.05),
        Gate("ordinary: SSCD between seeds, median", alike, "<=", 0.5),
    ]


def pruning(rows: Sequence[Row], share_pruned: Mapping[str, float], sparsity: float) -> list[Gate]:
    """Whether the memory can be pruned away, and chance does not do it, by an audit's estimates.

    Args:
        share_pruned: by variant, the share of the site's weights or neurons that were pruned.
        sparsity: Wanda's, of each step; the union over steps prunes more.
    """
    found = {(row.variant, row.condition, row.metric): row.value for row in rows}

    def estimate(variant: str, metric: str = "mr", condition: Condition = PROMPT) -> float:
        return found.get((variant, condition, metric), float("nan"))

    return [
        Gate("pruning: planted MR after Wanda", estimate("wanda"), "<=", 0.2),
        Gate("pruning: sparsity of Wanda", sparsity, "<=", 0.1),
        Gate(
            "pruning: share of MR that random weights keep", estimate("random-wanda") / estimate("original"), ">=", 0.8
        ),
        Gate(
            "pruning: share of ordinary CLIP score that Wanda keeps",
            estimate("wanda", "clip", ORDINARY) / estimate("original", "clip", ORDINARY),
            ">=",
            0.95,
        ),
        Gate("pruning: planted MR after NeMo", estimate("nemo-union"), "<=", 0.3),
        Gate("pruning: share of neurons that NeMo prunes", share_pruned.get("nemo-union", float("nan")), "<", 0.5),
        Gate("pruning: planted MR after random neurons", estimate("random-nemo-union"), ">", 0.3),
    ]


def _captioned(prompts: Path, images: Path, kind: str | None = None) -> tuple[list[str], np.ndarray]:
    """Captions of one kind and the first image of each, uint8 (n, 64, 64, 3)."""
    if lost := [path for path in (prompts, images) if not path.is_file()]:
        raise InputError(f"no {lost[0]}: gates are those of a world that `engram reference build` put together")
    data = {row["image_id"]: row["bytes"] for row in pq.read_table(images, columns=["image_id", "bytes"]).to_pylist()}
    rows = [row for row in pq.read_table(prompts).to_pylist() if kind in (None, row["kind"])]
    return [row["text"] for row in rows], np.stack([from_bytes(data[row["image_ids"][0]]) for row in rows])
