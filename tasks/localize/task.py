"""Localizing: from activations to sets of neurons and weights."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from storage import Store, content_key
from tasks.collect.values import Moments
from tasks.diffusion.sampling import SamplingParams
from tasks.diffusion.sites import Layer, Site, layers_of
from tasks.errors import InputError
from tasks.keys import detection_id, norms_id, values_id
from tasks.localize.detection import DetectionParams, estimate_threshold, pairwise_scores, prompt_differences
from tasks.localize.nemo import NemoParams, NemoResult, nemo
from tasks.localize.wanda import WandaParams, memorized_sets
from tasks.subject import ORIGINAL, Asked, Subject, progress

VERSION = "localize/1"
ALL = "all"
"""Scope of the sets found for all memorized prompts together."""


def detect(subject: Subject, asked: Sequence[Asked], params: DetectionParams) -> None:
    """Scores of every two seeds' noise differences, a row of `nemo_traces` each, phase 'detect'."""
    model, store = subject.load(), subject.open()
    params_id = detection_id(params)
    known = _traced(store, subject, params_id)
    todo = [prompt for prompt in asked if prompt.prompt_id not in known]
    with progress(len(todo), "noise differences", "prompt") as done:
        for prompt in todo:
            _, differences = prompt_differences(model, model.embed([prompt.text])[0], prompt.prompt_id, params)
            rows = [
                {
                    "prompt_id": prompt.prompt_id,
                    "params_id": params_id,
                    "phase": "detect",
                    "step_number": n,
                    "score": score,
                }
                for n, score in enumerate(pairwise_scores(differences).tolist())
            ]
            key = content_key(subject.model_id, params_id, prompt.prompt_id)
            store.write("nemo_traces", key, rows, model_id=subject.model_id, variant=ORIGINAL)
            done(1)


def scores_of(subject: Subject, asked: Sequence[Asked], params: DetectionParams) -> dict[str, np.ndarray]:
    """What `detect` found, by prompt id: scores of every two seeds."""
    rows = subject.open().read(
        "nemo_traces",
        columns=["prompt_id", "step_number", "score"],
        model_id=subject.model_id,
        variant=ORIGINAL,
        params_id=detection_id(params),
        phase="detect",
    )
    found: dict[str, dict[int, float]] = {}
    for name, number, score in zip(*(column.to_pylist() for column in rows.columns), strict=True):
        found.setdefault(name, {})[number] = score
    if lost := [prompt.text for prompt in asked if prompt.prompt_id not in found]:
        raise InputError(
            f"{len(lost)} prompts have no detection scores, such as {lost[0][:60]!r}: run the detection first"
        )
    return {
        prompt.prompt_id: np.array([found[prompt.prompt_id][n] for n in sorted(found[prompt.prompt_id])])
        for prompt in asked
    }


def nemo_threshold(subject: Subject, nulls: Sequence[Asked], params: NemoParams) -> float:
    """The memorization threshold: given, or from the null prompts' detection scores."""
    if params.threshold is not None:
        return params.threshold
    scores = scores_of(subject, nulls, params)
    return estimate_threshold([torch.from_numpy(found) for found in scores.values()], params)


