"""Dori: text embeddings that make a model replicate an image (Kowalczuk et al., ICML 2026, arXiv 2507.16880).

Given an image, an embedding is optimised until the model, under it, denoises towards that image. If a few steps
from anywhere suffice, the model still remembers the image, whatever was pruned. The control decides what that means:
images the model never memorized must not come back under the same budget.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field

from tasks.conditions import Start
from tasks.diffusion.batches import in_batches
from tasks.diffusion.families import Model
from tasks.diffusion.footprint import fitting
from tasks.diffusion.noise import Key, generator
from tasks.errors import Diverged, InputError
from tasks.params import SPEED


class DoriParams(BaseModel):
    """Budget and start of the attack; the defaults are the published ones, but for the noise that searches begin at.

    What the paper calls Gaussian noise is matched noise here: it has the mean and deviation of embeddings of real
    prompts, since the model has seen no others. "unit" is plain noise.
    """

    model_config = ConfigDict(title="Dori", frozen=True, extra="forbid")

    steps: Annotated[
        int, Field(ge=1, le=10_000, description="Number of Adam steps; beyond some 500 any image may come back.")
    ] = 50
    learning_rate: Annotated[float, Field(gt=0, le=10, description="Learning rate of Adam.")] = 0.1
    batch: Annotated[
        int, Field(ge=1, le=1024, description="Number of noises and timesteps drawn for each image at each step.")
    ] = 8
    restarts: Annotated[int, Field(ge=1, le=1000, description="Number of independent attacks on each image.")] = 1
    start: Annotated[
        Start, Field(description="Where the search begins: the image's own prompt, Gaussian noise, or another prompt.")
    ] = "prompt"
    noise_scale: Annotated[
        Literal["matched", "unit"],
        Field(
            description="Noise that searches begin at: matched has the mean and deviation of embeddings of real"
            " prompts, feature by feature; unit is plain N(0, 1)."
        ),
    ] = "matched"
    images_at_once: Annotated[
        int,
        Field(
            ge=1,
            le=1024,
            description="Images attacked in one batch, as memory allows; this does not change the result.",
        ),
        SPEED,
    ] = 4
    also_at: Annotated[
        tuple[Annotated[int, Field(ge=0, le=10_000)], ...],
        Field(
            description="Numbers of steps after which embeddings are kept, too: smaller budgets at no further cost;"
            " 0 is where the search begins."
        ),
    ] = ()


@dataclass(frozen=True)
class Trigger:
    """What one attack on one image found."""

    key: Key
    """The image's id and the seed of the attack."""
    restart: int
    embedding: torch.Tensor
    """float32 (tokens, width) on the CPU."""
    losses: list[float]
    """Diffusion loss before each step, a mean over the step's batch."""
    start: torch.Tensor
    """Where the search began, as `embedding`."""
    snapshots: dict[int, torch.Tensor] = field(default_factory=dict)
    """Embeddings by number of steps done, those that `also_at` asked for: what smaller budgets would have found."""

    def after(self, steps: int) -> torch.Tensor:
        """The embedding after so many steps: all of them, or a number that `also_at` asked for."""
        return self.embedding if steps == len(self.losses) else self.snapshots[steps]

    def distance(self, steps: int) -> float:
        """l2 norm of the way from the start to the embedding after so many steps."""
        return (self.after(steps) - self.start).norm().item()


def attack(
    model: Model,
    latents: torch.Tensor,
    prompts: Sequence[str],
    keys: Sequence[Key],
    params: DoriParams,
    pool: Sequence[str] | None = None,
    done: Callable[[int], None] = lambda n: None,
) -> list[Trigger]:
    """The whole attack on images: `restarts` searches each, from the starts that `params` names.

    Args:
        latents: (n, channels, height, width) of the images, as `tasks.diffusion.sampling.encode` gives them.
        prompts: the image's own prompt, one each.
        keys: the image's id and the seed of the attack, one each.
        pool: see `start_embeddings`.
        done: called with the number of finished steps, as in `search`; in all n * restarts * steps.

    Returns:
        restarts triggers for the first image, then for the next, and so on.

    Raises:
        InputError: see `start_embeddings` and `search`.
    """
    rows = [row for row in range(len(keys)) for _ in range(params.restarts)]
    restarts = list(range(params.restarts)) * len(keys)
    # Every restart is a sample of its own, with its own start and its own noise.
    own = [(f"{keys[row][0]}/{restart}", keys[row][1]) for row, restart in zip(rows, restarts, strict=True)]
    starts = start_embeddings(model, params.start, [prompts[row] for row in rows], own, params, pool or prompts)
    found = search(model, latents[rows], starts, own, params, done)
    return [
        Trigger(keys[row], restart, it.embedding, it.losses, it.start, it.snapshots)
        for row, restart, it in zip(rows, restarts, found, strict=True)
    ]


