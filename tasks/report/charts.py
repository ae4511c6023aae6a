"""The report's charts, as SVG by matplotlib.

They are for everyone who reads the page: lines differ in their strokes and not in colour alone, text is text, and a
title and a description say what is drawn.
"""

import io
import math
import re
import threading
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, cycle
from textwrap import fill, shorten
from typing import Any
from xml.etree import ElementTree

import numpy as np
from cycler import cycler
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from tasks.errors import printable

WIDTH, HEIGHT = 640, 270
"""Of a chart without its title and legend, in the units of the drawing."""
LINE = 18
"""Height of a line of text."""
CELL, LABELS = 46, 210
"""Side of a matrix's cell, and width of the labels beside it."""
FEW = 20
"""Points up to which each is marked."""
INK, SOFT, GRID = "#1d1f21", "#5c6066", "#dfe0dc"
HUES = ("#1f5f8b", "#b5541c", "#1f7a5c", "#8a4a9e", "#8a6d00", "#b03060")
STROKES = ("-", "--", ":", "-.", (0, (7, 2, 1, 2, 1, 2)))
"""As many as share no factor with the number of hues, so that 30 lines differ."""
VARIABLES = {INK: "ink", SOFT: "soft", GRID: "line"} | {hue: f"h{number}" for number, hue in enumerate(HUES)}
"""What the page calls these colours, for which it has others in the dark."""
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "engram",  # equal charts are equal files
    "text.parse_math": False,  # a dollar in a name is a dollar
    "font.size": 12,
    "font.sans-serif": ["DejaVu Sans", "Verdana", "Arial"],
    "text.color": INK,
    "axes.labelcolor": SOFT,
    "axes.edgecolor": GRID,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "axes.prop_cycle": cycler(color=HUES * len(STROKES)) + cycler(linestyle=STROKES * len(HUES)),
    "grid.color": GRID,
    "lines.linewidth": 2,
    "xtick.color": GRID,
    "xtick.labelcolor": SOFT,
    "ytick.labelcolor": SOFT,
    "ytick.left": False,
    "legend.frameon": False,
    "legend.handlelength": 3.5,
}
_ALONE = threading.Lock()
"""Matplotlib's settings are the process's, and flows draw in several threads."""
_SVG = "{http://www.w3.org/2000/svg}"
ElementTree.register_namespace("", _SVG.strip("{}"))
ElementTree.register_namespace("xlink", "http://www.w3.org/1999/xlink")


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
    """What the values are to be compared with, such as the IOU expected by chance."""


@dataclass(frozen=True)
class Map:
    """Groups of points (n, 2) on a plane, of which nothing but the distances counts."""

    title: str
    groups: Mapping[str, np.ndarray]
    note: str = ""


Drawing = Chart | Matrix | Map


def drawn(it: Drawing) -> str:
    """An SVG file of its own, with title and note above.

    Raises:
        ValueError: there is nothing to draw, or a value is not finite.
    """
    return ElementTree.tostring(_plot(it, alone=True), "unicode")


def inline(it: Drawing) -> str:
    """The same as a part of the page, which says title and note itself and has names for the colours."""
    text = ElementTree.tostring(_plot(it, alone=False), "unicode")
    text = re.sub(r' xmlns(:\w+)?="[^"]*"', "", text)  # HTML knows what an SVG is
    return re.sub("(?<=: )#[0-9a-f]{6}", lambda found: f"var(--{VARIABLES[found[0]]})", text)


def running_mean(values: Sequence[float], window: int) -> list[float]:
    """Each value's mean with those up to window - 1 places before it."""
    return [sum(part) / len(part) for end in range(1, len(values) + 1) for part in [values[max(0, end - window) : end]]]


