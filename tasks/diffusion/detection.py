"""Telling memorized prompts by their noise differences (Hintersdorf et al., Finding NeMo, section 3.1).

For a memorized prompt the first prediction points at the memorized image whatever the seed, so the differences between
predicted and initial noise look alike over seeds. Nothing is denoised: one pass of the denoiser a seed.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Annotated

import torch
from pydantic import ConfigDict, Field

from tasks.diffusion.batches import in_batches
from tasks.diffusion.families import Model
from tasks.diffusion.footprint import fitting
from tasks.diffusion.noise import initial_noise
from tasks.diffusion.ssim import similarity, to_unit_range
from tasks.errors import InputError
from tasks.params import SPEED, Params


class DetectionParams(Params):
    """How noise differences are taken."""

    model_config = ConfigDict(title="Detection")

    seeds: Annotated[int, Field(ge=2, le=1000, description="Initial noises for each prompt.")] = 10
    steps: Annotated[
        int, Field(ge=2, le=1000, description="Inference steps of the schedule whose second timestep is used.")
    ] = 50
    deviations: Annotated[
        float, Field(ge=0, le=10, description="Standard deviations above the mean of null prompts, for the threshold.")
    ] = 1.0
    batch: Annotated[
        int, Field(ge=1, le=4096, description="Samples at a time; this does not change the result."), SPEED
    ] = 32


def detection_timestep(model: Model, steps: int) -> float:
    """The second timestep of the model's schedule of so many steps, at which published differences are taken."""
    return model.schedule.timestep(steps, 1)


@torch.no_grad()
def noise_differences(
    model: Model,
    embeddings: torch.Tensor,
    noise: torch.Tensor,
    timestep: float,
    blocking: AbstractContextManager[None] | None = None,
) -> torch.Tensor:
    """eps(z, t, y) - z of initial latents z, without guidance, min-max scaled per image and channel to [0, 1].

    Or what shows a memory in its place, see `Model.memory_signal`.

    Args:
        embeddings: (n, tokens, width).
        noise: (n, channels, height, width).
        blocking: entered around the pass, such as `hooks.scaled`.

    Returns:
        float32 (n, channels, height, width).

    Raises:
        InputError: a prediction is not finite.
    """
    with blocking or nullcontext():
        prediction = model.predict(noise, timestep, embeddings.to(noise))
    signal = model.memory_signal(prediction, noise)
    if not signal.isfinite().all():
        raise InputError("the denoiser's predictions are not finite; load the model in float32 or bfloat16")
    return to_unit_range(signal)


def prompt_differences(
    model: Model, embedding: torch.Tensor, prompt_id: str, params: DetectionParams
) -> tuple[torch.Tensor, torch.Tensor]:
    """Initial noise and noise differences of a prompt for seeds 0, 1, ...

    Args:
        embedding: (tokens, width).

    Returns:
        noise (seeds, channels, height, width) and differences float32 of the same shape.
    """
    noise = initial_noise(model, [(prompt_id, seed) for seed in range(params.seeds)])
    timestep = detection_timestep(model, params.steps)

    def differences(rows: slice) -> torch.Tensor:
        block = noise[rows]
        return noise_differences(model, embedding.expand(len(block), -1, -1), block, timestep)

    return noise, torch.cat(list(in_batches(len(noise), fitting(model, "evaluation", params.batch), differences)))


def pairwise_scores(differences: torch.Tensor) -> torch.Tensor:
    """Similarity of every two seeds' differences.

    Args:
        differences: (seeds, channels, height, width), scaled.

    Returns:
        float32 (seeds * (seeds - 1) / 2,), pairs in the order of `torch.combinations`.
    """
    first, second = _pairs(len(differences), differences.device)
    return similarity(differences[first], differences[second])


def highest_by_seed(scores: torch.Tensor, seeds: int) -> torch.Tensor:
    """For each seed its highest score with another seed, (seeds,), of `pairwise_scores`."""
    first, second = _pairs(seeds, scores.device)
    highest = scores.new_full((seeds,), -torch.inf)
    highest.scatter_reduce_(0, torch.cat([first, second]), torch.cat([scores, scores]), "amax")
    return highest


def estimate_threshold(scores: Sequence[torch.Tensor], params: DetectionParams) -> float:
    """The memorization threshold: mean + 1 standard deviation of the pairwise scores of null prompts.

    Args:
        scores: by prompt, its `pairwise_scores`.

    Raises:
        InputError: fewer than two scores in all.
    """
    found = torch.cat([prompt.cpu().double().flatten() for prompt in scores]) if scores else torch.empty(0)
    enough_scores(len(found))
    return float(found.mean() + params.deviations * found.std())


def pairs(seeds: int) -> int:
    """Scores of one prompt: pairs of seeds."""
    return seeds * (seeds - 1) // 2


def enough_scores(count: int) -> None:
    """Raises InputError where no threshold can be estimated from so few pairwise scores of null prompts."""
    if count < 2:
        raise InputError(
            f"a threshold needs at least two pairwise scores of null prompts, there are {count}: give more prompts "
            "with --nulls, or seeds with --set nemo.seeds=3"
        )


def _pairs(seeds: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    first, second = torch.combinations(torch.arange(seeds, device=device), 2).unbind(1)
    return first, second
