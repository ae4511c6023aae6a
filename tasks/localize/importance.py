"""Other scores of a weight's importance, to compare with Wanda's at the same number of weights.

Magnitude |w| (Han et al., 2015), first-order Taylor |w g| (Molchanov et al., 2019), gradient |g|, and random ones as
the control, where g is the gradient of the diffusion loss of memorized images under their prompts.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Annotated, Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field

from tasks.diffusion.families import Model
from tasks.diffusion.noise import Key, generator, initial_noise
from tasks.diffusion.sites import Layer
from tasks.errors import InputError

Importance = Literal["magnitude", "taylor", "gradient", "random"]
BY_GRADIENT = ("taylor", "gradient")
"""Scores that know which prompts are memorized."""


class ImportanceParams(BaseModel):
    """Which score, and how its gradients are taken."""

    model_config = ConfigDict(title="Other importance scores", frozen=True, extra="forbid")

    score: Annotated[Importance, Field(description="what makes a weight important")] = "taylor"
    timesteps: Annotated[
        int, Field(ge=1, le=1000, description="timesteps, evenly spread, at which gradients are taken")
    ] = 10
    contrast: Annotated[
        bool,
        Field(description="taylor, gradient: whether a weight must score higher than for ordinary pictures"),
    ] = True
    seed: Annotated[int, Field(ge=0, description="of the random score")] = 0


def gradient_magnitudes(
    model: Model,
    layers: tuple[Layer, ...],
    embeddings: torch.Tensor,
    latents: torch.Tensor,
    keys: Sequence[Key],
    timesteps: int,
    done: Callable[[int], None] = lambda n: None,
) -> list[torch.Tensor]:
    """Mean over samples and timesteps of the absolute gradient of the diffusion loss, |d ||eps - eps_theta||^2 / dw|.

    Args:
        embeddings: (n, rows, width).
        latents: of the images that belong to them, (n, channels, height, width); see `sampling.encode`.
        keys: what seeds the noise of each sample.
        timesteps: evenly spread over those the model was trained on.
        done: told the number of samples whenever some are finished.

    Returns:
        By layer, float32 of the shape of its weight, on the model's device.

    Raises:
        InputError: a gradient is not finite; the layer is named.
    """
    weights: list[Any] = [layer.module.weight for layer in layers]
    sums = [torch.zeros(weight.shape, device=weight.device) for weight in weights]
    trained = model.schedule.trained
    before = [weight.requires_grad for weight in weights]
    try:
        for weight in weights:
            weight.requires_grad_(True)
        for embedding, latent, (name, seed) in zip(embeddings, latents, keys, strict=True):
            for i in range(timesteps):
                step = int((i + 0.5) * trained / timesteps)
                noise = initial_noise(model, [(f"{name}@{step}", seed)])
                with torch.enable_grad():
                    loss = model.training_loss(latent[None].to(noise.device), noise, step, embedding[None].to(noise))
                    gradients = torch.autograd.grad(loss.sum(), weights)
                for total, gradient in zip(sums, gradients, strict=True):
                    total += gradient.float().abs()
            done(1)
    finally:
        for weight, required in zip(weights, before, strict=True):
            weight.requires_grad_(required)
    for layer, total in zip(layers, sums, strict=True):
        if not total.isfinite().all():
            raise InputError(f"the gradient of {layer.name} is not finite; load the model in float32 or bfloat16")
        total /= len(latents) * timesteps
    return sums


@torch.no_grad()
def weight_scores(layer: Layer, params: ImportanceParams, gradient: torch.Tensor | None = None) -> torch.Tensor:
    """Scores of a layer's weights, float32 of the weight's shape.

    Args:
        gradient: of `gradient_magnitudes`; needed by the scores that are made of it.

    Raises:
        InputError: the score needs a gradient.
    """
    weight: Any = layer.module.weight
    if params.score == "random":
        drawn = torch.rand(weight.shape, generator=generator((f"random score of {layer.name}", params.seed)))
        return drawn.to(weight.device)
    if params.score == "magnitude":
        magnitude: torch.Tensor = weight.float().abs()
        return magnitude
    if gradient is None:
        raise InputError(f"the {params.score} score needs gradients: give images of the memorized prompts")
    return gradient if params.score == "gradient" else weight.float().abs() * gradient


def important_weights(
    layers: tuple[Layer, ...],
    counts: Sequence[int],
    params: ImportanceParams,
    memorized: Sequence[torch.Tensor] | None = None,
    ordinary: Sequence[torch.Tensor] | None = None,
) -> Iterator[tuple[int, torch.Tensor]]:
    """The weights of the highest scores of each layer: (layer index, indices).

    Only one layer's scores are in memory at any time.

    Args:
        counts: by layer, how many.
        memorized, ordinary: gradients by layer, see `gradient_magnitudes`; those of ordinary pictures are what a weight
            must exceed, where they are given.

    Raises:
        InputError: the score needs gradients, or fewer weights qualify.
    """
    for layer, count in zip(layers, counts, strict=True):
        scores = weight_scores(layer, params, None if memorized is None else memorized[layer.index])
        above = None if ordinary is None else weight_scores(layer, params, ordinary[layer.index])
        yield layer.index, highest(scores, count, above)


@torch.no_grad()
def highest(scores: torch.Tensor, count: int, above: torch.Tensor | None = None) -> torch.Tensor:
    """The `count` weights of the highest score.

    Args:
        scores: (rows, columns).
        above: scores that a weight must exceed, such as those of null prompts.

    Returns:
        Flat indices row * columns + column, sorted, uint32 on the CPU.

    Raises:
        InputError: fewer weights qualify.
    """
    flat = scores.flatten()
    if above is not None:
        flat = flat.masked_fill(flat <= above.flatten(), -torch.inf)
    values, indices = flat.topk(min(count, len(flat)))
    if len(values) < count or bool((values == -torch.inf).any()):
        raise InputError(f"{count} weights are asked for, fewer qualify")
    return indices.sort().values.cpu().to(torch.uint32)
