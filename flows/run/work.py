"""The work of a run: what is to be done, in order, item by item.

An item knows what it would write, how much of that is there already, and what it needs. So whoever does it, once or
twice, here or on another machine, the store ends up the same. Items that follow from results, as the diagnosis of
triggers that were found, are in the list as soon as these are there.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, TypeVar, get_args

from flows.run import done, ids, triggers
from flows.run.confirmed import by_images
from flows.run.spec import Spec
from flows.run.trials import attack_of, generations_of, has_own_weights, scoring, shots_of, trials, trigger_ids
from storage import content_key
from tasks.attack import task as attacking
from tasks.collect import task as collecting
from tasks.conditions import PROMPT
from tasks.diffusion.families import Model
from tasks.diffusion.sampling import guided, image_size
from tasks.diffusion.sites import Site
from tasks.evaluate import task as evaluating
from tasks.keys import detection_id, norms_id, values_id
from tasks.localize import task as localizing
from tasks.methods import Localizer, method
from tasks.mitigate import task as mitigating
from tasks.pruned import random_controls
from tasks.report import task as reporting
from tasks.scan import task as scanning
from tasks.subject import ORIGINAL, Prompt

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


def work(spec: Spec, *stages: Stage, audit_id: str = "none", foreseen: bool = False) -> Iterator[Item]:
    """The items of these stages, or of all, in an order in which each finds what it needs.

    They are listed one by one: what follows from results is known when these are there. So while it is not known which
    memorized prompts are confirmed, no work on these is listed but what confirms them, and no estimates.

    Args:
        audit_id: the audit that estimates and model cards name.
        foreseen: whether variants that are not there yet count as if they were.
    """
    for stage in STAGES:
        if stages and stage not in stages:
            continue
        if stage == "confirm" or foreseen or spec.chosen.known is not None:
            yield from _WORK[stage](_Context(spec, audit_id, foreseen))
            continue
        without = replace(spec, chosen=spec.chosen.unexamined())
        yield from (item for item in _WORK[stage](_Context(without, audit_id, foreseen)) if not item.anew)


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


def _confirm(context: _Context) -> Iterator[Item]:
    spec = context.spec
    subject, chosen = spec.subject, spec.chosen
    yield Item(
        "confirm",
        "register model",
        partial(collecting.register_model, subject, spec.settings.sampling),
        ("models", "variants"),
        gives="model",
        unit="model",
        anew=True,
    )
    with_images, without = by_images(chosen)
    cost = spec.settings.seeds * _steps(spec)
    for number, some in _sharded(with_images, cost, most=max(1, UNITS // spec.settings.seeds)):
        part = evaluating.Trial(ORIGINAL, ORIGINAL, PROMPT, some, spec.settings.seeds)
        yield Item(
            "confirm",
            "ask the model",
            partial(_ask, spec, part),
            ("generations", "scores"),
            ("prompts", "images"),
            gives=_made(part),
            needs=("model",),
            variant=ORIGINAL,
            condition=PROMPT.name,
            shard=number,
            size=len(some),
            missing=partial(done.compared, spec, part),
            cost=cost,
            bytes=lambda model: spec.settings.seeds * _image(model),
        )
    yield Item(
        "confirm",
        "near-duplicates",
        partial(collecting.cluster_prompts, subject, chosen.compared, spec.settings.sscd, lambda: spec.clip),
        ("clusters",),
        ("prompts", "images"),
        gives="clusters",
        size=len(chosen.compared),
        missing=partial(done.clusters, spec),
    )
    if without:
        params = ids.params_of(spec, method("localizer", "nemo"))
        judges = chosen.threshold_nulls if params.threshold is None else []
        yield from _differences(spec, "confirm", params, [*without, *judges])


def _ask(spec: Spec, trial: evaluating.Trial) -> None:
    """Makes a trial's generations, and scores them beside training images."""
    evaluating.compare_with_images(spec.subject, trial, shots_of(spec, trial), scoring(spec))


