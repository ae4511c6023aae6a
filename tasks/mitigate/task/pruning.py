"""Variants with what was localized set to zero, each beside as much of the same layers at random.

A pruned variant is its sets and a rule: they lie in `neuron_sets`, and its row in `variants` names them.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from storage import content_key
from tasks.diffusion.families import layers_of
from tasks.diffusion.masks import Members, without_neurons, without_weights
from tasks.diffusion.sites import Site
from tasks.localize.importance import Importance
from tasks.localize.wanda import WandaParams, over_steps
from tasks.mitigate.prune import Card, PerPrompt, random_like, shared
from tasks.mitigate.task.variants import prune_id, put, unpruned_card, variant_of
from tasks.sets import read_sets, write_sets
from tasks.subject import PER_PROMPT, Rule, Subject

RANDOM_CONTROLS = ("random-nemo", "random-nemo-union", "random-wanda")
"""The controls of what was localized, by method."""
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
"""What a model card says was set to zero, by method."""


def prune_neurons(
    subject: Subject, params_id: str, prompt_ids: Sequence[str], audit_id: str, site: Site, seed: int = 0
) -> dict[str, str]:
    """Prunes NeMo's neurons of all these prompts together: "nemo-union" and "random-nemo-union", by name the variant in
    the store.

    Nothing where the search found nothing; no control where it found everything.
    """
    layers = layers_of(subject.load().denoiser, site)
    sets = read_sets(subject, "nemo", params_id, site, layers, prompt_ids)
    members: Members = {
        layer.index: torch.unique(torch.cat([sets[name, None, layer.index] for name in prompt_ids])) for layer in layers
    }
    if not _any(members):
        return {}
    key = prune_id(params_id, prompt_ids)
    out = {"nemo-union": _put_own(subject, "nemo-union", key, "neurons", site, members, audit_id)}
    control = random_like(members, {layer.index: layer.outputs for layer in layers}, seed)
    if (same := shared(control, members)) < 1:
        key = prune_id(params_id, prompt_ids, seed=seed)
        out["random-nemo-union"] = _put_own(
            subject, "random-nemo-union", key, "neurons", site, control, audit_id, same=same
        )
    return out


def prune_per_prompt(
    subject: Subject, params_id: str, prompt_ids: Sequence[str], audit_id: str, site: Site, seed: int = 0
) -> dict[str, str]:
    """Prunes each prompt's own neurons, as published, when it is asked: "nemo" and "random-nemo", by name the variant
    in the store.

    Nothing where the search found nothing.
    """
    layers = layers_of(subject.load().denoiser, site)
    sets = read_sets(subject, "nemo", params_id, site, layers, prompt_ids)
    found: dict[str, Members] = {
        name: {layer.index: sets[name, None, layer.index] for layer in layers} for name in prompt_ids
    }
    if not any(_any(own) for own in found.values()):
        return {}
    universes = {layer.index: layer.outputs for layer in layers}
    control: dict[str, Members] = {name: random_like(own, universes, seed, name) for name, own in found.items()}
    key = prune_id(params_id, prompt_ids, seed=seed)
    _write(subject, "random-nemo", key, PER_PROMPT, site, "prompt", control)
    # The share of all prompts' random neurons that are the prompt's own.
    sizes = {name: _size(own) for name, own in found.items()}
    both = sum(shared(control[name], own) * sizes[name] for name, own in found.items() if sizes[name])

    def put_prompts(method: PerPrompt, key: str, sets: tuple[str, str], same: float = 0.0) -> str:
        counts = {"pruned": round(sum(sizes.values()) / len(found)), "total": sum(universes.values())}
        card = unpruned_card(subject, method, None, audit_id, "inference", same)
        return put(subject, method, key, card, **_named(PER_PROMPT, site, *sets, prompt_ids), **counts)

    return {
        "nemo": put_prompts("nemo", prune_id(params_id, prompt_ids), ("nemo", params_id)),
        "random-nemo": put_prompts("random-nemo", key, ("random-nemo", key), both / sum(sizes.values())),
    }


def prune_weights(
    subject: Subject,
    params_id: str,
    scope_id: str,
    params: WandaParams,
    audit_id: str,
    seed: int = 0,
    method: Literal["wanda", "wanda-control"] = "wanda",
) -> dict[str, str]:
    """Prunes Wanda's weights of a scope: "wanda" and "random-wanda", by name the variant in the store.

    Nothing where no weight scored higher for memorized prompts than for null prompts; no random control where all of
    them did. What was found for ordinary prompts, "wanda-control", is a control itself, and has none.

    Args:
        params: how the sets of the steps are united; fewer steps than were localized may be.
    """
    site = Site.FEED_FORWARD_HIDDEN
    layers = layers_of(subject.load().denoiser, site)
    sets = read_sets(subject, method, params_id, site, layers, [scope_id])
    universes = {layer.index: layer.outputs * layer.inputs for layer in layers}
    by_step = {(step, index): found for (_, step, index), found in sets.items() if step is not None}
    members: Members = over_steps(by_step, universes, params)
    if not _any(members):
        return {}
    key = prune_id(params_id, [scope_id], params)
    out: dict[str, str] = {method: _put_own(subject, method, key, "weights", site, members, audit_id, params)}
    if method == "wanda":
        control = random_like(members, universes, seed)
        if (same := shared(control, members)) < 1:
            key = prune_id(params_id, [scope_id], params, seed)
            out["random-wanda"] = _put_own(
                subject, "random-wanda", key, "weights", site, control, audit_id, params, same
            )
    return out


def prune_scored(subject: Subject, method: Importance, params_id: str, scope_id: str, audit_id: str) -> dict[str, str]:
    """Prunes the weights that another importance score chose for a scope: by the score's name the variant in the store.

    Nothing where Wanda, whose numbers they follow, found nothing.
    """
    site = Site.FEED_FORWARD_HIDDEN
    layers = layers_of(subject.load().denoiser, site)
    sets = read_sets(subject, method, params_id, site, layers, [scope_id])
    members: Members = {index: found for (_, _, index), found in sets.items()}
    if not _any(members):
        return {}
    named = _named("weights", site, method, params_id, [scope_id])
    return {method: _put(subject, method, prune_id(params_id, [scope_id]), members, named, audit_id)}


def _put_own(
    subject: Subject,
    method: str,
    params_id: str,
    rule: Rule,
    site: Site,
    members: Members,
    audit_id: str,
    params: WandaParams | None = None,
    same: float = 0.0,
) -> str:
    """Puts a variant and the set that it sets to zero into the store, and returns its name."""
    variant = variant_of(method, params_id)
    _write(subject, method, params_id, rule, site, "variant", {variant: members})
    named = _named(rule, site, method, params_id, [variant])
    return _put(subject, method, params_id, members, named, audit_id, params, same)


def _put(
    subject: Subject,
    method: str,
    params_id: str,
    members: Members,
    named: dict[str, Any],
    audit_id: str,
    params: WandaParams | None = None,
    same: float = 0.0,
) -> str:
    """Puts a variant of which the same members are zero whatever is asked into the store, and returns its name.

    Args:
        named: the columns that name its sets.
        same: of a random control, the share that was localized, too.
    """
    model = subject.load()
    layers = layers_of(model.denoiser, Site(named["site"]))
    weights = named["rule"] == "weights"
    without = without_weights if weights else without_neurons
    with without(model.denoiser, layers, members) as zeroed:
        card = Card(
            title=f"{Path(subject.source).name}, {method}",
            base=subject.source,
            base_id=model.model_id,
            method=method,
            audit_id=audit_id,
            site=named["site"],
            pruned=zeroed,
            total=sum(weight.numel() for weight in model.denoiser.parameters()),
            members={layer.name: len(members[layer.index]) for layer in layers},
            params=params.model_dump() if params is not None else {},
            shared=same,
            cut=WORDS[method],
        )
    total = sum(layer.outputs * (layer.inputs if weights else 1) for layer in layers)
    return put(subject, method, params_id, card, **named, pruned=_size(members), total=total)


def _write(
    subject: Subject,
    method: str,
    params_id: str,
    rule: Rule,
    site: Site,
    scope: Literal["prompt", "variant"],
    sets: Mapping[str, Members],
) -> None:
    """Writes what a variant sets to zero, by scope id, a part a layer."""
    weights = rule == "weights"
    rows = [
        {
            "scope_id": name,
            "layer": layer.name,
            "members": members[layer.index].numpy().astype(np.uint32),
            "universe": layer.outputs * (layer.inputs if weights else 1),
            "width": layer.inputs if weights else None,
        }
        for name, members in sets.items()
        for layer in layers_of(subject.load().denoiser, site)
    ]
    key = content_key(subject.model_id, method, params_id)
    write_sets(subject, key, method, params_id, site, scope, rows)


def _named(rule: Rule, site: Site, method: str, params_id: str, scopes: Sequence[str]) -> dict[str, Any]:
    """The columns of `variants` that say which sets are zero."""
    where = {"sets_method": method, "sets_id": params_id, "sets_scopes": list(scopes)}
    return {"rule": rule, "site": site.value} | where


def _size(members: Members) -> int:
    return sum(len(found) for found in members.values())


def _any(members: Members) -> bool:
    return _size(members) > 0
