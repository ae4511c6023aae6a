"""Initial noise that belongs to its sample.

Every sample's noise comes from a generator of its own, seeded by what the sample is. So a result depends neither on
the batch it was computed in, nor on the worker, nor on the order.
"""

import hashlib
from collections.abc import Sequence

import torch

from tasks.diffusion.families import Model

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