def _differences(spec: Spec, stage: Stage, params: Any, prompts: Sequence[Prompt]) -> Iterator[Item]:
    """The noise differences of prompts, which detection goes by."""
    for number, some in _sharded(prompts, params.seeds):
        yield Item(
            stage,
            "noise differences",
            partial(localizing.detect, spec.subject, some, params),
            ("nemo_traces",),
            ("prompts",),
            gives=_detected(params),
            needs=("model",),
            key=detection_id(params),
            shard=number,
            size=len(some),
            missing=partial(done.traces, spec, some, detection_id(params)),
            cost=params.seeds,
        )


def _collect(context: _Context) -> Iterator[Item]:
    spec = context.spec
    chosen = spec.chosen
    yield from _readings(
        spec,
        "collect",
        {one: [*chosen.examined, *(chosen.control_prompts if one.controlled else ())] for one in chosen.localizers()},
    )


def _readings(spec: Spec, stage: Stage, asked: Mapping[Localizer, Sequence[Prompt]]) -> Iterator[Item]:
    """What localizers read of these prompts, and of those that they compare them with: once where several read it."""
    subject, sampling = spec.subject, spec.settings.sampling
    values: dict[Site, dict[Prompt, None]] = {}
    norms: dict[tuple[Site, int], dict[Prompt, None]] = {}
    for localizer, prompts in asked.items():
        params = ids.params_of(spec, localizer)
        site, reads = localizer.site_of(params), localizer.reads_of(params)
        if "values" in reads:
            nulls = spec.chosen.nulls if "null values" in reads else []
            values.setdefault(site, {}).update(dict.fromkeys([*prompts, *nulls]))
        if "norms" in reads:
            contrast = spec.contrast if "contrast norms" in reads else []
            norms.setdefault((site, params.tau), {}).update(dict.fromkeys([*prompts, *contrast]))
    common: dict[str, Any] = {"writes": ("activations",), "reads": ("prompts", "triggers"), "needs": ("model",)}
    for site, every in values.items():
        for number, some in _sharded([*every]):
            yield Item(
                stage,
                f"value activations at {site.value}",
                partial(collecting.collect_values, subject, some, site),
                **common,
                gives=_values(site),
                key=values_id(),
                shard=number,
                size=len(some),
                missing=partial(done.activations, spec, some, site.value, values_id()),
                cost=collecting.cost_of_values(subject, site),
                bytes=partial(_bytes_of_values, site),
            )
    halves = ("cond", "uncond") if guided(subject.family, sampling) else ("cond",)
    for (site, tau), every in norms.items():
        key, cost = norms_id(sampling, tau), tau * len(halves)
        for number, some in _sharded([*every], cost):
            yield Item(
                stage,
                f"feature norms at {site.value}",
                partial(collecting.collect_norms, subject, some, sampling, tau, site),
                **common,
                gives=_norms(site, key),
                key=key,
                shard=number,
                size=len(some),
                missing=partial(done.activations, spec, some, site.value, *(f"{key}-{half}" for half in halves)),
                cost=cost,
                bytes=partial(_bytes_of_norms, site, cost),
            )


def _needs_of(spec: Spec, localizer: Localizer, params: Any) -> Iterator[str]:
    """What must be there before a localizer searches."""
    site, reads = localizer.site_of(params), localizer.reads_of(params)
    if "values" in reads:
        yield _values(site)
    if "norms" in reads:
        yield _norms(site, norms_id(spec.settings.sampling, params.tau))
    if "null scores" in reads:
        yield _detected(params)
    if localizer.budget:
        yield _sets(ids.given(spec).budgets[localizer.budget].sets_id)


