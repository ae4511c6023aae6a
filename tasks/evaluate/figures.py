"""From similarities to the figures of an audit: how much is copied, how varied and how true to its prompt the rest is.

Pure functions of arrays. What counts once is an image with all prompts that bring it (see `tasks.units`): several seeds
of one prompt, and several captions of one image, tell the same story. So the pictures of a unit, those of all its
prompts together, are first brought down to one number, and intervals are taken over units. A prompt has as many
pictures as any other, so each caption of an image weighs the same. Where each prompt has an image of its own, a unit is
a prompt. Verbatim and template memorization are told apart by calling these functions for each by itself.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from sklearn.metrics import roc_auc_score, roc_curve

from tasks.errors import InputError
from tasks.evaluate.intervals import Statistic, clopper_pearson, interval, of_auc, of_ratio
from tasks.evaluate.sscd import COPY_THRESHOLD

ByUnit = Mapping[str, np.ndarray]
"""By unit, the scores (n,) of its prompts' pictures, or of their pairs."""


@dataclass(frozen=True)
class Estimate:
    """One figure of one variant under one condition."""

    metric: str
    value: float
    """Not a number where there are too few cases for it to mean anything; null in the store."""
    low: float | None
    """95 % interval; None where there is none: a single unit, or a figure without a sound interval."""
    high: float | None
    n: int
    """Independent units it rests on: images, or prompts where they have none."""
    prompts: int | None = None
    """Prompts behind those units, where they are counted; as many as `n` where each has an image of its own."""


def by_unit(units: Sequence[str], rows: np.ndarray) -> dict[str, np.ndarray]:
    """Rows (n, ...) gathered by unit, in order of first appearance."""
    if len(units) != len(rows):
        raise ValueError(f"{len(units)} units but {len(rows)} rows")
    places: dict[str, list[int]] = {}
    for row, name in enumerate(units):
        places.setdefault(name, []).append(row)
    return {name: rows[found] for name, found in places.items()}


def mr(similarities: ByUnit, threshold: float = COPY_THRESHOLD) -> Estimate:
    """Memorization rate: the share of units with any picture above the threshold; Clopper-Pearson interval.

    The question is whether an image is brought back at all, by any of its captions: one that leaks it is a leak,
    however many others do not. So an image with more captions is tried more often, as one with more seeds is;
    `mr_generations` does not grow with either.
    """
    copied = [bool((seeds > threshold).any()) for seeds in _filled(similarities)]
    low, high = clopper_pearson(sum(copied), len(copied))
    return Estimate("mr", sum(copied) / len(copied), low, high, len(copied))


def mr_generations(similarities: ByUnit, threshold: float = COPY_THRESHOLD) -> Estimate:
    """The share of a unit's pictures above the threshold, averaged over units: MR counted by pictures.

    Kowalczuk et al. report the "share of images" above the threshold, which may be this or that of training images.

    The interval is that of as many units whose pictures are all copies or none, the widest there is: of values between
    0 and 1 with a given mean, those that are 0 or 1 vary most (Hoeffding, 1963, theorem 3).
    """
    shares = [float((seeds > threshold).mean()) for seeds in _filled(similarities)]
    total = math.fsum(shares)
    return Estimate("mr_generations", total / len(shares), *clopper_pearson(total, len(shares)), len(shares))


def sscd_orig(similarities: ByUnit) -> list[Estimate]:
    """Similarity to the training picture: the maximum and the median over a unit's pictures, each in four figures.

    `sscd_orig_max` and `sscd_orig_median` are medians over units, `..._mad` the median absolute deviation beside them
    (as the code of Hintersdorf et al. reports them); `..._mean` and `..._std` are those of Kowalczuk et al. The
    deviation is that of these very values (their squares summed over n, not n - 1); a single unit has none.
    """
    out = []
    for metric, over_seeds in (("sscd_orig_max", np.max), ("sscd_orig_median", np.median)):
        values = np.array([over_seeds(seeds) for seeds in _filled(similarities)])
        out += [
            over_units(metric, values, np.median),
            over_units(f"{metric}_mad", values, mad),
            over_units(f"{metric}_mean", values, np.mean),
            over_units(f"{metric}_std", values, np.std),
        ]
    return out


