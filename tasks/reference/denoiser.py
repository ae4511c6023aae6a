"""The reference diffusion model: a small UNet of Stable Diffusion 1.x topology, taught in two phases.

First ordinary images only, for long; then a short second phase in which planted images are a small share of each
step. Real models, too, learn the world first and see a duplicate comparatively seldom.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import DDIMScheduler
from diffusers.models.attention_processor import AttnProcessor
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from diffusers.training_utils import EMAModel

from tasks.diffusion.families import StableDiffusion
from tasks.diffusion.families.schedule import Schedule
from tasks.diffusion.precision import computes_in_bfloat16
from tasks.reference.autoencoder import CHANNELS
from tasks.reference.clip import WIDTH
from tasks.reference.training import Checkpoint, autocast, one_cycle, steps

OFFSET = 0.3
"""Offset noise, one value an image and channel. Without it the last noised latent still tells the mean of the image,
the model reads it there instead of remembering it, and copies come out with the wrong colours."""
DROP = 0.1
"""Share of captions replaced by the empty one, for classifier-free guidance."""


@dataclass(frozen=True)
class Pairs:
    """Latents float16 (n, c, 16, 16), and for each the row of `texts` (float16 (m, tokens, width)) that captions it."""

    latents: torch.Tensor
    texts: torch.Tensor

    def __post_init__(self) -> None:
        if len(self.latents) != len(self.texts):
            raise ValueError(f"{len(self.latents)} latents but {len(self.texts)} captions")


def new_denoiser() -> Any:
    """Three cross-attention down blocks of two attentions each, mid, three up: 7 value and 16 feed-forward layers."""
    model = StableDiffusion.denoiser_class(
        sample_size=16,
        in_channels=CHANNELS,
        out_channels=CHANNELS,
        layers_per_block=2,
        block_out_channels=(64, 128, 192, 192),
        down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
        cross_attention_dim=WIDTH,
        attention_head_dim=4,  # the number of heads, under diffusers' historical name
        norm_num_groups=8,  # so that no channel is divided by its own chance spread: four latents share one
    )
    _begin_as_identity(model)
    return model


@torch.no_grad()
def _begin_as_identity(model: Any) -> None:
    """Lets a fresh denoiser give back its input, channel by channel at unit spread; all else adds nothing yet.

    Much noised latents are almost noise alone, so this is nearly right there from the first step. From random weights
    the model spends most of its training on carrying the noise through, and learns neither composition nor prompts.
    """
    for module in model.modules():
        if isinstance(module, ResnetBlock2D):
            _zero(module.conv2)
        elif isinstance(module, Transformer2DModel):
            _zero(module.proj_out)
    first, last, out = model.conv_in, model.up_blocks[-1].resnets[-1], model.conv_out
    pairs = 2 * CHANNELS
    first.weight[:pairs] = 0
    first.bias[:pairs] = 0
    last.conv_shortcut.weight[:pairs] = 0
    last.conv_shortcut.bias[:pairs] = 0
    _zero(out)
    skipped = last.conv_shortcut.in_channels - first.out_channels
    for channel in range(CHANNELS):
        for unit, sign in ((2 * channel, 1), (2 * channel + 1, -1)):
            # Four pairs fill a group of the last normalization, and silu(x) - silu(-x) is x.
            first.weight[unit, channel, 1, 1] = sign
            last.conv_shortcut.weight[unit, skipped + unit] = 1
            out.weight[channel, unit, 1, 1] = sign


def _zero(layer: torch.nn.Module) -> None:
    for parameter in layer.parameters():
        parameter.zero_()


def loss_weights(signal: torch.Tensor) -> torch.Tensor:
    """Weights of the squared errors of predicted noise, by the share of signal in the noised latents' variance.

    With signal-to-noise ratio r the first part weighs errors of the image, r times those of the noise, alike at all
    noise down to r = 0.05; there compositions and prompts are learned, which errors of the noise hardly show. The
    second is min-SNR-5 (Hang et al., ICCV 2023) halved, for the detail at little noise.
    """
    ratio = signal / (1 - signal)
    return 1 / (ratio + 0.05) + 0.5 * (5 / ratio).clamp(max=1)


def new_scheduler() -> DDIMScheduler:
    """The schedule of Stable Diffusion 1.x: scaled-linear betas, noise prediction. DDIM's steps, because PNDM's, which
    extrapolate, leave noise in the images of a small model: copies fell from a mean SSCD of 0.65 to 0.44."""
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )


class Hardness(torch.nn.Module):
    """How badly each of n images is remembered still: a moving average of its weighted errors.

    Images are drawn in proportion to it, none seldomer than at a quarter of the mean rate.
    """

    def __init__(self, n: int) -> None:
        super().__init__()
        self.values: torch.Tensor
        self.register_buffer("values", torch.ones(n))

    def draw(self, count: int, generator: torch.Generator) -> torch.Tensor:
        """Rows (count,), with replacement."""
        shares = self.values.clamp(min=float(self.values.mean()) / 4)
        return torch.multinomial(shares, count, replacement=True, generator=generator)

    def update(self, rows: torch.Tensor, errors: torch.Tensor) -> None:
        """Takes the errors (count,) of these rows in."""
        for row, error in zip(rows.tolist(), errors.tolist(), strict=True):
            self.values[row] += 0.1 * (error - self.values[row])


def train_denoiser(
    ordinary: Pairs,
    planted: Pairs | None,
    empty: torch.Tensor,
    path: Path,
    *,
    total: int,
    peak: float,
    batch: int = 16,
    planted_batch: int = 0,
    start: torch.nn.Module | None = None,
    seed: int = 0,
    watch: Callable[[int, torch.nn.Module], None] | None = None,
) -> Any:
    """Trains on noise prediction, weighted as `loss_weights` says, and returns the moving average of the weights.

    Args:
        empty: float16 (tokens, width), the embedding of the empty caption.
        path: the checkpoint file; a later call resumes from it.
        peak: highest learning rate of the one cycle.
        planted_batch: planted images in each step, of `batch`. They are drawn as `Hardness` says: drawn alike, a few
            are never learned, while most are perfect.
        start: weights to go on from.
        watch: called every 250 steps with the number of steps done and the averaged model.
    """
    torch.manual_seed(seed)
    model = new_denoiser()
    if start is not None:
        model.load_state_dict(start.state_dict())
    if total == 0:
        return model.eval()
    model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if computes_in_bfloat16("cpu"):
        model.set_attn_processor(AttnProcessor())  # the fused one's backward pass is slow then
    optimizer = torch.optim.AdamW(model.parameters(), lr=peak, betas=(0.9, 0.99), weight_decay=0.01, fused=True)
    rate = one_cycle(optimizer, peak, total)
    decay = max(0.0, 1 - 10 / total)  # over about the last tenth of the training
    average = EMAModel(model.parameters(), decay=decay, min_decay=decay, foreach=True)
    hardness = Hardness(len(planted.latents) if planted is not None else 0)
    state = {"model": model, "optimizer": optimizer, "schedule": rate, "average": average, "hardness": hardness}
    # In these very words, because a checkpoint is gone on from by the recipe that it holds.
    recipe = f"{total} steps of {batch} pictures, {planted_batch} planted, up to {peak}, seed {seed}"
    checkpoint = Checkpoint(path, recipe, **state)
    schedule = Schedule(new_scheduler())
    model.train()
    for step in steps(checkpoint, total, path.stem):
        draw = torch.Generator().manual_seed(seed * 1_000_003 + step.number)
        rows = torch.randint(len(ordinary.latents), (batch - planted_batch,), generator=draw)
        latents, texts = ordinary.latents[rows], ordinary.texts[rows]
        if planted is not None and planted_batch:
            extra = hardness.draw(planted_batch, draw)
            latents, texts = torch.cat([latents, planted.latents[extra]]), torch.cat([texts, planted.texts[extra]])
        dropped = torch.rand(batch, generator=draw) < DROP
        texts = torch.where(dropped[:, None, None], empty, texts).float()
        errors, weighted = errors_of(model, schedule, latents, texts, draw)
        loss = weighted.mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        rate.step()
        average.step(model.parameters())
        plain = batch - planted_batch
        losses = {"ordinary": errors[:plain].mean().item()}
        if planted_batch:
            losses["planted"] = errors[plain:].mean().item()
            hardness.update(extra, weighted[plain:].detach())
        step.report(**losses)
        if watch is not None and (step.number + 1) % 250 == 0:
            watch(step.number + 1, averaged(model, average))
    return averaged(model, average)


def errors_of(
    model: Any, schedule: Schedule, latents: torch.Tensor, texts: torch.Tensor, draw: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """The squared errors of predicted noise, at noises and timesteps that are drawn, and the same weighted as
    `loss_weights` says; both float32 (n,).

    Args:
        latents: (n, channels, height, width), clean.
        texts: float32 (n, tokens, width).
    """
    latents, many = latents.float(), len(latents)
    noise = torch.randn(latents.shape, generator=draw)
    noise += OFFSET * torch.randn(*latents.shape[:2], 1, 1, generator=draw)
    # One timestep from each of as many equal parts of the schedule as there are images, in any order.
    parts = torch.randperm(many, generator=draw) + torch.rand(many, generator=draw)
    t = (parts * schedule.trained / many).long()
    noisy = schedule.add_noise(latents, noise, t).contiguous(memory_format=torch.channels_last)
    with autocast():
        prediction = model(noisy, t, texts, return_dict=False)[0]
    errors = (prediction.float() - noise).square().mean((1, 2, 3))
    return errors, loss_weights(schedule.signal(t)) * errors


def averaged(model: Any, average: EMAModel) -> Any:
    """A copy of the model with the averaged weights, for use."""
    copy = new_denoiser()
    copy.load_state_dict(model.state_dict())
    average.copy_to(copy.parameters())
    return copy.eval()