def start_embeddings(
    model: Model,
    kind: Start,
    prompts: Sequence[str],
    keys: Sequence[Key],
    params: DoriParams,
    pool: Sequence[str] | None = None,
) -> torch.Tensor:
    """Where each search begins, float (n, tokens, width).

    Args:
        kind: "prompt": the embedding of the image's own prompt. "noise": Gaussian noise, either plain N(0, 1) or
            matched, that is with the mean and standard deviation that each of the width features has over all tokens
            of the pool's embeddings (they differ by orders of magnitude in CLIP), and SDXL's pooled vectors by
            themselves. "other": another prompt of the pool.
        prompts: one for each search.
        keys: one for each search; noise and choice depend on nothing else.
        pool: prompts that "other" draws from and "matched" measures; `prompts` by default. Give the same pool to every
            worker, so that a start does not depend on which images share a shard.

    Raises:
        InputError: the pool holds no other prompt.
    """
    known = sorted(set(pool or prompts))  # a start must not depend on the order in which prompts were read
    draws = [generator((f"{name}/start", seed)) for name, seed in keys]
    if kind == "prompt":
        return model.encode(list(prompts))
    if kind == "noise":
        shape = model.unconditional().shape[1:]
        noise = torch.stack([torch.randn(shape, generator=draw) for draw in draws]).to(model.device)
        if params.noise_scale == "matched":
            mean, spread = _mean_and_spread(model, known)
            noise = mean + spread * noise
        return model.unmasked(noise.to(model.dtype))
    chosen = []
    for prompt, draw in zip(prompts, draws, strict=True):
        others = [text for text in known if text != prompt]
        if not others:
            raise InputError(
                "a start from another prompt needs at least two different prompts: give more, or start from noise"
            )
        chosen.append(others[int(torch.randint(len(others), (), generator=draw))])
    return model.encode(chosen)


def _mean_and_spread(model: Model, prompts: Sequence[str], batch: int = 256) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation of each feature, float32 (rows, width): the same for all tokens that are read,
    another for SDXL's pooled vector. Batch by batch: embeddings of 50,000 prompts take 12 GB."""
    sums, squares = torch.zeros(2, *model.unconditional().shape[1:], dtype=torch.float64)
    counts = torch.zeros(len(sums), dtype=torch.int64)
    for first in range(0, len(prompts), batch):
        embeddings = model.encode(list(prompts[first : first + batch]))
        seen, mask = embeddings.cpu().double(), model.mask(embeddings)
        if mask is not None:
            seen = seen * mask[:, :, None].cpu()
        counts += len(seen) if mask is None else mask.sum(0).cpu()
        sums, squares = sums + seen.sum(0), squares + seen.square().sum(0)
    means, spreads = torch.empty_like(sums), torch.empty_like(sums)
    for rows in model.row_groups:
        n = int(counts[rows].sum())
        means[rows] = sums[rows].sum(0) / max(1, n)
        deviations = squares[rows].sum(0) - n * means[rows].square()
        spreads[rows] = (deviations.clamp(min=0) / max(1, n - 1)).sqrt()
    return means.to(model.device, torch.float32), spreads.to(model.device, torch.float32)


