"""What a run has to do: its work as a list, with evaluations of the denoiser, time and disk, before it is done."""

from dataclasses import asdict, dataclass
from typing import Any

from flows.run.spec import Spec
from flows.run.work import Stage, work
from tasks.diffusion.speed import seconds_of_an_evaluation


@dataclass
class Row:
    """Items of one kind together: all shards of one method, variant and condition."""

    stage: Stage
    work: str
    there: int = 0
    """Units that the store has."""
    of: int = 0
    """Units in all."""
    unit: str = ""
    """What they are: prompts, images, triggers, ..."""
    evaluations: float = 0
    """Evaluations of the denoiser that are left; a gradient counts as three."""
    bytes: float = 0
    """What will be written, about."""


@dataclass(frozen=True)
class Outlook:
    """All that a run has to do, but for what every audit does anew: scoring, estimates, the report."""

    rows: list[Row]
    seconds: float
    """What the evaluations that are left take on this device."""

    @property
    def evaluations(self) -> float:
        """Those that are left."""
        return sum(row.evaluations for row in self.rows)

    @property
    def bytes(self) -> float:
        """What will be written, about."""
        return sum(row.bytes for row in self.rows)

    def records(self) -> list[dict[str, Any]]:
        """The rows as a table is printed from."""
        return [asdict(row) | {"evaluations": round(row.evaluations), "bytes": round(row.bytes)} for row in self.rows]

    def words(self) -> str:
        """In a sentence or two, how much is left."""
        if all(row.there == row.of for row in self.rows):
            return "All of it is in the store already: scores, estimates and the report are written anew."
        return (
            f"About {_number(self.evaluations)} evaluations of the denoiser are left, {_duration(self.seconds)} on this"
            f" device, and {_size(self.bytes)} to be written. Loading and scoring come on top. What follows from"
            " results counts as if everything were found."
        )


def outlook(spec: Spec) -> Outlook:
    """Looks at every item of a run; nothing is written, and nothing computed but a few evaluations that are timed."""
    model = spec.subject.load()
    rows: dict[tuple[str, str], Row] = {}
    for item in work(spec, foreseen=True):
        if item.anew:
            continue
        row = rows.setdefault((item.stage, item.name), Row(item.stage, item.name, unit=item.unit))
        missing = item.missing()
        row.there += item.size - missing
        row.of += item.size
        row.evaluations += missing * item.cost
        row.bytes += missing * item.bytes(model)
    found = list(rows.values())
    left = sum(row.evaluations for row in found)
    return Outlook(found, left * seconds_of_an_evaluation(model, spec.settings.sampling.batch) if left else 0.0)


def _number(value: float) -> str:
    return f"{value:,.0f}" if value < 1e6 else f"{value / 1e6:,.1f} million"


def _duration(seconds: float) -> str:
    for unit, length in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 1.5 * length:
            return f"about {seconds / length:.1f} {unit}"
    return f"about {seconds:.0f} seconds"


def _size(number: float) -> str:
    for unit, length in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if number >= length:
            return f"{number / length:.1f} {unit}"
    return f"{number / 1e3:.0f} kB"