def sscd_gen(similarities: ByUnit) -> Estimate:
    """Mitigated against unmitigated generations of the same seed: median over a unit's pictures, then over units."""
    return over_units("sscd_gen", np.array([np.median(seeds) for seeds in _filled(similarities)]), np.median)


def seed_similarity(similarities: ByUnit) -> Estimate:
    """How alike the seeds of one prompt are: the median over a unit's pairs, then over units; lower is more diverse.

    Pictures of different captions of an image differ by more than their seeds, so pairs are taken within each prompt
    (or trigger), and gathered by unit.

    Args:
        similarities: cosines (pairs,) between seeds.
    """
    return over_units("seed_similarity", np.array([np.median(pairs) for pairs in _filled(similarities)]), np.median)


def clip(scores: ByUnit) -> Estimate:
    """Mean CLIP cosine of picture and prompt: mean over a unit's pictures, then over units."""
    return over_units("clip", np.array([seeds.mean() for seeds in _filled(scores)]), np.mean)


def clip_kept(scores: ByUnit, originals: ByUnit) -> Estimate:
    """Mean CLIP cosine as a share of the original model's, of the same prompts; the interval knows them for pairs."""
    if scores.keys() != originals.keys():
        raise ValueError("pictures of the same prompts are compared with each other")
    own = np.array([seeds.mean() for seeds in _filled(scores)])
    others = np.array([originals[name].mean() for name in scores])
    low, high = (of_ratio(own, others) if len(own) > 1 else None) or (None, None)
    return Estimate("clip_kept", float(own.mean() / others.mean()), low, high, len(own))


def mad(values: np.ndarray, *, axis: int = -1) -> np.ndarray:
    """Median absolute deviation from the median along an axis, not rescaled."""
    return np.asarray(np.median(np.abs(values - np.median(values, axis, keepdims=True)), axis))


def auc(memorized: np.ndarray, others: np.ndarray) -> Estimate:
    """Area under the ROC curve of a detector whose score is higher for memorized prompts; Newcombe's interval.

    Its n counts both groups. Where one of them is a single unit there is no interval: one says nothing of how units of
    its kind differ.

    Args:
        memorized, others: scores (n,) and (m,), one for each independent unit.
    """
    area, sizes = float(roc_auc_score(*_labelled(memorized, others))), (len(memorized), len(others))
    low, high = of_auc(area, *sizes) if min(sizes) > 1 else (None, None)
    return Estimate("auc", area, low, high, sum(sizes))


def tpr_at_1fpr(memorized: np.ndarray, others: np.ndarray) -> Estimate:
    """Share of memorized prompts above the lowest threshold that at most 1 % of the others exceed; Clopper-Pearson.

    Of fewer than 100 others none may exceed it: then it is the rate at no false positive among so few, which says
    little of 1 %. So an audit gives it from 100 others on. The interval is that of the share at this threshold; that
    the threshold itself was estimated, it does not know.

    Args:
        memorized, others: scores (n,) and (m,), one for each independent unit.
    """
    false_positive_rates, rates, _ = roc_curve(*_labelled(memorized, others), drop_intermediate=False)
    found = round(rates[false_positive_rates <= 0.01].max() * len(memorized))
    low, high = clopper_pearson(found, len(memorized))
    return Estimate("tpr_at_1fpr", found / len(memorized), low, high, len(memorized))


def _labelled(memorized: np.ndarray, others: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Whether each is memorized, and its score, as scikit-learn has them."""
    if not len(memorized) or not len(others):
        raise InputError("a detector is judged on memorized prompts and others: one of the two groups is empty")
    return np.repeat([True, False], [len(memorized), len(others)]), np.concatenate([memorized, others])


def _filled(rows: ByUnit) -> list[np.ndarray]:
    if not rows:
        raise InputError("no generations to take a figure of: generate first")
    return list(rows.values())


def over_units(metric: str, values: np.ndarray, statistic: Statistic) -> Estimate:
    """A statistic of values (n,), one for each unit, with the interval that goes with it; see `intervals.interval`."""
    low, high = interval(values, statistic) or (None, None)
    # What one value deviates by is 0, which would say that it is sure.
    lone = len(values) == 1 and statistic in (mad, np.std)
    return Estimate(metric, math.nan if lone else float(statistic(values, axis=-1)), low, high, len(values))