def localize_nemo(
    subject: Subject,
    asked: Sequence[Asked],
    threshold_nulls: Sequence[Asked],
    nulls: Sequence[Asked],
    params: NemoParams,
    site: Site = Site.VALUE,
) -> str:
    """NeMo's neurons of each prompt, and the trace of each search.

    Args:
        threshold_nulls: null prompts that the memorization threshold is estimated from.
        nulls: null prompts that the activations' statistics are taken over.

    Returns:
        The id of these parameters; rows of `neuron_sets` carry it.
    """
    model, store = subject.load(), subject.open()
    layers = layers_of(model.unet, site)
    threshold = nemo_threshold(subject, threshold_nulls, params)
    params_id = content_key(
        VERSION,
        "nemo",
        params.model_dump(exclude={"batch"}),
        threshold,
        site.value,
        sorted(prompt.prompt_id for prompt in nulls),
    )
    known = _scopes(store, subject, "nemo", params_id, site, layers)
    todo = [prompt for prompt in asked if prompt.prompt_id not in known]
    if not todo:
        return params_id
    activations = _value_activations(store, subject, [*nulls, *asked], site, layers)
    statistics = Moments.of(
        [torch.stack([activations[p.prompt_id][n] for p in nulls]) for n in range(len(layers))]
    ).statistics()
    with progress(len(todo), "NeMo", "prompt") as done:
        for prompt in todo:
            found = nemo(
                model,
                layers,
                model.embed([prompt.text])[0],
                prompt.prompt_id,
                activations[prompt.prompt_id],
                statistics,
                threshold,
                params,
            )
            key = content_key(subject.model_id, params_id, prompt.prompt_id)
            trace = _trace(prompt, params_id, layers, found)
            store.write("nemo_traces", key, trace, model_id=subject.model_id, variant=ORIGINAL)
            rows = [
                {
                    "scope_id": prompt.prompt_id,
                    "layer": layer.name,
                    "members": found.neurons.get(layer.index, torch.zeros(0)).numpy().astype(np.uint32),
                    "universe": layer.outputs,
                }
                for layer in layers
            ]
            _write_sets(store, subject, key, "nemo", params_id, site, "prompt", rows)
            done(1)
    return params_id


def localize_wanda(
    subject: Subject,
    asked: Sequence[Asked],
    nulls: Sequence[Asked],
    params: WandaParams,
    sampling: SamplingParams,
    site: Site = Site.FEED_FORWARD_HIDDEN,
) -> str:
    """Wanda's weights of each subset and of all prompts together, at each of the first tau steps.

    Returns:
        The id of these parameters; rows of `neuron_sets` carry it.
    """
    model, store = subject.load(), subject.open()
    layers = layers_of(model.unet, site)
    ids = {"memorized": sorted(p.prompt_id for p in asked), "null": sorted(p.prompt_id for p in nulls)}
    collection = norms_id(sampling, params.tau)
    # The share only says which sets are united later; the sets do not depend on it.
    params_id = content_key(VERSION, "wanda", params.model_dump(exclude={"share"}), collection, site.value, ids)
    groups: dict[str, list[Asked]] = {ALL: list(asked)}
    for prompt in asked:
        if prompt.subset is not None:
            groups.setdefault(prompt.subset, []).append(prompt)
    known = _scopes(store, subject, "wanda", params_id, site, layers)
    todo = [name for name in groups if name not in known]
    if not todo:
        return params_id
    rows: dict[str, list[dict[str, Any]]] = {name: [] for name in todo}
    with progress(len(layers), "Wanda", "layer") as done:
        for layer in layers:
            sums = _norms(store, subject, collection, params, site, layer)
            if lost := {prompt.prompt_id for prompt in (*asked, *nulls)} - sums.keys():
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
        _write_sets(store, subject, key, "wanda", params_id, site, "subset", rows[name])
    return params_id


def _traced(store: Store, subject: Subject, params_id: str) -> set[str]:
    rows = store.read(
        "nemo_traces", columns=["prompt_id"], model_id=subject.model_id, variant=ORIGINAL, params_id=params_id
    )
    return set(rows["prompt_id"].to_pylist())


def _scopes(
    store: Store, subject: Subject, method: str, params_id: str, site: Site, layers: tuple[Layer, ...]
) -> set[str]:
    # Parts are written in order of layers: the last layer's says that all are there.
    rows = store.read(
        "neuron_sets",
        columns=["scope_id"],
        model_id=subject.model_id,
        method=method,
        site=site.value,
        layer=layers[-1].name,
        params_id=params_id,
    )
    return set(rows["scope_id"].to_pylist())


def _value_activations(
    store: Store, subject: Subject, asked: Sequence[Asked], site: Site, layers: tuple[Layer, ...]
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


def _trace(prompt: Asked, params_id: str, layers: tuple[Layer, ...], found: NemoResult) -> list[dict[str, Any]]:
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


def _write_sets(
    store: Store,
    subject: Subject,
    key: str,
    method: str,
    params_id: str,
    site: Site,
    scope: str,
    rows: list[dict[str, Any]],
) -> None:
    named = [{"params_id": params_id, "scope": scope} | row for row in rows]
    store.write_parts("neuron_sets", key, named, model_id=subject.model_id, method=method, site=site.value)
