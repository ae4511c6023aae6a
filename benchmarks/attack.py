"""What a step of the Dori attack costs beside a bare forward and backward pass of the denoiser at the same batch.

    python -m benchmarks.attack [--model FOLDER] [--steps N] [--json FILE]

Steps and bare passes take turns, so both meet the same load of the machine; the medians are compared.
"""

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch

from tasks.diffusion.families import Model, StableDiffusion
from tasks.diffusion.families.model import settled
from tasks.diffusion.families.schedule import Schedule
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
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _random_model() -> tuple[Model, torch.Size]:
    """The reference world's denoiser with random weights, and the shape of its embeddings: what a pass costs does not
    depend on weights."""
    from tasks.reference.clip import TOKENS, WIDTH
    from tasks.reference.denoiser import new_denoiser, new_scheduler

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = StableDiffusion(
        source="random",
        model_id="random",
        denoiser=settled(new_denoiser(), device, mixed=False),
        vae=None,
        text_encoder=None,
        tokenizer=None,
        schedule=Schedule(new_scheduler()),
        device=device,
    )
    return model, torch.Size((TOKENS, WIDTH))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--model", type=Path, help="a pipeline folder; without it a denoiser of the reference world's shape"
    )
    parser.add_argument("--steps", type=int, default=23)
    parser.add_argument("--images-at-once", type=int, default=4)
    parser.add_argument("--json", type=Path, help="file to write the numbers to")
    options = parser.parse_args()
    if options.model:
        model = load_model(options.model)
        embedding = model.unconditional().shape[1:]
    else:
        model, embedding = _random_model()
    params = DoriParams(steps=options.steps, images_at_once=options.images_at_once)
    numbers = measure(model, embedding, params)
    print(f"{params.images_at_once} images x batch {params.batch} on {model.device}")
    for name, value in numbers.items():
        print(f"{name:15} {value:.4f}")
    print(f"limit           {LIMIT}: {'kept' if numbers['step_over_bare'] <= LIMIT else 'MISSED'}")
    if options.json:
        options.json.write_text(json.dumps(numbers, indent=2) + "\n")


if __name__ == "__main__":
    main()
