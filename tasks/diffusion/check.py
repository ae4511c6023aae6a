"""Whether our own sampling is that of the model's pipeline, looked at before a model is audited.

A config can say more than is read here, and the next version of diffusers can read it otherwise. So a few steps of both
are compared, from the same latents under the same prompt, and the images that they decode to.
"""

from dataclasses import replace
from functools import wraps
from typing import Any

import torch

from tasks.diffusion.families import Model
from tasks.diffusion.noise import initial_noise
from tasks.diffusion.sampling import SamplingParams, decode, denoise
from tasks.errors import InputError, first_line

PROMPT = "a red house by the sea"
STEPS = 3

TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.05, torch.float16: 0.01}
"""By the dtype that is computed in, the largest difference of latents, as a part of their standard deviation, that
rounding explains. Both run the same denoiser on the same device, so most often there is none at all."""

SHADES = {torch.float32: 1.01, torch.bfloat16: 2.01, torch.float16: 1.01}
"""The same for the mean difference of the decoded images' pixels, of 255. One shade is rounding to whole ones."""


@torch.no_grad()
def check_sampling(model: Model, params: SamplingParams) -> None:
    """Compares a few steps of our own sampling with the pipeline's `__call__`, from the same latents.

    Mixed precision is compared in float32, in which its weights are: what is looked for is a setting that does not
    count, not rounding.

    Args:
        params: how the audit samples; the pipeline is given the scheduler of that choice, and the same guidance.

    Raises:
        InputError: the two part by more than rounding explains, or the pipeline itself fails.
    """
    few = _few(model, params)
    start = initial_noise(model, [(PROMPT, 0)])
    plain = replace(model, mixed=False)
    found = denoise(plain, plain.encode([PROMPT]), plain.unconditional(), start, few)
    ours = torch.from_numpy(decode(plain, found)).float() / 255
    expected, image = _of_pipeline(model, start, few)
    parted = float((found.float() - expected.float()).abs().max() / expected.float().std())
    shades = 0.0 if image is None else float((ours - image.permute(0, 2, 3, 1)).abs().mean()) * 255
    if not (parted <= TOLERANCE[model.dtype] and shades <= SHADES[model.dtype]):  # not finite is refused, too
        raise InputError(
            f"{model.source} is sampled otherwise by its own pipeline: after {few.steps} steps latents differ by "
            f"{parted:.3g} of their spread, where rounding explains {TOLERANCE[model.dtype]:g}, and images by "
            f"{shades:.3g} of 255, where it explains {SHADES[model.dtype]:g}: its configs ask for something that "
            "audits do not know"
        )


def _few(model: Model, params: SamplingParams) -> SamplingParams:
    """The fewest steps, from three on, that the scheduler takes; the audit's own where those are fewer, or it takes no
    other number."""
    for steps in range(min(STEPS, params.steps), min(STEPS + 5, params.steps)):
        try:
            model.schedule.sampler(params.scheduler, steps)
        except InputError:
            continue
        return params.model_copy(update={"steps": steps})
    return params


def _of_pipeline(model: Model, start: torch.Tensor, params: SamplingParams) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Latents (1, c, h, w) and image (1, 3, height, width) in [0, 1] as the model's pipeline makes them; no image where
    its autoencoder was loaded in another precision than the rest."""
    _, height, width = model.latent_shape
    last: list[torch.Tensor] = []

    decoded = model.vae.dtype == model.dtype
    try:
        pipeline = _pipeline(model, params)
        step = pipeline.scheduler.step

        @wraps(step)  # pipelines look at what it takes
        def kept(*given: Any, **named: Any) -> Any:
            stepped = step(*given, **named)
            last[:] = [stepped[0]]
            return stepped

        pipeline.scheduler.step = kept
        pipeline.set_progress_bar_config(disable=True)
        made = pipeline(
            [PROMPT],
            height=height * model.pixels_of_latent,
            width=width * model.pixels_of_latent,
            num_inference_steps=params.steps,
            guidance_scale=params.guidance,
            latents=model.packed(start),
            output_type="pt" if decoded else "latent",
            **model.asked_of_pipeline,
        ).images
    except Exception as error:  # of code that is not ours, about a config that nobody foresaw
        raise InputError(f"the pipeline of {model.source} cannot sample by itself: {first_line(error)}") from error
    return model.unpacked(last[0]), made.float().cpu() if decoded else None


def _pipeline(model: Model, params: SamplingParams) -> Any:
    """The model's pipeline of the same parts; its own scheduler is read anew from its folder."""
    if params.scheduler != "model":
        return model.pipeline(model.schedule.sampler(params.scheduler, params.steps))
    return model.pipeline(type(model.schedule.own).from_pretrained(model.source, subfolder="scheduler"))
