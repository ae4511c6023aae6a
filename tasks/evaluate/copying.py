"""Copies of training images: how many are brought back, and how near to them what is made lies, by SSCD."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from tasks.conditions import EXTRACTION
from tasks.evaluate.estimates import ByUnit, Estimate, filled, gathered, mad, of_prompts, over_units
from tasks.evaluate.seen import Generation, Seen, alike
from tasks.intervals import clopper_pearson
from tasks.methods import Column, NoParams, metric
from tasks.scorers.sscd import COPY_THRESHOLD

BY_KIND = ("mr", "sscd_orig_max", "sscd_orig_median")
"""Metrics that are taken of each kind of prompt by itself, too, where there is more than one."""
_KINDS: tuple[dict[str, Callable[[Generation], bool]], ...] = (
    {"vm": lambda one: one.memorization == "VM", "tm": lambda one: one.memorization == "TM"},
    {"confirmed": lambda one: one.confirmed, "unconfirmed": lambda one: not one.confirmed},
)


@metric(
    name="copying",
    title="Copies of training images",
    paper="Hintersdorf et al., Finding NeMo, NeurIPS 2024, section 4; Kowalczuk et al., Finding Dori, ICML 2026,"
    " section 5",
    words=f"An image counts as copied where any generation made for it, whatever its seed and whichever of its prompts,"
    f" has an SSCD above {COPY_THRESHOLD} to a training image of it; the rate of generations is the share of its"
    " generations that are copies, the mean over images. SSCD columns are medians over images, of the nearest training"
    " image.",
    control="The original model, and attacks on images that were never memorized.",
    applies=lambda condition, variant: condition != EXTRACTION,
    columns=(
        Column("mr", "Copy rate", ".0%", "lower", narrow=True, order=10, drawn=True),
        Column("mr_vm", "Copy rate, VM", ".0%", "lower", order=11),
        Column("mr_tm", "Copy rate, TM", ".0%", "lower", order=12),
        Column("mr_confirmed", "Copy rate, confirmed", ".0%", "lower", order=12),
        Column("mr_unconfirmed", "Copy rate, unconfirmed", ".0%", "lower", order=12),
        Column("mr_generations", "Copy rate, of generations", ".1%", "lower", order=13),
        Column("sscd_orig_max", "SSCD, best seed", better="lower", narrow=True, order=20),
        Column("sscd_orig_median", "SSCD, median seed", better="lower", narrow=True, order=21),
    ),
    kept=(
        *(f"sscd_orig_{seeds}_{kind}" for seeds in ("max", "median") for kind in ("mad", "mean", "std")),
        *(f"sscd_orig_{seeds}_{kind}" for seeds in ("max", "median") for kinds in _KINDS for kind in kinds),
    ),
)
def copying(seen: Seen, params: NoParams) -> list[Estimate]:
    """MR and the similarities to training images, over the prompts that have any.

    Where prompts are verbatim (VM) and template memories (TM), MR and similarities of each kind follow, under the same
    names with `_vm` and `_tm`: of the prompts of this kind. An image that has both counts in either. Where some prompts
    are confirmed and others are not, so do those with `_confirmed` and `_unconfirmed`.
    """
    nearest = similarities(seen)
    if not nearest:
        return []

    def found(some: Sequence[tuple[Generation, float]]) -> list[Estimate]:
        generations = [one for one, _ in some]
        by_unit = gathered(generations, [value for _, value in some])
        return of_prompts(generations, [mr(by_unit), mr_generations(by_unit), *sscd_orig(by_unit)])

    out = found(nearest)
    for kinds in _KINDS:
        parts = {name: [pair for pair in nearest if belongs(pair[0])] for name, belongs in kinds.items()}
        if all(parts.values()):
            out += [
                replace(one, metric=f"{one.metric}_{name}")
                for name, part in parts.items()
                for one in found(part)
                if one.metric in BY_KIND
            ]
    return out


def similarities(seen: Seen) -> list[tuple[Generation, float]]:
    """SSCD of each generation to the nearest of its prompt's training images, where it has any.

    A template prompt stands for several images, and a copy of any one is a copy.
    """
    with_images = [one for one in seen.generations if one.images]
    known = alike(seen, "sscd", [(one.id, image) for one in with_images for image in one.images])
    return [(one, max(known[one.id, image] for image in one.images)) for one in with_images]


def triggers_that_copy(nearest: Sequence[tuple[Generation, float]]) -> set[str]:
    """The triggers of which any generation is a copy: the searches that succeeded."""
    return {one.trigger for one, value in nearest if one.trigger is not None and value > COPY_THRESHOLD}


def mr(similarities: ByUnit, threshold: float = COPY_THRESHOLD) -> Estimate:
    """Memorization rate: the share of units with any image above the threshold; Clopper-Pearson interval.

    The question is whether an image is brought back at all, by any of its captions: one that leaks it is a leak,
    however many others do not. So an image with more captions is tried more often, as one with more seeds is;
    `mr_generations` does not grow with either.
    """
    copied = [bool((seeds > threshold).any()) for seeds in filled(similarities)]
    low, high = clopper_pearson(sum(copied), len(copied))
    return Estimate("mr", sum(copied) / len(copied), low, high, len(copied))


def mr_generations(similarities: ByUnit, threshold: float = COPY_THRESHOLD) -> Estimate:
    """The share of a unit's images above the threshold, averaged over units: MR counted by images.

    Kowalczuk et al. report the "share of images" above the threshold, which may be this or that of training images.

    The interval is that of as many units whose images are all copies or none, the widest there is: of values between
    0 and 1 with a given mean, those that are 0 or 1 vary most (Hoeffding, 1963, theorem 3).
    """
    shares = [float((seeds > threshold).mean()) for seeds in filled(similarities)]
    total = math.fsum(shares)
    return Estimate("mr_generations", total / len(shares), *clopper_pearson(total, len(shares)), len(shares))


def sscd_orig(similarities: ByUnit) -> list[Estimate]:
    """Similarity to the training image: the maximum and the median over a unit's images, each in four estimates.

    `sscd_orig_max` and `sscd_orig_median` are medians over units, `..._mad` the median absolute deviation beside them
    (as the code of Hintersdorf et al. reports them); `..._mean` and `..._std` are those of Kowalczuk et al. The
    deviation is that of these very values (their squares summed over n, not n - 1); a single unit has none.
    """
    out = []
    for name, over_seeds in (("sscd_orig_max", np.max), ("sscd_orig_median", np.median)):
        values = np.array([over_seeds(seeds) for seeds in filled(similarities)])
        out += [
            over_units(name, values, np.median),
            over_units(f"{name}_mad", values, mad),
            over_units(f"{name}_mean", values, np.mean),
            over_units(f"{name}_std", values, np.std),
        ]
    return out
