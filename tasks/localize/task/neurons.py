"""NeMo in the store: the search for neurons, and how much of a memory is left without them."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from storage import Store, content_key
from tasks.diffusion.sites import Layer, Site
from tasks.errors import InputError
from tasks.keys import values_id
from tasks.localize.curve import best_first, memorization_curve, stand_ins
from tasks.localize.nemo import NemoParams, NemoResult, gate, nemo
from tasks.localize.statistics import Moments, Statistics, load_statistics
from tasks.localize.task.detection import nemo_threshold, traced
from tasks.localize.task.names import VERSION
from tasks.progress import progress
from tasks.sets import found_scopes, read_sets, write_sets
from tasks.subject import ORIGINAL, Prompt, Subject

CANDIDATES = "nemo-candidates"
"""Method of the sets that NeMo's refinement begins with."""
SEARCH = "nemo/2"
"""What ids of searches begin with, after `VERSION`: a change of the search changes these, and those of no other set."""


def nemo_id(
    subject: Subject,
    threshold_nulls: Sequence[Prompt],
    nulls: Sequence[Prompt],
    params: NemoParams,
) -> str:
    """What NeMo's sets go by, whether or not they were found yet; detection must have run. See `localize_nemo`."""
    published = None
    if params.statistics is not None:
        published = load_statistics(params.statistics, subject.load().layers(params.site))
    return content_key(
        VERSION,
        SEARCH,
        params.model_dump(mode="json", exclude={"batch", "statistics"}),
        nemo_threshold(subject, threshold_nulls, params),
        sorted(prompt.prompt_id for prompt in nulls)
        if published is None
        else [vector.numpy() for vector in (*published.means, *published.stds)],
    )


def localize_nemo(
    subject: Subject,
    asked: Sequence[Prompt],
    threshold_nulls: Sequence[Prompt],
    nulls: Sequence[Prompt],
    params: NemoParams,
) -> str:
    """NeMo's neurons of each prompt, and the trace of each search.

    Args:
        threshold_nulls: null prompts that the memorization threshold is estimated from.
        nulls: null prompts that the activations' statistics are taken over, unless published ones are given.

    Returns:
        The id of these parameters; rows of `neuron_sets` carry it, those of method "nemo" and those of the candidates
        that the refinement began with.
    """
    model, store = subject.load(), subject.open()
    site, layers = params.site, model.layers(params.site)
    threshold = nemo_threshold(subject, threshold_nulls, params)
    published = None if params.statistics is None else load_statistics(params.statistics, layers)
    params_id = nemo_id(subject, threshold_nulls, nulls, params)
    # A search leaves all three, one after the other.
    known = traced(store, subject, params_id)
    for method in (CANDIDATES, "nemo"):
        known &= found_scopes(subject, method, params_id, site, layers)
    todo = [prompt for prompt in asked if prompt.prompt_id not in known]
    if not todo:
        return params_id
    activations = _value_activations(store, subject, todo, site, layers)
    statistics = published or _statistics(store, subject, nulls, site, layers)
    with progress(len(todo), "NeMo", "prompt") as done:
        for prompt in todo:
            found = nemo(
                model,
                layers,
                subject.embed([prompt])[0],
                prompt.noise,
                activations[prompt.prompt_id],
                statistics,
                threshold,
                params,
            )
            key = content_key(subject.model_id, params_id, prompt.prompt_id)
            trace = _trace(prompt, params_id, layers, found)
            store.write("nemo_traces", key, trace, model_id=subject.model_id, variant=ORIGINAL)
            for method, members in ((CANDIDATES, found.candidates), ("nemo", found.neurons)):
                rows = [
                    {
                        "scope_id": prompt.prompt_id,
                        "layer": layer.name,
                        "members": members.get(layer.index, torch.zeros(0)).numpy().astype(np.uint32),
                        "universe": layer.outputs,
                    }
                    for layer in layers
                ]
                scope = "trigger" if prompt.trigger else "prompt"
                write_sets(subject, key, method, params_id, site, scope, rows)
            done(1)
    return params_id


def search_agreement(subject: Subject, first_id: str, second_id: str, site: Site) -> dict[str, float]:
    """How far two NeMo searches agree, such as a group refinement with the sequential one.

    The query `iou` compares the sets of one search, layer by layer; this one set of two searches, over all layers.

    Returns:
        By prompt id, intersection over union of the neurons of all layers; 1 where both found none. Only prompts that
        both searches looked at.

    Raises:
        InputError: there are none.
    """
    layers = subject.load().layers(site)
    first, second = (
        {
            name: {(index, neuron) for index, members in found.items() for neuron in members.tolist()}
            for name, found in _neurons(subject, "nemo", params_id, site, layers).items()
        }
        for params_id in (first_id, second_id)
    )
    if not first.keys() & second.keys():
        raise InputError("the store has no prompt that both searches looked at: run the localization with both")
    return {
        name: len(first[name] & second[name]) / len(first[name] | second[name]) if first[name] | second[name] else 1.0
        for name in sorted(first.keys() & second.keys())
    }


def curve_id(nemo_id: str, seed: int = 0) -> str:
    """What the curves of `memorization_left` go by."""
    return content_key(VERSION, "curve, ranked by one seed, each with its own control", nemo_id, seed)


