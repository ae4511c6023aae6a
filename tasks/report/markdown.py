"""An audit's estimates as Markdown, and text that is kept up to date between marks of a page."""

from collections.abc import Sequence
from pathlib import Path

from tasks.errors import InputError
from tasks.report.report import columns_of, interval_text, lines_of, size_text, value_text
from tasks.report.standing import Standings
from tasks.report.verdict import Row, controls, effort_rates, verdict, without_random


def estimates_text(rows: Sequence[Row], standings: Standings) -> str:
    """The verdict, the table of variants by condition, and what the controls say."""
    shown = columns_of(rows)
    lines = [
        verdict(rows, standings),
        "",
        f"| variant | condition | n | {' | '.join(column.heading for column in shown.values())} |",
    ]
    lines.append(f"|---|---|---:|{'---:|' * len(shown)}")
    for line in lines_of(rows):
        cells = [_cell(line.estimates[metric]) if metric in line.estimates else "" for metric in shown]
        lines.append(f"| {line.variant} | {line.condition.name} | {size_text(line)} | {' | '.join(cells)} |")
    judged = [*controls(rows, standings), *without_random({row.variant for row in rows}, standings)]
    lines += ["", *(f"- **{control.name}** {control.state}: {control.words}" for control in judged)]
    return "\n".join(lines)


def effort_text(rows: Sequence[Row]) -> str:
    """Copies by the number of attack steps, of memorized images and of others; empty where it was not audited."""
    memorized, others = effort_rates(rows), effort_rates(rows, control=True)
    if not memorized:
        return ""
    lines = ["", "", "| attack steps, from noise | memorized | never memorized |", "|---:|---:|---:|"]
    for steps in sorted(memorized):
        pair = memorized[steps], others.get(steps)
        lines.append(f"| {steps} | {' | '.join('' if row is None else f'{_cell(row)} of {row.n}' for row in pair)} |")
    return "\n".join(lines)


def put_between(path: Path, name: str, text: str) -> None:
    """Puts text between the marks of this name, `<!-- name -->` and `<!-- /name -->`; at the end where there are none.

    Whatever else the page says stays as it is; a page that is not there yet begins with its name.

    Raises:
        InputError: the first mark is there and the second is not.
    """
    begin, end = f"<!-- {name} -->\n", f"<!-- /{name} -->"
    page = path.read_text() if path.is_file() else f"# {path.stem.capitalize()}\n"
    before, found, rest = page.partition(begin)
    if found and end not in rest:
        raise InputError(f"{path} has the mark {begin.strip()} but no {end} after it: put it back, or take both away")
    after = rest.partition(end)[2] if found else "\n"
    before = before if found else f"{page.rstrip()}\n\n"
    aside = path.with_suffix(".writing")
    aside.write_text(f"{before}{begin}{text.rstrip()}\n{end}{after}")
    aside.replace(path)


def _cell(row: Row) -> str:
    interval = interval_text(row)
    return f"{value_text(row)} ({interval})" if interval else value_text(row)
