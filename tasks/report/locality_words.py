"""Whether memory is local, in words: the three answers of Kowalczuk et al. (ICML 2026, section 4)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tasks.report.locality import Locality

TOGETHER = 0.5
"""Points less than half as far apart as the others lie together."""
NO_SIGN = "they lie together, but so did those points before the search, so this says nothing of the memory."
SAME = 0.6
"""IOU from which two triggers are said to find the same weights; Wanda's stayed below it in most layers of SD 1.4."""


@dataclass(frozen=True)
class Overlap:
    """IOU of the sets that are found from two triggers of one image, in one layer."""

    iou: float
    chance: float
    """That of random sets of these sizes."""
    starts: float | None = None
    """That of the sets found from two of the points that the searches began from; None where it was not asked."""


Weights = dict[str, dict[str, Overlap]]
"""By method and layer."""


@dataclass(frozen=True)
class Diagnosed:
    """What was searched and found for one image."""

    image_id: str
    caption: str
    searched: int
    triggers: int
    """Of those searches, how many bring the image back."""
    found: Locality | None
    """None where there are fewer than two, or fewer than two prompts of other images to compare them with."""


def render_locality(found: Sequence[tuple[Diagnosed, Weights]]) -> str:
    """The diagnosis as Markdown: an answer to each question, and the numbers by layer."""
    lines = ["# Is the memory local?", ""]
    for one, weights in found:
        lines += [
            f"## {one.caption}",
            "",
            f"Of {one.searched} attacks, each from another random point, {one.triggers} bring this image back.",
            "",
        ]
        if one.found is None:
            few = "With fewer than two triggers nothing can be said: attack with more restarts or steps."
            alone = "Nothing can be said without two prompts of other images to compare them with."
            lines += [few if one.triggers < 2 else alone, ""]
            continue
        it, activations, starts = one.found, _mean(one.found.activations), _mean(one.found.starts)
        lines += [
            f"1. **Embeddings**: the triggers are {it.embeddings:.2f} times as far apart as the points they began "
            f"from, and {it.beside_prompts:.2f} times as far as prompts of different images: "
            f"{_where(it.embeddings)} Each lies {it.moved:.2f} times that distance from where it began: "
            f"{_way(it.moved)}",
            f"2. **Activations**: they are {activations:.2f} times as far apart as those of prompts of different "
            f"images, a mean over layers, the points they began from {starts:.2f} times: "
            + (NO_SIGN if max(activations, starts) < TOGETHER else _where(activations)),
        ]
        lines += [f"3. **Weights**: {_same(method, list(layers.values()))}" for method, layers in weights.items()]
        if not weights:
            lines.append("3. **Weights**: no method found any from two of the triggers.")
        heads = ["activations", *(f"{method}, IOU" for method in weights)]
        lines += ["", f"| layer | {' | '.join(heads)} |", f"|---|{'---:|' * len(heads)}"]
        for layer in dict.fromkeys([*it.activations, *(name for layers in weights.values() for name in layers)]):
            cells = [f"{it.activations[layer]:.2f}" if layer in it.activations else ""]
            cells += [f"{layers[layer].iou:.2f}" if layer in layers else "" for layers in weights.values()]
            lines.append(f"| `{layer}` | {' | '.join(cells)} |")
        lines.append("")
    return "\n".join(lines)


def _same(method: str, layers: Sequence[Overlap]) -> str:
    iou, chance = (float(np.mean([getattr(layer, name) for layer in layers])) for name in ("iou", "chance"))
    before = [layer.starts for layer in layers if layer.starts is not None]
    control = f"; from two of the points they began from: {np.mean(before):.2f}" if before else ""
    below = sum(layer.iou < SAME for layer in layers)
    found = (
        f"from two triggers, {method} finds sets with an IOU of {iou:.2f} (random sets: {chance:.2f}{control}), a mean "
        f"over layers; in {below} of {len(layers)} layers it is below {SAME}: "
    )
    if below > len(layers) / 2:
        return found + "different triggers find different ones."
    if sum(start >= SAME for start in before) >= len(layers) / 2:
        return found + "they are largely the same, but so were those before the search, so this says nothing of memory."
    return found + "they are largely the same."


def _mean(shares: Mapping[str, float]) -> float:
    finite = [share for share in shares.values() if np.isfinite(share)]
    return float(np.mean(finite)) if finite else float("nan")


def _where(share: float) -> str:
    if not np.isfinite(share):
        return "the others do not differ, so this says nothing."
    return "they lie together." if share < TOGETHER else "they are spread out, not in one place."


def _way(moved: float) -> str:
    if moved < TOGETHER:
        return "there is one to be found near any point."
    return "there was none near that."
