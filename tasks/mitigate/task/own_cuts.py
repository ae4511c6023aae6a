"""NeMo as published: each prompt is asked with its own neurons cut, beside as many random ones."""

import json
from collections.abc import Mapping, Sequence

from storage import content_key
from tasks.diffusion.sites import Layer, Site
from tasks.mitigate.prune import Members, OwnCuts, random_like, shared
from tasks.mitigate.task.variants import VERSION, cut_id, put, put_row, uncut_card, weights_in_store
from tasks.sets import read_sets
from tasks.subject import Subject

OWN_VERSION = "own/2"


def own_cut_id(params_id: str, prompt_ids: Sequence[str], seed: int = 0) -> str:
    """Of both cuts of each prompt's own neurons; `params_id` is that of NeMo's sets."""
    return content_key(OWN_VERSION, cut_id(params_id, prompt_ids, seed=seed))


def cut_own(
    subject: Subject, params_id: str, prompt_ids: Sequence[str], audit_id: str, site: Site, seed: int = 0
) -> dict[str, str]:
    """Cuts each prompt's own neurons alone: "nemo" and "random-nemo", by name the variant in the store.

    Nothing where the search found nothing.
    """
    layers = subject.load().layers(site)
    sets = read_sets(subject, "nemo", params_id, site, layers, prompt_ids)
    found: dict[str, Members] = {
        name: {layer.index: sets[name, None, layer.index] for layer in layers} for name in prompt_ids
    }
    if not any(len(rows) for own in found.values() for rows in own.values()):
        return {}
    universes = {layer.index: layer.outputs for layer in layers}
    control: dict[str, Members] = {name: random_like(own, universes, seed, name) for name, own in found.items()}
    key = own_cut_id(params_id, prompt_ids, seed)
    return {
        "nemo": _save(subject, "nemo", found, layers, key, audit_id),
        "random-nemo": _save(subject, "random-nemo", control, layers, key, audit_id, _shared(control, found)),
    }


def _save(
    subject: Subject,
    method: OwnCuts,
    members: Mapping[str, Members],
    layers: tuple[Layer, ...],
    params_id: str,
    audit_id: str,
    same: float = 0.0,
) -> str:
    """Puts each prompt's neurons into the store, under a name that they determine; the row counts a prompt's mean.

    Args:
        same: of random neurons, the share that was localized, too.
    """
    neurons = {
        name: {layer.name: own[layer.index].tolist() for layer in layers if len(own[layer.index])}
        for name, own in members.items()
    }
    text = json.dumps(neurons, sort_keys=True)
    variant = f"{method}-{content_key(VERSION, subject.model_id, text)[:8]}"
    cut = sum(len(rows) for own in neurons.values() for rows in own.values())
    counts = {"pruned": round(cut / len(neurons)), "total": sum(layer.outputs for layer in layers)}
    if (address := weights_in_store(subject, variant)) is not None:
        put_row(subject, variant, method, params_id, address, counts)
    else:
        card = uncut_card(subject, method, None, audit_id, "inference", same)
        put(subject, variant, params_id, card, files={"neurons.json": text}, counts=counts)
    return variant


def _shared(control: Mapping[str, Members], found: Mapping[str, Members]) -> float:
    """The share of all prompts' random neurons that are the prompt's own."""
    sizes = {name: sum(len(rows) for rows in own.values()) for name, own in found.items()}
    both = sum(shared(control[name], own) * sizes[name] for name, own in found.items() if sizes[name])
    return both / sum(sizes.values())
