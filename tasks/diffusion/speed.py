"""How fast a model is on this device: for estimates of how long work will take."""

from time import perf_counter

import torch

from tasks.diffusion.families import Model
from tasks.diffusion.footprint import fitting
from tasks.diffusion.noise import initial_noise

LEAST_S = 2.0
"""How long is measured, after a first call that is not counted; a single call counts where it takes longer."""


@torch.no_grad()
def seconds_of_an_evaluation(model: Model, batch: int) -> float:
    """Seconds that one evaluation of the denoiser takes, a mean over some seconds of them.

    Args:
        batch: so many at a time, or as many as fit.
    """
    batch = fitting(model, "evaluation", batch)
    text = model.unconditional().expand(batch, -1, -1)
    noise = initial_noise(model, [("speed", seed) for seed in range(batch)])

    def once() -> None:
        model.predict(noise, 1, text).noise.sum().item()  # reading a number waits for the device

    once()
    begun, calls = perf_counter(), 0
    while calls == 0 or perf_counter() - begun < LEAST_S:
        once()
        calls += 1
    return (perf_counter() - begun) / (calls * batch)
