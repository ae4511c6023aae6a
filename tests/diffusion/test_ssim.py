"""Similarity is torchmetrics' at the published setting and fits smaller latents by a rule."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchmetrics.functional.image import (
    multiscale_structural_similarity_index_measure,
    structural_similarity_index_measure,
)

from tasks.diffusion.ssim import scales_and_kernel, similarity, to_unit_range
from tasks.errors import InputError


def images(n: int, side: int, seed: int) -> torch.Tensor:
    return to_unit_range(torch.randn(n, 4, side, side, generator=torch.Generator().manual_seed(seed)))


@pytest.mark.parametrize("side", [44, 64])
@pytest.mark.parametrize("noise", [0.0, 0.3, 2.0, 20.0])
def test_it_is_the_published_measure_where_that_is_defined(side: int, noise: float) -> None:
    a = images(3, side, 0)
    b = to_unit_range(a + noise * images(3, side, 1))
    expected = [
        multiscale_structural_similarity_index_measure(x[None], y[None], kernel_size=11, betas=(0.33, 0.33, 0.33))
        for x, y in zip(a, b, strict=True)
    ]
    torch.testing.assert_close(similarity(a, b), torch.stack(expected), atol=1e-5, rtol=1e-5)
    if noise == 20.0:  # around the published threshold, where a fixed range would score higher
        assert max(expected) < 0.4


def test_torchmetrics_refuses_the_published_setting_just_below() -> None:
    a = images(1, 43, 0)
    with pytest.raises(ValueError, match="larger than 40"):
        multiscale_structural_similarity_index_measure(a, a, kernel_size=11, betas=(0.33, 0.33, 0.33))
    assert similarity(a, a).item() == pytest.approx(1, abs=1e-5)


def test_at_one_scale_it_is_plain_structural_similarity() -> None:
    a = images(2, 16, 0)
    b = to_unit_range(a + 0.3 * images(2, 16, 1))
    plain = structural_similarity_index_measure(a, b, data_range=1.0, reduction="none")
    torch.testing.assert_close(similarity(a, b), plain**0.99, atol=1e-6, rtol=1e-6)


def test_scales_and_kernels_by_hand() -> None:
    sides = (128, 64, 44, 43, 22, 21, 16, 11, 10, 9, 8, 4, 3)
    assert [scales_and_kernel(side) for side in sides] == [
        *[(3, 11)] * 3,
        *[(2, 11)] * 2,
        *[(1, 11)] * 3,
        *[(1, 9)] * 2,
        (1, 7),
        (1, 3),
        (1, 3),
    ]
    with pytest.raises(InputError, match="too small"):
        scales_and_kernel(2)


@settings(deadline=None, max_examples=25)
@given(side=st.integers(3, 50), other=st.integers(3, 50), seed=st.integers(0, 100))
def test_any_size_gives_a_symmetric_score_of_at_most_one(side: int, other: int, seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    a, b = (to_unit_range(torch.randn(2, 3, side, other, generator=draw)) for _ in range(2))
    scores = similarity(a, b)
    assert scores.shape == (2,)
    assert bool((scores <= 1 + 1e-5).all()) and bool((scores >= 0).all())
    torch.testing.assert_close(scores, similarity(b, a), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(similarity(a, a), torch.ones(2), atol=1e-5, rtol=0)
    torch.testing.assert_close(scores[1:], similarity(a[1:], b[1:]), atol=1e-6, rtol=1e-5)


def test_every_channel_of_every_image_is_scaled_on_its_own() -> None:
    image = torch.tensor([[[[1.0, 2.0], [3.0, 5.0]], [[7.0, 7.0], [7.0, 7.0]]]], dtype=torch.float16)
    assert to_unit_range(image).tolist() == [[[[0.0, 0.25], [0.5, 1.0]], [[0.0, 0.0], [0.0, 0.0]]]]
