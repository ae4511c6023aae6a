"""Methods: what detects, localizes, mitigates and measures memories, each one file with one spec.

A file of ours registers its method where it defines it; packages of others name theirs as entry points of the group
`engram.methods`. All else follows from the specs: settings and forms, ids, allowed values, controls, the columns of
tables and report, and the list of `engram methods`. No list of names stands anywhere else.

    @detector(name="norm", title="Noise norm", paper="Wen et al., ICLR 2024, section 3.3", params=NormParams, ...)
    def norm(model, embeddings, prompt_ids, params, batch): ...
"""

import importlib
import pkgutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from difflib import get_close_matches
from functools import lru_cache
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, TypeVar, get_args, get_origin

from pydantic import BaseModel, Field, create_model

from storage.keys import content_key
from tasks.errors import InputError, first_line
from tasks.params import SPEED, UNITES, NoParams, Params, determining, uniting

if TYPE_CHECKING:
    import torch

    from tasks.conditions import Condition
    from tasks.diffusion.families import Model
    from tasks.diffusion.sites import Layer, Site
    from tasks.evaluate.estimates import Estimate
    from tasks.evaluate.seen import Seen

Kind = Literal["detector", "localizer", "mitigation", "metric"]

__all__ = ["SPEED", "UNITES", "NoParams", "Params"]

GROUP = "engram.methods"
"""Entry points of other packages: each names a module, which registers its methods when it is imported."""
OURS = ("tasks.scan", "tasks.localize", "tasks.mitigate", "tasks.evaluate")
"""Packages whose modules are looked through for our own methods."""


def _check_words(spec: Any, named: str) -> None:
    """Raises InputError where a part of a spec is none of the words that it may be."""
    for one in fields(spec):
        allowed, value = get_args(one.type), getattr(spec, one.name)
        if get_origin(one.type) is Literal and value not in allowed:
            raise InputError(f"{one.name} of {named} is {value!r}: it may be {', '.join(map(repr, allowed))}")


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
    cost: Callable[[Any], float] | None = None
    """Of its parameters, how many evaluations of the denoiser a prompt takes, about; a gradient counts as three. None
    where it takes none."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "group", (self.group or self.name).replace("-", "_"))
        _check_words(self, f"{self.kind} {self.name!r}")

    def cost_of(self, params: Any) -> float:
        """Evaluations of the denoiser that a prompt takes, about."""
        return 0 if self.cost is None else self.cost(params)

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
    by_detector: bool = False
    """Whether there is one of it for each detector that an audit chooses, too, with the detector's name behind."""

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


Scopes = Literal["prompts", "subsets", "all"]
"""What a localizer finds sets for: each prompt; each subset of the prompts, and all of them together; or the latter
alone."""

Reads = Literal["values", "null values", "null scores", "norms", "contrast norms", "images", "ordinary images"]
"""What a localizer looks at beside the model and the text of the prompts, so that it is there, and part of its ids:

- values: the activations of its site under the prompts of the scope, where these follow from the text alone;
- null values: mean and standard deviation of these over null prompts;
- null scores: what null prompts score in detection. Its parameters are `tasks.diffusion.detection.DetectionParams`;
- norms: feature norms along the first steps of trajectories. Its parameters are `tasks.localize.ground.NormsParams`;
- contrast norms: those of the prompts that memorized ones are compared with;
- images: training images of the prompts of the scope. Prompts without are left out;
- ordinary images: training images of ordinary prompts.
"""


@dataclass(frozen=True, kw_only=True)
class Pruning:
    """A variant that follows from a localizer's sets: what was found, set to zero."""

    name: str
    """What the variant goes by."""
    over: Literal["each", "union", "all"]
    """What is pruned: for each prompt its own members, the members of any prompt, or those of all prompts together (the
    scope "all"). Sets of several steps are united as the localizer says."""
    card: str
    """What is pruned, as a noun in the plural for the model card: these "are set to zero", or "each prompt is asked
    without" these."""
    claims: bool = False
    """Whether the variant claims to have removed the memories, so that it is attacked from every start; else it is a
    baseline or a control."""
    random: str = ""
    """What a card says of as many random members of each layer, the control beside it; without it there is none."""
    control_of: str = ""
    """The variant that this one is a control of, where it is one; it is not made where that was not."""
    words: str = ""
    """Of a control, what it prunes, in a few words for the report."""
    ordinary: bool = False
    """Whether it prunes what is found when ordinary prompts are taken for memorized ones: it is a control itself."""

    @property
    def stands_in(self) -> bool:
        """Whether what the variant makes can stand for memorized images in a training: it is one model for all prompts,
        and claims to have removed them."""
        return self.claims and self.over != "each"

    @property
    def control(self) -> str | None:
        """What its random control goes by."""
        return f"random-{self.name}" if self.random else None

    @property
    def names(self) -> tuple[str, ...]:
        """What the variant goes by, and its random control."""
        return (self.name,) if self.control is None else (self.name, self.control)


