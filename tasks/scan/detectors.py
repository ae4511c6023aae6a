"""Telling memorized prompts before a picture is made: four figures, each higher where a prompt is memorized.

All are taken at pure noise and nothing is denoised, so that thousands of prompts can be looked at. A figure is a mean
over seeds, and every seed's noise is its own (see `tasks.diffusion.noise`), so neither the batch nor what else is
scanned changes it. How high is high differs from model to model: null prompts say, see `conformal`.
"""

from collections.abc import Callable, Sequence
from typing import Annotated, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field

from tasks.diffusion.batches import in_batches
from tasks.diffusion.families import Model
from tasks.diffusion.hooks import attended
from tasks.diffusion.noise import initial_noise
from tasks.diffusion.sites import Layer, Site
from tasks.diffusion.tokens import LongPrompts
from tasks.errors import InputError
from tasks.localize.detection import detection_timestep, noise_differences, pairwise_scores

Detector = Literal["ssim", "norm", "entropy", "anisotropy"]


class ScanParams(BaseModel):
    """Which figures are taken of a prompt, and when it is flagged."""

    model_config = ConfigDict(title="Detection of memorized prompts", frozen=True, extra="forbid")

    detectors: Annotated[
        tuple[Detector, ...],
        Field(min_length=1, description="what tells memorized prompts; see docs/scan.md, and each flags by itself"),
    ] = ("norm",)
    alpha: Annotated[
        float, Field(gt=0, lt=1, description="false-alarm rate: share flagged of prompts that are not memorized")
    ] = 0.02
    seeds: Annotated[
        int, Field(ge=2, le=100, description="initial noises for each prompt; published: norm 4, ssim 10, others 1")
    ] = 4
    steps: Annotated[int, Field(ge=3, le=1000, description="steps of the schedule whose timesteps are used")] = 50
    cosine: Annotated[
        float,
        Field(ge=0, le=1e6, description="anisotropy: weight of the cosine beside the norm, at 4 x 64 x 64 latents"),
    ] = 2.0
    batch: Annotated[int, Field(ge=1, le=4096, description="samples at a time; does not change the result")] = 32
    long_prompts: Annotated[
        LongPrompts,
        Field(
            description="what is done with prompts of more tokens than the model reads: truncate reads their beginning,"
            " as training does; refuse names them all and stops; skip leaves them out"
        ),
    ] = "truncate"


