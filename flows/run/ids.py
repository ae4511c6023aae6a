"""What results go by: functions of the spec and of the specs of methods, computable before anything has run."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import lru_cache
from typing import Any

from flows.run.spec import Spec
from tasks.keys import detection_id
from tasks.localize import task as localizing
from tasks.methods import Localizer, method
from tasks.mitigate import task as mitigating
from tasks.pruned import Pruned
from tasks.subject import ORIGINAL, Prompt

KEPT = 8
"""Specs whose ids are remembered: a process is at few runs at a time."""


def params_of(spec: Spec, localizer: Localizer) -> Any:
    """A localizer's parameters; of feature norms no more steps than are sampled."""
    chosen = spec.settings.of(localizer)
    return chosen.within(spec.settings.sampling.steps) if isinstance(chosen, localizing.NormsParams) else chosen


def published(spec: Spec, localizer: Localizer) -> Any:
    """The parameters of a localizer's search as published, where it is to be compared with a shortcut."""
    if not spec.settings.agreement or localizer.published is None:
        return None
    return localizer.published(params_of(spec, localizer))


def groups(spec: Spec, localizer: Localizer, ordinary: bool = False) -> localizing.Groups:
    """The prompts that a localizer looks at, by scope; or ordinary ones as if they were memorized."""
    if ordinary:
        return localizing.control_of(localizer, spec.chosen.examined, spec.chosen.control_prompts)
    return localizing.groups_of(localizer, spec.chosen.examined)


@lru_cache(maxsize=KEPT)
def given(spec: Spec) -> localizing.Given:
    """What localizers are given beside the prompts whose sets they look for."""
    alone = localizing.Given(
        nulls=spec.chosen.nulls,
        threshold_nulls=spec.chosen.threshold_nulls,
        contrast=spec.contrast,
        ordinary=spec.chosen.with_images[1],
        sampling=spec.settings.sampling,
    )
    own = [one for chosen in spec.chosen.localizers() if not chosen.budget for one in _pruned(spec, chosen, alone)]
    return replace(alone, budgets={one.pruning.name: one for one in own})


def sets(spec: Spec, localizer: Localizer, some: localizing.Groups | None = None, params: Any = None) -> str:
    """Of the sets that a localizer finds for these groups, or for the examined prompts."""
    params = params or params_of(spec, localizer)
    return localizing.sets_id(localizer, params, some or groups(spec, localizer), given(spec))


@lru_cache(maxsize=KEPT)
def pruned(spec: Spec) -> Mapping[str, Pruned]:
    """What is pruned in each variant that follows from the sets of localizers, by name and in their order."""
    chosen = {one.name for _, one in spec.settings.prunings()}
    found = [one for localizer in spec.chosen.localizers() for one in _pruned(spec, localizer, given(spec))]
    return {one.pruning.name: one for one in found if one.pruning.name in chosen}


def curve(spec: Spec, localizer: Localizer) -> str:
    """Of the curves of what is left of memories."""
    return localizing.curve_id(sets(spec, localizer), spec.settings.seed)


def detection(spec: Spec) -> str:
    """Of the detection scores that NeMo begins with."""
    return detection_id(params_of(spec, method("localizer", "nemo")))


def detections(spec: Spec) -> list[tuple[Any, list[Prompt]]]:
    """Parameters of noise differences, with the prompts whose differences are compared: all that NeMo's detection is
    judged by, and of other localizers the null prompts whose scores they read."""
    chosen = spec.chosen
    nemo = params_of(spec, method("localizer", "nemo"))
    found = {detection(spec): (nemo, [*chosen.memorized, *chosen.threshold_nulls, *chosen.ordinary])}
    for localizer in spec.chosen.localizers():
        for params in filter(None, (params_of(spec, localizer), published(spec, localizer))):
            if "null scores" in localizer.reads_of(params):
                found.setdefault(detection_id(params), (params, [*chosen.threshold_nulls]))
    return list(found.values())


def variants(spec: Spec) -> dict[str, str]:
    """By name, the `params_id` of every variant that there may be, in the order in which they are made and shown."""
    settings, out = spec.settings, dict[str, str]()
    for name, found in pruned(spec).items():
        out[name] = mitigating.prune_id(found)
        if found.pruning.control is not None:
            out[found.pruning.control] = mitigating.prune_id(found, settings.seed)
    out |= {one.name: mitigating.defend_id(one, settings.of(one)) for one in settings.chosen("inference")}
    if not spec.chosen.erasable:
        return out
    pair, surrogates = (spec.chosen.erasable, spec.chosen.kept), surrogates_by(spec)
    for one in settings.chosen("training"):
        by = None
        if one.reads_surrogates(settings.of(one)):
            if surrogates is None:
                continue
            by = mitigating.variant_of(surrogates, out[surrogates])
        out[one.name] = mitigating.erase_id(one, *pair, by, settings.of(one), settings.sampling, settings.sscd)
    return out


def surrogates_by(spec: Spec) -> str | None:
    """The pruned variant that makes surrogates for training: one whose sets were found for all prompts together, else
    one of all prompts' sets united; the first such that is there, or where none is, the first that may be."""
    able = sorted((one for one in pruned(spec).values() if one.pruning.stands_in), key=lambda one: one.pruning.over)
    known = mitigating.known(spec.subject, {one.pruning.name: mitigating.prune_id(one) for one in able})
    names = [one.pruning.name for one in able]
    return next((name for name in names if name in known), next(iter(names), None))


def there(spec: Spec) -> dict[str, str]:
    """Every variant that is there, the original first: by name the variant in the store."""
    return {ORIGINAL: ORIGINAL} | mitigating.known(spec.subject, variants(spec))


def expected(spec: Spec) -> dict[str, str]:
    """Every variant that there may be; where a localizer finds nothing, or a training fails, it will not be."""
    return {ORIGINAL: ORIGINAL} | {name: mitigating.variant_of(name, key) for name, key in variants(spec).items()}


def _pruned(spec: Spec, localizer: Localizer, have: localizing.Given) -> Iterator[Pruned]:
    params = params_of(spec, localizer)
    for pruning in localizer.prunings:
        prompts = spec.chosen.control_prompts if pruning.ordinary else spec.chosen.examined
        sets_id = localizing.sets_id(localizer, params, groups(spec, localizer, pruning.ordinary), have)
        yield Pruned(localizer, pruning, params, sets_id, tuple(prompt.prompt_id for prompt in prompts))
