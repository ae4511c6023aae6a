"""Similarity of noise differences between seeds (Hintersdorf et al., Finding NeMo, NeurIPS 2024)."""

from collections.abc import Sequence
from typing import Annotated

import torch
from pydantic import Field

from tasks.diffusion.detection import detection_timestep, noise_differences, pairwise_scores
from tasks.diffusion.families import Model
from tasks.diffusion.outline import Outline
from tasks.diffusion.ssim import scales_and_kernel
from tasks.methods import detector
from tasks.scan.noise import SeededParams, by_seed, check_steps


class SsimParams(SeededParams):
    """How the similarity is taken; published with 10 seeds."""

    seeds: Annotated[
        int, Field(ge=2, le=100, description="Initial noises that each prompt is looked at with, to be compared.")
    ] = 4


def _check(params: SsimParams, outline: Outline) -> None:
    if outline.latent:
        scales_and_kernel(min(outline.latent))
    check_steps(params, outline)


@detector(
    name="ssim",
    title="Similarity of noise differences",
    paper="Hintersdorf et al., Finding NeMo, NeurIPS 2024, section 3.1",
    words="Measures how alike the first denoising steps of different seeds are, which memorized prompts lead one way.",
    control="Null prompts, by conformal p-values.",
    params=SsimParams,
    check=_check,
    cost=lambda params: params.seeds,
)
@torch.no_grad()
def ssim(
    model: Model, embeddings: torch.Tensor, prompt_ids: Sequence[str], params: SsimParams, batch: int
) -> torch.Tensor:
    """The mean SSIM over pairs of seeds, at the second timestep of the schedule; see `tasks.diffusion.detection`.

    Args, Returns: see `tasks.methods.Score`.
    """
    second = detection_timestep(model, params.steps)

    def differences(text: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        return noise_differences(model, text, noise, second)

    found = by_seed(model, embeddings, prompt_ids, params.seeds, batch, differences)
    return torch.stack([pairwise_scores(seeds).mean() for seeds in found])
