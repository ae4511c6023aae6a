"""Images from latents."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from tasks.diffusion import sampling
from tasks.diffusion.families import Model
from tasks.diffusion.sampling import SamplingParams, decode, generate, image_size
from tasks.errors import InputError
from tests.support.denoisers import tiny_model


def test_images_leave_the_decoder_a_few_at_a_time() -> None:
    sizes: list[int] = []

    def one_pixel(latents: torch.Tensor, return_dict: bool) -> tuple[torch.Tensor]:
        sizes.append(len(latents))
        if len(latents) > 4:
            raise torch.OutOfMemoryError
        return (latents[:, :3, :1, :1] * 2 - 1,)

    vae = SimpleNamespace(decode=one_pixel, config=SimpleNamespace(scaling_factor=1.0), dtype=torch.float32)
    greys = list(range(0, 251, 25))
    latents = (torch.tensor(greys) / 255).view(-1, 1, 1, 1).expand(11, 4, 8, 8)
    made = decode(replace(tiny_model(), vae=vae), latents)
    assert sizes == [8, 4, 4, 3]
    assert made.shape == (11, 1, 1, 3) and made.dtype == np.uint8
    assert made[:, 0, 0, 0].tolist() == greys


def test_generation_halves_its_batches_when_memory_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    vae = SimpleNamespace(
        decode=lambda latents, return_dict: (latents[:, :3],),
        config=SimpleNamespace(scaling_factor=1.0),
        dtype=torch.float32,
    )
    model = replace(tiny_model(), vae=vae)
    text, keys = model.encode(["a", "b", "c", "d", "e"]), [(name, 0) for name in "abcde"]
    whole = generate(model, text, keys, SamplingParams(steps=2))
    sizes: list[int] = []
    denoise = sampling.denoise

    def small(model: Model, text: torch.Tensor, *rest: Any) -> torch.Tensor:
        sizes.append(len(text))
        if len(text) > 2:
            raise torch.OutOfMemoryError
        return denoise(model, text, *rest)

    monkeypatch.setattr(sampling, "denoise", small)
    done: list[int] = []
    made = generate(model, text, keys, SamplingParams(steps=2, batch=4), done.append)
    assert (sizes, done) == ([4, 2, 2, 1], [2, 2, 1])
    assert np.abs(made.astype(int) - whole).max() <= 1


@pytest.mark.parametrize(
    ("dtype", "cause"),
    [(torch.bfloat16, "load the model with --set precision=float32"), (torch.float32, "weights .* are broken")],
)
def test_an_image_that_is_not_a_number_is_refused_with_its_cause(dtype: torch.dtype, cause: str) -> None:
    vae = SimpleNamespace(
        decode=lambda latents, return_dict: (latents * float("nan"),),
        config=SimpleNamespace(scaling_factor=1.0),
        dtype=dtype,
    )
    with pytest.raises(InputError, match=f"not finite in {dtype}.*{cause}"):
        decode(replace(tiny_model(), vae=vae), torch.ones(1, 4, 8, 8))


def test_how_large_images_are_is_asked_of_a_decoder_once() -> None:
    """The outlook asks for each piece of work; a large decoder takes seconds each time."""

    class Decoder(torch.nn.Module):
        config, dtype, asked = SimpleNamespace(scaling_factor=1.0), torch.float32, 0

        def decode(self, latents: torch.Tensor, return_dict: bool) -> tuple[torch.Tensor]:
            Decoder.asked += 1  # of copies, too
            return (latents[:, :3].repeat(1, 1, 2, 4),)

    vae = Decoder()
    model = replace(tiny_model(), vae=vae)
    _, height, width = model.latent_shape
    assert image_size(model) == image_size(model) == (4 * width, 2 * height)
    assert Decoder.asked == 1
    assert image_size(replace(model, vae=Decoder())) == (4 * width, 2 * height)
