"""Any localizer in the store: the sets that it finds, the traces that it leaves, and what two searches share."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel

from storage import content_key
from tasks.diffusion.sites import Layer
from tasks.errors import InputError
from tasks.localize.ground import Found, Trial
from tasks.localize.task.detection import traced
from tasks.localize.task.given import Given, Groups, one_by_one, sets_id
from tasks.localize.task.grounds import Grounds
from tasks.methods import Localizer
from tasks.progress import progress
from tasks.sets import found_scopes, read_sets, write_sets
from tasks.subject import ORIGINAL, Prompt, Subject


def localize(
    subject: Subject,
    localizer: Localizer,
    params: BaseModel,
    groups: Groups,
    given: Given,
    params_id: str | None = None,
) -> str:
    """The sets of each of these groups that the store does not have, and what the localizer leaves by the way.

    Args:
        params_id: what the sets go by, where these groups are some of more: `sets_id` of all of them.

    Returns:
        The id of these sets; rows of `neuron_sets` and `nemo_traces` carry it.

    Raises:
        InputError: the store lacks what the localizer reads, or it found what is no member of a layer.
    """
    params_id = params_id or sets_id(localizer, params, groups, given)
    layers = subject.load().layers(localizer.site_of(params))
    method = localizer.sets_name(groups.ordinary)
    stages = {stage: f"{method}-{stage}" for stage in localizer.stages} | {"": method}
    # A scope is written in several parts, one after the other, and a damaged one may have been deleted.
    known = [found_scopes(subject, one, params_id, layers[0].site, layers) for one in stages.values()]
    known += [traced(subject.open(), subject, params_id)] if localizer.traces else []
    todo = [name for name in groups.prompts if any(name not in scopes for scopes in known)]
    grounds = Grounds(subject, localizer, params, {name: groups.prompts[name] for name in todo}, given)
    with progress(len(todo), localizer.title, groups.scope) as done:
        for name in todo:
            found = list(localizer.find(grounds.of(name), params))
            key = content_key(subject.model_id, params_id, name)
            if localizer.traces:
                _write_trace(subject, key, params_id, name, (one for one in found if isinstance(one, Trial)))
            for stage, kept_as in stages.items():
                own = [one for one in found if isinstance(one, Found) and one.stage == stage]
                rows = [{"scope_id": name} | row for row in _rows(localizer, layers, own)]
                write_sets(subject, key, kept_as, params_id, layers[0].site, groups.scope, rows)
            done(1)
    return params_id


def curve_id(sets_id: str, seed: int = 0) -> str:
    """What the curves of `draw_curves` go by."""
    return content_key("localize/3", "curve, ranked by one seed, each with its own control", sets_id, seed)


def draw_curves(
    subject: Subject,
    localizer: Localizer,
    params: BaseModel,
    prompts: Sequence[Prompt],
    given: Given,
    seed: int = 0,
    found_id: str | None = None,
) -> str:
    """How much of each memory is left as more and more of what holds it is ablated, a row of `nemo_traces` a point.

    Prompts for which nothing was found have none.

    Args:
        found_id: what the prompts' sets go by, where these are some of more: `sets_id` of all of them.

    Returns:
        The id of these curves.

    Raises:
        InputError: the localization of a prompt did not run.
    """
    assert localizer.curve is not None
    groups = one_by_one(prompts)
    found_id = found_id or sets_id(localizer, params, groups, given)
    params_id = curve_id(found_id, seed)
    found = _members(subject, localizer, params, found_id)
    if lost := [prompt.text for prompt in prompts if prompt.prompt_id not in found]:
        raise InputError(f"{len(lost)} prompts were not searched, such as {lost[0][:60]!r}: run the localization first")
    known = traced(subject.open(), subject, params_id)
    held = [name for name in groups.prompts if any(len(one) for one in found[name].values())]
    todo = [name for name in held if name not in known]
    grounds = Grounds(subject, localizer, params, {name: groups.prompts[name] for name in todo}, given)
    with progress(len(todo), "memorization left", "prompt") as done:
        for name in todo:
            key = content_key(subject.model_id, params_id, name)
            points = localizer.curve(grounds.of(name), found[name], params, seed)
            _write_trace(subject, key, params_id, name, points)
            done(1)
    return params_id


def agreement(
    subject: Subject, localizer: Localizer, params: BaseModel, first_id: str, second_id: str
) -> dict[str, float]:
    """How far two searches of a localizer agree, such as one by a shortcut with the published one.

    Returns:
        By scope, intersection over union of the members of all layers; 1 where both found none. Only scopes that both
        searches looked at.

    Raises:
        InputError: there are none.
    """
    first, second = (
        {
            name: {(index, member) for index, members in found.items() for member in members.tolist()}
            for name, found in _members(subject, localizer, params, params_id).items()
        }
        for params_id in (first_id, second_id)
    )
    if not first.keys() & second.keys():
        raise InputError("the store has no prompt that both searches looked at: run the localization with both")
    return {
        name: len(first[name] & second[name]) / len(first[name] | second[name]) if first[name] | second[name] else 1.0
        for name in sorted(first.keys() & second.keys())
    }


def _members(
    subject: Subject, localizer: Localizer, params: BaseModel, params_id: str
) -> dict[str, dict[int, torch.Tensor]]:
    """By scope and layer index, what was found, where sets have no steps."""
    layers = subject.load().layers(localizer.site_of(params))
    sets = read_sets(subject, localizer.name, params_id, layers[0].site, layers)
    out: dict[str, dict[int, torch.Tensor]] = {}
    for (name, _, index), members in sorted(sets.items(), key=lambda item: item[0][2]):
        out.setdefault(name, {})[index] = members
    return out


def _rows(localizer: Localizer, layers: Sequence[Layer], found: Sequence[Found]) -> list[dict[str, Any]]:
    """Rows of `neuron_sets` of one scope: of every layer one, or one a step."""
    members: Mapping[tuple[int, int | None], torch.Tensor] = {(one.layer.index, one.step): one.members for one in found}
    steps: list[int | None] = [*sorted({one.step for one in found if one.step is not None})] or [None]
    out = []
    for layer in layers:
        size = localizer.universe(layer)
        for step in steps:
            row = np.unique(members.get((layer.index, step), torch.zeros(0)).cpu().numpy()).astype(np.int64)
            if len(row) and not 0 <= row[0] <= row[-1] < size:
                raise InputError(
                    f"{layer.name} has {size} {localizer.members}, {localizer.name} found number {row[-1]}"
                )
            width = {"width": layer.inputs} if localizer.members == "weights" else {}
            same = {"layer": layer.name, "step": step, "universe": size}
            out.append(same | width | {"members": row.astype(np.uint32)})
    return out


def _write_trace(subject: Subject, key: str, params_id: str, name: str, trials: Iterable[Trial]) -> None:
    rows = [
        {"prompt_id": name, "params_id": params_id, "step_number": number} | asdict(trial)
        for number, trial in enumerate(trials)
    ]
    subject.open().write("nemo_traces", key, rows, model_id=subject.model_id, variant=ORIGINAL)
