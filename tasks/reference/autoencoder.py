"""The reference autoencoder: an AutoencoderTiny whose encoder is the best linear code of 4 x 4 patches.

The encoder has no residual blocks, so it is linear: the two strided convolutions gather each 4 x 4 patch, the last one
applies its principal components, centred and half whitened. It is exact from the start and stays; the decoder learns.
Centred latents of similar spread matter: with raw components the diffusion model's images come out dark.
"""

import copy
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderTiny

from tasks.reference.training import Checkpoint, autocast, one_cycle, steps

CHANNELS = 12
WHITENING = 0.35  # a component of standard deviation s is stored with s ** 0.35
CROP = 32


def new_autoencoder(bank: np.ndarray) -> AutoencoderTiny:
    """An AutoencoderTiny of 64 wide and factor 4, its encoder set to the principal components of the bank's patches."""
    model = AutoencoderTiny(
        encoder_block_out_channels=(64, 64, 64),
        decoder_block_out_channels=(64, 64, 64),
        latent_channels=CHANNELS,
        num_encoder_blocks=(0, 0, 0),
        num_decoder_blocks=(3, 2, 0),
    )
    sample = torch.from_numpy(bank[:: max(1, len(bank) // 2000)].astype(np.float32) / 255).permute(0, 3, 1, 2)
    patches = _space_to_depth(_space_to_depth(sample)).permute(0, 2, 3, 1).reshape(-1, 48)
    mean = patches.mean(0)
    variance, basis = torch.linalg.eigh(torch.cov((patches - mean).T))
    deviation = variance.flip(0)[:CHANNELS].clamp_min(1e-12).sqrt()
    code = basis.flip(1)[:, :CHANNELS].T * (deviation ** (WHITENING - 1))[:, None]
    # Unit spread on average, so that noise of unit variance is the right scale for the diffusion model.
    code = code / (deviation**WHITENING).mean()
    convolutions = [layer for layer in model.encoder.layers if isinstance(layer, torch.nn.Conv2d)]
    with torch.no_grad():
        for layer in convolutions:
            layer.weight.zero_()
            if layer.bias is not None:
                layer.bias.zero_()
        for channel in range(3):
            convolutions[0].weight[channel, channel, 1, 1] = 1
        for layer, width in ((convolutions[1], 3), (convolutions[2], 12)):
            for row in range(2):
                for column in range(2):
                    for channel in range(width):
                        # Stride 2 with padding 1 centres the kernel on even pixels: taps 1 and 2 are the pair.
                        layer.weight[(row * 2 + column) * width + channel, channel, 1 + row, 1 + column] = 1
        convolutions[3].weight[:, :48, 1, 1] = code
        convolutions[3].bias.copy_(-code @ mean)  # type: ignore[union-attr]
    return model


def train_autoencoder(
    bank: np.ndarray,
    folder: Path,
    *,
    total: int,
    batch: int = 32,
    start: AutoencoderTiny | None = None,
    seed: int = 0,
) -> AutoencoderTiny:
    """Trains the decoder on random crops: L1 plus half the L1 of the image's gradients, one cycle to 2e-3.

    Args:
        bank: uint8 (n, 64, 64, 3).
        folder: where checkpoints go; a later call resumes from them.
        total: steps.
        start: an autoencoder that is gone on from. Its encoder stays as it is, too: what was trained on its latents,
            the decoder first, knows no others.
    """
    torch.manual_seed(seed)
    model = copy.deepcopy(start) if start is not None else new_autoencoder(bank)
    if total == 0:
        return model.eval()
    model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    model.encoder.requires_grad_(False)
    optimizer = torch.optim.AdamW(model.decoder.parameters(), lr=2e-3, weight_decay=0.0)
    schedule = one_cycle(optimizer, 2e-3, total)
    recipe = f"{total} steps of {batch} crops, seed {seed}"
    checkpoint = Checkpoint(folder / "autoencoder.pt", recipe, model=model, optimizer=optimizer, schedule=schedule)
    for step in steps(checkpoint, total, "autoencoder"):
        rng = np.random.default_rng([seed, 20, step.number])
        rows = np.sort(rng.choice(len(bank), batch, replace=False))
        top, left = 4 * rng.integers(0, (64 - CROP) // 4 + 1, 2)
        pixels = np.ascontiguousarray(bank[rows, top : top + CROP, left : left + CROP])
        target = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1
        target = target.contiguous(memory_format=torch.channels_last)
        with torch.no_grad():
            latents = model.encode(target).latents
        with autocast():
            output = model.decode(latents).sample
        loss = F.l1_loss(output.float(), target) + 0.5 * _gradient_loss(output.float(), target)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
        step.report(loss=loss.item())
    return model.eval()


@torch.no_grad()
def encode(model: AutoencoderTiny, images: np.ndarray, batch: int = 256) -> torch.Tensor:
    """Latents float16 (n, channels, 16, 16) of uint8 images (n, 64, 64, 3)."""
    out = []
    for start in range(0, len(images), batch):
        block = torch.from_numpy(np.ascontiguousarray(images[start : start + batch])).permute(0, 3, 1, 2)
        out.append(model.encode(block.float() / 127.5 - 1).latents.half())
    return torch.cat(out)


@torch.no_grad()
def decode(model: AutoencoderTiny, latents: torch.Tensor, batch: int = 64) -> np.ndarray:
    """Images uint8 (n, 64, 64, 3) of latents (n, channels, 16, 16)."""
    out = []
    for start in range(0, len(latents), batch):
        pixels = model.decode(latents[start : start + batch].float()).sample.clamp(-1, 1)
        out.append(((pixels + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy())
    return np.concatenate(out)


def _space_to_depth(x: torch.Tensor) -> torch.Tensor:
    """(n, c, 2h, 2w) to (n, 4c, h, w), the position in the 2 x 2 block varying slowest."""
    return torch.cat([x[:, :, row::2, column::2] for row in (0, 1) for column in (0, 1)], 1)


def _gradient_loss(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    across = F.l1_loss(a.diff(dim=-1), b.diff(dim=-1))
    return across + F.l1_loss(a.diff(dim=-2), b.diff(dim=-2))
