"""What a step of the Dori attack costs beside a bare forward and backward pass of the denoiser at the same batch.

    engram bench attack [--model FOLDER] [--steps N] [--json FILE]

Steps and bare passes take turns, so both meet the same load of the machine; the medians are compared.
"""

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch

from flows.params import model_folder
from tasks.diffusion.families import Model
from tasks.diffusion.model import load_model
from tasks.dori import DoriParams, search

LIMIT = 1.15
"""A step may cost this much of a bare pass."""


def measure(model: Model, embedding: torch.Size, params: DoriParams) -> dict[str, float]:
    """Median seconds of a step and of a bare pass, and their ratio; for embeddings of this shape."""
    texts = torch.randn(params.images_at_once, *embedding)
    latents = torch.randn(params.images_at_once, *model.latent_shape)
    bare = _bare_pass(model, params.images_at_once * params.batch, texts)
    steps, passes = [], []
    began = _now(model.device)

    def take_turns(_: int) -> None:
        nonlocal began
        steps.append(_now(model.device) - began)
        before = _now(model.device)
        bare()
        passes.append(_now(model.device) - before)
        began = _now(model.device)

    search(model, latents, texts, [(str(n), 0) for n in range(params.images_at_once)], params, take_turns)
    # The first steps warm caches up.
    step, alone = (statistics.median(times[3:]) for times in (steps, passes))
    return {"step_s": step, "bare_s": alone, "step_over_bare": step / alone}


def _bare_pass(model: Model, batch: int, texts: torch.Tensor) -> Any:
    """A call that runs the denoiser forward and backward, down to the text embeddings."""
    latents = torch.randn(batch, *model.latent_shape, device=model.device, dtype=model.dtype)
    text = texts.repeat_interleave(batch // len(texts), 0).to(model.device, model.dtype).requires_grad_(True)
    times = torch.randint(1000, (batch,), device=model.device)

    def run() -> None:
        output = model.output(latents, times, text)
        torch.autograd.grad(output.float().square().mean(), text)

    return run


def _now(device: torch.device) -> float:
    if device.type != "cpu":
        torch.accelerator.synchronize()
    return time.perf_counter()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="reference", help="the folder of a diffusers pipeline")
    parser.add_argument("--steps", type=int, default=23)
    parser.add_argument("--images-at-once", type=int, default=4)
    parser.add_argument("--json", type=Path, help="file to write the numbers to")
    options = parser.parse_args()
    model = load_model(model_folder(options.model))
    params = DoriParams(steps=options.steps, images_at_once=options.images_at_once)
    numbers = measure(model, model.unconditional().shape[1:], params)
    print(f"{params.images_at_once} images x batch {params.batch} on {model.device}")
    for name, value in numbers.items():
        print(f"{name:15} {value:.4f}")
    print(f"limit           {LIMIT}: {'kept' if numbers['step_over_bare'] <= LIMIT else 'MISSED'}")
    if options.json:
        options.json.write_text(json.dumps(numbers, indent=2) + "\n")


if __name__ == "__main__":
    main()
