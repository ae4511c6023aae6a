"""Initial noise that belongs to its sample, and the UNet's noise prediction.

Every sample's noise comes from a generator of its own, seeded by what the sample is. So a result depends neither on
the batch it was computed in, nor on the worker, nor on the order.
"""

import hashlib
from collections.abc import Sequence

import torch

from tasks.diffusion.model import Model
from tasks.errors import InputError

Key = tuple[str, int]
"""What a sample is: the id of its prompt or trigger, and its seed."""


def generator(key: Key) -> torch.Generator:
    """A CPU generator seeded by the key alone."""
    digest = hashlib.sha256(f"{key[0]}\0{key[1]}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def initial_noise(model: Model, keys: Sequence[Key]) -> torch.Tensor:
    """Standard normal latents (n, channels, height, width) on the model's device; from the CPU, so alike everywhere."""
    latents = [torch.randn(model.latent_shape, generator=generator(key)) for key in keys]
    return torch.stack(latents).to(model.device, model.dtype)


def predict(
    model: Model, latents: torch.Tensor, timestep: torch.Tensor | int, embeddings: torch.Tensor
) -> torch.Tensor:
    """What the UNet says of latents: noise, or velocity where it was trained to predict that.

    Args:
        latents: (n, channels, height, width).
        timestep: one for all, or (n,).
        embeddings: (n, rows, width), see `Model`.

    Returns:
        (n, channels, height, width).
    """
    steps = torch.as_tensor(timestep, device=model.device).expand(len(latents))
    text, added = model.conditions(embeddings)
    with torch.autocast(model.device.type, torch.bfloat16, enabled=model.mixed):
        output: torch.Tensor = model.unet(latents, steps, text, added_cond_kwargs=added, return_dict=False)[0]
    return output.to(latents.dtype)


def predict_noise(
    model: Model, latents: torch.Tensor, timestep: torch.Tensor | int, embeddings: torch.Tensor
) -> torch.Tensor:
    """eps(z_t, t, y), whatever the model was trained to predict.

    Args, returns: as `predict`.

    Raises:
        InputError: the model predicts neither noise nor velocity.
    """
    output = predict(model, latents, timestep, embeddings)
    kind = model.scheduler.config.prediction_type
    if kind == "epsilon":
        return output
    if kind == "v_prediction":
        # In float32: 1 - a would be nothing in half precision where there is little noise.
        steps = torch.as_tensor(timestep, device=model.device).expand(len(latents))
        a = model.scheduler.alphas_cumprod.to(model.device, torch.float32)[steps.long()].view(-1, 1, 1, 1)
        return (a.sqrt() * output + (1 - a).sqrt() * latents).to(output.dtype)
    raise InputError(f"the model predicts {kind!r}; audits need one that predicts 'epsilon' or 'v_prediction'")