def search(
    model: Model,
    latents: torch.Tensor,
    starts: torch.Tensor,
    keys: Sequence[Key],
    params: DoriParams,
    done: Callable[[int], None] = lambda n: None,
) -> list[Trigger]:
    """Adam on the plain diffusion loss ||eps - eps_theta(z_t, t, y)||^2 of one image, over the embedding y alone.

    Noise and timestep are drawn afresh at each step, uniformly over all timesteps: that is what makes the trigger work
    from any initial noise. Each search draws from a generator of its own, and Adam works element by element, so
    searches that share a batch go the way they go alone, up to the rounding of batched convolutions (the tests allow
    1e-4 of the way).

    Args:
        latents: (n, channels, height, width), one image a search.
        starts: (n, tokens, width).
        keys: one for each search; its noise depends on nothing else.
        done: called with the number of finished steps, counted over all searches; in all n * steps.

    Raises:
        InputError: the weights are half precision.
        Diverged: a loss is not finite.
    """
    if model.dtype == torch.float16:
        raise InputError("gradients of an attack vanish in float16: load the model in float32 or bfloat16")
    if not len(latents) == len(starts) == len(keys):
        raise ValueError(f"{len(latents)} latents, {len(starts)} starts and {len(keys)} keys")
    found: list[Trigger] = []
    with frozen(model.denoiser):
        together = in_batches(
            len(keys),
            params.images_at_once,
            lambda rows: _search_together(model, latents[rows], starts[rows], keys[rows], params, done),
        )
        for some in together:
            found += some
    return found


def draw_noise(model: Model, draw: torch.Generator, n: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Timesteps (n,), uniform over all, and standard normal noise (n, channels, height, width), on the CPU."""
    times = model.schedule.random_timesteps(n, draw)
    return times, torch.randn(n, *model.latent_shape, generator=draw)


@contextmanager
def frozen(denoiser: Any) -> Iterator[None]:
    """Within, the denoiser is in evaluation mode and its weights take no gradient; afterwards all is as it was."""
    training = denoiser.training
    learning = [weight for weight in denoiser.parameters() if weight.requires_grad]
    denoiser.eval()
    for weight in learning:
        weight.requires_grad_(False)
    try:
        yield
    finally:
        denoiser.train(training)
        for weight in learning:
            weight.requires_grad_(True)


def _search_together(
    model: Model,
    latents: torch.Tensor,
    starts: torch.Tensor,
    keys: Sequence[Key],
    params: DoriParams,
    done: Callable[[int], None],
) -> list[Trigger]:
    draws = [generator(key) for key in keys]
    clean = latents.to(model.device, torch.float32).repeat_interleave(params.batch, 0)
    begin = starts.to(model.device, torch.float32)
    embedding = begin.clone().requires_grad_(True)
    optimizer = torch.optim.Adam([embedding], lr=params.learning_rate)
    losses: list[list[float]] = [[] for _ in keys]
    snapshots = [{0: one.cpu().clone()} if 0 in params.also_at else {} for one in begin]
    size = fitting(model, "gradient", len(clean))
    for step in range(params.steps):
        # Each search's own generator, in a fixed order: timesteps, then noise.
        pairs = [draw_noise(model, draw, params.batch) for draw in draws]
        times = torch.cat([t for t, _ in pairs]).to(model.device)
        noise = torch.cat([n for _, n in pairs]).to(model.device)

        def some(
            rows: slice, times: torch.Tensor = times, noise: torch.Tensor = noise
        ) -> tuple[torch.Tensor, torch.Tensor]:
            text = embedding.repeat_interleave(params.batch, 0)[rows]
            errors = model.training_loss(clean[rows], noise[rows], times[rows], text)
            # Summed over searches, so the gradient of each is that of its own loss.
            (gradient,) = torch.autograd.grad(errors.sum() / params.batch, embedding)
            return errors.detach(), gradient

        pieces = list(in_batches(len(clean), size, some))
        size = max(len(errors) for errors, _ in pieces)  # as many as memory holds
        embedding.grad = torch.stack([gradient for _, gradient in pieces]).sum(0)
        each = torch.cat([errors for errors, _ in pieces]).view(len(keys), params.batch).mean(1)
        for row, value in enumerate(each.tolist()):
            if not math.isfinite(value):
                raise Diverged(
                    f"the attack on {keys[row][0]} diverged at step {step + 1}: "
                    "lower its learning rate, or load the model in float32"
                )
            losses[row].append(value)
        optimizer.step()
        if step + 1 in params.also_at:
            for row, kept in enumerate(embedding.detach().cpu()):
                snapshots[row][step + 1] = kept.clone()
        done(len(keys))
    final, begin = embedding.detach().cpu(), begin.cpu()
    return [
        Trigger(key, 0, final[row].clone(), losses[row], begin[row].clone(), snapshots[row])
        for row, key in enumerate(keys)
    ]
