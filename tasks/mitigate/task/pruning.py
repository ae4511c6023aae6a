"""Variants with what was localized set to zero, each beside as much of the same layers at random.

A pruned variant is its sets and a rule: they lie in `neuron_sets`, and its row in `variants` names them.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np

from storage import content_key
from tasks.diffusion.masks import Members, without_neurons, without_weights
from tasks.mitigate.prune import Card, random_like, shared
from tasks.mitigate.task.variants import prune_id, put, unpruned_card, variant_of
from tasks.pruned import ALL, Pruned
from tasks.sets import write_sets
from tasks.subject import PER_PROMPT, Rule, Subject


def prune(subject: Subject, pruned: Pruned, audit_id: str, seed: int = 0) -> dict[str, str]:
    """The variant that lacks what a localizer found and, where it has one, its random control: by name the variant in
    the store.

    Nothing where nothing was found; no control where all that there is was found.

    Args:
        seed: of the control.

    Raises:
        InputError: the localization did not run.
    """
    pruning, localizer = pruned.pruning, pruned.localizer
    layers = subject.load().layers(localizer.site_of(pruned.params))
    universes = {layer.index: localizer.universe(layer) for layer in layers}
    found = pruned.members(subject)
    sizes = {name: _size(members) for name, members in found.items()}
    if not any(sizes.values()):
        return {}
    out = {pruning.name: _put(subject, pruned, pruning.name, found, prune_id(pruned), audit_id)}
    if pruning.control is not None:
        # Controls of several prompts must not be one and the same draw.
        of = dict.fromkeys(found, "") if ALL in found else {name: name for name in found}
        drawn = {name: random_like(members, universes, seed, of[name]) for name, members in found.items()}
        same = sum(shared(drawn[name], found[name]) * size for name, size in sizes.items() if size)
        if (share := same / sum(sizes.values())) < 1:
            key = prune_id(pruned, seed)
            out[pruning.control] = _put(subject, pruned, pruning.control, drawn, key, audit_id, share)
    return out


def _put(
    subject: Subject,
    pruned: Pruned,
    method: str,
    members: Mapping[str, Members],
    params_id: str,
    audit_id: str,
    share: float | None = None,
) -> str:
    """Puts a variant into the store with the sets that it sets to zero, where it does not lack those that were found.

    Args:
        members: what is pruned, of all prompts or by prompt.
        share: of a random control, the share that was found, too.

    Returns:
        The variant's name.
    """
    localizer, site = pruned.localizer, pruned.localizer.site_of(pruned.params)
    each = pruned.pruning.over == "each"
    rule: Rule = PER_PROMPT if each else localizer.members
    named = {"sets_method": pruned.method, "sets_id": pruned.sets_id, "sets_scopes": list(pruned.scopes)}
    if share is not None or not pruned.as_found:
        own = members if each else {variant_of(method, params_id): members[ALL]}
        _write(subject, pruned, method, params_id, "prompt" if each else "variant", own)
        named = {"sets_method": method, "sets_id": params_id, "sets_scopes": list(own)}
    words = pruned.pruning.card if share is None else pruned.pruning.random
    if each:
        done = f"each prompt is asked without {words}"
        card = unpruned_card(subject, method, pruned.params, audit_id, "inference", done, share or 0.0)
    else:
        card = _card(subject, pruned, method, members[ALL], words, audit_id, share or 0.0)
    counts = {
        "pruned": round(sum(map(_size, members.values())) / len(members)),
        "total": sum(localizer.universe(layer) for layer in subject.load().layers(site)),
    }
    return put(subject, method, params_id, card, rule=rule, site=site.value, **named, **counts)


def _card(
    subject: Subject, pruned: Pruned, method: str, members: Members, words: str, audit_id: str, share: float
) -> Card:
    """The card of a variant of which the same members are zero whatever is asked."""
    model, site = subject.load(), pruned.localizer.site_of(pruned.params)
    layers = model.layers(site)
    without = without_weights if pruned.localizer.members == "weights" else without_neurons
    with without(model.denoiser, layers, members) as zeroed:
        return Card(
            title=f"{Path(subject.source).name}, {method}",
            base=subject.source,
            base_id=model.model_id,
            method=method,
            audit_id=audit_id,
            site=site.value,
            pruned=zeroed,
            total=sum(weight.numel() for weight in model.denoiser.parameters()),
            members={layer.name: len(members[layer.index]) for layer in layers},
            params=pruned.params.model_dump(mode="json"),
            shared=share,
            pruned_words=words,
        )


def _write(
    subject: Subject,
    pruned: Pruned,
    method: str,
    params_id: str,
    scope: Literal["prompt", "variant"],
    sets: Mapping[str, Members],
) -> None:
    """Writes what a variant sets to zero, by scope id, a part a layer."""
    localizer, site = pruned.localizer, pruned.localizer.site_of(pruned.params)
    layers = subject.load().layers(site)
    rows: list[dict[str, Any]] = [
        {
            "scope_id": name,
            "layer": layer.name,
            "members": members[layer.index].numpy().astype(np.uint32),
            "universe": localizer.universe(layer),
            "width": layer.inputs if localizer.members == "weights" else None,
        }
        for name, members in sets.items()
        for layer in layers
    ]
    key = content_key(subject.model_id, method, params_id)
    write_sets(subject, key, method, params_id, site, scope, rows)


def _size(members: Members) -> int:
    return sum(len(found) for found in members.values())