def _plot(it: Drawing, alone: bool) -> ElementTree.Element:
    stream = io.BytesIO()
    with _ALONE, rc_context(STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # the reader's browser has it
        figure = Figure(layout="constrained")
        axes = figure.subplots()
        match it:
            case Chart():
                width, height = _lines(figure, axes, it)
            case Matrix():
                width, height = _cells(axes, it)
            case Map():
                width, height = _points(figure, axes, it)
        if alone:
            note = fill(printable(it.note), int(width / 7))
            title = shorten(printable(it.title), int(width / 10), placeholder="…")
            figure.suptitle(title, x=0.01, ha="left", fontsize=15, fontweight="bold")
            axes.set_title(note, loc="left", fontsize=12, color=SOFT)
            height += 2 * LINE + LINE * len(note.splitlines())
        figure.set_size_inches(width / 72, height / 72)  # of 72 units each
        figure.patch.set_visible(alone)
        axes.patch.set_visible(False)
        figure.savefig(stream, format="svg", metadata={"Date": None, "Title": printable(it.title)})
    return _plain(ElementTree.fromstring(stream.getvalue()), it)


def _lines(figure: Figure, axes: Axes, chart: Chart) -> tuple[float, float]:
    """Draws the curves, and returns width and height."""
    lengths = [len(curve.values) for curve in chart.curves]
    if not lengths or not min(lengths) or not all(math.isfinite(one) for curve in chart.curves for one in curve.values):
        raise ValueError(f"the chart {chart.title!r} needs curves of finite values")
    marker = "o" if max(lengths) <= FEW else ""
    for curve in chart.curves:
        steps, smoothed = range(1, len(curve.values) + 1), running_mean(curve.values, chart.smooth)
        # In front of the axis: a share of 0 lies on it.
        (line,) = axes.plot(steps, smoothed, label=printable(curve.label), marker=marker, clip_on=False, zorder=3)
        if chart.smooth > 1:
            axes.plot(steps, curve.values, "-", color=line.get_color(), linewidth=1, alpha=0.3)
    axes.set_xlabel(chart.x_label)
    axes.set_ylabel(chart.y_label)
    if min(min(curve.values) for curve in chart.curves) >= 0:
        axes.set_ylim(bottom=0)
    if chart.x_marks:
        axes.set_xticks(range(1, len(chart.x_marks) + 1), [printable(mark) for mark in chart.x_marks])
    else:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    figure.legend(loc="outside lower left")
    return WIDTH, HEIGHT + LINE * len(lengths)


def _cells(axes: Axes, matrix: Matrix) -> tuple[float, float]:
    """Draws a cell for each pair, and returns width and height."""
    count = len(matrix.labels)
    for row, values in enumerate(matrix.values):
        for column, value in enumerate(values):
            shade = 0.06 + 0.5 * value
            axes.add_patch(Rectangle((column + 0.02, row + 0.02), 0.96, 0.96, facecolor=HUES[0], alpha=shade))
            axes.text(column + 0.5, row + 0.5, f"{value:.2f}", ha="center", va="center")
    places, numbers = [number + 0.5 for number in range(count)], [str(number) for number in range(1, count + 1)]
    named = [shorten(printable(label), 20, placeholder="…") for label in matrix.labels]
    axes.set(xlim=(0, count), ylim=(count, 0), aspect="equal")
    axes.set_xticks(places, numbers)
    axes.set_yticks(places, [f"{name}\u2003{number}" for name, number in zip(named, numbers, strict=True)])
    axes.grid(visible=False)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    return CELL * count + LABELS, CELL * count + LINE


def _points(figure: Figure, axes: Axes, it: Map) -> tuple[float, float]:
    """Draws the points, each group with a mark of its own, and returns width and height."""
    if not sum(map(len, it.groups.values())):
        raise ValueError(f"the map {it.title!r} needs points")
    for mark, (name, points) in zip(cycle("osD^"), it.groups.items()):
        axes.plot(*np.asarray(points).T, mark, label=printable(name))
    axes.set_aspect("equal", adjustable="datalim")
    axes.set_axis_off()
    figure.legend(loc="outside lower left")
    return WIDTH, WIDTH + LINE * len(it.groups)


def _plain(root: ElementTree.Element, it: Drawing) -> ElementTree.Element:
    """The drawing with a description, shorter, and without what would reach out of it into a page."""
    links = (re.match(r"(?:url\()?#(\w+)", value) for element in root.iter() for value in element.attrib.values())
    linked = {link[1] for link in links if link}
    for element in list(root.iter()):
        if element.get("id") not in linked:
            element.attrib.pop("id", None)
        if path := element.get("d"):  # a tenth is as fine as a line can be seen
            element.set("d", re.sub(r"\d+\.\d+", lambda number: f"{float(number[0]):.1f}", " ".join(path.split())))
        for child in list(element):
            if child.tag in (f"{_SVG}metadata", f"{_SVG}style"):
                element.remove(child)
    size = {name: root.attrib[name].removesuffix("pt") for name in ("width", "height")}
    root.attrib |= size | {"role": "img", "stroke-linejoin": "round"}
    description = ElementTree.Element(f"{_SVG}desc")
    description.text = printable(f"{_words(it)}. {it.note}".strip())
    root.insert(1, description)  # after the title
    return root


def _words(it: Drawing) -> str:
    """What the drawing shows, for those who do not see it."""
    if isinstance(it, Matrix):
        pairs = combinations(range(len(it.labels)), 2)
        return "; ".join(f"{it.labels[a]} and {it.labels[b]}: {it.values[a][b]:.2f}" for a, b in pairs)
    if isinstance(it, Map):
        return ", ".join(f"{len(points)} {name}" for name, points in it.groups.items())
    ends = []
    for curve in it.curves:
        marks = it.x_marks or range(1, len(curve.values) + 1)
        first, last = (f"{curve.values[n]:.3g} at {it.x_label} {marks[n]}" for n in (0, len(curve.values) - 1))
        ends.append(f"{curve.label}: {first}, {last}")
    return f"{it.y_label} by {it.x_label}. {'; '.join(ends)}"
