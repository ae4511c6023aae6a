"""NeMo: the neurons that memorize a prompt (Hintersdorf et al., Finding NeMo, NeurIPS 2024, section 3).

The gate tells whether a prompt is memorized, the initial selection (Algorithm 3) finds candidates by their activations,
the refinement (Algorithm 4) keeps those that the memory needs.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import torch
from pydantic import ConfigDict, Field

from tasks.diffusion.detection import (
    DetectionParams,
    detection_timestep,
    estimate_threshold,
    highest_by_seed,
    pairwise_scores,
    prompt_differences,
)
from tasks.diffusion.families import Model
from tasks.diffusion.outline import Outline, enough_timesteps
from tasks.diffusion.sites import Layer, Site
from tasks.diffusion.ssim import scales_and_kernel
from tasks.errors import InputError, gathered, refuse
from tasks.localize.curve import best_first, memorization_curve, stand_ins
from tasks.localize.ground import Found, Ground, Trial
from tasks.localize.scorer import BlockedScore
from tasks.localize.search import Check, Neuron, SearchParams, initial_selection, refine
from tasks.localize.statistics import Statistics, load_statistics
from tasks.methods import Pruning, Reads, localizer


class NemoParams(DetectionParams, SearchParams):
    """NeMo's parameters, with the published values as defaults."""

    model_config = ConfigDict(title="NeMo")

    site: Annotated[
        Literal[Site.VALUE, Site.VALUE_ALL, Site.KEY],
        Field(
            description="What is searched: cross-attention values of the down and mid blocks as published, those of "
            "all blocks, or, as the published control, the keys of the down and mid blocks."
        ),
    ] = Site.VALUE
    threshold: Annotated[
        float | None,
        Field(
            ge=0,
            le=1,
            description="The similarity above which a memory is there (SD 1.4: 0.428); from null prompts if empty.",
        ),
    ] = None
    statistics: Annotated[
        Path | None,
        Field(description="A torch file of published statistics, (means, stds) by layer; from null prompts if empty."),
    ] = None


def _reads(params: NemoParams) -> tuple[Reads, ...]:
    """What is given need not be taken from null prompts."""
    statistics: tuple[Reads, ...] = ("null values",) if params.statistics is None else ()
    threshold: tuple[Reads, ...] = ("null scores",) if params.threshold is None else ()
    return "values", *statistics, *threshold


def _check(params: NemoParams, outline: Outline) -> None:
    def statistics() -> None:
        if params.statistics is not None:
            load_statistics(params.statistics, outline.layers(Site(params.site)))

    refuse(
        gathered(
            statistics,
            partial(scales_and_kernel, min(outline.latent)) if outline.latent else None,
            partial(enough_timesteps, params.steps, outline.trained, "nemo.steps"),
        )
    )


def _published(params: NemoParams) -> NemoParams | None:
    return None if params.refinement == "sequential" else params.model_copy(update={"refinement": "sequential"})


def memorization_left(
    ground: Ground, members: Mapping[int, torch.Tensor], params: NemoParams, seed: int
) -> Iterator[Trial]:
    """How much of a memory is left as its best 1, 2, 4, 8, ... neurons are deactivated, and beside it with random
    neurons of the same layers in their place.

    Args, Returns: see `tasks.methods.Curve`.
    """
    (prompt,) = ground.prompts
    text, threshold = ground.embed([prompt])[0], _threshold(ground, params)
    _, _, score = gate(ground.model, ground.layers, text, prompt.noise, threshold, params)
    best = best_first(score, [(index, neuron) for index, found in members.items() for neuron in found.tolist()])
    others = stand_ins(best, [layer.outputs for layer in ground.layers], seed, prompt.prompt_id)
    for size, left in memorization_curve(score, best):
        yield Trial(phase="curve", candidates=size, score=left)
    for size, left in memorization_curve(score, others):
        yield Trial(phase="curve-control", candidates=size, score=left)


def _cost(params: NemoParams) -> float:
    """A search of the reference model tries some 130 sets of neurons, most of which a few of its seeds decide."""
    return 40.0 * params.seeds


@localizer(
    name="nemo",
    title="NeMo",
    paper="Hintersdorf et al., Finding NeMo, NeurIPS 2024, section 3",
    words="Finds the cross-attention neurons without which a prompt's first prediction no longer leads to one image.",
    control="As many random neurons of the same layers.",
    params=NemoParams,
    members="neurons",
    scopes="prompts",
    reads=_reads,
    stages=("candidates",),
    traces=True,
    curve=memorization_left,
    on_triggers="found",
    cost=_cost,
    published=_published,
    check=_check,
    prunings=(
        Pruning(
            name="nemo-union",
            over="union",
            card="the neurons that NeMo found to hold memorized training images",
            random="as many random neurons of each layer as NeMo found, a control,",
            claims=True,
        ),
        Pruning(
            name="nemo",
            over="each",
            card="the neurons that NeMo found for it alone",
            random="as many random neurons of each layer as NeMo found for it, a control",
            claims=True,
        ),
    ),
)
def find_nemo(ground: Ground, params: NemoParams) -> Iterator[Found | Trial]:
    """The memorization neurons of a prompt, the candidates that they were refined from, and the trace of the search.

    Args, Returns: see `tasks.methods.Find`.
    """
    (prompt,) = ground.prompts
    found = nemo(
        ground.model,
        ground.layers,
        ground.embed([prompt])[0],
        prompt.noise,
        ground.values(prompt),
        ground.statistics if params.statistics is None else load_statistics(params.statistics, ground.layers),
        _threshold(ground, params),
        params,
    )
    yield Trial(phase="gate", theta=found.threshold, score=float(found.pairwise.max()), kept=found.memorized)
    for check in found.trace:
        yield Trial(
            phase=check.phase,
            theta=check.theta,
            k=check.k,
            layer=None if check.layer is None else ground.layers[check.layer].name,
            neuron=check.neuron,
            score=check.score,
            kept=check.kept,
            candidates=check.candidates,
        )
    for index, members in found.candidates.items():
        yield Found(ground.layers[index], members, stage="candidates")
    for index, members in found.neurons.items():
        yield Found(ground.layers[index], members)


