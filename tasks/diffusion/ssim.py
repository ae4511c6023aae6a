"""Similarity of noise differences (Hintersdorf et al., Finding NeMo, NeurIPS 2024, section 3.1)."""

import torch
from torch.nn.functional import avg_pool2d
from torchmetrics.functional.image import structural_similarity_index_measure

from tasks.errors import InputError

KERNEL = 11
"""Side of the published Gaussian kernel."""
SIGMA = 1.5
"""Its standard deviation; torchmetrics' kernel for it is 11 x 11."""
WEIGHTS = {3: (0.33, 0.33, 0.33), 2: (0.495, 0.495), 1: (0.99,)}
"""Published weights of three scales; fewer scales share the same total, so that scores stay comparable."""


def to_unit_range(images: torch.Tensor) -> torch.Tensor:
    """Min-max scales every channel of every image to [0, 1]; a constant channel becomes 0.

    Args:
        images: (n, channels, height, width).

    Returns:
        float32, of the same shape.
    """
    images = images.float()
    low, high = images.amin((2, 3), keepdim=True), images.amax((2, 3), keepdim=True)
    spread = high - low
    return (images - low) / torch.where(spread > 0, spread, 1)


def scales_and_kernel(side: int) -> tuple[int, int]:
    """Number of scales and kernel side for images whose shorter side is `side`.

    A scale is used as long as the kernel is no larger than the image at that scale: three from 44 pixels (published),
    two from 22, one from 11. Images smaller than the kernel are compared at one scale with the largest odd kernel that
    fits, its standard deviation shrunk in proportion.

    Raises:
        InputError: images of less than 3 pixels.
    """
    if side < 3:
        raise InputError(f"latents of side {side} are too small to compare; 3 is the least")
    if side >= KERNEL:
        return (3 if side // 4 >= KERNEL else 2 if side // 2 >= KERNEL else 1), KERNEL
    return 1, side - 1 + side % 2


def similarity(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Multi-scale structural similarity of images in [0, 1], pair by pair; 1 for equal ones.

    From 44 pixels on this is torchmetrics' measure of a single pair at the published setting: kernel 11, three scales
    weighted 0.33, the range of the data that which the pair has at each scale. The published call takes the range of
    the whole batch, and so shifts a little with what else is in it.

    Args:
        a, b: (n, channels, height, width).

    Returns:
        float32 (n,).

    Raises:
        InputError: images too small, see `scales_and_kernel`.
    """
    scales, kernel = scales_and_kernel(min(a.shape[-2:]))
    a, b = a.float(), b.float()
    score = torch.ones(len(a), device=a.device)
    for scale, weight in enumerate(WEIGHTS[scales]):
        if scale:
            a, b = avg_pool2d(a, 2), avg_pool2d(b, 2)
        spread = torch.maximum(_range(a), _range(b))
        spread = torch.where(spread > 0, spread, 1)
        # TensorFloat-32 convolutions are too coarse for the variances, which are differences of near-equal numbers.
        with torch.backends.cudnn.flags(enabled=torch.backends.cudnn.enabled, allow_tf32=False):
            whole, contrast = structural_similarity_index_measure(
                a / spread,
                b / spread,
                sigma=SIGMA * (kernel - 1) / (KERNEL - 1),
                kernel_size=kernel,
                reduction="none",
                data_range=1.0,
                return_contrast_sensitivity=True,
            )
        score = score * (whole if scale == scales - 1 else contrast).relu() ** weight
    return score


def _range(images: torch.Tensor) -> torch.Tensor:
    return images.amax((1, 2, 3), keepdim=True) - images.amin((1, 2, 3), keepdim=True)
