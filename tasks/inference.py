"""Asking a model: what mitigations that leave its weights alone are given, and what images are made of instead.

They change what the model is asked, not what it knows: a memory stays where it was, and an audit shows how well it
hides.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch

from tasks.diffusion.families import Model
from tasks.diffusion.noise import Key
from tasks.diffusion.sampling import SamplingParams
from tasks.methods import Mitigation, Params


@dataclass(frozen=True)
class Request:
    """What a model is asked for."""

    model: Model
    prompts: Sequence[str]
    """One for each image."""
    keys: Sequence[Key]
    """What each image is; see `tasks.diffusion.noise`."""
    sampling: SamplingParams
    """How the images are made."""
    triggers: torch.Tensor | None = None
    """Embeddings (n, rows, width) that are asked in place of the prompts, whose images they are to bring back. They
    have no words, but all that is done to a prompt's embedding is done to them, too."""

    @property
    def embeddings(self) -> torch.Tensor:
        """What is asked where nothing is changed, (n, rows, width) on the model's device."""
        if self.triggers is None:
            return self.model.encode(list(self.prompts))
        return self.triggers.to(self.model.device, self.model.dtype)


def unchanged(rows: slice) -> AbstractContextManager[None]:
    """The context in which nothing is changed."""
    return nullcontext()


@dataclass(frozen=True)
class Answer:
    """What the images are made of."""

    embeddings: torch.Tensor
    """(n, rows, width)."""
    context: Callable[[slice], AbstractContextManager[None]] = unchanged
    """Within which those of some rows are denoised; see `tasks.diffusion.sampling.generate`."""


def answered(request: Request, by: tuple[Mitigation, Params] | None) -> Answer:
    """What images are made of under a mitigation with these parameters, or without any.

    Args:
        by: see `tasks.subject.Subject.at_inference`.

    Raises:
        InputError: the mitigation does not fit the model.
    """
    if by is None:
        return Answer(request.embeddings)
    mitigation, params = by
    found: Answer = mitigation.function(request, params)
    return found
