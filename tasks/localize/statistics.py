"""Statistics of activations over prompts that are not memorized (Hintersdorf et al., Finding NeMo, section 3.1)."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from tasks.diffusion.sites import Layer
from tasks.errors import InputError

ROUNDING = 1e-12
"""A variance below this share of the squared mean is the rounding of a constant."""


@dataclass(frozen=True)
class Statistics:
    """Mean and standard deviation of the activation of each neuron, by layer float32 (outputs,)."""

    means: tuple[torch.Tensor, ...]
    stds: tuple[torch.Tensor, ...]


@dataclass(frozen=True)
class Moments:
    """Sums over prompts that add up: those of two shards are the sums of both, whatever the split."""

    count: int
    sums: tuple[torch.Tensor, ...]
    """By layer, float64 (outputs,)."""
    squares: tuple[torch.Tensor, ...]
    """By layer, sums of squares, float64 (outputs,)."""

    @staticmethod
    def of(activations: Sequence[torch.Tensor]) -> "Moments":
        """Sums over the rows of activations, by layer (n, outputs)."""
        doubled = [layer.cpu().double() for layer in activations]
        return Moments(
            count=len(doubled[0]),
            sums=tuple(layer.sum(0) for layer in doubled),
            squares=tuple(layer.square().sum(0) for layer in doubled),
        )

    def __add__(self, other: "Moments") -> "Moments":
        return Moments(
            count=self.count + other.count,
            sums=tuple(a + b for a, b in zip(self.sums, other.sums, strict=True)),
            squares=tuple(a + b for a, b in zip(self.squares, other.squares, strict=True)),
        )

    def statistics(self) -> Statistics:
        """Means and (unbiased) standard deviations; 0 for a neuron that never changed. In SQL: `statistics_of`.

        Raises:
            InputError: fewer than two prompts.
        """
        enough_prompts(self.count)
        means, stds = [], []
        for total, squares in zip(self.sums, self.squares, strict=True):
            mean = total / self.count
            variance = squares / self.count - mean.square()
            variance[variance <= ROUNDING * mean.square()] = 0
            means.append(mean.float())
            stds.append((variance * self.count / (self.count - 1)).sqrt().float())
        return Statistics(tuple(means), tuple(stds))


def enough_prompts(count: int) -> None:
    """Raises InputError where statistics cannot be taken over so few prompts."""
    if count < 2:
        raise InputError(f"statistics need at least two prompts, there are {count}: give more with --nulls")


def load_statistics(path: str | Path, layers: tuple[Layer, ...]) -> Statistics:
    """Published statistics: a torch file that holds `(means, stds)`, each a list of one vector a layer.

    Raises:
        InputError: no such file, something else in it, or not of these layers.
    """
    try:
        content = torch.load(path, weights_only=True, map_location="cpu")
    except OSError as error:
        raise InputError(f"cannot read statistics from {path}: {error.strerror}") from error
    except Exception as error:  # the reader raises whatever a file makes it, such as IndexError
        # Not what torch says, which is to load whatever code such a file may hold.
        raise InputError(f"{path} is no torch file of tensors alone: give one that holds (means, stds)") from error
    if not isinstance(content, (tuple, list)) or len(content) != 2:
        raise InputError(f"{path} does not hold (means, stds)")
    widths = [layer.outputs for layer in layers]
    for name, vectors in zip(("means", "stds"), content, strict=True):
        if not isinstance(vectors, (tuple, list)) or not all(isinstance(vector, torch.Tensor) for vector in vectors):
            raise InputError(f"{path}: the {name} are not a list of tensors")
        if [tuple(vector.shape) for vector in vectors] != [(width,) for width in widths]:
            shapes = [tuple(vector.shape) for vector in vectors]
            raise InputError(f"{path}: the {name} have shapes {shapes}, the model's layers have widths {widths}")
        if not all(bool(vector.isfinite().all()) for vector in vectors):
            raise InputError(f"{path}: the {name} are not finite")
    means, stds = (tuple(vector.float() for vector in vectors) for vectors in content)
    if any(bool((vector < 0).any()) for vector in stds):
        raise InputError(f"{path}: a standard deviation is negative")
    return Statistics(means, stds)