def _threshold(ground: Ground, params: NemoParams) -> float:
    """The memorization threshold: given, or from the null prompts' detection scores."""
    return estimate_threshold(ground.null_scores, params) if params.threshold is None else params.threshold


@dataclass(frozen=True)
class NemoResult:
    """What the search found for one prompt."""

    memorized: bool
    """The gate's answer; without it nothing is searched."""
    neurons: dict[int, torch.Tensor]
    """By layer index, sorted int64 indices of the memorization neurons; layers without any are left out."""
    candidates: dict[int, torch.Tensor]
    """The same of the initial selection."""
    trace: tuple[Check, ...]
    """Every step of both algorithms, in order."""
    pairwise: torch.Tensor
    """Scores of every two seeds, float32 (seeds * (seeds - 1) / 2,)."""
    watched: tuple[int, ...]
    """Seeds that the gate let through."""
    threshold: float
    refinement_threshold: float
    """That of Algorithm 4: the threshold, or after a give-up what the selection reached, see `refinement_limit`."""
    evaluations: int
    """Samples that went through the denoiser, the gate's with them."""


def nemo(
    model: Model,
    layers: tuple[Layer, ...],
    embedding: torch.Tensor,
    prompt_id: str,
    activations: Sequence[torch.Tensor],
    statistics: Statistics,
    threshold: float,
    params: NemoParams,
) -> NemoResult:
    """Finds the memorization neurons of a prompt.

    Args:
        layers: of the site to search.
        embedding: (tokens, width).
        prompt_id: seeds the initial noises, together with the number of the seed.
        activations: of this prompt, by layer (outputs,), see `value_activations`.
        statistics: of activations over prompts that are not memorized.
        threshold: similarity above which a memory is there, see `estimate_threshold`.

    Raises:
        InputError: activations or statistics are not those of the layers, or predictions are not finite.
    """
    _check_widths(layers, activations, statistics)
    pairwise, watched, score = gate(model, layers, embedding, prompt_id, threshold, params)
    if not watched:
        return NemoResult(False, {}, {}, (), pairwise, watched, threshold, threshold, params.seeds)
    found, limit, selection = initial_selection(activations, statistics, score, threshold, params)
    end = selection[-1]
    kept, refinement = refine(found, score, limit, params, end.theta, end.k)
    return NemoResult(
        memorized=True,
        neurons=by_layer(kept),
        candidates=by_layer(found),
        trace=(*selection, *refinement),
        pairwise=pairwise,
        watched=watched,
        threshold=threshold,
        refinement_threshold=limit,
        evaluations=params.seeds + score.evaluations,
    )


def gate(
    model: Model,
    layers: tuple[Layer, ...],
    embedding: torch.Tensor,
    prompt_id: str,
    threshold: float,
    params: NemoParams,
) -> tuple[torch.Tensor, tuple[int, ...], BlockedScore]:
    """The gate: only seeds whose differences resemble another seed's more than the threshold are looked at.

    Returns:
        Scores of every two seeds (see `NemoResult.pairwise`), the seeds let through, and the score of blocked neurons
        over those seeds.
    """
    noise, unblocked = prompt_differences(model, embedding, prompt_id, params)
    pairwise = pairwise_scores(unblocked)
    watched = (highest_by_seed(pairwise, len(noise)) > threshold).nonzero().flatten()
    timestep = detection_timestep(model, params.steps)
    thorough = params.refinement != "chain"
    score = BlockedScore(model, layers, embedding, noise[watched], unblocked[watched], timestep, params.batch, thorough)
    return pairwise.cpu(), tuple(watched.tolist()), score


def by_layer(neurons: Sequence[Neuron] | frozenset[Neuron]) -> dict[int, torch.Tensor]:
    """Sorted int64 indices by layer index."""
    layers = sorted({layer for layer, _ in neurons})
    return {layer: torch.tensor(sorted(n for index, n in neurons if index == layer)) for layer in layers}


def _check_widths(layers: tuple[Layer, ...], activations: Sequence[torch.Tensor], statistics: Statistics) -> None:
    widths = [layer.outputs for layer in layers]
    for name, vectors in (("activations", activations), ("means", statistics.means), ("stds", statistics.stds)):
        if [tuple(vector.shape) for vector in vectors] != [(width,) for width in widths]:
            shapes = [tuple(vector.shape) for vector in vectors]
            raise InputError(f"{name} have shapes {shapes}, the layers have widths {widths}")
