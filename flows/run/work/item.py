"""Items of work, and the shards of prompts, images or triggers that they are made of, each with its cost and size."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, get_args

from flows.run import ids
from flows.run.spec import Spec
from storage import content_key
from tasks.diffusion.families import Model
from tasks.diffusion.sampling import guided, image_size
from tasks.diffusion.sites import Site

Stage = Literal["confirm", "collect", "localize", "mitigate", "attack", "diagnose", "evaluate"]
"""The stages that compute; what they leave is reported at the end."""
STAGES: tuple[Stage, ...] = get_args(Stage)
UNITS, EVALUATIONS = 64, 2000.0
"""Of how many prompts, images or triggers an item is made at most, and about how many evaluations of the denoiser it
takes unless a single unit takes more: what is lost where a worker is killed, and the least that a worker is given."""
FLOAT = 4
"""Bytes of a number."""
GRADIENT = 3
"""Evaluations of the denoiser that a gradient through it takes the time of."""
T = TypeVar("T")


@dataclass(frozen=True)
class Item:
    """A piece of work."""

    stage: Stage
    method: str
    """What is done, such as "NeMo" or "generate"."""
    do: Callable[[], Any]
    """Does it, through its stage's door."""
    writes: tuple[str, ...]
    """Tables that it writes rows of."""
    reads: tuple[str, ...] = ()
    gives: str = ""
    """What it leaves, by a name that others need it by; all shards of one piece of work give the same."""
    needs: tuple[str, ...] = ()
    """What must be there before: no item that gives one of these may be left to do."""
    key: str = ""
    """Of what determines its result, where one key stands for all of it."""
    variant: str = ""
    """By the name that estimates go by; empty where it is about no variant."""
    condition: str = ""
    """What the variant is asked; empty where nothing is."""
    shard: int = 0
    """Which piece of what is done so it is, from 0."""
    size: int = 1
    """Of how many units it is made."""
    unit: str = "prompt"
    """What a unit is: a prompt, an image, a trigger, a variant."""
    missing: Callable[[], int] = lambda: 1
    """How many of its units the store does not have."""
    anew: bool = False
    """Whether every audit does it again: it costs little, and is of the audit, not of the run."""
    cost: float = 0
    """Evaluations of the denoiser that a unit takes, about."""
    bytes: Callable[[Model], float] = lambda model: 0
    """What a unit takes in the store, about."""
    may_fail: bool = False
    """Whether that it fails is a result, too, without which the rest goes on."""

    @property
    def name(self) -> str:
        """What it is, in words."""
        return ", ".join(part for part in (self.method, self.variant, self.condition) if part)

    @property
    def id(self) -> str:
        """What it goes by between processes: the same wherever a run's work is listed."""
        whole = self.stage, self.method, self.variant, self.condition, self.key, self.gives, self.shard, self.size
        return content_key("item/1", *whole)[:16]


@dataclass(frozen=True)
class Context:
    """What the items of a stage follow from."""

    spec: Spec
    audit_id: str
    foreseen: bool

    @property
    def variants(self) -> dict[str, str]:
        """By name, the variant in the store."""
        return ids.expected(self.spec) if self.foreseen else ids.there(self.spec)


def sharded(
    units: Sequence[T], cost: float = 0, least: int = 1, most: int | None = None
) -> Iterator[tuple[int, list[T]]]:
    """Units in shards, each with its number; which unit is in which follows from the run alone.

    Args:
        cost: evaluations of the denoiser that a unit takes, about.
        least: units that are done faster together than one by one.
        most: units of a shard; `UNITS` by default.
    """
    most = UNITS if most is None else most
    size = most if cost == 0 else max(least, 1, min(most, int(EVALUATIONS / cost)))
    for number, start in enumerate(range(0, len(units), size)):
        yield number, list(units[start : start + size])


def steps_of_image(spec: Spec) -> int:
    """Evaluations of the denoiser that an image takes."""
    sampling = spec.settings.sampling
    return sampling.steps * (2 if guided(spec.subject.family, sampling) else 1)


def bytes_of_values(site: Site, model: Model) -> float:
    """Bytes of value activations at a site."""
    return float(sum(FLOAT * layer.outputs for layer in model.layers(site)))


def bytes_of_norms(site: Site, times: int, model: Model) -> float:
    """Bytes of feature norms at a site, at so many steps and halves."""
    return times * sum(FLOAT * layer.inputs for layer in model.layers(site))


def bytes_of_trigger(model: Model) -> float:
    """Bytes of an adversarial embedding."""
    return float(FLOAT * model.unconditional()[0].numel())


def bytes_of_image(model: Model) -> float:
    """Bytes of a generation (PNG): photographs take about half of what their pixels do."""
    height, width = image_size(model)
    return 3 * height * width / 2


def bytes_of_weights(model: Model) -> float:
    """Bytes of trained weights, where all of them change."""
    return float(sum(FLOAT * weight.numel() for weight in model.denoiser.parameters()))
