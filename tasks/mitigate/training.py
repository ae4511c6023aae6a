"""Training memories away: what every mitigation that trains weights is given, and what it gives."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from tasks.diffusion.families import Model


@dataclass(frozen=True)
class Memorized:
    """The images to erase, one row each."""

    ids: Sequence[str]
    prompts: Sequence[str]
    latents: torch.Tensor
    """(n, channels, height, width) of the training images."""
    surrogates: torch.Tensor
    """(n, channels, height, width) of what the pruned model makes of the same prompts; the training images' own where
    the spec asks for no surrogates."""


@dataclass(frozen=True)
class Ordinary:
    """Pairs that keep the model useful."""

    latents: torch.Tensor
    """(m, channels, height, width)."""
    embeddings: torch.Tensor
    """(m, tokens, width) of their captions."""


@dataclass(frozen=True)
class Progress:
    """One training step."""

    step: int
    """Steps done, from 1."""
    total: int
    erase: float | None = None
    """Loss of what erases the memories; None where nothing does."""
    ordinary: float | None = None
    """Loss of the ordinary pairs; None without them."""
    attack: float | None = None
    """Mean loss of the inner attacks at their last step; None where none ran."""
    held_out: float | None = None
    """What the held-out attack brought back after this step, where it ran."""


class HeldOut(Protocol):
    """An attack that a training can ask, from time to time, whether it is done."""

    def __call__(self, denoiser: Any, seed: int, seeds: int, images_at_once: int = 4) -> float:
        """The share of the images that it brings back.

        Args:
            denoiser: the model's, as it is by now.
            seed: of the attack; another than that of attacks which the training itself makes.
            seeds: generations of each trigger.
            images_at_once: images attacked in one batch, as memory allows; does not change the result.
        """


class Checkpoint(Protocol):
    """Where a training keeps its state, to go on after it was killed, on this machine or another. It is removed once
    the training has ended and what it gives is kept."""

    def load(self) -> Mapping[str, Any] | None:
        """The state that was saved last, its tensors in main memory; None where none was."""

    def save(self, state: Mapping[str, Any]) -> None:
        """Replaces the state that was saved last, from one moment to the next.

        A save that comes soon may be left out where saving takes long: what is repeated after a kill is then longer,
        and its result the same.

        Args:
            state: tensors, numbers and texts, and lists and dicts of them: nothing else is read again.
        """


@dataclass(frozen=True)
class Lesson:
    """What a training is given."""

    model: Model
    """It stays as it is: train a copy of its denoiser, `model.with_denoiser(copy)`."""
    memorized: Memorized
    ordinary: Ordinary
    checkpoint: Checkpoint
    """Belongs to this training, which may be killed and called again."""
    held_out: HeldOut
    on_progress: Callable[[Progress], None] = lambda progress: None
    """Is called after each step of this call."""


@dataclass(frozen=True)
class Trained:
    """What a training gives."""

    denoiser: Any
    """In evaluation mode, with the parameters of the model's own. The store keeps those that differ."""
    history: Sequence[Progress]
    """All steps, those before an interruption too."""
