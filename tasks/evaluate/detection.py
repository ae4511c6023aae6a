"""How well the noise differences of the original model tell memorized prompts from ordinary ones."""

from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np
from sklearn.metrics import roc_auc_score, roc_curve

from tasks.conditions import PROMPT
from tasks.errors import InputError
from tasks.evaluate.estimates import Estimate
from tasks.evaluate.seen import Detected, Seen
from tasks.intervals import clopper_pearson, of_auc
from tasks.methods import Column, NoParams, metric

LEAST = 100
"""Units of prompts that are not memorized, of which one is 1 %."""


@metric(
    name="detection",
    title="Detection by noise differences",
    paper="Hintersdorf et al., Finding NeMo, NeurIPS 2024, section 3.1",
    words="AUC and TPR at 1 % FPR say how well noise differences tell memorized prompts from ordinary ones, prompts of"
    f" one image by their mean; the latter needs {LEAST} different others.",
    control="Ordinary prompts that share no image with a memorized one.",
    applies=lambda condition, variant: variant == "original" and condition == PROMPT,
    columns=(
        Column("auc", "AUC", better="higher", order=70, by_detector=True),
        Column("tpr_at_1fpr", "TPR at 1 % FPR", ".0%", "higher", order=71, by_detector=True),
    ),
)
def detection(seen: Seen, params: NoParams) -> list[Estimate]:
    """AUC and TPR at 1 % FPR of a prompt's mean score.

    Prompts of one image count as one, by the mean over all of them. Prompts among the others that share an image with a
    memorized one are left out: they are no examples of what is not memorized. So there may be no others, and no
    estimate. TPR is given only where there are others enough to see a rate of 1 %.

    The same is said of each detector that was chosen beside, whose name is then behind the metric's.
    """
    found = judged(seen.detected)
    for name, scored in seen.scanned.items():
        found += [replace(one, metric=f"{one.metric}_{name}") for one in judged(scored)]
    return found


def judged(scored: Sequence[Detected]) -> list[Estimate]:
    """How well one detector tells memorized prompts from the others."""
    memorized = [one for one in scored if one.memorized]
    remembered = {one.unit for one in memorized}
    others = [one for one in scored if not one.memorized and one.unit not in remembered]
    if not others or not memorized:
        return []
    own, rest = _means(memorized), _means(others)
    found = [replace(auc(own, rest), prompts=len(memorized) + len(others))]
    return [*found, *([replace(tpr_at_1fpr(own, rest), prompts=len(memorized))] if len(rest) >= LEAST else [])]


def _means(group: Iterable[Detected]) -> np.ndarray:
    """The mean score of each unit, over its prompts' pairs of seeds."""
    by_unit: dict[str, list[np.ndarray]] = {}
    for one in group:
        by_unit.setdefault(one.unit, []).append(one.scores)
    return np.array([np.concatenate(pairs).mean() for pairs in by_unit.values()])


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
