"""Intervals: how sure a figure is, given how few prompts and pictures it was measured on."""

from collections.abc import Callable

import numpy as np
from scipy.stats import beta

LEVEL = 0.95
"""Confidence of every interval."""
RESAMPLES = 2000
"""Bootstrap samples."""


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
    statistic: Callable[[np.ndarray], float] = np.mean,
    level: float = LEVEL,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> tuple[float, float]:
    """The percentile interval of a statistic over independent rows (Efron, 1979), alike at each call.

    Args:
        values: (n, ...), one row for each independent unit (a prompt, not a seed of it).
        statistic: a number of resampled rows, as `np.mean` and `np.median` give it.

    Raises:
        ValueError: fewer than two rows, which say nothing of their spread, or a value that is not finite.
    """
    rows = np.asarray(values, np.float64)
    if len(rows) < 2 or not np.isfinite(rows).all():
        raise ValueError(f"an interval needs at least two finite values, not {len(rows)}")
    rng = np.random.default_rng(seed)
    draws = [statistic(rows[rng.integers(len(rows), size=len(rows))]) for _ in range(resamples)]
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
