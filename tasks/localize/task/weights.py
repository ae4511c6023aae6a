"""Wanda in the store: weights of subsets, of single triggers, and of ordinary prompts as the control."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch

from storage import Store, content_key
from tasks.diffusion.sampling import SamplingParams
from tasks.diffusion.sites import Layer, Site
from tasks.errors import InputError
from tasks.keys import norms_id
from tasks.localize.subsets import control_subsets, subsets_of
from tasks.localize.task.names import ALL, VERSION
from tasks.localize.wanda import WandaParams, memorized_sets
from tasks.progress import progress
from tasks.sets import found_scopes, write_sets
from tasks.subject import ORIGINAL, Prompt, Subject


@dataclass(frozen=True)
class Groups:
    """Prompts whose weights are looked for together."""

    prompts: Mapping[str, Sequence[Prompt]]
    """By scope id."""
    method: Literal["wanda", "wanda-control"] = "wanda"
    scope: Literal["subset", "trigger"] = "subset"


def by_subset(asked: Sequence[Prompt]) -> Groups:
    """Each subset of the memorized prompts (see `subsets_of`), and all of them together."""
    return Groups({ALL: list(asked)} | subsets_of(asked))


def by_control(asked: Sequence[Prompt], ordinary: Sequence[Prompt]) -> Groups:
    """The control: ordinary prompts taken for memorized ones, in subsets of the same sizes, and all together.

    How far the sets of these subsets overlap is what has nothing to do with memorization.

    Args:
        asked: the memorized prompts.
        ordinary: as many of them as there are memorized prompts are used.

    Raises:
        InputError: there are no ordinary prompts.
    """
    chosen = list(ordinary[: len(asked)])
    if not chosen:
        raise InputError("the control needs ordinary prompts: give a file of them with --ordinary")
    return Groups({ALL: chosen} | control_subsets(list(subsets_of(asked).values()), chosen), "wanda-control")


def by_trigger(triggers: Sequence[Prompt]) -> Groups:
    """Each trigger (see `tasks.subject.as_prompts`) by itself: do those of one image find the same weights?"""
    return Groups({trigger.prompt_id: [trigger] for trigger in triggers}, scope="trigger")


def wanda_id(
    groups: Groups,
    nulls: Sequence[Prompt],
    params: WandaParams,
    sampling: SamplingParams,
    site: Site = Site.FEED_FORWARD_HIDDEN,
) -> str:
    """What the sets of these groups go by, whether or not they were found yet. See `localize_wanda`."""
    # Which prompts are in which group is part of the id. The share is not: it only says which sets are united later.
    return content_key(
        VERSION,
        groups.method,
        params.model_dump(exclude={"share"}),
        norms_id(sampling, params.tau),
        site.value,
        {name: sorted(prompt.prompt_id for prompt in group) for name, group in groups.prompts.items()},
        sorted(prompt.prompt_id for prompt in nulls),
    )


def localize_wanda(
    subject: Subject,
    groups: Groups,
    nulls: Sequence[Prompt],
    params: WandaParams,
    sampling: SamplingParams,
    site: Site = Site.FEED_FORWARD_HIDDEN,
) -> str:
    """Wanda's weights of each group that the store does not have, at each of the first tau steps.

    Args:
        nulls: what prompts are held against: other prompts, or empty ones as published (`collect.task.empty_prompts`).

    Returns:
        The id of these parameters; rows of `neuron_sets` carry it.

    Raises:
        InputError: prompts have no feature norms in the store.
    """
    model, store = subject.load(), subject.open()
    layers = model.layers(site)
    collection = norms_id(sampling, params.tau)
    params_id = wanda_id(groups, nulls, params, sampling, site)
    known = found_scopes(subject, groups.method, params_id, site, layers)
    todo = [name for name in groups.prompts if name not in known]
    if not todo:
        return params_id
    asked = {prompt.prompt_id for name in todo for prompt in groups.prompts[name]}
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
                memorized = _summed(sums, groups.prompts[name], layer.index)
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
        write_sets(subject, key, groups.method, params_id, site, groups.scope, rows[name])
    return params_id


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
    sums: Mapping[str, Mapping[tuple[str, int], np.ndarray]], asked: Sequence[Prompt], index: int
) -> dict[tuple[int, int], torch.Tensor]:
    """Added up over prompts, in the order of their ids, and halves; by (step, layer index)."""
    out: dict[tuple[int, int], np.ndarray] = {}
    for name in sorted(prompt.prompt_id for prompt in asked):
        for (_, step), values in sums[name].items():
            out[step, index] = out.get((step, index), 0) + values.astype(np.float64)
    return {key: torch.from_numpy(values) for key, values in out.items()}
