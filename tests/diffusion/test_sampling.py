"""Pictures from latents."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tasks.diffusion.sampling import decode
from tasks.errors import InputError
from tests.attack.tiny import tiny_model


def test_pictures_leave_the_decoder_a_few_at_a_time() -> None:
    sizes: list[int] = []

    def one_pixel(latents: torch.Tensor, return_dict: bool) -> tuple[torch.Tensor]:
        sizes.append(len(latents))
        if len(latents) > 4:
            raise torch.OutOfMemoryError
        return (latents[:, :3, :1, :1] * 2 - 1,)

    vae = SimpleNamespace(decode=one_pixel, config=SimpleNamespace(scaling_factor=1.0))
    greys = list(range(0, 251, 25))
    latents = (torch.tensor(greys) / 255).view(-1, 1, 1, 1).expand(11, 4, 8, 8)
    made = decode(replace(tiny_model(), vae=vae), latents)
    assert sizes == [8, 4, 4, 3]
    assert made.shape == (11, 1, 1, 3) and made.dtype == np.uint8
    assert made[:, 0, 0, 0].tolist() == greys


def test_a_picture_that_is_not_a_number_is_refused() -> None:
    vae = SimpleNamespace(
        decode=lambda latents, return_dict: (latents * float("nan"),), config=SimpleNamespace(scaling_factor=1.0)
    )
    with pytest.raises(InputError, match=r"not finite in torch.float32.*precision=float32"):
        decode(replace(tiny_model(), vae=vae), torch.ones(1, 4, 8, 8))
