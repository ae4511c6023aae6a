"""The report of an audit: one HTML file that needs nothing else, and its table for the terminal."""

import base64
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from textwrap import fill

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template
from rich import box
from rich.console import Console
from rich.table import Table

from tasks.conditions import Condition
from tasks.errors import InputError
from tasks.methods import Column, columns, metrics
from tasks.report.charts import Chart, Matrix, inline
from tasks.report.standing import Standings
from tasks.report.verdict import Control, Row, controls, verdict
from tasks.scorers.sscd import COPY_THRESHOLD

_MAGIC = {b"\x89PNG\r\n\x1a\n": "image/png", b"\xff\xd8\xff": "image/jpeg"}


@dataclass(frozen=True)
class StripImage:
    """An image as it stands in a strip."""

    label: str
    """Such as "original model" or "nemo, attacked from noise"."""
    data: bytes
    """PNG or JPEG."""
    sscd: float | None = None
    """Similarity to the training image; None for that image itself."""


@dataclass(frozen=True)
class Strip:
    """One training image and what the variants make of it, under its prompt and under attack."""

    prompt: str
    original: StripImage
    generated: Sequence[StripImage]
    prompts: int = 1
    """Prompts whose images the best are taken from: all that share the image, of which `prompt` is the first."""


@dataclass(frozen=True)
class Report:
    """Everything the page shows."""

    title: str
    subtitle: str
    facts: Sequence[tuple[str, str]]
    """How the audit was made: model, seeds, parameters, versions, times."""
    rows: Sequence[Row]
    standings: Standings
    strips: Sequence[Strip] = ()
    attacks: Sequence[Chart] = ()
    """Losses of the attacks, and what they bring back by their effort."""
    trainings: Sequence[Chart] = ()
    """Losses of fine-tunings."""
    matrices: Sequence[Matrix] = ()
    curves: Sequence[Chart] = ()
    """IOU over steps and layers."""
    left: Sequence[Chart] = ()
    """Memorization left by number of silenced neurons."""
    more_controls: Sequence[Control] = ()
    """Controls that do not follow from the rows."""


@dataclass(frozen=True)
class Line:
    """One line of the table: a variant under a condition, its estimates by metric."""

    variant: str
    condition: Condition
    estimates: dict[str, Row]


def render(report: Report) -> str:
    """The page as HTML: no script, nothing from outside, everything escaped.

    Raises:
        InputError: an image is neither PNG nor JPEG.
    """
    page: str = _template("report.html.jinja").render(
        report=report,
        verdict=verdict(report.rows, report.standings),
        controls=[*controls(report.rows, report.standings), *report.more_controls],
        groups=[(name, list(lines)) for name, lines in groupby(lines_of(report.rows), lambda line: line.variant)],
        columns=columns_of(report.rows),
        control_of={one.name: one.control_of for one in report.standings.values()},
        threshold=COPY_THRESHOLD,
        meanings=meanings(report.rows),
    )
    return page.lstrip()


def _template(name: str) -> Template:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "svg": inline,
        "uri": data_uri,
        "value": value_text,
        "interval": interval_text,
        "cases": cases_text,
    }
    return environment.get_template(name)


def table_text(rows: Sequence[Row], width: int = 120) -> str:
    """The table of estimates as plain text for a terminal of so many columns."""
    shown = {name: column for name, column in columns_of(rows).items() if column.narrow}
    table = Table(box=box.SIMPLE_HEAD, padding=0)
    for heading in ("variant", "condition", "n", *(column.heading for column in shown.values())):
        # Headings are broken here and numbers not at all, but on terminals too narrow for them.
        table.add_column(fill(heading, 9, break_long_words=False), no_wrap=True, overflow="fold")
    before = None
    for line in lines_of([row for row in rows if row.metric in shown]):
        if before not in (None, line.variant):
            table.add_section()
        cells = [_cell(line.estimates[metric]) if metric in line.estimates else "" for metric in shown]
        table.add_row("" if line.variant == before else line.variant, line.condition.name, size_text(line), *cells)
        before = line.variant
    stream = io.StringIO()
    Console(file=stream, width=width, no_color=True, markup=False, highlight=False).print(table)
    return stream.getvalue()


def lines_of(rows: Sequence[Row]) -> list[Line]:
    """Rows gathered by variant and condition: variants in order of appearance, each variant's conditions together.

    Attacks of so many steps are left out: they are a curve.
    """
    rows = [row for row in rows if row.condition.steps is None]
    variants = list(dict.fromkeys(row.variant for row in rows))
    pairs = sorted(
        dict.fromkeys((row.variant, row.condition) for row in rows), key=lambda pair: variants.index(pair[0])
    )
    return [
        Line(
            variant,
            condition,
            {row.metric: row for row in rows if (row.variant, row.condition) == (variant, condition)},
        )
        for variant, condition in pairs
    ]


def columns_of(rows: Sequence[Row]) -> dict[str, Column]:
    """By metric the columns, from left to right, of those that any row has."""
    present = {row.metric for row in rows}
    return {name: column for name, column in columns().items() if name in present}


def meanings(rows: Sequence[Row]) -> list[str]:
    """What the metrics of these rows say, and of what; a text for each, in the order of columns."""
    present, order = {row.metric for row in rows}, list(columns())
    found = [one for one in metrics() if present & {*one.shown, *one.kept}]
    return [one.words for one in sorted(found, key=lambda one: min(map(order.index, one.shown), default=len(order)))]


def size_text(line: Line) -> str:
    """The images behind a line, and their prompts where these are more; several numbers where its estimates rest on
    different ones."""
    shown = (row for metric, row in line.estimates.items() if metric in columns())
    return "/".join(dict.fromkeys(_count_text(row) for row in shown))


def cases_text(row: Row) -> str:
    """What one estimate rests on, such as images, of which its column says where it counts something else."""
    return f"{_count_text(row)} {columns()[row.metric].cases}".rstrip()


def value_text(row: Row) -> str:
    """An estimate in the digits its metric deserves."""
    return "too few" if math.isnan(row.value) else columns()[row.metric].text(row.value)


def interval_text(row: Row) -> str:
    """Its interval, or nothing where there is none."""
    if row.low is None or row.high is None:
        return ""
    column = columns()[row.metric]
    return f"{column.text(row.low).removesuffix(' %')}–{column.text(row.high)}"


def data_uri(data: bytes) -> str:
    """A PNG or JPEG as a data URI; nothing else, since some formats can carry scripts."""
    kind = next((name for magic, name in _MAGIC.items() if data.startswith(magic)), None)
    if kind is None:
        raise InputError("an image of the report is neither PNG nor JPEG: convert it first")
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def _count_text(row: Row) -> str:
    return str(row.n) if row.prompts in (None, row.n) else f"{row.n} ({row.prompts} prompts)"


def _cell(row: Row) -> str:
    interval = interval_text(row)
    return f"{value_text(row)}\n{interval}" if interval else value_text(row)
