"""From scores to decisions with a false-alarm rate that holds (Vovk et al., Algorithmic Learning in a Random World;
as a test for outliers: Bates et al., Annals of Statistics 2023).

If a prompt is not memorized, and so no different from the null prompts that it is compared with, then each of the n + 1
is as likely as any other to score highest, second, and so on. That needs null prompts as different from each other as
from this one: captions of one image count once, see `tasks.scan.task.different`. So its p-value is at most alpha with a
chance of at most alpha, whatever the scores are and however few null prompts there are. The chance counts the draw of
the null prompts, too: with one set of them it can be somewhat higher or lower for all prompts.
"""

import math

import numpy as np

from tasks.errors import InputError


def p_values(scores: np.ndarray, nulls: np.ndarray) -> np.ndarray:
    """(1 + null scores as high or higher) / (n + 1) of each score.

    Args:
        scores: (m,), higher where a prompt is memorized.
        nulls: (n,), of prompts that are not.

    Returns:
        float64 (m,).
    """
    as_high = len(nulls) - np.searchsorted(np.sort(nulls), scores, "left")
    return np.asarray((1 + as_high) / (len(nulls) + 1))


def false_alarms(nulls: int, alpha: float) -> float:
    """The chance that a prompt that is not memorized has a p-value of at most alpha, where no scores are equal.

    At most alpha: p-values are multiples of 1 / (n + 1).

    Raises:
        InputError: it is 0, since there are too few null prompts for any p-value to be that small.
    """
    smallest = 1 / (nulls + 1)
    if smallest > alpha:
        raise InputError(
            f"{nulls} null prompts are too few for a false-alarm rate of {100 * alpha:g} %, which needs "
            f"{math.ceil(1 / alpha) - 1}: give more with --nulls, or a higher --alpha"
        )
    return np.count_nonzero(np.arange(1, nulls + 2) / (nulls + 1) <= alpha) / (nulls + 1)
