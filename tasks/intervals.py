"""Intervals: how sure an estimate is, given how few prompts and images it was measured on."""

from typing import Any, Protocol

import numpy as np
from scipy.optimize import brentq
from scipy.stats import beta, binom, norm, t

LEVEL = 0.95
"""Confidence of every interval."""
RESAMPLES = 2000
"""Bootstrap samples."""
FEW = 6
"""From fewer values no interval of a spread is taken: resampled, they cover far less often than they claim."""


class Statistic(Protocol):
    """A number of each slice along an axis, as `np.mean` and `np.median` give it."""

    def __call__(self, values: np.ndarray, /, *, axis: int) -> Any: ...


def clopper_pearson(successes: float, trials: int, level: float = LEVEL) -> tuple[float, float]:
    """The exact interval of a rate (Clopper and Pearson, 1934): it covers with `level` or more, whatever the rate.

    Successes in part, each between 0 and 1, give the interval between those of the whole numbers beside their sum.
    `scipy.stats.binomtest`, which gives the same for whole numbers, refuses them, so its beta quantiles are taken here.

    Raises:
        ValueError: not 0 <= successes <= trials, or no trial.
    """
    if not 0 <= successes <= trials or trials == 0:
        raise ValueError(f"{successes} successes in {trials} trials is no rate")
    tail = (1 - level) / 2
    low = beta.ppf(tail, successes, trials - successes + 1) if successes else 0.0
    high = beta.ppf(1 - tail, successes + 1, trials - successes) if successes < trials else 1.0
    return float(low), float(high)


def interval(values: np.ndarray, statistic: Statistic) -> tuple[float, float] | None:
    """The interval of a mean (Student), a median (order statistics) or another statistic (bootstrap from 6 values on).

    None where values are too few to say how sure the statistic is.

    Args:
        values: (n,), one for each independent unit (an image, not a caption of it, nor a seed).
    """
    if statistic is np.mean:
        return of_mean(values) if len(values) > 1 else None
    if statistic is np.median:
        return of_median(values)
    return bootstrap(values, statistic) if len(values) >= FEW else None


def of_mean(values: np.ndarray, level: float = LEVEL) -> tuple[float, float]:
    """Student's interval of a mean of independent values (n,).

    Raises:
        ValueError: fewer than two values, which say nothing of their spread, or one that is not finite.
    """
    values = _checked(values)
    half = float(t.ppf((1 + level) / 2, len(values) - 1)) * float(values.std(ddof=1)) / len(values) ** 0.5
    return float(values.mean()) - half, float(values.mean()) + half


def of_median(values: np.ndarray, level: float = LEVEL) -> tuple[float, float] | None:
    """The interval of a median between two of the values (n,): it covers with `level` or more, whatever they are drawn
    from. None for fewer than 6 at 95 %: not even their lowest and highest enclose it as surely.

    The median lies below the k-th lowest with the chance of fewer than k heads among n coins (David and Nagaraja, Order
    Statistics, 2003, section 7.1).
    """
    ordered = np.sort(np.asarray(values, np.float64))
    ranks = binom.cdf(np.arange(len(ordered)), len(ordered), 0.5) <= (1 - level) / 2
    k = int(ranks.sum())
    return (float(ordered[k - 1]), float(ordered[-k])) if k else None


def of_ratio(above: np.ndarray, below: np.ndarray, level: float = LEVEL) -> tuple[float, float] | None:
    """The interval of mean(above) / mean(below) of paired values (n,) (Fieller, Biometrika 1940).

    None where the lower mean is not surely different from zero: then no interval bounds the ratio.

    Raises:
        ValueError: fewer than two pairs, which say nothing of their spread, or a value that is not finite.
    """
    above, below = _checked(above), _checked(below)
    spread = float(t.ppf((1 + level) / 2, len(above) - 1)) ** 2 * np.cov(above, below) / len(above)
    one = float(below.mean()) ** 2 - spread[1, 1]
    two = float(above.mean() * below.mean()) - spread[0, 1]
    root = two**2 - one * (float(above.mean()) ** 2 - spread[0, 0])
    if one <= 0:
        return None
    half = max(root, 0.0) ** 0.5
    return float((two - half) / one), float((two + half) / one)


def of_auc(value: float, positives: int, negatives: int, level: float = LEVEL) -> tuple[float, float]:
    """The interval of an area under the ROC curve (Newcombe, Statistics in Medicine 2006, method 5).

    Where the two groups do not overlap it still says how few they were, other than a bootstrap.

    Args:
        value: the area, from so many positives and negatives.
    """
    z, pairs = float(norm.ppf((1 + level) / 2)), positives * negatives
    half = (positives + negatives) / 2 - 1

    def beyond(area: float) -> float:
        spread = area * (1 - area) * (1 + half * ((1 - area) / (2 - area) + area / (1 + area))) / pairs
        return (value - area) ** 2 - z**2 * spread

    low = 0.0 if value == 0 else float(brentq(beyond, 0, min(value, 1 - 1e-9)))
    high = 1.0 if value == 1 else float(brentq(beyond, max(value, 1e-9), 1))
    return low, high


def bootstrap(
    values: np.ndarray,
    statistic: Statistic = np.mean,
    level: float = LEVEL,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> tuple[float, float]:
    """The percentile interval of a statistic over independent values (Efron, 1979), alike at each call.

    Args:
        values: (n,), one for each independent unit (an image, not a caption of it, nor a seed).

    Raises:
        ValueError: fewer than two values, which say nothing of their spread, or one that is not finite.
    """
    values = _checked(values)
    rows = np.random.default_rng(seed).integers(len(values), size=(resamples, len(values)))
    draws = statistic(values[rows], axis=-1)
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _checked(values: np.ndarray) -> np.ndarray:
    values = np.asarray(values, np.float64)
    if len(values) < 2 or not np.isfinite(values).all():
        raise ValueError(f"an interval needs at least two finite values, not {len(values)}")
    return values
