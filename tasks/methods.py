"""Methods: what detects, localizes, mitigates and measures memories, each one file with one spec.

A file of ours registers its method where it defines it; packages of others name theirs as entry points of the group
`engram.methods`. All else follows from the specs: settings and forms, ids, allowed values, controls, the columns of
tables and report, and the list of `engram methods`. No list of names stands anywhere else.

    @detector(name="norm", title="Noise norm", paper="Wen et al., ICLR 2024, section 3.3", params=NormParams, ...)
    def norm(model, embeddings, prompt_ids, params, batch): ...
"""

import importlib
import pkgutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import lru_cache
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, TypeVar

from pydantic import BaseModel, Field, create_model

from storage.keys import content_key
from tasks.errors import InputError
from tasks.params import SPEED, NoParams, Params, determining

if TYPE_CHECKING:
    import torch

    from tasks.conditions import Condition
    from tasks.diffusion.families import Model
    from tasks.evaluate.estimates import Estimate
    from tasks.evaluate.seen import Seen

Kind = Literal["detector", "localizer", "mitigation", "metric"]

__all__ = ["SPEED", "NoParams", "Params"]

GROUP = "engram.methods"
"""Entry points of other packages: each names a module, which registers its methods when it is imported."""
OURS = ("tasks.scan", "tasks.localize", "tasks.mitigate", "tasks.evaluate")
"""Packages whose modules are looked through for our own methods."""


