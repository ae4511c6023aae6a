"""Wanda in the store: weights of subsets, of single triggers, and of ordinary prompts as the control."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch

from storage import Store, content_key
from tasks.diffusion.sampling import SamplingParams
from tasks.diffusion.sites import Layer, Site, layers_of
from tasks.errors import InputError
from tasks.keys import norms_id
from tasks.localize.subsets import control_subsets, subsets_of
from tasks.localize.task.sets import ALL, VERSION, scopes, write_sets
from tasks.localize.wanda import WandaParams, memorized_sets
from tasks.subject import ORIGINAL, Asked, Subject, progress


def localize_wanda(
    subject: Subject,
    asked: Sequence[Asked],
    nulls: Sequence[Asked],
    params: WandaParams,
    sampling: SamplingParams,
    site: Site = Site.FEED_FORWARD_HIDDEN,
) -> str:
    """Wanda's weights of each subset (see `subsets_of`) and of all prompts together, at each of the first tau steps.

    Args:
        nulls: what prompts are held against: other prompts, or empty ones as published (`collect.task.empty_prompts`).

    Returns:
        The id of these parameters; rows of `neuron_sets` carry it.
    """
    return _wanda(subject, "wanda", _groups(asked), nulls, params, sampling, site)


def wanda_id(
    asked: Sequence[Asked],
    nulls: Sequence[Asked],
    params: WandaParams,
    sampling: SamplingParams,
    site: Site = Site.FEED_FORWARD_HIDDEN,
) -> str:
    """What Wanda's sets go by, whether or not they were found yet. See `localize_wanda`."""
    return _wanda_id("wanda", _groups(asked), nulls, params, sampling, site)


def localize_triggers(
    subject: Subject,
    triggers: Sequence[Asked],
    nulls: Sequence[Asked],
    params: WandaParams,
    sampling: SamplingParams,
    site: Site = Site.FEED_FORWARD_HIDDEN,
) -> str:
    """Wanda's weights of each trigger by itself, of scope "trigger": do triggers of one image find the same weights?

    Args:
        triggers: see `tasks.subject.as_prompts`; their feature norms must be in the store.

    Returns:
        The id of these parameters; rows of `neuron_sets` carry it.
    """
    return _wanda(subject, "wanda", _alone(triggers), nulls, params, sampling, site, "trigger")


def triggers_id(
    triggers: Sequence[Asked],
    nulls: Sequence[Asked],
    params: WandaParams,
    sampling: SamplingParams,
    site: Site = Site.FEED_FORWARD_HIDDEN,
) -> str:
    """What those sets go by, whether or not they were found yet."""
    return _wanda_id("wanda", _alone(triggers), nulls, params, sampling, site)


def localize_control(
    subject: Subject,
    asked: Sequence[Asked],
    ordinary: Sequence[Asked],
    nulls: Sequence[Asked],
    params: WandaParams,
    sampling: SamplingParams,
    site: Site = Site.FEED_FORWARD_HIDDEN,
) -> str:
    """The control of `localize_wanda`: ordinary prompts taken for memorized ones, in subsets of the same sizes.

    How far the sets of these subsets overlap is what has nothing to do with memorization.

    Args:
        asked: the memorized prompts.
        ordinary: as many of them as there are memorized prompts are used; their feature norms must be in the store.

    Returns:
        The id of these parameters; rows of `neuron_sets` carry it, of method "wanda-control".

    Raises:
        InputError: there are no ordinary prompts, or prompts have no feature norms in the store.
    """
    return _wanda(subject, "wanda-control", _control_groups(asked, ordinary), nulls, params, sampling, site)


def control_id(
    asked: Sequence[Asked],
    ordinary: Sequence[Asked],
    nulls: Sequence[Asked],
    params: WandaParams,
    sampling: SamplingParams,
    site: Site = Site.FEED_FORWARD_HIDDEN,
) -> str:
    """What the control's sets go by, whether or not they were found yet. See `localize_control`."""
    return _wanda_id("wanda-control", _control_groups(asked, ordinary), nulls, params, sampling, site)


