"""Prompt embeddings that steer the first step less (Wen et al., ICLR 2024, section 4.2)."""

from collections.abc import Sequence
from typing import Annotated

import torch
from pydantic import Field

from tasks.diffusion.batches import in_batches
from tasks.diffusion.families import Model
from tasks.diffusion.noise import Key, initial_noise
from tasks.diffusion.sampling import first_timestep
from tasks.inference import Answer, Request
from tasks.methods import Params, mitigation


class PerturbedEmbeddingParams(Params):
    """How far embeddings are moved."""

    target: Annotated[
        float,
        Field(
            gt=0,
            description="Embeddings are moved until the text-conditional noise norm is below this number, which is"
            " meant for 4 x 64 x 64 latents.",
        ),
    ] = 3.0
    steps: Annotated[int, Field(ge=1, le=1000, description="The largest number of Adam steps.")] = 10
    learning_rate: Annotated[float, Field(gt=0, le=10, description="The learning rate of Adam.")] = 0.05


@mitigation(
    name="perturbed-embedding",
    title="Perturbed embedding",
    paper="Wen et al., Detecting, Explaining, and Mitigating Memorization in Diffusion Models, ICLR 2024, section 4.2",
    words="Moves prompt embeddings until they steer the first step less.",
    control="The original model, and what the mitigation does to ordinary prompts.",
    params=PerturbedEmbeddingParams,
    acts="inference",
    gradients=True,
    done="prompt embeddings are moved until they steer the first step less, at inference",
)
def perturbed_embedding(request: Request, params: PerturbedEmbeddingParams) -> Answer:
    """Embeddings of a lower text-conditional noise norm at the first step."""
    first = first_timestep(request.model, request.sampling)
    return Answer(with_lower_norm(request.model, request.embeddings, request.keys, params, first))


def with_lower_norm(
    model: Model, embeddings: torch.Tensor, keys: Sequence[Key], params: PerturbedEmbeddingParams, first: float
) -> torch.Tensor:
    """Embeddings (n, rows, width) moved until the text-conditional noise norm at the first step is small.

    ||eps(z_T, t, y) - eps(z_T, t, null)||_2 is large for memorized prompts. Each sample stops by itself when it is
    below the target, and Adam works element by element, so a batch does not matter. Where the schedule ends in noise
    the norm is that of velocity, see `tasks.diffusion.families.schedule`: the same target asks for more.

    Args:
        first: the timestep that sampling begins with.
    """

    def some(rows: slice) -> torch.Tensor:
        return _with_lower_norm(model, embeddings[rows], keys[rows], params, first)

    return torch.cat(list(in_batches(len(keys), len(keys), some)))


def _with_lower_norm(
    model: Model, embeddings: torch.Tensor, keys: Sequence[Key], params: PerturbedEmbeddingParams, first: float
) -> torch.Tensor:
    start = initial_noise(model, keys)
    target = params.target * (start[0].numel() / (4 * 64 * 64)) ** 0.5
    with torch.no_grad():
        plain = model.predict(start, first, model.unconditional().expand_as(embeddings)).target
    text = embeddings.detach().float().clone().requires_grad_(True)
    optimizer = torch.optim.Adam([text], lr=params.learning_rate)
    for _ in range(params.steps):
        pulled = model.predict(start, first, text.to(model.dtype)).target
        norms = (pulled - plain).float().flatten(1).norm(dim=1)
        going = norms.detach() > target
        if not going.any():
            break
        (gradient,) = torch.autograd.grad(norms.sum(), text)
        before = text.detach().clone()
        text.grad = gradient
        optimizer.step()
        with torch.no_grad():
            text[~going] = before[~going]
    return text.detach().to(embeddings.dtype)
