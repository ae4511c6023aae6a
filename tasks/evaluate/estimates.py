"""Estimates: from scores of generations to one number with its interval.

What counts once is an image with all prompts that bring it (see `tasks.units`): several seeds
of one prompt, and several captions of one image, tell the same story. So the generations of a unit, those of all its
prompts together, are first brought down to one number, and intervals are taken over units. A prompt has as many
generations as any other, so each caption of an image weighs the same. Where each prompt has an image of its own, a unit
is a prompt.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from tasks.errors import InputError
from tasks.evaluate.seen import Generation
from tasks.intervals import Statistic, interval

ByUnit = Mapping[str, np.ndarray]
"""By unit, the scores (n,) of its prompts' generations, or of their pairs."""


@dataclass(frozen=True)
class Estimate:
    """One metric of one variant under one condition."""

    metric: str
    value: float
    """Not a number where there are too few cases for it to mean anything; null in the store."""
    low: float | None
    """95 % interval; None where there is none: a single unit, or a metric without a sound interval."""
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


def gathered(generations: Sequence[Generation], values: Sequence[float]) -> dict[str, np.ndarray]:
    """Values, one for each of these generations, by unit."""
    return by_unit([one.unit for one in generations], np.array(values))


def of_prompts(generations: Sequence[Generation], found: Sequence[Estimate]) -> list[Estimate]:
    """The same estimates with the number of prompts behind them."""
    return [replace(one, prompts=len({each.prompt_id for each in generations})) for one in found]


def mad(values: np.ndarray, *, axis: int = -1) -> np.ndarray:
    """Median absolute deviation from the median along an axis, not rescaled."""
    return np.asarray(np.median(np.abs(values - np.median(values, axis, keepdims=True)), axis))


def filled(rows: ByUnit) -> list[np.ndarray]:
    """The scores of each unit.

    Raises:
        InputError: there are none.
    """
    if not rows:
        raise InputError("no generations to measure: generate first")
    return list(rows.values())


def over_units(metric: str, values: np.ndarray, statistic: Statistic) -> Estimate:
    """A statistic of values (n,), one for each unit, with its interval; see `tasks.intervals.interval`."""
    low, high = interval(values, statistic) or (None, None)
    # What one value deviates by is 0, which would say that it is sure.
    lone = len(values) == 1 and statistic in (mad, np.std)
    return Estimate(metric, math.nan if lone else float(statistic(values, axis=-1)), low, high, len(values))
