"""The text-conditional noise norm (Wen et al., ICLR 2024)."""

from collections.abc import Sequence

import torch

from tasks.diffusion.families import Model
from tasks.methods import detector
from tasks.scan.noise import SeededParams, by_seed, check_steps, pull, timestep


class NormParams(SeededParams):
    """How the noise norm is taken; published with 4 seeds."""


@detector(
    name="norm",
    title="Noise norm",
    paper="Wen et al., Detecting, Explaining, and Mitigating Memorization in Diffusion Models, ICLR 2024, section 3.3",
    words="Measures how far a prompt pulls the first noise prediction away from that without text.",
    control="Null prompts, by conformal p-values.",
    params=NormParams,
    check=check_steps,
    cost=lambda params: 2 * params.seeds,
)
@torch.no_grad()
def norm(
    model: Model, embeddings: torch.Tensor, prompt_ids: Sequence[str], params: NormParams, batch: int
) -> torch.Tensor:
    """The norm ||eps(z, T, y) - eps(z, T, null)||_2, the mean over seeds.

    At the first timestep: the paper's detection after one step, which denoises nothing. Our own: of velocity where the
    schedule ends in noise, see `tasks.scan.noise.pull`.

    Args, Returns: see `tasks.methods.Score`.

    Raises:
        InputError: a prediction is not finite.
    """
    first, null = timestep(model, params, 0), model.unconditional()

    def norms(text: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        return pull(model, text, null, noise, first).flatten(1).norm(dim=1)

    return by_seed(model, embeddings, prompt_ids, params.seeds, batch, norms).mean(1)
