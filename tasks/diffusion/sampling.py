"""Generating pictures from embeddings, each sample with its own noise."""

import io
from collections.abc import Callable, Sequence
from typing import Annotated, Literal

import numpy as np
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler
from PIL import Image, ImageOps
from pydantic import BaseModel, ConfigDict, Field

from tasks.diffusion.model import Model
from tasks.diffusion.noise import Key, initial_noise, predict_noise


class SamplingParams(BaseModel):
    """How pictures are generated."""

    model_config = ConfigDict(title="Sampling", frozen=True, extra="forbid")

    steps: Annotated[int, Field(ge=1, le=1000, description="denoising steps")] = 50
    guidance: Annotated[float, Field(ge=0, le=30, description="classifier-free guidance; 1 or less runs without")] = 7.5
    scheduler: Annotated[
        Literal["model", "ddim", "dpm"], Field(description="the model's own scheduler, DDIM, or DPM-Solver++")
    ] = "model"
    batch: Annotated[int, Field(ge=1, le=1024, description="pictures at a time; does not change the result")] = 32


@torch.no_grad()
def generate(
    model: Model,
    embeddings: torch.Tensor,
    keys: Sequence[Key],
    params: SamplingParams,
    done: Callable[[int], None] = lambda n: None,
) -> np.ndarray:
    """Pictures for embeddings, one for each key.

    Args:
        embeddings: (n, rows, width), one for each key.
        done: told the number of pictures whenever some are finished.

    Returns:
        uint8 (n, height, width, 3).
    """
    empty = model.unguided()
    out = []
    for start in range(0, len(keys), params.batch):
        rows = slice(start, start + params.batch)
        text = embeddings[rows].to(model.device, model.dtype)
        latents = denoise(model, text, empty, initial_noise(model, keys[rows]), params)
        out.append(decode(model, latents))
        done(len(text))
    return np.concatenate(out) if out else np.zeros((0, 0, 0, 3), np.uint8)


@torch.no_grad()
def denoise(
    model: Model,
    text: torch.Tensor,
    empty: torch.Tensor,
    latents: torch.Tensor,
    params: SamplingParams,
    steps: int | None = None,
) -> torch.Tensor:
    """Denoises latents (n, c, h, w) under embeddings (n, rows, width), with classifier-free guidance.

    Args:
        empty: of the half without text, (1, rows, width); see `Model.unguided`.
        steps: stops after so many of the schedule's steps; all of them without it.
    """
    scheduler = _scheduler(model, params)
    scheduler.set_timesteps(params.steps, device=model.device)
    latents = latents * scheduler.init_noise_sigma
    guided = params.guidance > 1
    for step in scheduler.timesteps[:steps]:
        scaled = scheduler.scale_model_input(latents, step)
        if guided:
            both = torch.cat([empty.expand_as(text), text])
            without, with_text = predict_noise(model, torch.cat([scaled, scaled]), step, both).chunk(2)
            noise = without + params.guidance * (with_text - without)
        else:
            noise = predict_noise(model, scaled, step, text)
        latents = scheduler.step(noise, step, latents, return_dict=False)[0]
    return latents


@torch.no_grad()
def decode(model: Model, latents: torch.Tensor) -> np.ndarray:
    """Pictures uint8 (n, height, width, 3) of latents (n, c, h, w)."""
    pixels = model.vae.decode(latents / model.vae.config.scaling_factor, return_dict=False)[0]
    return ((pixels.float().clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).cpu().numpy()


@torch.no_grad()
def encode(model: Model, pictures: np.ndarray) -> torch.Tensor:
    """Latents (n, c, h, w) of uint8 pictures (n, height, width, 3); the mean where the encoder gives a distribution."""
    pixels = torch.from_numpy(np.ascontiguousarray(pictures)).permute(0, 3, 1, 2).to(model.device, model.dtype)
    output = model.vae.encode(pixels / 127.5 - 1)
    latents = output.latents if hasattr(output, "latents") else output.latent_dist.mean
    return latents * model.vae.config.scaling_factor


def picture_size(model: Model) -> tuple[int, int]:
    """Width and height of the model's pictures in pixels."""
    height, width = decode(model, torch.zeros(1, *model.latent_shape, device=model.device, dtype=model.dtype)).shape[
        1:3
    ]
    return width, height


def fitted(picture: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A uint8 picture scaled and centrally cropped to (width, height), as training pictures are."""
    if (picture.shape[1], picture.shape[0]) == size:
        return picture
    return np.asarray(ImageOps.fit(Image.fromarray(picture), size, Image.Resampling.LANCZOS))


def to_png(picture: np.ndarray) -> bytes:
    """A uint8 picture (height, width, 3) as PNG."""
    stream = io.BytesIO()
    Image.fromarray(picture).save(stream, "PNG")
    return stream.getvalue()


def from_bytes(data: bytes) -> np.ndarray:
    """An encoded picture as uint8 (height, width, 3)."""
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def _scheduler(model: Model, params: SamplingParams):  # type: ignore[no-untyped-def]
    # `predict_noise` gives noise whatever the model predicts, so every scheduler is told to expect noise.
    kind = {
        # Values of latents are not bounded by 1, so nothing is clipped.
        "ddim": (DDIMScheduler, {"clip_sample": False, "set_alpha_to_one": False}),
        "dpm": (DPMSolverMultistepScheduler, {}),
        "model": (type(model.scheduler), {}),
    }
    chosen, options = kind[params.scheduler]
    return chosen.from_config(model.scheduler.config, prediction_type="epsilon", **options)
