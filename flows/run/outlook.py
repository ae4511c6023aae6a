"""What a run has to do: its work as a list, with evaluations of the denoiser, time and disk, before it is done."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from flows.run.spec import Spec
from flows.run.work import Stage, work
from tasks.diffusion.footprint import without_weights
from tasks.diffusion.speed import seconds_of_an_evaluation
from tasks.mitigate.task import memory_needed


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
    memory: Mapping[str, float]
    """By training that is left, the bytes of its device that it takes at the least."""

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
        trained = ", ".join(f"{name} {_size(needs)}" for name, needs in self.memory.items())
        memory = f" Trainings take memory, at the least: {trained}." if trained else ""
        return (
            f"About {_number(self.evaluations)} evaluations of the denoiser are left, {_duration(self.seconds)} on this"
            f" device as busy as it is now, and {_size(self.bytes)} to be written. Loading and scoring come on top."
            f" What follows from results counts as if everything were found.{memory}"
        )


def outlook(spec: Spec) -> Outlook:
    """Looks at every item of a run; nothing is written, and nothing computed but a few evaluations that are timed."""
    model = spec.subject.load()
    rows: dict[tuple[str, str], Row] = {}
    sizes: dict[tuple[str, str], float] = {}  # of a unit, which some ask the model for
    left_over: set[str] = set()  # variants of which something is left to do
    for item in work(spec, foreseen=True):
        if item.anew:
            continue
        kind = (item.stage, item.name)
        row = rows.setdefault(kind, Row(*kind, unit=item.unit))
        if kind not in sizes:
            sizes[kind] = item.bytes(model)
        missing = item.missing()
        left_over |= {item.variant} if missing else set()
        row.there += item.size - missing
        row.of += item.size
        row.evaluations += missing * item.cost
        row.bytes += missing * sizes[kind]
    found = list(rows.values())
    left = sum(row.evaluations for row in found)
    empty = without_weights(model)
    trainings = [one for one in spec.settings.chosen("training") if one.name in left_over]
    memory = {one.name: needs for one in trainings if (needs := memory_needed(one, spec.settings.of(one), empty))}
    seconds = left * seconds_of_an_evaluation(model, spec.settings.sampling.batch) if left else 0.0
    return Outlook(found, seconds, memory)


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
