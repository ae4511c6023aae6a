"""Structural similarity: against its formula, and what it does not see as a copy."""

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from tasks.errors import InputError
from tasks.evaluate.copying import sscd_orig
from tasks.evaluate.ssim import WINDOW, ssim, ssim_orig


def image(seed: int = 0, side: int = 32) -> np.ndarray:
    noise = gaussian_filter(np.random.default_rng(seed).normal(size=(side, side, 3)), (2, 2, 0))
    return np.asarray(255 * (noise - noise.min()) / np.ptp(noise)).astype(np.uint8)


def published(a: np.ndarray, b: np.ndarray) -> float:
    """The formula as it is printed, colour by colour, without the margin where the window leaves the image."""
    a, b = a.astype(np.float64), b.astype(np.float64)

    def mean(values: np.ndarray) -> np.ndarray:
        return gaussian_filter(values, (1.5, 1.5, 0), radius=(5, 5, 0))

    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    var_a, var_b, cov = mean(a * a) - mean(a) ** 2, mean(b * b) - mean(b) ** 2, mean(a * b) - mean(a) * mean(b)
    luminance = (2 * mean(a) * mean(b) + c1) / (mean(a) ** 2 + mean(b) ** 2 + c1)
    structure = (2 * cov + c2) / (var_a + var_b + c2)
    return float((luminance * structure)[5:-5, 5:-5].mean())


def test_it_is_the_published_formula() -> None:
    a, b = image(0), image(1)
    blend = (0.6 * a + 0.4 * b).astype(np.uint8)
    assert ssim(a, blend) == pytest.approx(published(a, blend), abs=1e-9)
    assert ssim(a, b) == ssim(b, a) == pytest.approx(published(a, b), abs=1e-9)


def test_equal_images_have_one_and_a_mirror_image_does_not() -> None:
    a = image()
    assert ssim(a, a) == 1
    assert ssim(a, a[:, ::-1]) < 0.5 < ssim(a, (0.9 * a).astype(np.uint8))


def test_the_range_is_that_of_the_format() -> None:
    """Two flat images that differ little are alike, though they differ by all the range that they have."""
    assert ssim(np.full((16, 16, 3), 100, np.uint8), np.full((16, 16, 3), 101, np.uint8)) > 0.999


def test_images_must_hold_the_window() -> None:
    assert ssim(image(side=WINDOW), image(side=WINDOW)) == 1
    with pytest.raises(InputError, match="11 pixels or more"):
        ssim(image(side=WINDOW - 1), image(side=WINDOW - 1))


def test_the_figures_are_medians_as_those_of_sscd() -> None:
    values = {str(n): np.random.default_rng(n).random(4) for n in range(9)}
    found = {one.metric: (one.value, one.low, one.high, one.n) for one in ssim_orig(values)}
    sscd = {one.metric: (one.value, one.low, one.high, one.n) for one in sscd_orig(values)}
    assert found == {name: sscd[name.replace("ssim", "sscd")] for name in ("ssim_orig_max", "ssim_orig_median")}
    assert found["ssim_orig_max"][1] is not None