def memorization_left(
    subject: Subject,
    asked: Sequence[Prompt],
    nemo_id: str,
    threshold_nulls: Sequence[Prompt],
    params: NemoParams,
    seed: int = 0,
) -> str:
    """How much of each memory is left as its best 1, 2, 4, 8, ... neurons are deactivated.

    A row of `nemo_traces` for each number, phase "curve": `candidates` neurons deactivated, `score` left; and beside
    it, phase "curve-control", with random neurons of the same layers. Prompts for which nothing was found have none.

    Returns:
        The id of these curves.
    """
    model, store = subject.load(), subject.open()
    site, layers = params.site, model.layers(params.site)
    params_id = curve_id(nemo_id, seed)
    known = traced(store, subject, params_id)
    sets = _neurons(subject, "nemo", nemo_id, site, layers)
    if lost := [prompt.text for prompt in asked if prompt.prompt_id not in sets]:
        raise InputError(f"{len(lost)} prompts were not searched, such as {lost[0][:60]!r}: run the localization first")
    threshold = nemo_threshold(subject, threshold_nulls, params)
    neurons = {
        name: [(index, neuron) for index, members in found.items() for neuron in members.tolist()]
        for name, found in sets.items()
    }
    todo = [prompt for prompt in asked if neurons[prompt.prompt_id] and prompt.prompt_id not in known]
    with progress(len(todo), "memorization left", "prompt") as done:
        for prompt in todo:
            text = subject.embed([prompt])[0]
            _, _, score = gate(model, layers, text, prompt.noise, threshold, params)
            best = best_first(score, neurons[prompt.prompt_id])
            others = stand_ins(best, [layer.outputs for layer in layers], seed, prompt.prompt_id)
            points = [("curve", *point) for point in memorization_curve(score, best)]
            points += [("curve-control", *point) for point in memorization_curve(score, others)]
            rows = [
                {
                    "prompt_id": prompt.prompt_id,
                    "params_id": params_id,
                    "phase": phase,
                    "step_number": number,
                    "candidates": size,
                    "score": left,
                }
                for number, (phase, size, left) in enumerate(points)
            ]
            key = content_key(subject.model_id, params_id, prompt.prompt_id)
            store.write("nemo_traces", key, rows, model_id=subject.model_id, variant=ORIGINAL)
            done(1)
    return params_id


def _statistics(
    store: Store, subject: Subject, nulls: Sequence[Prompt], site: Site, layers: tuple[Layer, ...]
) -> Statistics:
    known = _value_activations(store, subject, nulls, site, layers)
    return Moments.of(
        [torch.stack([known[prompt.prompt_id][layer.index] for prompt in nulls]) for layer in layers]
    ).statistics()


def _neurons(
    subject: Subject, method: str, params_id: str, site: Site, layers: tuple[Layer, ...]
) -> dict[str, dict[int, torch.Tensor]]:
    """By prompt id and layer index, the neurons that a search found."""
    out: dict[str, dict[int, torch.Tensor]] = {}
    for (name, _, index), members in sorted(
        read_sets(subject, method, params_id, site, layers).items(), key=lambda item: item[0][2]
    ):
        out.setdefault(name, {})[index] = members
    return out


def _value_activations(
    store: Store, subject: Subject, asked: Sequence[Prompt], site: Site, layers: tuple[Layer, ...]
) -> dict[str, list[torch.Tensor]]:
    wanted = {prompt.prompt_id for prompt in asked}
    out: dict[str, dict[int, torch.Tensor]] = {name: {} for name in wanted}
    for layer in layers:
        rows = store.read(
            "activations",
            columns=["prompt_id", "mean_abs"],
            model_id=subject.model_id,
            variant=ORIGINAL,
            site=site.value,
            layer=layer.name,
            params_id=values_id(),
        )
        for name, values in zip(rows["prompt_id"].to_pylist(), rows["mean_abs"], strict=True):
            if name in wanted:
                out[name][layer.index] = torch.from_numpy(values.values.to_numpy().copy())
    if lost := [name for name, found in out.items() if len(found) < len(layers)]:
        raise InputError(f"{len(lost)} prompts have no activations at {site.value!r}: run the collection first")
    return {name: [found[index] for index in range(len(layers))] for name, found in out.items()}


def _trace(prompt: Prompt, params_id: str, layers: tuple[Layer, ...], found: NemoResult) -> list[dict[str, Any]]:
    gate: dict[str, Any] = {
        "phase": "gate",
        "step_number": 0,
        "theta": found.threshold,
        "score": float(found.pairwise.max()),
        "kept": found.memorized,
    }
    checks: list[dict[str, Any]] = [
        {
            "phase": check.phase,
            "step_number": number,
            "theta": check.theta,
            "k": check.k,
            "layer": None if check.layer is None else layers[check.layer].name,
            "neuron": check.neuron,
            "score": check.score,
            "kept": check.kept,
            "candidates": check.candidates,
        }
        for number, check in enumerate(found.trace, 1)
    ]
    return [{"prompt_id": prompt.prompt_id, "params_id": params_id} | row for row in (gate, *checks)]
