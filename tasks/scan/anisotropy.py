"""Norm at high noise and alignment at low noise (Asthana and Belagiannis, ICLR 2026)."""

from collections.abc import Sequence
from typing import Annotated

import torch
from pydantic import Field

from tasks.diffusion.families import Model
from tasks.methods import detector
from tasks.scan.noise import SeededParams, by_seed, check_steps, guidance, pull, timestep


class AnisotropyParams(SeededParams):
    """How both are taken and added; published with a single seed."""

    cosine: Annotated[
        float,
        Field(ge=0, le=1e6, description="Weight of the cosine beside the norm, which is that of 4 x 64 x 64 latents."),
    ] = 2.0


@detector(
    name="anisotropy",
    title="Anisotropy",
    paper="Asthana and Belagiannis, ICLR 2026, arXiv 2601.20642",
    words="Adds the noise norm at high noise and the alignment of guidance at low noise.",
    control="Null prompts, by conformal p-values.",
    params=AnisotropyParams,
    check=check_steps,
    cost=lambda params: 4 * params.seeds,
)
@torch.no_grad()
def anisotropy(
    model: Model, embeddings: torch.Tensor, prompt_ids: Sequence[str], params: AnisotropyParams, batch: int
) -> torch.Tensor:
    """The sum of norm and weighted cosine, the mean over seeds.

    From the paper: where noise is low, memorized prompts show in the angle between the guidance eps(z, t, y) -
    eps(z, t, null) and the unconditional prediction rather than in the length of the guidance; both can be had from
    the same pure noise z. From its published code: the timesteps (the first, and the third from the end of 50), the
    cosine, which is taken over channels and averaged over pixels, and the sum norm + 2 cosine for SD 1.4. Our own: the
    norm is brought to 4 x 64 x 64 latents, so that the weight means the same for others, and models that predict
    velocity are looked at by the noise it implies, too; the published weights of SD 2 belong to another scale. Where
    the schedule ends in noise the norm is that of velocity, for which no weight was published.

    Args, Returns: see `tasks.methods.Score`.

    Raises:
        InputError: a prediction is not finite.
    """
    first, last, null = timestep(model, params, 0), timestep(model, params, -3), model.unconditional()
    scale = (4 * 64 * 64 / torch.Size(model.latent_shape).numel()) ** 0.5

    def both(text: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        early = pull(model, text, null, noise, first)
        late, unconditional = guidance(model, text, null, noise, last)
        alignment = torch.cosine_similarity(late, unconditional, dim=1).mean((1, 2))
        return scale * early.flatten(1).norm(dim=1) + params.cosine * alignment

    return by_seed(model, embeddings, prompt_ids, params.seeds, batch, both).mean(1)
