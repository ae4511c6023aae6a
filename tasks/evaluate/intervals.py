"""Intervals: how sure a figure is, given how few prompts and pictures it was measured on."""

from typing import Any, Protocol

import numpy as np
from scipy.stats import beta

LEVEL = 0.95
"""Confidence of every interval."""
RESAMPLES = 2000
"""Bootstrap samples."""


class Statistic(Protocol):
    """A number of each slice along an axis, as `np.mean` and `np.median` give it."""

    def __call__(self, values: np.ndarray, /, *, axis: int) -> Any: ...


def clopper_pearson(successes: int, trials: int, level: float = LEVEL) -> tuple[float, float]:
    """The exact interval of a rate (Clopper and Pearson, 1934): it covers with `level` or more, whatever the rate.

    Raises:
        ValueError: not 0 <= successes <= trials, or no trial.
    """
    if not 0 <= successes <= trials or trials == 0:
        raise ValueError(f"{successes} successes in {trials} trials is no rate")
    tail = (1 - level) / 2
    low = beta.ppf(tail, successes, trials - successes + 1) if successes else 0.0
    high = beta.ppf(1 - tail, successes + 1, trials - successes) if successes < trials else 1.0
    return float(low), float(high)


def bootstrap(
    values: np.ndarray,
    statistic: Statistic = np.mean,
    level: float = LEVEL,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> tuple[float, float]:
    """The percentile interval of a statistic over independent values (Efron, 1979), alike at each call.

    Args:
        values: (n,), one for each independent unit (a prompt, not a seed of it).

    Raises:
        ValueError: fewer than two values, which say nothing of their spread, or one that is not finite.
    """
    values = np.asarray(values, np.float64)
    if len(values) < 2 or not np.isfinite(values).all():
        raise ValueError(f"an interval needs at least two finite values, not {len(values)}")
    rows = np.random.default_rng(seed).integers(len(values), size=(resamples, len(values)))
    draws = statistic(values[rows], axis=-1)
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
