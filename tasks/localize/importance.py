"""Other scores of a weight's importance, to compare with Wanda's at the same number of weights.

Magnitude |w| (Han et al., 2015), first-order Taylor |w g| (Molchanov et al., 2019), gradient |g|, and random ones as
the control, where g is the gradient of the diffusion loss of memorized images under their prompts.
"""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field

from tasks.diffusion.model import Model
from tasks.diffusion.noise import Key, generator, initial_noise, predict_noise
from tasks.diffusion.sites import Layer
from tasks.errors import InputError

Importance = Literal["magnitude", "taylor", "gradient", "random"]


class ImportanceParams(BaseModel):
    """Which score, and how its gradients are taken."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    score: Annotated[Importance, Field(description="what makes a weight important")] = "taylor"
    timesteps: Annotated[
        int, Field(ge=1, le=1000, description="timesteps, evenly spread, at which gradients are taken")
    ] = 10
    seed: Annotated[int, Field(ge=0, description="of the random score")] = 0


def gradient_magnitudes(
    model: Model,
    layers: tuple[Layer, ...],
    embeddings: torch.Tensor,
    latents: torch.Tensor,
    keys: Sequence[Key],
    timesteps: int,
) -> list[torch.Tensor]:
    """Mean over samples and timesteps of the absolute gradient of the diffusion loss, |d ||eps - eps_theta||^2 / dw|.

    Args:
        embeddings: (n, tokens, width).
        latents: of the images that belong to them, (n, channels, height, width); see `sampling.encode`.
        keys: what seeds the noise of each sample.
        timesteps: evenly spread over those the model was trained on.

    Returns:
        By layer, float32 of the shape of its weight, on the model's device.

    Raises:
        InputError: a gradient is not finite; the layer is named.
    """
    weights: list[Any] = [layer.module.weight for layer in layers]
    sums = [torch.zeros(weight.shape, device=weight.device) for weight in weights]
    trained = int(model.scheduler.config.num_train_timesteps)
    before = [weight.requires_grad for weight in weights]
    try:
        for weight in weights:
            weight.requires_grad_(True)
        for embedding, latent, (name, seed) in zip(embeddings, latents, keys, strict=True):
            for i in range(timesteps):
                step = int((i + 0.5) * trained / timesteps)
                noise = initial_noise(model, [(f"{name}@{step}", seed)])
                noisy = model.scheduler.add_noise(latent[None].to(noise), noise, torch.tensor([step]))
                with torch.enable_grad():
                    predicted = predict_noise(model, noisy, step, embedding[None].to(noise))
                    loss = (predicted.float() - noise.float()).square().mean()
                    gradients = torch.autograd.grad(loss, weights)
                for total, gradient in zip(sums, gradients, strict=True):
                    total += gradient.float().abs()
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
