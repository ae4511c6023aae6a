"""Other importance scores in the store, for as many weights as Wanda's cut takes."""

from collections.abc import Sequence

import numpy as np
import torch

from storage import Store, content_key
from tasks.diffusion.sampling import encode
from tasks.diffusion.sites import Layer, Site
from tasks.errors import InputError
from tasks.keys import SEED
from tasks.localize.importance import BY_GRADIENT, ImportanceParams, gradient_magnitudes, important_weights
from tasks.localize.task.names import ALL, VERSION
from tasks.localize.wanda import WandaParams, over_steps
from tasks.progress import progress
from tasks.sets import found_scopes, write_sets
from tasks.subject import Prompt, Subject


def localize_importance(
    subject: Subject,
    asked: Sequence[Prompt],
    ordinary: Sequence[Prompt],
    params: ImportanceParams,
    wanda_id: str,
    wanda: WandaParams,
    scope_id: str = ALL,
    site: Site = Site.FEED_FORWARD_HIDDEN,
) -> str:
    """The weights of the highest scores of another kind, as many of each layer as Wanda's cut takes.

    Args:
        asked: the memorized prompts of the scope, with their images: what gradients are taken of.
        ordinary: prompts with images that are not memorized: what gradients are held against.
        wanda_id: of Wanda's sets.
        wanda: how the cut unites them over steps.

    Returns:
        The id of these parameters; rows of `neuron_sets` carry it, of the method that the score is called by.

    Raises:
        InputError: Wanda's sets are not in the store, or gradients are needed and a prompt has no image.
    """
    model = subject.load()
    layers = model.layers(site)
    counts, pictures, params_id = _importance(subject, asked, ordinary, params, wanda_id, wanda, scope_id, site)
    if scope_id in found_scopes(subject, params.score, params_id, site, layers):
        return params_id
    gradients: dict[str, list[torch.Tensor] | None] = {"memorized": None, "ordinary": None}
    with progress(sum(map(len, pictures.values())), f"gradients for {params.score}", "picture") as done:
        for kind, named in pictures.items():
            if named:
                latents = encode(model, subject.pictures([image for _, image in named]))
                keys = [(image, SEED) for _, image in named]
                texts = model.encode([text for text, _ in named])
                gradients[kind] = gradient_magnitudes(model, layers, texts, latents, keys, params.timesteps, done)
    rows = [
        {
            "scope_id": scope_id,
            "layer": layers[index].name,
            "members": members.numpy(),
            "universe": layers[index].outputs * layers[index].inputs,
            "width": layers[index].inputs,
        }
        for index, members in important_weights(layers, counts, params, **gradients)
    ]
    key = content_key(subject.model_id, params_id, scope_id)
    write_sets(subject, key, params.score, params_id, site, "subset", rows)
    return params_id


def importance_id(
    subject: Subject,
    asked: Sequence[Prompt],
    ordinary: Sequence[Prompt],
    params: ImportanceParams,
    wanda_id: str,
    wanda: WandaParams,
    scope_id: str = ALL,
    site: Site = Site.FEED_FORWARD_HIDDEN,
) -> str:
    """What another score's sets go by; Wanda's must have been found. See `localize_importance`."""
    return _importance(subject, asked, ordinary, params, wanda_id, wanda, scope_id, site)[2]


def _importance(
    subject: Subject,
    asked: Sequence[Prompt],
    ordinary: Sequence[Prompt],
    params: ImportanceParams,
    wanda_id: str,
    wanda: WandaParams,
    scope_id: str,
    site: Site,
) -> tuple[list[int], dict[str, list[tuple[str, str]]], str]:
    """How many weights of each layer, whose gradients, and the id of both."""
    store, layers = subject.open(), subject.load().layers(site)
    counts = [len(_cut(store, subject, wanda_id, scope_id, wanda, site, layer)) for layer in layers]
    pictures: dict[str, list[tuple[str, str]]] = {"memorized": [], "ordinary": []}
    if params.score in BY_GRADIENT:
        pictures = {"memorized": _pictures(asked), "ordinary": _pictures(ordinary) if params.contrast else []}
    params_id = content_key(VERSION, "importance", params.model_dump(), counts, site.value, scope_id, pictures)
    return counts, pictures, params_id


def _cut(
    store: Store, subject: Subject, wanda_id: str, scope_id: str, params: WandaParams, site: Site, layer: Layer
) -> torch.Tensor:
    """The weights of one layer that Wanda's cut takes."""
    rows = store.read(
        "neuron_sets",
        columns=["step", "members"],
        model_id=subject.model_id,
        method="wanda",
        site=site.value,
        layer=layer.name,
        params_id=wanda_id,
        scope_id=scope_id,
    )
    if not len(rows):
        raise InputError(f"the store has no Wanda sets of {scope_id!r}: run the localization first")
    sets = {
        (step, layer.index): torch.from_numpy(members.values.to_numpy().astype(np.int64))
        for step, members in zip(rows["step"].to_pylist(), rows["members"], strict=True)
    }
    return over_steps(sets, {layer.index: layer.outputs * layer.inputs}, params)[layer.index]


def _pictures(asked: Sequence[Prompt]) -> list[tuple[str, str]]:
    """The text and the first image of each prompt."""
    if without := [prompt.text for prompt in asked if not prompt.image_ids]:
        raise InputError(f"{len(without)} prompts have no image, such as {without[0][:60]!r}: give --images")
    if not asked:
        raise InputError("gradients need memorized pictures, and ordinary ones unless contrast is off: give --images")
    return [(prompt.text, prompt.image_ids[0]) for prompt in asked]