@torch.no_grad()
def ssim_scores(model: Model, embeddings: torch.Tensor, prompt_ids: Sequence[str], params: ScanParams) -> torch.Tensor:
    """Similarity of noise differences (Hintersdorf et al., Finding NeMo, NeurIPS 2024, section 3.1).

    The mean over pairs of seeds, at the second timestep of the schedule; see `tasks.localize.detection`.

    Args, Returns, Raises: as `scores`.
    """
    timestep = detection_timestep(model, params.steps)

    def differences(text: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        return noise_differences(model, text, noise, timestep)

    found = _by_seed(model, embeddings, prompt_ids, params, differences)
    return torch.stack([pairwise_scores(seeds).mean() for seeds in found])


@torch.no_grad()
def norm_scores(model: Model, embeddings: torch.Tensor, prompt_ids: Sequence[str], params: ScanParams) -> torch.Tensor:
    """Text-conditional noise norm ||eps(z, T, y) - eps(z, T, null)||_2 (Wen et al., ICLR 2024, section 3.3).

    At the first timestep: the paper's detection after one step, which denoises nothing.

    Args, Returns, Raises: as `scores`.
    """
    first, null = _timestep(model, params, 0), model.unconditional()

    def norms(text: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        guidance, _ = _guidance(model, text, null, noise, first)
        return guidance.flatten(1).norm(dim=1)

    return _by_seed(model, embeddings, prompt_ids, params, norms).mean(1)


@torch.no_grad()
def entropy_scores(
    model: Model, embeddings: torch.Tensor, prompt_ids: Sequence[str], params: ScanParams
) -> torch.Tensor:
    """Entropy of cross-attention over the text's tokens (Ren et al., ECCV 2024).

    The attention of an ordinary prompt concentrates on the token that begins every text; that of a memorized one stays
    spread over tokens that bring the image back, so its entropy is HIGHER. Taken is the paper's figure of a single
    step (mode "E" of its published detect.py): the first timestep, the fourth cross-attention layer in order of
    execution, weights averaged over heads and pixels, then -sum a log a over all tokens, padding among them. The
    paper's other figure (mode "D": all layers, the last ten steps, and how the entropy of the padding changed) needs
    every prompt to be denoised.

    Args, Returns: as `scores`.

    Raises:
        InputError: as `scores`; the denoiser has fewer cross-attention layers.
    """
    first, layer = _timestep(model, params, 0), attention_layer(model.layers(Site.VALUE_ALL))

    def entropies(text: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        seen: list[torch.Tensor] = []
        with attended(model.denoiser, layer, lambda weights: seen.append(weights.mean((1, 2)))):
            _predicted(model, text, noise, first)
        return torch.special.entr(seen[0]).sum(1)

    return _by_seed(model, embeddings, prompt_ids, params, entropies).mean(1)


@torch.no_grad()
def anisotropy_scores(
    model: Model, embeddings: torch.Tensor, prompt_ids: Sequence[str], params: ScanParams
) -> torch.Tensor:
    """Norm at high noise and alignment at low noise (Asthana and Belagiannis, ICLR 2026, arXiv 2601.20642).

    From the paper: where noise is low, memorized prompts show in the angle between the guidance eps(z, t, y) -
    eps(z, t, null) and the unconditional prediction rather than in the length of the guidance; both can be had from
    the same pure noise z. From its published code: the timesteps (the first, and the third from the end of 50), the
    cosine, which is taken over channels and averaged over pixels, and the sum norm + 2 cosine for SD 1.4. Our own: the
    norm is brought to 4 x 64 x 64 latents, so that the weight means the same for others, and models that predict
    velocity are looked at by the noise it implies, too; the published weights of SD 2 belong to another scale.

    Args, Returns, Raises: as `scores`.
    """
    first, last, null = _timestep(model, params, 0), _timestep(model, params, -3), model.unconditional()
    scale = (4 * 64 * 64 / torch.Size(model.latent_shape).numel()) ** 0.5

    def figures(text: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        guidance, _ = _guidance(model, text, null, noise, first)
        late, unconditional = _guidance(model, text, null, noise, last)
        alignment = torch.cosine_similarity(late, unconditional, dim=1).mean((1, 2))
        return scale * guidance.flatten(1).norm(dim=1) + params.cosine * alignment

    return _by_seed(model, embeddings, prompt_ids, params, figures).mean(1)


_DETECTORS: dict[Detector, Callable[[Model, torch.Tensor, Sequence[str], ScanParams], torch.Tensor]] = {
    "ssim": ssim_scores,
    "norm": norm_scores,
    "entropy": entropy_scores,
    "anisotropy": anisotropy_scores,
}


def scores(
    model: Model, detector: Detector, embeddings: torch.Tensor, prompt_ids: Sequence[str], params: ScanParams
) -> torch.Tensor:
    """One detector's figure of each prompt, higher where it is memorized.

    Args:
        embeddings: (n, rows, width), one for each prompt.
        prompt_ids: what the prompts' noise is seeded by, with seeds 0, 1, ...

    Returns:
        float32 (n,).

    Raises:
        InputError: a prediction is not finite.
    """
    return _DETECTORS[detector](model, embeddings, prompt_ids, params)


def _by_seed(
    model: Model,
    embeddings: torch.Tensor,
    prompt_ids: Sequence[str],
    params: ScanParams,
    work: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
) -> torch.Tensor:
    """What `work(text, noise)` gives for every seed of every prompt, (prompts, seeds, ...)."""
    keys = [(name, seed) for name in prompt_ids for seed in range(params.seeds)]
    owners = torch.arange(len(prompt_ids), device=embeddings.device).repeat_interleave(params.seeds)

    def some(rows: slice) -> torch.Tensor:
        noise = initial_noise(model, keys[rows])
        return work(embeddings[owners[rows]].to(noise), noise)

    found = torch.cat(list(in_batches(len(keys), params.batch, some)))
    return found.unflatten(0, (len(prompt_ids), params.seeds))


def _timestep(model: Model, params: ScanParams, number: int) -> int:
    """A timestep of the model's schedule by its number; negative ones count from the end."""
    return model.schedule.timestep(params.steps, number)


def _guidance(
    model: Model, text: torch.Tensor, null: torch.Tensor, noise: torch.Tensor, timestep: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """eps(z, t, y) - eps(z, t, null), and eps(z, t, null)."""
    unconditional = _predicted(model, null.to(noise).expand_as(text), noise, timestep)
    return _predicted(model, text, noise, timestep) - unconditional, unconditional


def _predicted(model: Model, text: torch.Tensor, noise: torch.Tensor, timestep: int) -> torch.Tensor:
    predicted = model.predict(noise, timestep, text).noise.float()
    if not predicted.isfinite().all():
        raise InputError("the denoiser's predictions are not finite; load the model in float32 or bfloat16")
    return predicted


def attention_layer(layers: Sequence[Layer]) -> Layer:
    """The fourth cross-attention layer in order of execution: in SD 1.x the second of the second down block.

    Raises:
        InputError: there are fewer.
    """
    if len(layers) < 4:
        raise InputError(
            f"entropy needs a fourth cross-attention layer, this denoiser has {len(layers)}: scan with norm"
        )
    return layers[3]
