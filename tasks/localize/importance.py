"""What other scores of a weight's importance share: gradients, and choosing as many weights as Wanda does.

Each score is a file: `magnitude`, `taylor`, `gradient`, and `random_weights` as the control.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Annotated, Any

import torch
from pydantic import Field

from tasks.diffusion.families import Model
from tasks.diffusion.noise import Key, initial_noise
from tasks.diffusion.outline import Outline, enough_timesteps
from tasks.diffusion.sites import Layer
from tasks.errors import InputError
from tasks.localize.ground import Found, Ground, Prompted
from tasks.methods import Reads
from tasks.params import Params
from tasks.progress import progress

SEED = 0
"""Of the noise that is added to each training image."""


class GradientParams(Params):
    """How gradients are taken."""

    timesteps: Annotated[
        int, Field(ge=1, le=1000, description="The timesteps, evenly spread, at which gradients are taken.")
    ] = 10
    contrast: Annotated[
        bool, Field(description="Whether a weight must score higher than it does for ordinary images.")
    ] = True


def reads(params: GradientParams) -> tuple[Reads, ...]:
    """What a score by gradients reads."""
    return ("images", "ordinary images") if params.contrast else ("images",)


def gradient_cost(params: GradientParams) -> float:
    """A gradient counts as three evaluations; ordinary images are looked at too, where there is a contrast."""
    return 3.0 * params.timesteps * (2 if params.contrast else 1)


def check_timesteps(setting: str, params: GradientParams, outline: Outline) -> None:
    """Raises InputError where the model was trained on fewer timesteps than gradients are taken at."""
    enough_timesteps(params.timesteps, outline.trained, setting)


def by_gradient(
    ground: Ground, params: GradientParams, score: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
) -> Iterator[Found]:
    """Of each layer the weights of the highest `score(weight, gradient)`, as many as the budget has.

    Where there is a contrast, they score higher than by the gradients of ordinary images.
    """
    groups = [ground.with_images, ground.ordinary] if params.contrast else [ground.with_images]

    with progress(sum(map(len, groups)), "gradients", "image") as done:

        def gradients(prompts: Sequence[Prompted]) -> list[torch.Tensor]:
            keys = [(prompt.image_ids[0], SEED) for prompt in prompts]
            text, latents = ground.embed(prompts), ground.latents(prompts)
            return gradient_magnitudes(ground.model, ground.layers, text, latents, keys, params.timesteps, done)

        memorized, *ordinary = [gradients(prompts) for prompts in groups]
    for layer, count in zip(ground.layers, ground.budget, strict=True):
        weight = weight_of(layer)
        above = score(weight, ordinary[0][layer.index]) if ordinary else None
        yield Found(layer, highest(score(weight, memorized[layer.index]), count, above))


def weight_of(layer: Layer) -> torch.Tensor:
    """A layer's weight, float32 (rows, columns), on its device."""
    weight: Any = layer.module.weight
    found: torch.Tensor = weight.detach().float()
    return found


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
        done: called with the number of samples whenever some are finished.

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
