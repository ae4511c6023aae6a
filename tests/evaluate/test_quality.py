"""FID and KID: against torchmetrics, and on Gaussians whose distance is known."""

import numpy as np
import pytest
import torch
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import poly_mmd

from tasks.errors import InputError
from tasks.evaluate.quality import fid, kid


class Identity(torch.nn.Module):
    num_features = 6

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return features


def two_sets(n: int = 40, m: int = 30) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.normal(0, 1, (n, 6)), rng.normal(0.3, 1.5, (m, 6)) @ rng.normal(0, 1, (6, 6))


def test_fid_is_that_of_torchmetrics() -> None:
    a, b = two_sets()
    metric = FrechetInceptionDistance(feature=Identity()).set_dtype(torch.float64)
    metric.update(torch.from_numpy(b), real=True)
    metric.update(torch.from_numpy(a), real=False)
    assert fid(a, b).value == pytest.approx(metric.compute().item(), rel=1e-6)


def test_fid_of_known_gaussians() -> None:
    # Two point pairs on each axis: means 0 and 3, variances 2 and 8: 9 + (sqrt 8 - sqrt 2)^2.
    assert fid(np.array([[-1.0], [1.0]]), np.array([[1.0], [5.0]])).value == pytest.approx(9 + 2)


def test_fid_of_a_set_with_itself_is_zero_even_with_fewer_images_than_features() -> None:
    few = np.random.default_rng(0).normal(size=(5, 64)).astype(np.float32)
    assert fid(few, few[::-1]).value == pytest.approx(0, abs=1e-9)


def test_kid_is_that_of_torchmetrics() -> None:
    a, b = two_sets(30, 30)
    wanted = poly_mmd(torch.from_numpy(b), torch.from_numpy(a)).item()
    assert kid(a, b).value == pytest.approx(wanted, rel=1e-9)


def test_kid_is_unbiased() -> None:
    rng = np.random.default_rng(0)
    draws = [kid(rng.normal(size=(10, 4)), rng.normal(size=(15, 4))).value for _ in range(400)]
    assert abs(np.mean(draws)) < 3 * np.std(draws) / 20


def test_names_its_features() -> None:
    a, b = two_sets()
    assert (fid(a, b).metric, kid(a, b, "kid_sscd").metric) == ("fid", "kid_sscd")


def test_refuses() -> None:
    with pytest.raises(InputError, match="two images on each side"):
        fid(np.zeros((1, 3)), np.zeros((5, 3)))
    with pytest.raises(InputError, match="same model"):
        kid(np.zeros((5, 3)), np.zeros((5, 4)))