def _localize(context: _Context) -> Iterator[Item]:
    spec = context.spec
    subject, chosen, seed = spec.subject, spec.chosen, spec.settings.seed
    for params, prompts in ids.detections(spec):
        yield from _differences(spec, "localize", params, prompts)
    for detector in spec.settings.judged():
        params = spec.settings.of(detector)
        for number, some in _sharded([*chosen.memorized, *chosen.ordinary], detector.cost_of(params)):
            yield Item(
                "localize",
                f"scores by {detector.title}",
                partial(scanning.score_prompts, subject, some, detector, params),
                ("detections",),
                ("prompts",),
                gives=SCORED,
                needs=("model",),
                key=detector.id(params),
                shard=number,
                size=len(some),
                missing=partial(done.detections, spec, some, detector.name, detector.id(params)),
                cost=detector.cost_of(params),
            )
    chosen.check_images()
    for localizer in chosen.localizers():
        params = ids.params_of(spec, localizer)
        yield from _searches(spec, "localize", localizer, params, ids.groups(spec, localizer))
        if (published := ids.published(spec, localizer)) is not None:
            yield from _searches(spec, "localize", localizer, published, ids.groups(spec, localizer), "as published")
        if localizer.curve is not None:
            key, cost = ids.curve(spec, localizer), localizer.cost_of(params) / 10
            for number, some in _sharded(chosen.examined, cost):
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
                    gives="curves",
                    needs=(_sets(ids.sets(spec, localizer)), *_needs_of(spec, localizer, params)),
                    key=key,
                    shard=number,
                    size=len(some),
                    missing=partial(done.curves, spec, some, localizer, ids.sets(spec, localizer), key),
                    cost=cost,
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
    # Of one prompt by itself, or of as many as the groups have.
    cost = localizer.cost_of(params) * sum(map(len, groups.prompts.values())) / len(groups.prompts)
    for number, names in _sharded(list(groups.prompts), cost) if alone else [(0, list(groups.prompts))]:
        some = replace(groups, prompts={name: groups.prompts[name] for name in names})
        yield Item(
            stage,
            f"{localizer.title} {how}".strip(),
            partial(localizing.localize, spec.subject, localizer, params, some, given, key),
            ("neuron_sets", "nemo_traces") if localizer.traces else ("neuron_sets",),
            ("activations", "images"),
            gives=_sets(key),
            needs=("model", *_needs_of(spec, localizer, params)),
            key=key,
            shard=number,
            size=len(names),
            unit=groups.scope,
            missing=partial(done.sets, spec, names, localizer.sets_name(groups.ordinary), key),
            cost=cost,
        )


def _mitigate(context: _Context) -> Iterator[Item]:
    spec = context.spec
    subject, settings = spec.subject, spec.settings
    keys = ids.variants(spec)

    def made(kind: str, name: str, do: Callable[[], Any], **more: Any) -> Item:
        there = partial(done.variant, spec, name, keys[name])
        more = {"gives": _variant(name)} | more
        return Item("mitigate", kind, do, key=keys[name], variant=name, unit="variant", missing=there, **more)

    for name, pruned in ids.pruned(spec).items():
        # The control of what was not made would be a control of nothing.
        if (of := pruned.pruning.control_of) and of not in context.variants:
            continue
        do = partial(mitigating.prune, subject, pruned, context.audit_id, settings.seed)
        needs = ("model", _sets(pruned.sets_id))
        yield made("prune", name, do, writes=("neuron_sets", "variants"), reads=("neuron_sets",), needs=needs)
    for one in settings.chosen("inference"):
        do = partial(mitigating.defend, subject, one, settings.of(one), context.audit_id)
        yield made("defend", one.name, do, writes=("variants",), needs=("model",))
    if not spec.chosen.erasable:
        return
    pruned_of_all = context.variants.get(ids.surrogates_by(spec) or "")
    pair = spec.chosen.erasable, spec.chosen.kept
    images = sum(len(prompt.image_ids) for prompt in spec.chosen.erasable)
    # Which of them makes the surrogates is known once each is made, or cannot be.
    able = tuple(_variant(pruning.name) for _, pruning in settings.prunings() if pruning.stands_in)
    for one in settings.chosen("training"):
        by = None
        if one.reads_surrogates(settings.of(one)) and (by := pruned_of_all) is None:
            continue
        own = settings.of(one), settings.sampling, settings.sscd, context.audit_id
        do = partial(mitigating.erase, subject, one, *pair, by, *own)  # type: ignore[arg-type]
        cost = one.cost_of(one.changed(settings.of(one))) * images
        yield made(
            "train",
            one.name,
            do,
            writes=("variants",),
            reads=("images",),
            needs=("model", *able) if by else ("model",),
            cost=cost,
            bytes=_weights,
            may_fail=True,
        )


