"""Structural similarity of a generation to a training image, pixel by pixel (Wang et al., IEEE TIP 2004).

SSCD asks whether two images show the same, wherever in them it stands. SSIM asks whether they are the same, pixel for
pixel: a crop or a mirror image that SSCD calls a copy has a low one. It decides nothing by itself and has no threshold.
"""

from collections.abc import Iterator, Sequence

import numpy as np
from skimage.metrics import structural_similarity

from tasks.conditions import EXTRACTION
from tasks.errors import InputError
from tasks.evaluate.estimates import ByUnit, Estimate, gathered, of_prompts, over_units
from tasks.evaluate.seen import Pair, Seen
from tasks.methods import NoParams, metric
from tasks.progress import progress

SIGMA = 1.5
"""Standard deviation of the Gaussian window in pixels, as published; scikit-image's window for it is 11 x 11."""
WINDOW = 11
SCORER = f"ssim, gaussian window, sigma {SIGMA}, images cropped as in training"
"""What scores are called by."""


@metric(
    name="ssim",
    title="Structural similarity to training images",
    paper="Wang et al., Image Quality Assessment: From Error Visibility to Structural Similarity, IEEE TIP 2004",
    words="SSIM to the training image, which compares pixel by pixel, is in the store: the metrics ssim_orig_max and"
    " ssim_orig_median.",
    control="The original model.",
    applies=lambda condition, variant: condition != EXTRACTION,
    kept=("ssim_orig_max", "ssim_orig_median"),
)
def measured(seen: Seen, params: NoParams) -> list[Estimate]:
    """The similarities to training images, over the prompts that have any, each generation by its nearest image."""
    with_images = [one for one in seen.generations if one.images]
    if not with_images:
        return []

    def structures(missing: Sequence[Pair]) -> Iterator[float]:
        pixels = seen.pixels(list(dict.fromkeys(name for pair in missing for name in pair)))
        with progress(len(missing), f"SSIM of {seen.variant}, {seen.condition.name}", "image") as done:
            for name, image in missing:
                yield ssim(pixels[name], pixels[image])
                done(1)

    known = seen.scored("ssim", SCORER, [(one.id, image) for one in with_images for image in one.images], structures)
    nearest = [max(known[one.id, image] for image in one.images) for one in with_images]
    return of_prompts(with_images, ssim_orig(gathered(with_images, nearest)))


def ssim(generation: np.ndarray, original: np.ndarray) -> float:
    """The mean structural similarity of two images, 1 for equal ones.

    With the published settings: a Gaussian window of standard deviation 1.5, K1 = 0.01, K2 = 0.03, variances over n.
    The range of the data is that of the format, 255, not that of the two images. Colours are the last axis: each is
    compared by itself and the mean taken over all three, where the paper compares luminance alone.

    Args:
        generation, original: uint8 (height, width, 3), of the same size.

    Raises:
        InputError: the images are smaller than the window.
        ValueError: they are of different sizes.
    """
    if min(generation.shape[:2]) < WINDOW:
        raise InputError(f"SSIM needs images of {WINDOW} pixels or more on each side, not {generation.shape[:2]}")
    return float(
        structural_similarity(
            generation,
            original,
            data_range=255,
            channel_axis=-1,
            gaussian_weights=True,
            sigma=SIGMA,
            use_sample_covariance=False,
        )
    )


def ssim_orig(similarities: ByUnit) -> list[Estimate]:
    """SSIM to the training image: the maximum and the median over a unit's generations, each the median over units.

    Args:
        similarities: of each generation to the nearest of its prompt's training images.
    """
    return [
        over_units(name, np.array([over_seeds(seeds) for seeds in similarities.values()]), np.median)
        for name, over_seeds in (("ssim_orig_max", np.max), ("ssim_orig_median", np.median))
    ]
