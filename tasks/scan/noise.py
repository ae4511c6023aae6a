"""What detectors share: predictions at pure noise, for every seed of every prompt.

Nothing is denoised, so that thousands of prompts can be looked at. A score is a mean over seeds, and every seed's noise
is its own (see `tasks.diffusion.noise`), so neither the batch nor what else is scanned changes it. How high is high
differs from model to model: null prompts say, see `conformal`.
"""

from collections.abc import Callable, Sequence
from typing import Annotated

import torch
from pydantic import Field

from tasks.diffusion.batches import in_batches
from tasks.diffusion.families import Model
from tasks.diffusion.families.schedule import Prediction
from tasks.diffusion.footprint import fitting
from tasks.diffusion.noise import initial_noise
from tasks.diffusion.outline import Outline, enough_timesteps
from tasks.errors import InputError
from tasks.methods import Params


class SeededParams(Params):
    """How many noises each prompt is looked at with, and at which timesteps."""

    seeds: Annotated[int, Field(ge=1, le=100, description="Initial noises that each prompt is looked at with.")] = 4
    steps: Annotated[
        int, Field(ge=3, le=1000, description="Steps of the sampling schedule whose timesteps are used.")
    ] = 50


def by_seed(
    model: Model,
    embeddings: torch.Tensor,
    prompt_ids: Sequence[str],
    seeds: int,
    batch: int,
    work: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
) -> torch.Tensor:
    """What `work(text, noise)` gives for every seed of every prompt, (prompts, seeds, ...)."""
    keys = [(name, seed) for name in prompt_ids for seed in range(seeds)]
    owners = torch.arange(len(prompt_ids), device=embeddings.device).repeat_interleave(seeds)

    def some(rows: slice) -> torch.Tensor:
        noise = initial_noise(model, keys[rows])
        return work(embeddings[owners[rows]].to(noise), noise)

    found = torch.cat(list(in_batches(len(keys), fitting(model, "evaluation", batch), some)))
    return found.unflatten(0, (len(prompt_ids), seeds))


def timestep(model: Model, params: SeededParams, number: int) -> float:
    """A timestep of the model's schedule by its number; negative ones count from the end."""
    return model.schedule.timestep(params.steps, number)


def guidance(
    model: Model, text: torch.Tensor, null: torch.Tensor, noise: torch.Tensor, timestep: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """eps(z, t, y) - eps(z, t, null), and eps(z, t, null), float32.

    Raises:
        InputError: a prediction is not finite.
    """
    unconditional = predicted(model, null.to(noise).expand_as(text), noise, timestep).noise.float()
    return predicted(model, text, noise, timestep).noise.float() - unconditional, unconditional


def pull(model: Model, text: torch.Tensor, null: torch.Tensor, noise: torch.Tensor, timestep: float) -> torch.Tensor:
    """How far a prompt pulls a prediction away from that without text, eps(z, t, y) - eps(z, t, null), float32.

    Of velocity where the schedule ends in noise (`Schedule.target`): at its first step predicted noise is the same for
    every prompt. A difference of velocities is one of noises over sqrt(a), or one of images over -sqrt(1 - a).

    Raises:
        InputError: a prediction is not finite.
    """
    unconditional = predicted(model, null.to(noise).expand_as(text), noise, timestep).target
    return predicted(model, text, noise, timestep).target.float() - unconditional.float()


def predicted(model: Model, text: torch.Tensor, noise: torch.Tensor, timestep: float) -> Prediction:
    """What the model predicts of z at t under y.

    Raises:
        InputError: it is not finite.
    """
    found = model.predict(noise, timestep, text)
    if not (found.noise.isfinite().all() and found.target.isfinite().all()):
        raise InputError("predictions are not finite: load the model in float32 or bfloat16")
    return found


def check_steps(params: SeededParams, outline: Outline) -> None:
    """Raises InputError where the model was trained on fewer timesteps than the schedule has steps."""
    enough_timesteps(params.steps, outline.trained, "steps")
