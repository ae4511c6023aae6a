"""Quality of ordinary generations against real images: Fréchet distance and kernel distance of their features.

FID (Heusel et al., NeurIPS 2017) and KID (Binkowski et al., ICLR 2018) with torchmetrics' formulas, in float64, on
whatever features are given. Engram gives CLIP image embeddings, so its `fid` is a CLIP-FID (Kynkaanniemi et al., ICLR
2023) and must not be compared with values on Inception features. Neither has a bootstrap interval: resampling repeats
rows, which biases both upwards.

Both need many images. With fewer than features have numbers (hundreds), the covariances of FID are singular, and its
value is for the most part the bias of few images: about the same for variants that are asked the same, so that those
can be compared with each other, and with nothing else. KID is unbiased, but single values are so unsure that they say
little. Of fewer than `LEAST` different images both are noise, and an audit gives none.
"""

import math

import numpy as np

from tasks.conditions import ORDINARY
from tasks.errors import InputError
from tasks.evaluate.estimates import Estimate
from tasks.evaluate.seen import Seen
from tasks.intervals import FEW
from tasks.methods import Column, NoParams, metric

LEAST = FEW
"""Different images that a distance of features needs on either side, a convention: from fewer, not even the median of
one feature has an interval."""


@metric(
    name="quality",
    title="Distance to real images",
    paper="Heusel et al., NeurIPS 2017; Binkowski et al., ICLR 2018; on CLIP's features: Kynkaanniemi et al., 2023",
    words="CLIP-FID and CLIP-KID are distances between generations and the prompts' own images on features of the CLIP"
    f" model, so they do not compare with Inception's; of fewer than {LEAST} different images they have no value."
    " CLIP-FID of fewer images than its features have numbers (hundreds) is mostly the bias of few images: compare it"
    " down its column only.",
    control="The original model, asked the same.",
    applies=lambda condition, variant: condition == ORDINARY,
    columns=(
        Column("fid", "CLIP-FID", ".3f", "lower", order=60, cases="generations"),
        Column("kid", "CLIP-KID", ".4f", "lower", order=61, cases="generations"),
    ),
)
def quality(seen: Seen, params: NoParams) -> list[Estimate]:
    """FID and KID of generations against their prompts' own images; nothing without those, and no value of fewer than
    `LEAST` different ones.

    Of prompts that share an image the first counts, and of several images of a prompt the first: so each image is
    compared with as many generations as any other. n counts generations.
    """
    first: dict[str, tuple[str, str]] = {}
    for one in seen.generations:
        if one.images:
            first.setdefault(one.unit, (one.prompt_id, one.images[0]))
    chosen = dict(first.values())
    real = list(dict.fromkeys(chosen.values()))
    ours = [one.id for one in seen.generations if one.prompt_id in chosen]
    if not real:
        return []
    if len(real) < LEAST:
        return [Estimate(name, math.nan, None, None, len(ours)) for name in ("fid", "kid")]
    vectors = seen.clip.images([*ours, *real])
    made, trained = (np.stack([vectors[name] for name in names]) for names in (ours, real))
    return [fid(made, trained), kid(made, trained)]


def fid(generated: np.ndarray, real: np.ndarray, metric: str = "fid") -> Estimate:
    """Fréchet distance between Gaussians fitted to features (n, width) and (m, width).

    Biased upwards on small sets: compare only values of sets of the same size.

    Raises:
        InputError: fewer than two images on a side, or different widths.
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

    Taken once over all images rather than averaged over random subsets, so it needs no seed.

    Args:
        generated, real: features (n, width) and (m, width).

    Raises:
        InputError: fewer than two images on a side, or different widths.
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
        raise InputError(f"FID and KID need two images on each side, not {len(a)} and {len(b)}: give more")
    if a.shape[1:] != b.shape[1:] or a.ndim != 2:
        raise InputError(f"features of different shapes {a.shape} and {b.shape}: take both from the same model")
    return a, b