class Find(Protocol):
    """How a localizer is called, once for each scope."""

    def __call__(self, ground: Any, params: Any) -> Iterable[Any]:
        """The sets of one scope (`tasks.localize.ground.Found`) and, if it likes, the rows of its trace (`Trial`).

        Args:
            ground: what the sets are found on, a `tasks.localize.ground.Ground`.
        """


class Curve(Protocol):
    """How a localizer draws what is left of a memory."""

    def __call__(self, ground: Any, members: Mapping[int, "torch.Tensor"], params: Any, seed: int) -> Iterable[Any]:
        """What is left as more and more members are ablated, beside random ones: rows of a trace, `Trial`.

        Args:
            ground: that of the scope, a `tasks.localize.ground.Ground`.
            members: of the scope, by layer index.
            seed: of the random ones.
        """


@dataclass(frozen=True, kw_only=True)
class Localizer(Method):
    """Finds the neurons or weights that hold memories."""

    kind = "localizer"
    find: Find
    members: Literal["neurons", "weights"]
    """What its sets are of: outputs of a layer, or flat indices (row * columns + column) of its weights."""
    site: "Site | None" = None
    """Where it looks; None where its parameter `site` says."""
    scopes: Scopes
    prunings: tuple[Pruning, ...]
    """The variants that follow from its sets."""
    reads: tuple[Reads, ...] | Callable[[Any], tuple[Reads, ...]] = ()
    """What it reads, or a function of its parameters that says so."""
    gradients: bool = False
    """Whether it needs gradients, which vanish in half precision."""
    budget: str = ""
    """The pruning of another localizer that it is compared with: it chooses as many members of each layer as that."""
    over_steps: Callable[[Mapping[tuple[int, int], Any], Mapping[int, int], Any], Mapping[int, Any]] | None = None
    """Unites sets of several steps: of (sets by step and layer index, members by layer index in all, parameters) makes
    sets by layer index. None where sets have no steps."""
    stages: tuple[str, ...] = ()
    """Sets that it leaves by the way, kept under `<name>-<stage>`, such as the candidates that a search begins with."""
    traces: bool = False
    """Whether it leaves a trace of every scope, of at least one row."""
    curve: Curve | None = None
    on_triggers: Literal["", "found", "found and begun"] = ""
    """Which single triggers the diagnosis of locality asks it about: those found, or also the random points that the
    searches began from, the control of a localizer that finds sets for any prompt. It cannot read images then, which
    triggers have none of."""
    published: Callable[[Any], Any] | None = None
    """Of parameters that make a shortcut, the same without it, as published; None where they make none. An audit can
    search both ways, and compare."""
    check: Callable[[Any, Any], None] | None = None
    """Raises InputError where parameters do not fit a model: called with them and the model's outline, which is known
    before any weights are loaded."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for read in () if callable(self.reads) else self.reads:
            if read not in get_args(Reads):
                raise InputError(f"localizer {self.name!r} reads {read!r}: it may read {', '.join(get_args(Reads))}")
        for pruning in self.prunings:
            _check_words(pruning, f"the pruning {pruning.name!r}")
            if (pruning.over == "all") == (self.scopes == "prompts"):
                raise InputError(
                    f"{self.name} finds no sets that {pruning.name!r} could prune: over {pruning.over!r} does not go"
                    f" with scopes {self.scopes!r}"
                )
        if self.on_triggers and self.budget:
            raise InputError(f"{self.name} is asked about single triggers, of which there is no {self.budget!r}")
        if self.on_triggers and not callable(self.reads) and "images" in self.reads:
            raise InputError(f"{self.name} is asked about single triggers, which have none of the images that it reads")

    def id(self, params: BaseModel, *rest: Any) -> str:
        """What its sets go by; parameters that only unite them later do not count."""
        own = {name: value for name, value in determining(params).items() if name not in uniting(params)}
        return content_key(f"{self.kind}/{self.name}/{self.version}", own, *rest)

    @property
    def controlled(self) -> bool:
        """Whether it also looks at ordinary prompts, as if they were memorized."""
        return any(pruning.ordinary for pruning in self.prunings)

    def site_of(self, params: Any) -> "Site":
        """Where it looks with these parameters."""
        site: Site = params.site if self.site is None else self.site
        return site

    def reads_of(self, params: Any) -> tuple[Reads, ...]:
        """What it reads with these parameters."""
        return self.reads(params) if callable(self.reads) else self.reads

    def universe(self, layer: "Layer") -> int:
        """How many members a layer has."""
        return layer.outputs if self.members == "neurons" else layer.outputs * layer.inputs

    def sets_name(self, ordinary: bool) -> str:
        """What its sets go by in `neuron_sets.method`, those found when ordinary prompts are taken for memorized ones
        or the others."""
        return f"{self.name}-control" if ordinary else self.name


@dataclass(frozen=True, kw_only=True)
class Mitigation(Method):
    """Is meant to keep memories from coming back: by other weights, or by what is done with prompts.

    Variants that follow from what a localizer found are no methods of their own: see `Pruning`.
    """

    kind = "mitigation"
    acts: Literal["training", "inference"]
    """Whether weights are trained, or left as they are."""
    function: Callable[..., Any]
    """Of a training (lesson, params) -> Trained, see `tasks.mitigate.training`; at inference (asked, params) -> Answer,
    see `tasks.inference`."""
    done: str
    """What was done, as the end of "in which ...", for the model card."""
    claims: bool = False
    """Whether it claims to have removed the memories, so that it is attacked from every start; else it is a
    baseline."""
    gradients: bool = False
    """Whether it needs gradients, which vanish in half precision. Every training does."""
    surrogates: bool | Callable[[Any], bool] = False
    """Whether a training replaces memorized images by what the pruned model makes of their prompts, or a function of
    its parameters that says so."""
    change: Mapping[str, Any] = field(default_factory=dict, hash=False)
    """Parameters that are other than its group of settings says: what it lacks of the method that it is a baseline
    of."""
    check: Callable[[Any, Any], None] | None = None
    """Raises InputError where parameters do not fit a model: called with them and the model's outline, which is known
    before any weights are loaded."""
    memory: Callable[[Any, Any], float] | None = None
    """Bytes of its device that a training takes at the least, the model's own weights among them, when it goes sample
    by sample: a function of its parameters and of the model without weights, see `tasks.diffusion.footprint`."""

    def changed(self, params: Params) -> Any:
        """Its own parameters, from those of its group."""
        return type(params).model_validate(dict(params) | dict(self.change))

    def reads_surrogates(self, params: Any) -> bool:
        """Whether it replaces memorized images, with these parameters of its group."""
        return self.surrogates(self.changed(params)) if callable(self.surrogates) else self.surrogates


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


def localizer(**spec: Any) -> Callable[[S], S]:
    """Registers a function as a localizer; see `Localizer` and `Method` for what is said of it."""

    def of(function: S) -> S:
        register(Localizer(find=function, **spec))
        return function

    return of


def mitigation(**spec: Any) -> Callable[[S], S]:
    """Registers a function as a mitigation; see `Mitigation` and `Method` for what is said of it."""

    def of(function: S) -> S:
        register(Mitigation(function=function, **spec))
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
            where = f"the package {package} names methods at {point.value}"
            if isinstance(error, InputError):
                raise InputError(f"{where}: {error}") from error
            raise InputError(
                f"{where}, which cannot be loaded ({first_line(error)}): mend it, or update or uninstall the package"
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
        what = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(known)};"
        raise InputError(f"there is no {kind} {name!r}: {what} `engram methods` lists all")
    return found


def metrics() -> list[Metric]:
    """All metrics."""
    return [one for one in methods("metric") if isinstance(one, Metric)]


def columns() -> dict[str, Column]:
    """By metric, the columns of all metrics, from left to right."""
    own = [column for one in metrics() for column in one.columns]
    of_detectors = (
        replace(column, metric=f"{column.metric}_{name}", heading=f"{column.heading} by {name}", narrow=False)
        for column in own
        if column.by_detector
        for name in names("detector")
    )
    found = [*own, *of_detectors]
    return {column.metric: column for column in sorted(found, key=lambda column: (column.order, column.metric))}


def localizers() -> list[Localizer]:
    """All localizers."""
    return [one for one in methods("localizer") if isinstance(one, Localizer)]


def named(kind: Kind) -> Any:
    """The type of a name of this kind, for settings: a choice among all that there are."""
    return Literal.__getitem__(names(kind))


def prunings() -> Iterator[tuple[Localizer, Pruning]]:
    """Every pruned variant that there can be, with the localizer whose sets it prunes.

    Raises:
        InputError: two of them go by one name, or a localizer has a budget that is none.
    """
    seen: dict[str, tuple[Localizer, Pruning]] = {}
    for found in localizers():
        for pruning in found.prunings:
            other, first = seen.setdefault(pruning.name, (found, pruning))
            if other is not found or first is not pruning:
                raise InputError(
                    f"localizers {other.name!r} and {found.name!r} both prune {pruning.name!r}: rename one"
                )
    for found, _ in seen.values():
        if found.budget:
            _check_budget(found, seen)
    yield from seen.values()


def _check_budget(localizer: Localizer, known: Mapping[str, tuple[Localizer, Pruning]]) -> None:
    """Raises InputError where a localizer cannot choose as many members as the pruning that it names."""
    if localizer.budget not in known:
        able = [name for name, (by, one) in known.items() if not by.budget and one.over != "each"]
        why = f"there is none of this name, only {', '.join(sorted(able))}"
    else:
        by, pruning = known[localizer.budget]
        if by.budget:
            why = f"{by.name} has a budget itself"
        elif pruning.over == "each":
            why = "it prunes each prompt's own members, so there is no one number of them"
        elif (by.members, by.site) != (localizer.members, localizer.site) or by.site is None:
            why = f"{by.name} looks at other members, or elsewhere"
        else:
            return
    raise InputError(f"localizer {localizer.name!r} cannot have the pruning {localizer.budget!r} for its budget: {why}")


def mitigations() -> list[Mitigation]:
    """All mitigations that follow from no localizer."""
    return [one for one in methods("mitigation") if isinstance(one, Mitigation)]


def variants() -> tuple[str, ...]:
    """The variants that can be asked for: those that follow from localizers, then other mitigations.

    A control is none of them where its own localizer finds what it is a control of: it is made beside that.

    Raises:
        InputError: two of them go by one name.
    """
    pruned = [one.name for found, one in prunings() if one.control_of not in {other.name for other in found.prunings}]
    others = [one.name for one in mitigations()]
    if both := {name for _, one in prunings() for name in one.names} & {*others}:
        raise InputError(f"a localizer prunes {min(both)!r}, and a mitigation has this name: rename one")
    return (*pruned, *others)


def variants_of(one: Method) -> tuple[str, ...]:
    """The variants of a model that a method gives, controls among them; none where it only looks at one."""
    if isinstance(one, Localizer):
        return tuple(name for pruning in one.prunings for name in pruning.names)
    return (one.name,) if isinstance(one, Mitigation) else ()


def localizer_of(pruned: str) -> Localizer:
    """The localizer whose sets a pruned variant of this name prunes.

    Raises:
        InputError: there is no such variant.
    """
    for found, pruning in prunings():
        if pruning.name == pruned:
            return found
    known = ", ".join(sorted(pruning.name for _, pruning in prunings()))
    raise InputError(f"no localizer prunes {pruned!r}; there are {known}")


def params_in(settings: BaseModel, chosen: Method) -> Any:
    """A method's parameters in settings that `with_groups` made."""
    return getattr(settings, chosen.group) if chosen.params.model_fields else chosen.params()


def with_groups(name: str, base: type[BaseModel], chosen: Iterable[Method]) -> type[Any]:
    """A pydantic model with a group of settings for each of these methods that has any."""
    groups: dict[str, tuple[type[Params], Any]] = {}
    for one in chosen:
        if one.params.model_fields:
            known, _ = groups.setdefault(one.group, (one.params, Field(default=one.params(), title=one.title)))
            if known is not one.params:
                raise InputError(f"{one.kind} {one.name!r} takes settings {one.group!r}, which other methods have")
    fields: dict[str, Any] = dict(groups)
    return create_model(name, __base__=base, __doc__=base.__doc__, **fields)