def _attack(context: _Context) -> Iterator[Item]:
    spec = context.spec
    for trial in trials(spec, context.variants):
        if trial.condition.start is None:
            continue
        params = attack_of(spec, trial.condition)
        cost = GRADIENT * params.steps * params.batch * params.restarts
        for number, some in _sharded(trial.prompts, cost, least=params.images_at_once):
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
                gives=_triggers(trial),
                needs=("model", *_searched_before(spec, trial)),
                variant=trial.name,
                condition=trial.condition.name,
                shard=number,
                size=len(wanted),
                unit="trigger",
                missing=partial(done.missing, spec, "triggers", "trigger_id", wanted),
                cost=cost / params.restarts,
                bytes=_trigger,
            )


def _searched_before(spec: Spec, trial: evaluating.Trial) -> Iterator[str]:
    """Attacks whose triggers another one has, too: of a mitigation at inference the original's, and of fewer steps the
    beginnings of the search of most steps."""
    if not has_own_weights(trial):
        yield _triggers(replace(trial, name=ORIGINAL))
    if trial.condition.steps is not None and trial.condition.steps < max(spec.settings.efforts):
        yield _triggers(replace(trial, condition=replace(trial.condition, steps=max(spec.settings.efforts))))


def _diagnose(context: _Context) -> Iterator[Item]:
    spec = context.spec
    subject, few = spec.subject, triggers.diagnosed(spec)
    if not few:
        return
    params = triggers.many(spec)
    of_each = triggers.searched(spec)
    for number, some in enumerate([one] for one in few):
        names = [name for prompt in some for name in of_each[prompt.prompt_id]]
        yield Item(
            "diagnose",
            "Dori, many triggers",
            partial(attacking.attack_images, subject, ORIGINAL, some, spec.chosen.pool, params, spec.settings.seed),
            ("triggers",),
            ("variants", "images"),
            gives=MANY,
            needs=("model",),
            variant=ORIGINAL,
            shard=number,
            size=len(names),
            unit="trigger",
            missing=partial(done.missing, spec, "triggers", "trigger_id", names),
            cost=GRADIENT * params.steps * params.batch,
            bytes=_trigger,
        )
    trial, shots = triggers.tried(spec)
    made = evaluating.generation_ids(subject, trial.variant, trial.condition, shots, spec.settings.sampling)
    untried = partial(done.missing, spec, "generations", "generation_id", made)
    yield Item(
        "diagnose",
        "try triggers",
        partial(evaluating.compare_with_images, subject, trial, shots, scoring(spec)),
        ("generations", "scores"),
        ("triggers",),
        gives=TRIED,
        needs=(MANY,),
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
    asked = triggers.asked(spec)
    yield from _readings(spec, "diagnose", asked)
    needs = [TRIED]
    for localizer, points in asked.items():
        params, alone = ids.params_of(spec, localizer), localizing.one_by_one(points)
        yield from _searches(spec, "diagnose", localizer, params, alone, "on triggers")
        needs.append(_sets(ids.sets(spec, localizer, alone)))
    yield Item(
        "diagnose",
        "locality",
        partial(_locality, spec, context.audit_id),
        ("metrics",),
        ("triggers", "neuron_sets"),
        needs=tuple(needs),
        unit="audit",
        anew=True,
    )


def _locality(spec: Spec, audit_id: str) -> tuple[str, list[str]]:
    """The estimates of the diagnosis, its words, and a map (SVG) of each image with enough triggers."""
    asked = triggers.asked(spec).items()
    found = {one.name: ids.sets(spec, one, localizing.one_by_one(points)) for one, points in asked}
    return reporting.diagnose(spec.subject, audit_id, triggers.searches(spec), found, spec.settings.seed)


def _evaluate(context: _Context) -> Iterator[Item]:
    spec = context.spec
    for trial in trials(spec, context.variants):
        named: dict[str, Any] = {"variant": trial.name, "condition": trial.condition.name}
        shots, where = shots_of(spec, trial), (spec.subject, trial.variant, trial.condition)
        wanted = generations_of(spec, trial)
        attacked = () if trial.condition.start is None else (_triggers(trial), *_searched_before(spec, trial))
        made = list(zip(wanted, shots, strict=True))
        if (trial.name, trial.condition) == (ORIGINAL, PROMPT):  # the confirmation asked the others
            made = [(name, shot) for name, shot in made if not shot.prompt.image_ids]
        for number, some in _sharded(made, _steps(spec)):
            names, own = [name for name, _ in some], [shot for _, shot in some]
            yield Item(
                "evaluate",
                "generate",
                partial(evaluating.generate_images, *where, own, spec.settings.sampling),
                ("generations",),
                ("variants", "triggers", "prompts"),
                gives=_made(trial),
                needs=("model", *attacked),
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
            gives=_measured(trial),
            needs=(_made(trial), *_compared_with(spec, trial)),
            **named,
            unit="audit",
            anew=True,
        )


def _measure(spec: Spec, audit_id: str, trial: evaluating.Trial, shots: Sequence[evaluating.Shot]) -> None:
    """The scores and estimates of a trial."""
    random = trial.name in random_controls()
    shared = mitigating.shared_members(spec.subject, trial.variant) if random else None
    evaluating.measure(spec.subject, audit_id, trial, shots, scoring(spec), shared)


def _compared_with(spec: Spec, trial: evaluating.Trial) -> Iterator[str]:
    """What the metrics of a trial look at beside its own generations: what is made of the original's is found first,
    with their scores, so that nobody else has to."""
    yield from (SCORED, _detected(ids.params_of(spec, method("localizer", "nemo"))))
    if trial.name != ORIGINAL:
        original = replace(trial, name=ORIGINAL)
        yield from (_made(original), _measured(original))


def _steps(spec: Spec) -> int:
    """Evaluations of the denoiser that an image takes."""
    sampling = spec.settings.sampling
    return sampling.steps * (2 if guided(spec.subject.family, sampling) else 1)


def _bytes_of_values(site: Site, model: Model) -> float:
    """Bytes of value activations at a site."""
    return float(sum(FLOAT * layer.outputs for layer in model.layers(site)))


def _bytes_of_norms(site: Site, times: int, model: Model) -> float:
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


def _sharded(
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


MANY, TRIED, SCORED = "many triggers", "tried triggers", "detectors' scores"
"""Names of what items give. Those below name it by what it is of."""


def _values(site: Site) -> str:
    return f"values at {site.value}"


def _norms(site: Site, key: str) -> str:
    return f"norms at {site.value} {key}"


def _detected(params: Any) -> str:
    return f"noise differences {detection_id(params)}"


def _sets(sets_id: str) -> str:
    return f"sets {sets_id}"


def _variant(name: str) -> str:
    return f"variant {name}"


def _triggers(trial: evaluating.Trial) -> str:
    return f"triggers of {trial.name}, {trial.condition.name}"


def _made(trial: evaluating.Trial) -> str:
    return f"generations of {trial.name}, {trial.condition.name}"


def _measured(trial: evaluating.Trial) -> str:
    return f"estimates of {trial.name}, {trial.condition.name}"


_WORK: dict[Stage, Callable[[_Context], Iterator[Item]]] = {
    "confirm": _confirm,
    "collect": _collect,
    "localize": _localize,
    "mitigate": _mitigate,
    "attack": _attack,
    "diagnose": _diagnose,
    "evaluate": _evaluate,
}