def _wanda(
    subject: Subject,
    method: str,
    groups: Mapping[str, Sequence[Asked]],
    nulls: Sequence[Asked],
    params: WandaParams,
    sampling: SamplingParams,
    site: Site,
    scope: Literal["subset", "trigger"] = "subset",
) -> str:
    """Writes the memorized sets of each group that the store does not have, and returns the id of the parameters."""
    model, store = subject.load(), subject.open()
    layers = layers_of(model.unet, site)
    collection = norms_id(sampling, params.tau)
    params_id = _wanda_id(method, groups, nulls, params, sampling, site)
    known = scopes(store, subject, method, params_id, site, layers)
    todo = [name for name in groups if name not in known]
    if not todo:
        return params_id
    asked = {prompt.prompt_id for name in todo for prompt in groups[name]}
    rows: dict[str, list[dict[str, Any]]] = {name: [] for name in todo}
    with progress(len(layers), "Wanda", "layer") as done:
        for layer in layers:
            sums = _norms(store, subject, collection, params, site, layer)
            if lost := (asked | {prompt.prompt_id for prompt in nulls}) - sums.keys():
                raise InputError(
                    f"{len(lost)} prompts have no feature norms at {site.value!r}: run the collection first"
                )
            null = _summed(sums, nulls, layer.index)
            for name in todo:
                memorized = _summed(sums, groups[name], layer.index)
                for step, _, members in memorized_sets((layer,), memorized, null, params):
                    rows[name].append(
                        {
                            "scope_id": name,
                            "layer": layer.name,
                            "step": step,
                            "members": members.numpy(),
                            "universe": layer.outputs * layer.inputs,
                            "width": layer.inputs,
                        }
                    )
            done(1)
    for name in todo:
        key = content_key(subject.model_id, params_id, name)
        write_sets(store, subject, key, method, params_id, site, scope, rows[name])
    return params_id


def _wanda_id(
    method: str,
    groups: Mapping[str, Sequence[Asked]],
    nulls: Sequence[Asked],
    params: WandaParams,
    sampling: SamplingParams,
    site: Site,
) -> str:
    # Which prompts are in which group is part of the id. The share is not: it only says which sets are united later.
    return content_key(
        VERSION,
        method,
        params.model_dump(exclude={"share"}),
        norms_id(sampling, params.tau),
        site.value,
        {name: sorted(prompt.prompt_id for prompt in group) for name, group in groups.items()},
        sorted(prompt.prompt_id for prompt in nulls),
    )


def _groups(asked: Sequence[Asked]) -> dict[str, list[Asked]]:
    return {ALL: list(asked)} | subsets_of(asked)


def _control_groups(asked: Sequence[Asked], ordinary: Sequence[Asked]) -> dict[str, list[Asked]]:
    chosen = list(ordinary[: len(asked)])
    if not chosen:
        raise InputError("the control needs ordinary prompts: give a file of them with --ordinary")
    return {ALL: chosen} | control_subsets(list(subsets_of(asked).values()), chosen)


def _alone(triggers: Sequence[Asked]) -> dict[str, list[Asked]]:
    return {trigger.prompt_id: [trigger] for trigger in triggers}


def _norms(
    store: Store, subject: Subject, collection: str, params: WandaParams, site: Site, layer: Layer
) -> dict[str, dict[tuple[str, int], np.ndarray]]:
    """By prompt id, sums of squares of each half and step of one layer, (inputs,)."""
    halves = {"conditional": ("cond",), "unconditional": ("uncond",), "both": ("cond", "uncond")}[params.half]
    out: dict[str, dict[tuple[str, int], np.ndarray]] = {}
    for half in halves:
        rows = store.read(
            "activations",
            columns=["prompt_id", "step", "sum_sq"],
            model_id=subject.model_id,
            variant=ORIGINAL,
            site=site.value,
            layer=layer.name,
            params_id=f"{collection}-{half}",
        )
        for name, step, sums in zip(
            rows["prompt_id"].to_pylist(), rows["step"].to_pylist(), rows["sum_sq"], strict=True
        ):
            out.setdefault(name, {})[half, step] = sums.values.to_numpy()
    if any(half not in {h for h, _ in next(iter(out.values()), {})} for half in halves):
        raise InputError("there is no unconditional half: sample with a guidance above 1, or use the conditional half")
    return out


def _summed(
    sums: Mapping[str, Mapping[tuple[str, int], np.ndarray]], asked: Sequence[Asked], index: int
) -> dict[tuple[int, int], torch.Tensor]:
    """Added up over prompts, in the order of their ids, and halves; by (step, layer index)."""
    out: dict[tuple[int, int], np.ndarray] = {}
    for name in sorted(prompt.prompt_id for prompt in asked):
        for (_, step), values in sums[name].items():
            out[step, index] = out.get((step, index), 0) + values.astype(np.float64)
    return {key: torch.from_numpy(values) for key, values in out.items()}
