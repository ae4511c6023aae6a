"""Quality of ordinary generations against real pictures: Fréchet distance and kernel distance of their features.

FID (Heusel et al., NeurIPS 2017) and KID (Binkowski et al., ICLR 2018) with torchmetrics' formulas, in float64, on
whatever features are given. Engram gives CLIP image embeddings, so its `fid` is a CLIP-FID (Kynkaanniemi et al., ICLR
2023) and must not be compared with figures on Inception features. Neither has a bootstrap interval: resampling repeats
rows, which biases both upwards.

Both need many pictures. With fewer than features have numbers (hundreds), the covariances of FID are singular, and its
value is for the most part the bias of few pictures: about the same for variants that are asked the same, so that those
can be compared with each other, and with nothing else. KID is unbiased, but single values are so unsure that they say
little. Of fewer than `LEAST` different images both are noise, and an audit gives none.
"""

import numpy as np

from tasks.errors import InputError
from tasks.evaluate.figures import Estimate
from tasks.evaluate.intervals import FEW

LEAST = FEW
"""Different images that a distance of features needs on either side, a convention: from fewer, not even the median of
one feature has an interval."""


def fid(generated: np.ndarray, real: np.ndarray, metric: str = "fid") -> Estimate:
    """Fréchet distance between Gaussians fitted to features (n, width) and (m, width).

    Biased upwards on small sets: compare only figures of sets of the same size.

    Raises:
        InputError: fewer than two pictures on a side, or different widths.
    """
    a, b = _features(generated, real)
    shift = float(np.square(a.mean(0) - b.mean(0)).sum())
    # With centred data A and B, cov = A'A / (n - 1), and the eigenvalues of cov_a cov_b are the squared singular values
    # of A B' / sqrt((n - 1)(m - 1)): the trace of the square root is a sum of singular values, real and never negative.
    ra, rb = (np.linalg.qr(x - x.mean(0), mode="r") / np.sqrt(len(x) - 1) for x in (a, b))
    overlap = np.linalg.svd(ra @ rb.T, compute_uv=False).sum()
    value = shift + np.square(ra).sum() + np.square(rb).sum() - 2 * overlap
    return Estimate(metric, max(float(value), 0.0), None, None, len(a))


def kid(generated: np.ndarray, real: np.ndarray, metric: str = "kid") -> Estimate:
    """Unbiased squared maximum mean discrepancy under the kernel (x'y / width + 1)^3; may fall a little below 0.

    Taken once over all pictures rather than averaged over random subsets, so it needs no seed.

    Args:
        generated, real: features (n, width) and (m, width).

    Raises:
        InputError: fewer than two pictures on a side, or different widths.
    """
    a, b = _features(generated, real)
    same = sum(_off_diagonal_mean(_kernel(x, x)) for x in (a, b))
    return Estimate(metric, float(same - 2 * _kernel(a, b).mean()), None, None, len(a))


def _kernel(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.asarray((a @ b.T / a.shape[1] + 1) ** 3)


def _off_diagonal_mean(matrix: np.ndarray) -> float:
    n = len(matrix)
    return float((matrix.sum() - np.trace(matrix)) / (n * (n - 1)))


def _features(generated: np.ndarray, real: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    a, b = np.asarray(generated, np.float64), np.asarray(real, np.float64)
    if min(len(a), len(b)) < 2:
        raise InputError(f"FID and KID need two pictures on each side, not {len(a)} and {len(b)}: give more")
    if a.shape[1:] != b.shape[1:] or a.ndim != 2:
        raise InputError(f"features of different shapes {a.shape} and {b.shape}: take both from the same model")
    return a, b
