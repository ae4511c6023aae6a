"""Whether memory is local, in words and on a map: the three answers of Kowalczuk et al. (ICML 2026, section 4)."""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

SIDE, MARGIN, DOT = 520, 24, 4
COLOURS = {"prompts": (120, 120, 120), "starts": (70, 120, 200), "triggers": (200, 50, 45)}
TOGETHER = 0.5
"""Points less than half as far apart as the others lie together."""


@dataclass(frozen=True)
class Answers:
    """Figures of the triggers of one image."""

    caption: str
    embeddings: float
    """Distance between triggers, as a share of that between the random points they began from."""
    activations: Mapping[str, float]
    """By layer, distance between the activations of triggers, as a share of that between different images' prompts."""
    weights: Mapping[str, Mapping[str, tuple[float, float]]]
    """By method and layer, the IOU of the sets found from two triggers, and that of random sets of these sizes."""
    triggers: int


def told(found: Sequence[Answers]) -> str:
    """The diagnosis as Markdown: an answer to each question, and the figures by layer."""
    lines = ["# Is the memory local?", ""]
    for one in found:
        shares = [share for share in one.activations.values() if np.isfinite(share)]
        activations = float(np.mean(shares)) if shares else float("nan")
        lines += [
            f"## {one.caption}",
            "",
            f"{one.triggers} triggers of this picture, each found from another random point.",
            "",
            f"1. **Embeddings**: triggers are {one.embeddings:.2f} times as far apart as the points they began from: "
            f"{_where(one.embeddings)}",
            f"2. **Activations**: they are {activations:.2f} times as far apart as those of prompts of different "
            f"pictures, a mean over layers: {_where(activations)}",
        ]
        for method, layers in one.weights.items():
            overlap = np.mean([iou for iou, _ in layers.values()])
            chance = np.mean([by_chance for _, by_chance in layers.values()])
            lines.append(
                f"3. **Weights**: from two triggers, {method} finds sets with an IOU of {overlap:.2f} "
                f"(random sets: {chance:.2f}), a mean over layers."
            )
        methods = list(one.weights)
        heads = ["activations", *(f"{method}, IOU" for method in methods)]
        lines += ["", f"| layer | {' | '.join(heads)} |", f"|---|{'---:|' * len(heads)}"]
        for layer in dict.fromkeys([*one.activations, *(name for method in methods for name in one.weights[method])]):
            cells = [f"{one.activations[layer]:.2f}" if layer in one.activations else ""]
            cells += [f"{one.weights[m][layer][0]:.2f}" if layer in one.weights[m] else "" for m in methods]
            lines.append(f"| `{layer}` | {' | '.join(cells)} |")
        lines.append("")
    return "\n".join(lines)


def drawn_map(places: Mapping[str, np.ndarray]) -> bytes:
    """Points (n, 2) of each group on one map, as PNG.

    Raises:
        ValueError: there are no points.
    """
    every = np.concatenate(list(places.values())).astype(np.float64)
    low, span = every.min(0), np.ptp(every, 0).max() or 1.0
    canvas = Image.new("RGB", (SIDE + 2 * MARGIN, SIDE + 3 * MARGIN), "white")
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(13)
    for number, (name, points) in enumerate(places.items()):
        colour = COLOURS.get(name, (0, 0, 0))
        for x, y in MARGIN + (points - low) / span * SIDE:
            draw.ellipse((x - DOT, y - DOT, x + DOT, y + DOT), fill=colour)
        left = MARGIN + number * 130
        draw.ellipse((left, SIDE + 2 * MARGIN, left + 2 * DOT, SIDE + 2 * MARGIN + 2 * DOT), fill=colour)
        draw.text((left + 14, SIDE + 2 * MARGIN - 4), name, "black", font)
    stream = io.BytesIO()
    canvas.save(stream, "PNG", optimize=True)
    return stream.getvalue()


def _where(share: float) -> str:
    if not np.isfinite(share):
        return "the others do not differ, so this says nothing."
    return "they lie together." if share < TOGETHER else "they are spread out, not in one place."
