"""The work of a run: what is to be done, in order, item by item.

An item knows what it would write and how much of that is there already. So whoever does it, once or twice, here or on
another machine, the store ends up the same. Items that follow from results, as the diagnosis of triggers that were
found, are in the list as soon as these are there.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, TypeVar, get_args

from flows.run import done, ids, triggers
from flows.run.spec import Spec
from flows.run.trials import attack_of, generations_of, scoring, shots_of, trials, trigger_ids
from tasks.attack import task as attacking
from tasks.collect import task as collecting
from tasks.diffusion.families import Model
from tasks.diffusion.sampling import image_size
from tasks.diffusion.sites import Site
from tasks.evaluate import task as evaluating
from tasks.keys import detection_id, norms_id, values_id
from tasks.localize import task as localizing
from tasks.methods import Localizer, localizers
from tasks.mitigate import task as mitigating
from tasks.pruned import random_controls
from tasks.report import task as reporting
from tasks.scan import task as scanning
from tasks.subject import ORIGINAL, Prompt

Stage = Literal["collect", "localize", "mitigate", "attack", "diagnose", "evaluate"]
"""The stages that compute; what they leave is reported at the end."""
STAGES: tuple[Stage, ...] = get_args(Stage)
SHARD = 64
"""Prompts or images of an item, at most."""
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


def work(spec: Spec, *stages: Stage, audit_id: str = "none", foreseen: bool = False) -> Iterator[Item]:
    """The items of these stages, or of all, in an order in which each finds what it needs.

    They are listed one by one: what follows from results is known when these are there.

    Args:
        audit_id: the audit that estimates and model cards name.
        foreseen: whether variants that are not there yet count as if they were.
    """
    for stage in STAGES:
        if not stages or stage in stages:
            yield from _WORK[stage](_Context(spec, audit_id, foreseen))


@dataclass(frozen=True)
class _Context:
    """What the items of a stage follow from."""

    spec: Spec
    audit_id: str
    foreseen: bool

    @property
    def variants(self) -> dict[str, str]:
        """By name, the variant in the store."""
        return ids.expected(self.spec) if self.foreseen else ids.there(self.spec)


def _collect(context: _Context) -> Iterator[Item]:
    spec = context.spec
    subject, chosen = spec.subject, spec.chosen
    yield Item(
        "collect",
        "register model",
        partial(collecting.register_model, subject, spec.settings.sampling),
        ("models", "variants"),
        unit="model",
        anew=True,
    )
    for localizer in spec.settings.localizers():
        control = chosen.control_prompts if localizer.controlled else []
        yield from _read_by(spec, "collect", localizer, chosen.memorized, control)


def _read_by(
    spec: Spec, stage: Stage, localizer: Localizer, prompts: Sequence[Prompt], control: Sequence[Prompt] = ()
) -> Iterator[Item]:
    """What a localizer reads of these prompts, of those that it compares them with, and of its control."""
    subject, sampling, params = spec.subject, spec.settings.sampling, ids.params_of(spec, localizer)
    site, reads = localizer.site_of(params), localizer.reads_of(params)
    common: dict[str, Any] = {"writes": ("activations",), "reads": ("prompts", "triggers")}
    if "values" in reads:
        nulls = spec.chosen.nulls if "null values" in reads else []
        for number, some in _sharded([*prompts, *nulls, *control]):
            yield Item(
                stage,
                f"value activations at {site.value}",
                partial(collecting.collect_values, subject, some, site),
                **common,
                key=values_id(),
                shard=number,
                size=len(some),
                missing=partial(done.activations, spec, some, site.value, values_id()),
                bytes=lambda model: sum(FLOAT * layer.outputs for layer in model.layers(site)),
            )
    if "norms" in reads:
        contrast = spec.contrast if "contrast norms" in reads else []
        halves = ("cond", "uncond") if sampling.guidance > 1 else ("cond",)
        key = norms_id(sampling, params.tau)
        for number, some in _sharded([*prompts, *contrast, *control]):
            yield Item(
                stage,
                f"feature norms at {site.value}",
                partial(collecting.collect_norms, subject, some, sampling, params.tau, site),
                **common,
                key=key,
                shard=number,
                size=len(some),
                missing=partial(done.activations, spec, some, site.value, *(f"{key}-{half}" for half in halves)),
                cost=params.tau * len(halves),
                bytes=partial(_norms, site, params.tau * len(halves)),
            )


def _localize(context: _Context) -> Iterator[Item]:
    spec = context.spec
    subject, chosen, seed = spec.subject, spec.chosen, spec.settings.seed
    for params, prompts in ids.detections(spec):
        for number, some in _sharded(prompts):
            yield Item(
                "localize",
                "noise differences",
                partial(localizing.detect, subject, some, params),
                ("nemo_traces",),
                ("prompts",),
                key=detection_id(params),
                shard=number,
                size=len(some),
                missing=partial(done.traces, spec, some, detection_id(params)),
                cost=params.seeds,
            )
    for detector in spec.settings.judged():
        params = spec.settings.of(detector)
        for number, some in _sharded([*chosen.memorized, *chosen.ordinary]):
            yield Item(
                "localize",
                f"scores by {detector.title}",
                partial(scanning.score_prompts, subject, some, detector, params),
                ("detections",),
                ("prompts",),
                key=detector.id(params),
                shard=number,
                size=len(some),
                missing=partial(done.detections, spec, some, detector.name, detector.id(params)),
                cost=detector.cost_of(params),
            )
    chosen.check_images()
    for localizer in spec.settings.localizers():
        params = ids.params_of(spec, localizer)
        yield from _searches(spec, "localize", localizer, params, ids.groups(spec, localizer))
        if (published := ids.published(spec, localizer)) is not None:
            yield from _searches(spec, "localize", localizer, published, ids.groups(spec, localizer), "as published")
        if localizer.curve is not None:
            key = ids.curve(spec, localizer)
            for number, some in _sharded(chosen.memorized):
                yield Item(
                    "localize",
                    f"memorization left by {localizer.title}",
                    partial(
                        localizing.draw_curves,
                        subject,
                        localizer,
                        params,
                        some,
                        ids.given(spec),
                        seed,
                        ids.sets(spec, localizer),
                    ),
                    ("nemo_traces",),
                    ("neuron_sets",),
                    key=key,
                    shard=number,
                    size=len(some),
                    missing=partial(done.curves, spec, some, localizer, ids.sets(spec, localizer), key),
                    cost=localizer.cost_of(params) / 10,
                )
        if localizer.controlled:
            control = ids.groups(spec, localizer, ordinary=True)
            yield from _searches(spec, "localize", localizer, params, control, "on ordinary prompts")


def _searches(
    spec: Spec, stage: Stage, localizer: Localizer, params: Any, groups: localizing.Groups, how: str = ""
) -> Iterator[Item]:
    """A localizer's search for the sets of groups: each prompt by itself in shards, groups of several all at once."""
    key, given = localizing.sets_id(localizer, params, groups, ids.given(spec)), ids.given(spec)
    alone = groups.scope != "subset"
    for number, names in _sharded(list(groups.prompts)) if alone else [(0, list(groups.prompts))]:
        some = replace(groups, prompts={name: groups.prompts[name] for name in names})
        yield Item(
            stage,
            f"{localizer.title} {how}".strip(),
            partial(localizing.localize, spec.subject, localizer, params, some, given, key),
            ("neuron_sets", "nemo_traces") if localizer.traces else ("neuron_sets",),
            ("activations", "images"),
            key=key,
            shard=number,
            size=len(names),
            unit=groups.scope,
            missing=partial(done.sets, spec, names, localizer.sets_name(groups.ordinary), key),
            cost=localizer.cost_of(params) * sum(map(len, some.prompts.values())) / len(names),
        )


