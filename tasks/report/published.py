"""Figures that the papers print, to stand beside an audit's own. They are of another model, and say what to look for.

Only what could be traced to a table is here: `docs/fidelity.md` says which numbers could not.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from tasks.conditions import PROMPT, Condition, dori
from tasks.report.verdict import Row

MODEL = "Stable Diffusion 1.4"
SOURCE = "Kowalczuk et al., Finding Dori, ICML 2026, arXiv 2507.16880, the table of main results"
"""The paper ran NeMo and Wanda itself; these are not numbers of the papers that brought those methods."""


@dataclass(frozen=True)
class Published:
    """A row of the paper's table, and where an audit has the like."""

    words: str
    """What was measured, in the paper's words."""
    variant: str
    condition: Condition
    """As in `metrics`."""
    sscd: float
    """Similarity to the training image, SSCD, the mean over images."""
    mr: float
    """Share of images with an SSCD above 0.7."""


FIGURES = (
    Published("the model itself, memorized prompts", "original", PROMPT, 0.90, 0.98),
    Published("images never memorized, under Dori", "original", dori("prompt", "control"), 0.48, 0.00),
    Published("NeMo, prompts", "nemo", PROMPT, 0.33, 0.20),
    Published("NeMo, under Dori", "nemo", dori("prompt"), 0.91, 0.99),
    Published("Wanda, prompts", "wanda", PROMPT, 0.20, 0.00),
    Published("Wanda, under Dori", "wanda", dori("prompt"), 0.76, 0.72),
    Published("adversarial fine-tuning, under Dori", "adversarial-finetune", dori("prompt"), 0.36, 0.02),
)
"""500 memorized prompts; Dori begins at the prompt; NeMo prunes each prompt's own neurons."""

OURS = {"mr_generations": "MR of images", "mr": "prompts with any copy", "sscd_orig_median_mean": "SSCD, mean"}
"""Our columns, by metric. Published rates are of images, so ours of images comes first. SSCD is of the median seed."""


def published_text(rows: Mapping[tuple[str, Condition, str], Row]) -> str:
    """The published numbers beside the audit's own, as Markdown.

    Args:
        rows: the audit's estimates by (variant, condition, metric). Where it has none of the same variant and start,
            a cell stays empty.

    Returns:
        The table with its source; nothing where the audit has none of these numbers.
    """
    if not any((row.variant, row.condition, metric) in rows for row in FIGURES for metric in OURS):
        return ""
    lines = [
        f"Beside the paper's numbers. Those are of {MODEL} and 500 memorized prompts: **of another model**, unless it "
        "is the one that was audited. Models, images and scorers differ, so compare in kind, not in digits. "
        f"Source: {SOURCE}.",
        "",
        f"| | published, SD 1.4: MR | published, SD 1.4: SSCD | here: {' | here: '.join(OURS.values())} |",
        f"|---|---:|---:|{'---:|' * len(OURS)}",
    ]
    for row in FIGURES:
        own = (rows.get((row.variant, row.condition, metric)) for metric in OURS)
        cells = ["" if found is None else f"{found.value:.2f}" for found in own]
        lines.append(f"| {row.words} | {row.mr:.2f} | {row.sscd:.2f} | {' | '.join(cells)} |")
    return "\n".join(lines)
