"""What the three trainings of the reference world share: resumable steps and the schedule."""

import os
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from tasks.diffusion.precision import computes_in_bfloat16
from tasks.errors import InputError
from tasks.progress import tell

SAVE_EVERY_S = 240.0


def autocast() -> AbstractContextManager[Any]:
    """Within, models compute in bfloat16 where that is safe, if the processor does; elsewhere it would be emulated."""
    return torch.autocast("cpu", torch.bfloat16, enabled=computes_in_bfloat16("cpu"))


class Checkpoint:
    """Named states in one file, replaced atomically; holds how many steps are done.

    Raises:
        InputError: the file is of a training with another recipe.
    """

    def __init__(self, path: Path, recipe: str, **parts: Any) -> None:
        self.path, self.recipe, self.parts, self.done = path, recipe, parts, 0
        if path.exists():
            state = torch.load(path, map_location="cpu", weights_only=True)
            if state["recipe"] != recipe:
                raise InputError(
                    f"{path} is of another training ({state['recipe']}; now {recipe}): name another --folder, "
                    "or give the same recipe to go on"
                )
            self.done = state["done"]
            for name, part in parts.items():
                part.load_state_dict(state[name])

    def save(self) -> None:
        aside = self.path.with_suffix(".writing")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        state = {name: part.state_dict() for name, part in self.parts.items()}
        torch.save(state | {"done": self.done, "recipe": self.recipe}, aside)
        os.replace(aside, self.path)


@dataclass
class Step:
    """One training step: its number, and where to report its losses (shown as moving averages)."""

    number: int
    averages: dict[str, float] = field(default_factory=dict)

    def report(self, **losses: float) -> None:
        for name, value in losses.items():
            self.averages[name] = 0.98 * self.averages.get(name, value) + 0.02 * value


def steps(checkpoint: Checkpoint, total: int, name: str) -> Iterator[Step]:
    """Steps from where the checkpoint stands to `total`, saving every few minutes and at the end."""
    averages: dict[str, float] = {}
    saved = time.monotonic()
    bar = tqdm(range(checkpoint.done, total), initial=checkpoint.done, total=total, desc=name, mininterval=5)
    for number in bar:
        yield Step(number, averages)
        checkpoint.done = number + 1
        tell(name, checkpoint.done, total, "step")
        bar.set_postfix({key: f"{value:.4f}" for key, value in averages.items()}, refresh=False)
        if time.monotonic() - saved > SAVE_EVERY_S or checkpoint.done == total:
            checkpoint.save()
            saved = time.monotonic()


def one_cycle(optimizer: torch.optim.Optimizer, peak: float, total: int) -> torch.optim.lr_scheduler.OneCycleLR:
    """Up to `peak` in the first tenth, then down to a thousandth of it."""
    return torch.optim.lr_scheduler.OneCycleLR(optimizer, peak, total, pct_start=0.1, final_div_factor=40)
