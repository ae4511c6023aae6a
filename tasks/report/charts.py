"""Geometry of the report's drawings: where lines, ticks and cells lie. How they look is the template's matter."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

WIDTH, HEIGHT = 640, 260
LEFT, RIGHT, TOP, BOTTOM = 52, 12, 12, 40
CELL = 46


@dataclass(frozen=True)
class Curve:
    """A named line: one y for each x."""

    label: str
    values: Sequence[float]


@dataclass(frozen=True)
class Chart:
    """Curves over a common axis that counts 1, 2, ..., or names its points."""

    title: str
    x_label: str
    y_label: str
    curves: Sequence[Curve]
    note: str = ""
    smooth: int = 1
    """Draws the running mean over so many points in front of the raw line."""
    x_marks: Sequence[str] = ()
    """What the points are called, where they are not counted."""


@dataclass(frozen=True)
class Matrix:
    """Values in [0, 1] of all pairs, such as the IOU of neuron sets."""

    title: str
    labels: Sequence[str]
    values: Sequence[Sequence[float]]
    note: str = ""
    """What the values are to be held against, such as the IOU expected by chance."""


@dataclass(frozen=True)
class Line:
    label: str
    raw: str
    """Points of an SVG polyline."""
    smoothed: str


@dataclass(frozen=True)
class Drawn:
    lines: list[Line]
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]


def drawn(chart: Chart) -> Drawn:
    """The chart's lines and ticks in pixels.

    Raises:
        ValueError: no curve, an empty one, or a value that is not finite.
    """
    values = [value for curve in chart.curves for value in curve.values]
    if not values or not all(len(curve.values) for curve in chart.curves) or not all(map(math.isfinite, values)):
        raise ValueError(f"the chart {chart.title!r} needs curves of finite values")
    longest = max(len(curve.values) for curve in chart.curves)
    y_marks = ticks(min(0.0, *values), max(values))
    low, high = y_marks[0], y_marks[-1]

    def x(number: float) -> float:
        share = (number - 1) / (longest - 1) if longest > 1 else 0.5
        return round(LEFT + share * (WIDTH - LEFT - RIGHT), 1)

    def y(value: float) -> float:
        return round(HEIGHT - BOTTOM - (value - low) / (high - low) * (HEIGHT - TOP - BOTTOM), 1)

    def points(line: Sequence[float]) -> str:
        return " ".join(f"{x(number)},{y(value)}" for number, value in enumerate(line, 1))

    lines = [
        Line(curve.label, points(curve.values), points(running_mean(curve.values, chart.smooth)))
        for curve in chart.curves
    ]
    if chart.x_marks:
        x_ticks = [(x(number), mark) for number, mark in enumerate(chart.x_marks, 1)]
    else:
        counted = sorted({1, longest} | {int(mark) for mark in ticks(1, longest) if 1 < mark < longest * 0.95})
        x_ticks = [(x(mark), str(mark)) for mark in counted]
    return Drawn(lines, x_ticks, [(y(mark), f"{mark:g}") for mark in y_marks])


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round numbers in even steps that enclose low and high."""
    span = (high - low) or 1.0
    unit = 10 ** math.floor(math.log10(span / about))
    step = next(unit * factor for factor in (1, 2, 5, 10) if unit * factor * about >= span)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(number * step, 12) for number in range(first, max(last, first + 1) + 1)]


def running_mean(values: Sequence[float], window: int) -> list[float]:
    """Each value's mean with those up to window - 1 places before it."""
    return [sum(part) / len(part) for end in range(1, len(values) + 1) for part in [values[max(0, end - window) : end]]]
