"""Generating images from embeddings, each sample with its own noise."""

import io
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Annotated, Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from PIL import Image, ImageOps
from pydantic import BaseModel, ConfigDict, Field

from tasks.diffusion.batches import in_batches
from tasks.diffusion.families import Model
from tasks.diffusion.families.schedule import Choice, as_input, started, stepped
from tasks.diffusion.footprint import META, fitting, on_meta
from tasks.diffusion.noise import Key, initial_noise
from tasks.errors import InputError
from tasks.params import SPEED


class SamplingParams(BaseModel):
    """How images are generated."""

    model_config = ConfigDict(title="Sampling", frozen=True, extra="forbid")

    steps: Annotated[int, Field(ge=1, le=1000, description="Number of denoising steps.")] = 50
    guidance: Annotated[
        float,
        Field(
            ge=0,
            le=30,
            description="Strength of guidance: classifier-free, of which 1 or less is none, or the number that a model"
            " it was distilled into reads.",
        ),
    ] = 7.5
    scheduler: Annotated[
        Choice, Field(description="The sampler: the model's own scheduler, DDIM, or DPM-Solver++.")
    ] = "model"
    batch: Annotated[
        int,
        Field(
            ge=1,
            le=1024,
            description="Images made at a time, or fewer as memory allows; this does not change the result.",
        ),
        SPEED,
    ] = 32


@torch.no_grad()
def generate(
    model: Model,
    embeddings: torch.Tensor,
    keys: Sequence[Key],
    params: SamplingParams,
    done: Callable[[int], None] = lambda n: None,
    around: Callable[[slice], AbstractContextManager[None]] = lambda rows: nullcontext(),
) -> np.ndarray:
    """Images for embeddings, one for each key.

    Args:
        embeddings: (n, rows, width), one for each key.
        around: a context that the images of these rows are made within; a batch that is halved enters it anew.
        done: called with the number of images whenever some are finished.

    Returns:
        uint8 (n, height, width, 3).
    """
    empty = model.unconditional()

    def some(rows: slice) -> np.ndarray:
        text = embeddings[rows].to(model.device, model.dtype)
        with around(rows):
            return decode(model, denoise(model, text, empty, initial_noise(model, keys[rows]), params))

    out = []
    for images in in_batches(len(keys), trajectories(model, params), some):
        out.append(images)
        done(len(images))
    return np.concatenate(out) if out else np.zeros((0, 0, 0, 3), np.uint8)


def guided(model: Model | type[Model], params: SamplingParams) -> bool:
    """Whether each step asks the denoiser twice, with text and without."""
    return params.guidance > 1 and not model.distilled


