"""Feature norms in feed-forward layers along a sampled trajectory (Chavhan et al., 2024, arXiv 2406.18566, section 3).

Every token's vector at the input of a layer is normalised to unit l2 norm. What is kept is, for each feature, the sum
of its squares over tokens and prompts: it adds up over shards, and its root is the norm that Wanda scores use. In SQL
the query `wanda_norms` mirrors the sums over prompts.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from tasks.diffusion.batches import in_batches
from tasks.diffusion.families import Model
from tasks.diffusion.hooks import observed
from tasks.diffusion.noise import Key, initial_noise
from tasks.diffusion.sampling import SamplingParams, denoise, guided, trajectories
from tasks.diffusion.sites import Layer
from tasks.errors import InputError

Half = Literal["conditional", "unconditional", "both"]
Sums = dict[tuple[int, int], torch.Tensor]
"""By (step, layer index), sums of squares, float64 (inputs,)."""


@dataclass(frozen=True)
class FeatureNorms:
    """Sums of squares over prompts, the halves of classifier-free guidance apart."""

    timesteps: tuple[int, ...]
    """Timestep of each denoising step."""
    conditional: Sums
    unconditional: Sums
    """Empty when sampled without guidance."""

    def sums(self, half: Half) -> Sums:
        """Sums of one half, or of both together as in the published runs.

        Raises:
            InputError: the unconditional half is asked for and there is none.
        """
        if half != "conditional" and not self.unconditional:
            raise InputError("there is no unconditional half: sample with a guidance above 1")
        if half == "both":
            return _add(self.conditional, self.unconditional)
        return self.conditional if half == "conditional" else self.unconditional

    def over_prompts(self) -> "FeatureNorms":
        """Sums (prompts, inputs) added up over prompts."""
        halves = ({key: sums.sum(0) for key, sums in half.items()} for half in (self.conditional, self.unconditional))
        return FeatureNorms(self.timesteps, *halves)

    def __add__(self, other: "FeatureNorms") -> "FeatureNorms":
        if self.timesteps != other.timesteps:
            raise InputError("feature norms of different schedules cannot be added")
        return FeatureNorms(
            self.timesteps,
            _add(self.conditional, other.conditional),
            _add(self.unconditional, other.unconditional),
        )


@torch.no_grad()
def feature_norms(
    model: Model,
    layers: tuple[Layer, ...],
    embeddings: torch.Tensor,
    keys: Sequence[Key],
    params: SamplingParams,
    done: Callable[[int], None] = lambda n: None,
) -> FeatureNorms:
    """Sums of squares of unit token vectors at the inputs of layers, at every step of real trajectories.

    Nothing but the sums is kept; those over tokens are made on the device, those over samples in float64 on the CPU.
    The batch is halved when memory runs out.

    Args:
        layers: linear layers that read (n, tokens, inputs), such as those of `Site.FEED_FORWARD_HIDDEN`.
        embeddings: (n, rows, width), one for each key.
        keys: what seeds each trajectory's noise. The published run has one seed for each prompt.
        params: the published run has 50 steps and guidance 7.5.
        done: called with the number of prompts whenever some are finished.

    Returns:
        The sums, on the CPU.

    Raises:
        InputError: there are no prompts, or a layer's input is not finite; it is named.
    """
    total: FeatureNorms | None = None
    for block in norms_by_prompt(model, layers, embeddings, keys, params, done):
        found = block.over_prompts()
        total = found if total is None else total + found
    assert total is not None  # there is at least one prompt
    return total


@torch.no_grad()
def norms_by_prompt(
    model: Model,
    layers: tuple[Layer, ...],
    embeddings: torch.Tensor,
    keys: Sequence[Key],
    params: SamplingParams,
    done: Callable[[int], None] = lambda n: None,
    steps: int | None = None,
) -> Iterator[FeatureNorms]:
    """The same sums prompt by prompt, (prompts, inputs), in blocks of prompts in their order; see `feature_norms`.

    Args:
        steps: trajectories are left after so many steps; what comes later does not change what is seen before.
    """
    if not len(keys) or len(keys) != len(embeddings):
        raise InputError(f"feature norms need one key for each embedding, there are {len(keys)} and {len(embeddings)}")
    empty = model.unconditional()

    def trajectory(rows: slice) -> FeatureNorms:
        sums = _Sums(layers, guided=guided(model, params))
        with observed(layers, sums.see):
            text = embeddings[rows].to(model.device, model.dtype)
            denoise(model, text, empty, initial_noise(model, keys[rows]), params, steps, sums.step)
        found = sums.finished()
        done(len(text))
        return found

    yield from in_batches(len(keys), trajectories(model, params), trajectory)


class _Sums:
    """The running sums of one batch of trajectories."""

    def __init__(self, layers: tuple[Layer, ...], guided: bool) -> None:
        self._layers, self._guided = layers, guided
        self._timesteps: list[int] = []
        self._conditional: Sums = {}
        self._unconditional: Sums = {}

    def step(self, timestep: int) -> None:
        self._timesteps.append(timestep)

    def see(self, layer: Layer, inputs: torch.Tensor, output: torch.Tensor) -> None:
        key = len(self._timesteps) - 1, layer.index
        squares = inputs.float().square()
        lengths = squares.sum(-1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
        # Column sums over tokens of squares / lengths; (n, inputs).
        sums = (lengths.reciprocal().transpose(1, 2) @ squares)[:, 0]
        if self._guided:
            # The unconditional half comes first, see `denoise`.
            unconditional, sums = sums.chunk(2)
            self._unconditional[key] = unconditional
        self._conditional[key] = sums

    def finished(self) -> FeatureNorms:
        """Moves the sums to the CPU; only here the device is waited for.

        Raises:
            InputError: a sum is not finite.
        """
        for sums in (self._conditional, self._unconditional):
            for (step, index), values in sums.items():
                sums[step, index] = values.cpu().double()  # not all devices know float64
        for (step, index), values in sorted((*self._conditional.items(), *self._unconditional.items()), key=_first):
            if not values.isfinite().all():
                name = next(layer.name for layer in self._layers if layer.index == index)
                raise InputError(
                    f"the input of {name} is not finite at step {step}; load the model in float32 or bfloat16"
                )
        return FeatureNorms(tuple(self._timesteps), self._conditional, self._unconditional)


def _first(item: tuple[tuple[int, int], torch.Tensor]) -> tuple[int, int]:
    return item[0]


def _add(a: Sums, b: Sums) -> Sums:
    if a.keys() != b.keys():
        raise InputError("feature norms of different layers or steps cannot be added")
    return {key: a[key] + b[key] for key in a}