def _mitigate(context: _Context) -> Iterator[Item]:
    spec = context.spec
    subject, settings = spec.subject, spec.settings
    keys = ids.variants(spec)

    def made(kind: str, name: str, do: Callable[[], Any], **more: Any) -> Item:
        there = partial(done.variant, spec, name, keys[name])
        return Item("mitigate", kind, do, key=keys[name], variant=name, unit="variant", missing=there, **more)

    for name, pruned in ids.pruned(spec).items():
        # The control of what was not made would be a control of nothing.
        if (of := pruned.pruning.control_of) and of not in context.variants:
            continue
        do = partial(mitigating.prune, subject, pruned, context.audit_id, settings.seed)
        yield made("prune", name, do, writes=("neuron_sets", "variants"), reads=("neuron_sets",))
    for one in settings.chosen("inference"):
        do = partial(mitigating.defend, subject, one, settings.of(one), context.audit_id)
        yield made("defend", one.name, do, writes=("variants",))
    if not spec.chosen.erasable:
        return
    pruned_of_all = context.variants.get(ids.surrogates_by(spec) or "")
    pair = spec.chosen.erasable, spec.chosen.kept
    images = sum(len(prompt.image_ids) for prompt in spec.chosen.erasable)
    for one in settings.chosen("training"):
        trained = one.changed(settings.of(one))
        by = pruned_of_all if one.reads_surrogates(trained) else None
        if by is None and one.reads_surrogates(trained):
            continue
        own = settings.of(one), settings.sampling, settings.sscd, context.audit_id
        do = partial(mitigating.erase, subject, one, *pair, by, *own)  # type: ignore[arg-type]
        cost = one.cost_of(trained) * images
        yield made(
            "train", one.name, do, writes=("variants",), reads=("images",), cost=cost, bytes=_weights, may_fail=True
        )