@dataclass(frozen=True, kw_only=True)
class Method:
    """What is known of a method, whatever it does."""

    kind: ClassVar[Kind]
    name: str
    """What it goes by everywhere: in settings, the store, tables and reports."""
    title: str
    """What people call it."""
    paper: str
    """Where it was published, with section or equation; or that it is a convention of this project."""
    words: str
    """A sentence that says what it does."""
    control: str
    """A sentence that says what its result is compared with, so that chance or damage is not taken for success."""
    params: type[Params] = NoParams
    version: int = 1
    """Raised when its results change though its parameters do not."""
    group: str = ""
    """The group of settings that holds its parameters; its own name unless several methods are set together."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "group", (self.group or self.name).replace("-", "_"))

    def id(self, params: BaseModel, *rest: Any) -> str:
        """What results go by: a key of its own parameters and version, and of what else determines them."""
        return content_key(f"{self.kind}/{self.name}/{self.version}", determining(params), *rest)


class Score(Protocol):
    """How a detector is called."""

    def __call__(
        self, model: "Model", embeddings: "torch.Tensor", prompt_ids: Sequence[str], params: Any, batch: int
    ) -> "torch.Tensor":
        """One score of each prompt, float32 (n,), higher where it is memorized.

        Args:
            embeddings: of the prompts, as `model` encodes them.
            prompt_ids: what the prompts' noise is seeded by, with seeds 0, 1, ...
            batch: samples at a time; must not change the result.
        """


@dataclass(frozen=True, kw_only=True)
class Detector(Method):
    """Tells memorized prompts from others before an image is made."""

    kind = "detector"
    score: Score
    check: Callable[[Any, Any], None] | None = None
    """Raises InputError where parameters do not fit a model: called with them and the model's outline, which is known
    before any weights are loaded."""


@dataclass(frozen=True)
class Column:
    """A metric that tables show."""

    metric: str
    heading: str
    form: str = ".2f"
    """Format of a value; with a percent sign at its end, such as ".0%", the value is a share."""
    better: Literal["lower", "higher"] | None = None
    """Which values are better of a model that should have forgotten, or of the method that is measured."""
    narrow: bool = False
    """Whether a terminal has room for it, too."""
    order: int = 100
    """Where it stands, from left to right."""
    cases: str = ""
    """What its n counts, where that is not images."""
    drawn: bool = False
    """Whether the page draws it, a share, beside its value."""

    def text(self, value: float) -> str:
        """A value in the digits it deserves."""
        return f"{value:{self.form}}".replace("%", " %")


@dataclass(frozen=True, kw_only=True)
class Metric(Method):
    """Measures what a variant does under a condition."""

    kind = "metric"
    measure: "Callable[[Seen, Any], Sequence[Estimate]]"
    """Its estimates, from what is seen and its own parameters; none where there is nothing to measure."""
    applies: "Callable[[Condition, str], bool]"
    """Whether it is taken of a condition and a variant, which goes by its name."""
    columns: tuple[Column, ...] = ()
    """Those of its estimates that tables show; others are kept in the store only."""
    kept: tuple[str, ...] = ()
    """Names of those others."""

    @property
    def shown(self) -> tuple[str, ...]:
        """Names of the estimates that tables show."""
        return tuple(column.metric for column in self.columns)


S = TypeVar("S", bound=Callable[..., Any])
_FOUND: dict[tuple[Kind, str], Method] = {}


def register(method: Method) -> None:
    """Makes a method known.

    Raises:
        InputError: its kind has one of this name already.
    """
    known = _FOUND.setdefault((method.kind, method.name), method)
    if known is not method and known != method:
        raise InputError(f"two {method.kind}s are called {method.name!r}: rename one, or uninstall its package")


def detector(**spec: Any) -> Callable[[S], S]:
    """Registers a function as a detector; see `Detector` and `Method` for what is said of it."""

    def of(function: S) -> S:
        register(Detector(score=function, **spec))
        return function

    return of


def metric(**spec: Any) -> Callable[[S], S]:
    """Registers a function as a metric; see `Metric` and `Method` for what is said of it."""

    def of(function: S) -> S:
        register(Metric(measure=function, **spec))
        return function

    return of


@lru_cache(maxsize=1)
def _load() -> None:
    """Imports every module that registers methods: ours, then those of other packages by their entry points."""
    for stage in OURS:
        for module in pkgutil.iter_modules(importlib.import_module(stage).__path__):
            if not module.ispkg and module.name != "task":
                importlib.import_module(f"{stage}.{module.name}")
    for point in entry_points(group=GROUP):
        try:
            point.load()
        except Exception as error:
            package = point.dist.name if point.dist else point.value
            raise InputError(
                f"the package {package} names methods at {point.value}, which cannot be loaded ({error}): update or"
                " uninstall it"
            ) from error


def methods(*kinds: Kind) -> list[Method]:
    """All methods of these kinds, or all that there are, in order of kind and name.

    Raises:
        InputError: a package's methods cannot be loaded, or two have one name.
    """
    _load()
    order = ("detector", "localizer", "mitigation", "metric")
    found = sorted(_FOUND.values(), key=lambda one: (order.index(one.kind), one.name))
    return [one for one in found if not kinds or one.kind in kinds]


def names(kind: Kind) -> tuple[str, ...]:
    """The names of all methods of a kind, sorted."""
    return tuple(one.name for one in methods(kind))


def method(kind: Kind, name: str) -> Any:
    """The method of this kind and name.

    Raises:
        InputError: there is none; what is near to the name is named.
    """
    _load()
    if (found := _FOUND.get((kind, name))) is None:
        known = names(kind)
        near = get_close_matches(name, known, 1)
        what = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(known)}"
        raise InputError(f"there is no {kind} {name!r}: {what} `engram methods` lists all")
    return found


def metrics() -> list[Metric]:
    """All metrics."""
    return [one for one in methods("metric") if isinstance(one, Metric)]


def columns() -> dict[str, Column]:
    """By metric, the columns of all metrics, from left to right."""
    found = (column for one in metrics() for column in one.columns)
    return {column.metric: column for column in sorted(found, key=lambda column: (column.order, column.metric))}


def named(kind: Kind) -> Any:
    """The type of a name of this kind, for settings: a choice among all that there are."""
    return Literal.__getitem__(names(kind))


def with_groups(base: type[BaseModel], chosen: Iterable[Method]) -> type[Any]:
    """A pydantic model with a group of settings for each of these methods that has any."""
    groups: dict[str, tuple[type[Params], Any]] = {}
    for one in chosen:
        if one.params.model_fields:
            known, _ = groups.setdefault(one.group, (one.params, Field(default=one.params(), title=one.title)))
            if known is not one.params:
                raise InputError(f"{one.kind} {one.name!r} takes settings {one.group!r}, which other methods have")
    fields: dict[str, Any] = dict(groups)
    return create_model(base.__name__, __base__=base, __doc__=base.__doc__, **fields)