def trajectories(model: Model, params: SamplingParams) -> int:
    """How many images are denoised at a time: guidance asks the denoiser twice for each."""
    passes = 2 if guided(model, params) else 1
    return max(1, fitting(model, "evaluation", passes * params.batch) // passes)


@torch.no_grad()
def denoise(
    model: Model,
    text: torch.Tensor,
    empty: torch.Tensor,
    latents: torch.Tensor,
    params: SamplingParams,
    steps: int | None = None,
    on_step: Callable[[int], None] = lambda timestep: None,
) -> torch.Tensor:
    """Denoises latents (n, c, h, w) under embeddings (n, rows, width), with classifier-free guidance, or with the
    guidance that was distilled into the denoiser.

    Args:
        empty: of the half without text, (1, rows, width); see `Model.unconditional`.
        steps: stops after so many of the schedule's steps; all of them without it.
        on_step: given the timestep of each step before the denoiser runs, whose batch has the half without text first.

    Raises:
        InputError: the scheduler cannot sample in so many steps, or draws noise of its own, see `sampler`.
    """
    scheduler = _scheduler(model, params)
    latents = started(scheduler, latents)
    model, twice = model.with_guidance(params.guidance), guided(model, params)
    for step in scheduler.timesteps[:steps]:
        on_step(int(step))
        scaled = as_input(scheduler, latents, step)
        if twice:
            both = torch.cat([empty.expand_as(text), text])
            without, with_text = model.output(torch.cat([scaled, scaled]), step, both).chunk(2)
            output = without + params.guidance * (with_text - without)
        else:
            output = model.output(scaled, step, text)
        # Noise or velocity, as the scheduler expects it: told another of the two, those of many steps go other ways.
        latents = stepped(scheduler, output, step, latents)
    return latents


def first_timestep(model: Model, params: SamplingParams) -> float:
    """The timestep that sampling begins with."""
    return model.schedule.as_timestep(_scheduler(model, params).timesteps[0])


@torch.no_grad()
def decode(model: Model, latents: torch.Tensor, batch: int = 8) -> np.ndarray:
    """Images uint8 (n, height, width, 3) of latents (n, c, h, w); at 512 x 512 a batch takes some 7 GB.

    Raises:
        InputError: what comes out is not finite, as where a decoder cannot compute in half precision.
    """

    def some(rows: slice) -> np.ndarray:
        pixels = model.decode(latents[rows]).float()
        if not pixels.isfinite().all():
            what = f"images are not finite in {model.vae.dtype}"
            if model.vae.dtype == torch.float32:
                raise InputError(f"{what}: what the denoiser predicts is not, its weights or a variant's are broken")
            raise InputError(f"{what}: load the model with --set precision=float32")
        return ((pixels.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).cpu().numpy()

    return np.concatenate(list(in_batches(len(latents), fitting(model, "decoder", batch), some)))


@torch.no_grad()
def encode(model: Model, images: np.ndarray, batch: int = 8) -> torch.Tensor:
    """Latents (n, c, h, w) of uint8 images (n, height, width, 3); the mean where the encoder gives a distribution."""

    def some(rows: slice) -> torch.Tensor:
        pixels = torch.from_numpy(np.ascontiguousarray(images[rows])).permute(0, 3, 1, 2)
        return model.encode_images(pixels.to(model.device, model.vae.dtype) / 127.5 - 1)

    return torch.cat(list(in_batches(len(images), fitting(model, "encoder", batch), some)))


_SIZES: WeakKeyDictionary[torch.nn.Module, dict[tuple[int, ...], tuple[int, int]]] = WeakKeyDictionary()
"""By decoder and shape of latents, the size of images."""


def image_size(model: Model) -> tuple[int, int]:
    """Width and height of the model's images in pixels; a decoder is asked once, and computes nothing."""
    known = _SIZES.setdefault(model.vae, {})
    if model.latent_shape not in known:
        decoder = replace(model, vae=on_meta(model.vae))
        with torch.no_grad():
            shown = decoder.decode(torch.zeros(1, *model.latent_shape, device=META, dtype=model.dtype))
        height, width = shown.shape[2:]
        known[model.latent_shape] = (width, height)
    return known[model.latent_shape]


def fitted(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A uint8 image scaled and centrally cropped to (width, height), as training images are."""
    if (image.shape[1], image.shape[0]) == size:
        return image
    return np.asarray(ImageOps.fit(Image.fromarray(image), size, Image.Resampling.LANCZOS))


def to_png(image: np.ndarray) -> bytes:
    """A uint8 image (height, width, 3) as PNG."""
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "PNG")
    return stream.getvalue()


def from_bytes(data: bytes) -> np.ndarray:
    """An encoded image as uint8 (height, width, 3), the way up that its EXIF data say, as training sees it."""
    with Image.open(io.BytesIO(data)) as opened:
        return np.asarray(ImageOps.exif_transpose(opened).convert("RGB"))


def _scheduler(model: Model, params: SamplingParams) -> Any:
    scheduler = model.schedule.sampler(params.scheduler, params.steps)
    scheduler.set_timesteps(params.steps, device=model.device, **model.schedule.timing(params.steps))
    if model.from_first_step and hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(0)
    return scheduler