def _attack(context: _Context) -> Iterator[Item]:
    spec = context.spec
    for trial in trials(spec, context.variants):
        if trial.condition.start is None:
            continue
        params = attack_of(spec, trial.condition)
        for number, some in _sharded(trial.prompts):
            wanted = trigger_ids(spec, replace(trial, prompts=some))
            yield Item(
                "attack",
                "Dori",
                partial(
                    attacking.attack_images,
                    spec.subject,
                    trial.variant,
                    some,
                    spec.chosen.pool,
                    params,
                    spec.settings.seed,
                ),
                ("triggers",),
                ("variants", "images"),
                variant=trial.name,
                condition=trial.condition.name,
                shard=number,
                size=len(wanted),
                unit="trigger",
                missing=partial(done.missing, spec, "triggers", "trigger_id", wanted),
                cost=GRADIENT * params.steps * params.batch,
                bytes=_trigger,
            )


def _diagnose(context: _Context) -> Iterator[Item]:
    spec = context.spec
    subject, few = spec.subject, triggers.diagnosed(spec)
    if not few:
        return
    params = triggers.many(spec)
    wanted = [name for names in triggers.searched(spec).values() for name in names]
    yield Item(
        "diagnose",
        "Dori, many triggers",
        partial(attacking.attack_images, subject, ORIGINAL, few, spec.chosen.pool, params, spec.settings.seed),
        ("triggers",),
        ("variants", "images"),
        variant=ORIGINAL,
        size=len(wanted),
        unit="trigger",
        missing=partial(done.missing, spec, "triggers", "trigger_id", wanted),
        cost=GRADIENT * params.steps * params.batch,
        bytes=_trigger,
    )
    trial, shots = triggers.tried(spec)
    made = evaluating.generation_ids(subject, trial.variant, trial.condition, shots, spec.settings.sampling)
    untried = partial(done.missing, spec, "generations", "generation_id", made)
    yield Item(
        "diagnose",
        "try triggers",
        partial(evaluating.try_triggers, subject, trial, shots, scoring(spec)),
        ("generations", "scores"),
        ("triggers",),
        variant=ORIGINAL,
        condition=trial.condition.name,
        size=len(made),
        unit="image",
        missing=untried,
        cost=_steps(spec),
        bytes=_image,
    )
    if untried():  # which triggers succeed is not known yet
        return
    ends, starts = triggers.points(spec)
    for localizer in localizers():
        if points := _points(localizer, ends, starts):
            alone = localizing.one_by_one(points)
            yield from _read_by(spec, "diagnose", localizer, points)
            yield from _searches(spec, "diagnose", localizer, ids.params_of(spec, localizer), alone, "on triggers")
    yield Item(
        "diagnose",
        "locality",
        partial(_locality, spec, context.audit_id),
        ("metrics",),
        ("triggers", "neuron_sets"),
        unit="audit",
        anew=True,
    )


