"""What a localizer is given, and what it gives back; free of the store that the first comes from and the other goes to.

A localizer is a function of a `Ground` and its own parameters that yields what it finds for one scope: one prompt, one
subset of prompts, or all of them. It is called once for each scope, so that what is done stays done.

    def largest(ground, params):
        for layer in ground.layers:
            yield Found(layer, highest(layer.module.weight.abs(), count=100))
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal, Protocol, Self

import torch
from pydantic import Field

from tasks.diffusion.families import Model
from tasks.diffusion.sites import Layer
from tasks.localize.statistics import Statistics
from tasks.params import Params

Norms = Mapping[tuple[int, int], torch.Tensor]
"""By (step, layer index), sums of squares of unit token vectors over prompts, tokens and halves, float64 (inputs,)."""


class NormsParams(Params):
    """Of a localizer that reads feature norms: which of them."""

    half: Annotated[
        Literal["conditional", "unconditional", "both"],
        Field(description="The halves of classifier-free guidance whose activations count."),
    ] = "both"
    tau: Annotated[int, Field(ge=1, le=1000, description="The number of first denoising steps that are looked at.")] = (
        10
    )

    @property
    def halves(self) -> tuple[str, ...]:
        """What the store calls these halves."""
        named = {"conditional": ("cond",), "unconditional": ("uncond",), "both": ("cond", "uncond")}
        return named[self.half]

    def within(self, steps: int) -> Self:
        """The same, with no more steps than are sampled."""
        return self.model_copy(update={"tau": min(self.tau, steps)})


class Prompted(Protocol):
    """A prompt, or a trigger in place of one."""

    @property
    def prompt_id(self) -> str: ...
    @property
    def text(self) -> str: ...
    @property
    def image_ids(self) -> tuple[str, ...]: ...
    @property
    def noise(self) -> str:
        """What seeds its initial noises, together with the number of each."""


class Ground(Protocol):
    """What the sets of one scope are found on. What is not named among a localizer's `reads` is not there."""

    @property
    def model(self) -> Model: ...
    @property
    def layers(self) -> tuple[Layer, ...]:
        """Those of the localizer's site, in order of execution."""

    @property
    def prompts(self) -> Sequence[Prompted]:
        """Those of the scope."""

    @property
    def with_images(self) -> Sequence[Prompted]:
        """Those of them that have a training image ("images"); at least one."""

    @property
    def ordinary(self) -> Sequence[Prompted]:
        """Ordinary prompts that have one ("ordinary images"); at least one."""

    @property
    def statistics(self) -> Statistics:
        """Mean and standard deviation of each neuron's activation over null prompts ("null values")."""

    @property
    def null_scores(self) -> Sequence[torch.Tensor]:
        """By null prompt, its scores of every two seeds, float64 ("null scores"); see `detection.pairwise_scores`."""

    @property
    def norms(self) -> Norms:
        """Feature norms of the scope's prompts ("norms")."""

    @property
    def contrast_norms(self) -> Norms:
        """Those of the prompts that they are compared with ("contrast norms")."""

    @property
    def budget(self) -> tuple[int, ...]:
        """By layer, how many members the pruning takes that the localizer is compared with (`Localizer.budget`)."""

    def embed(self, prompts: Sequence[Prompted]) -> torch.Tensor:
        """Embeddings (n, rows, width)."""

    def values(self, prompt: Prompted) -> Sequence[torch.Tensor]:
        """By layer, the activations of a prompt of the scope, float32 (outputs,) ("values")."""

    def latents(self, prompts: Sequence[Prompted]) -> torch.Tensor:
        """Of the first training image of each, (n, channels, height, width) ("images", "ordinary images")."""


@dataclass(frozen=True)
class Found:
    """One set. A layer that a localizer yields no set of has an empty one."""

    layer: Layer
    members: torch.Tensor
    """Sorted indices without repetition, of any integer type; see `Localizer.members`."""
    step: int | None = None
    """The denoising step; None where nothing depends on it."""
    stage: str = ""
    """One of the localizer's `stages`; what it found in the end without it."""


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One row of a trace, in the order tried: what `nemo_traces` has beside the ids and the number of the row."""

    phase: Literal["gate", "select", "layer", "neuron", "curve", "curve-control"]
    score: float
    theta: float | None = None
    k: int | None = None
    layer: str | None = None
    neuron: int | None = None
    kept: bool | None = None
    candidates: int | None = None
