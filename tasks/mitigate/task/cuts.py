"""Variants with what was localized set to zero, each beside a random cut of the same size."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal

import torch
from diffusers import UNet2DConditionModel

from storage import content_key
from tasks.diffusion.model import Model
from tasks.diffusion.sites import Site, layers_of
from tasks.localize.wanda import WandaParams, over_steps
from tasks.mitigate.prune import (
    Card,
    Members,
    count_zeroed,
    random_like,
    shared,
    without_neurons,
    without_weights,
)
from tasks.mitigate.task.variants import VERSION, cut_id, put, put_row, weights_in_store
from tasks.sets import read_sets
from tasks.subject import Subject

Cut = Callable[[UNet2DConditionModel, Site, Members], UNet2DConditionModel]
RANDOM_CONTROLS = ("random-nemo", "random-nemo-union", "random-wanda")
"""The controls of the cuts, by method."""
WORDS = {
    "nemo-union": "the neurons that NeMo found to hold memorized training images",
    "random-nemo-union": "as many random neurons of each layer as NeMo found, a control,",
    "wanda": "the weights that Wanda found to hold memorized training images",
    "random-wanda": "as many random weights of each layer as Wanda found, a control,",
    "wanda-control": "the weights that Wanda finds when it takes ordinary prompts for memorized ones, a control,",
    "magnitude": "as many weights of each layer as Wanda found, those of the largest magnitude,",
    "taylor": "as many weights of each layer as Wanda found, those of the highest first-order Taylor score,",
    "gradient": "as many weights of each layer as Wanda found, those of the largest gradient,",
    "random": "as many weights of each layer as Wanda found, drawn at random,",
}
"""What a model card says of the cut, by method."""


def cut_neurons(
    subject: Subject, params_id: str, prompt_ids: Sequence[str], audit_id: str, site: Site, seed: int = 0
) -> dict[str, str]:
    """Cuts NeMo's neurons of all these prompts together: "nemo-union" and "random-nemo-union", by name the variant in
    the store.

    Nothing where the search found nothing; no random cut where it found everything.
    """
    model = subject.load()
    layers = layers_of(model.unet, site)
    sets = read_sets(subject, "nemo", params_id, site, layers, prompt_ids)
    members = {
        layer.index: torch.unique(torch.cat([sets[name, None, layer.index] for name in prompt_ids])) for layer in layers
    }
    if not any(len(found) for found in members.values()):
        return {}
    universes = {layer.index: layer.outputs for layer in layers}
    chosen: dict[str, Members] = {"nemo-union": members} | _control("random-nemo-union", members, universes, seed)
    key = cut_id(params_id, prompt_ids, seed=seed)
    return {
        name: _save(subject, model, name, found, without_neurons, site, key, audit_id, universes, found_by=members)
        for name, found in chosen.items()
    }


def cut_weights(
    subject: Subject,
    params_id: str,
    scope_id: str,
    params: WandaParams,
    audit_id: str,
    site: Site = Site.FEED_FORWARD_HIDDEN,
    seed: int = 0,
    method: Literal["wanda", "wanda-control"] = "wanda",
) -> dict[str, str]:
    """Cuts Wanda's weights of a scope: "wanda" and "random-wanda", by name the variant in the store.

    Nothing where no weight scored higher for memorized prompts than for null prompts; no random cut where all of them
    did. What was found for ordinary prompts, "wanda-control", is cut alone: it is a control itself.

    Args:
        params: how the sets of the steps are united; fewer steps than were localized may be.
    """
    model = subject.load()
    layers = layers_of(model.unet, site)
    sets = read_sets(subject, method, params_id, site, layers, [scope_id])
    universes = {layer.index: layer.outputs * layer.inputs for layer in layers}
    by_step = {(step, index): found for (_, step, index), found in sets.items() if step is not None}
    members = over_steps(by_step, universes, params)
    if not any(len(found) for found in members.values()):
        return {}
    chosen: dict[str, Members] = {method: members}
    if method == "wanda":
        chosen |= _control("random-wanda", members, universes, seed)
    key = cut_id(params_id, [scope_id], params, seed)
    return {
        name: _save(subject, model, name, found, without_weights, site, key, audit_id, universes, params, members)
        for name, found in chosen.items()
    }


def cut_scored(
    subject: Subject,
    method: str,
    params_id: str,
    scope_id: str,
    audit_id: str,
    site: Site = Site.FEED_FORWARD_HIDDEN,
) -> dict[str, str]:
    """Cuts the weights that another importance score chose for a scope: by the score's name the variant in the store.

    Nothing where Wanda, whose numbers they follow, found nothing.
    """
    model = subject.load()
    layers = layers_of(model.unet, site)
    sets = read_sets(subject, method, params_id, site, layers, [scope_id])
    members = {index: found for (_, _, index), found in sets.items()}
    if not any(len(found) for found in members.values()):
        return {}
    universes = {layer.index: layer.outputs * layer.inputs for layer in layers}
    key = cut_id(params_id, [scope_id])
    return {method: _save(subject, model, method, members, without_weights, site, key, audit_id, universes)}


def _control(name: str, members: Members, universes: Mapping[int, int], seed: int) -> dict[str, Members]:
    """The random cut by its name; nothing where it would be the very same one."""
    control = random_like(members, universes, seed)
    return {} if shared(control, members) == 1 else {name: control}


def _save(
    subject: Subject,
    model: Model,
    method: str,
    members: Members,
    cut: Cut,
    site: Site,
    params_id: str,
    audit_id: str,
    universes: dict[int, int],
    params: WandaParams | None = None,
    found_by: Members | None = None,
) -> str:
    """Puts the pruned UNet into the store under a name that its content determines.

    Args:
        found_by: what was localized, where `members` may be its random control.
    """
    digest = content_key(VERSION, model.model_id, site.value, {str(k): v.long().numpy() for k, v in members.items()})
    variant = f"{method}-{digest[:8]}"
    counts = {"pruned": sum(len(found) for found in members.values()), "total": sum(universes.values())}
    if (address := weights_in_store(subject, variant)) is not None:
        # Found before by other settings: theirs and these are the same model.
        put_row(subject, variant, method, params_id, address, counts)
        return variant
    unet = cut(model.unet, site, members)
    zeroed, total = count_zeroed(model.unet, unet)
    names = {layer.index: layer.name for layer in layers_of(model.unet, site)}
    card = Card(
        title=f"{Path(subject.source).name}, {method}",
        base=subject.source,
        base_id=model.model_id,
        method=method,
        audit_id=audit_id,
        site=site.value,
        pruned=zeroed,
        total=total,
        members={names[index]: len(found) for index, found in members.items()},
        params=params.model_dump() if params is not None else {},
        shared=shared(members, found_by) if found_by is not None and method in RANDOM_CONTROLS else 0.0,
        cut=WORDS[method],
    )
    put(subject, variant, params_id, card, unet, counts=counts)
    return variant