def _locality(spec: Spec, audit_id: str) -> tuple[str, list[str]]:
    """The estimates of the diagnosis, its words, and a map (SVG) of each image with enough triggers."""
    ends, starts = triggers.points(spec)
    found = {
        one.name: ids.sets(spec, one, localizing.one_by_one(points))
        for one in localizers()
        if (points := _points(one, ends, starts))
    }
    return reporting.diagnose(spec.subject, audit_id, triggers.searches(spec), found, spec.settings.seed)


def _points(localizer: Localizer, ends: Sequence[Prompt], starts: Sequence[Prompt]) -> list[Prompt]:
    """The single triggers that a localizer is asked about; none where its spec says so, or none were found."""
    return {"": [], "found": [*ends], "found and begun": [*ends, *starts]}[localizer.on_triggers]


def _evaluate(context: _Context) -> Iterator[Item]:
    spec = context.spec
    for trial in trials(spec, context.variants):
        named: dict[str, Any] = {"variant": trial.name, "condition": trial.condition.name}
        shots, where = shots_of(spec, trial), (spec.subject, trial.variant, trial.condition)
        wanted = generations_of(spec, trial)
        for number, some in _sharded(list(zip(wanted, shots, strict=True))):
            names, own = [name for name, _ in some], [shot for _, shot in some]
            yield Item(
                "evaluate",
                "generate",
                partial(evaluating.generate_images, *where, own, spec.settings.sampling),
                ("generations",),
                ("variants", "triggers", "prompts"),
                **named,
                shard=number,
                size=len(names),
                unit="image",
                missing=partial(done.missing, spec, "generations", "generation_id", names, variant=trial.variant),
                cost=_steps(spec),
                bytes=_image,
            )
        yield Item(
            "evaluate",
            "measure",
            partial(_measure, spec, context.audit_id, trial, shots),
            ("scores", "metrics"),
            ("generations", "images"),
            **named,
            unit="audit",
            anew=True,
        )


def _measure(spec: Spec, audit_id: str, trial: evaluating.Trial, shots: Sequence[evaluating.Shot]) -> None:
    """The scores and estimates of a trial."""
    random = trial.name in random_controls()
    shared = mitigating.shared_members(spec.subject, trial.variant) if random else None
    evaluating.measure(spec.subject, audit_id, trial, shots, scoring(spec), shared)


def _steps(spec: Spec) -> int:
    """Evaluations of the denoiser that an image takes."""
    return spec.settings.sampling.steps * (2 if spec.settings.sampling.guidance > 1 else 1)


def _norms(site: Site, times: int, model: Model) -> float:
    """Bytes of feature norms at a site, at so many steps and halves."""
    return times * sum(FLOAT * layer.inputs for layer in model.layers(site))


def _trigger(model: Model) -> float:
    """Bytes of an adversarial embedding."""
    return float(FLOAT * model.unconditional()[0].numel())


def _image(model: Model) -> float:
    """Bytes of a generation (PNG): photographs take about half of what their pixels do."""
    height, width = image_size(model)
    return 3 * height * width / 2


def _weights(model: Model) -> float:
    """Bytes of trained weights, where all of them change."""
    return float(sum(FLOAT * weight.numel() for weight in model.denoiser.parameters()))


def _sharded(units: Sequence[T]) -> Iterator[tuple[int, list[T]]]:
    """Units in shards, each with its number."""
    for number, start in enumerate(range(0, len(units), SHARD)):
        yield number, list(units[start : start + SHARD])


_WORK: dict[Stage, Callable[[_Context], Iterator[Item]]] = {
    "collect": _collect,
    "localize": _localize,
    "mitigate": _mitigate,
    "attack": _attack,
    "diagnose": _diagnose,
    "evaluate": _evaluate,
}
