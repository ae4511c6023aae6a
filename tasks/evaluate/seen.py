"""What a metric looks at: the generations of one variant under one condition, and what is known beside them."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from tasks.conditions import Condition

Pair = tuple[str, str]
"""Ids of a generation and of what it is compared with: an image, a prompt or another generation."""


@dataclass(frozen=True)
class Generation:
    """One generation, and what it was made for."""

    id: str
    prompt_id: str
    text: str
    """Of its prompt."""
    unit: str
    """What its prompt counts as: the image, with all prompts that bring it; see `tasks.units`."""
    seed: int
    trigger: str | None = None
    """Id of the adversarial embedding that was asked in place of the prompt."""
    images: tuple[str, ...] = ()
    """Ids of the prompt's training images."""
    memorized: bool = False
    """Whether its prompt is a memorized one."""
    memorization: str | None = None
    """VM (verbatim) or TM (template), where that is known."""
    confirmed: bool = False
    """Whether its prompt was seen to bring an image back from the original."""


@dataclass(frozen=True)
class Detected:
    """What detection says of one prompt, on the original model."""

    prompt_id: str
    unit: str
    memorized: bool
    scores: np.ndarray
    """(n,), higher where it is memorized: how alike the noise differences of every two seeds are, or a detector's one
    score."""


class Embedder(Protocol):
    """A model that makes vectors of images."""

    @property
    def name(self) -> str:
        """What its scores go by: its kind and the sha256 of its weights."""

    def images(self, names: Sequence[str]) -> Mapping[str, np.ndarray]:
        """Unit vectors float32 (width,) of generations and training images, by id."""


class TextEmbedder(Embedder, Protocol):
    """One that makes vectors of texts, too, to be compared with those of images."""

    def texts(self, texts: Sequence[str]) -> np.ndarray:
        """Unit vectors float32 (n, width)."""


class Seen(Protocol):
    """What was seen of one variant under one condition."""

    @property
    def variant(self) -> str:
        """The variant by its name."""

    @property
    def condition(self) -> Condition:
        """What it was asked."""

    @property
    def generations(self) -> Sequence[Generation]:
        """What it made, in the order of prompts, triggers and seeds."""

    @property
    def originals(self) -> Sequence[str]:
        """Ids of what the original model made of the same prompts and seeds, in the same order; none of the original
        itself, and none under attack, where triggers differ."""

    @property
    def sscd(self) -> Embedder:
        """The copy detector."""

    @property
    def clip(self) -> TextEmbedder:
        """The model that compares images with texts."""

    @property
    def detected(self) -> Sequence[Detected]:
        """What detection scored: the memorized prompts that are examined, and ordinary ones."""

    @property
    def scanned(self) -> Mapping[str, Sequence[Detected]]:
        """By name of each detector that was chosen beside, what it scored of the same prompts, one score each."""

    @property
    def shared(self) -> tuple[float, int] | None:
        """Of a variant that was pruned at random: the share of its members that were localized, and how many members it
        has. None of others."""

    def pixels(self, names: Sequence[str]) -> Mapping[str, np.ndarray]:
        """Generations and training images, uint8 (height, width, 3), by id; the latter cropped as in training."""

    def scored(
        self, kind: str, scorer: str, pairs: Sequence[Pair], compute: Callable[[Sequence[Pair]], Iterable[float]]
    ) -> dict[Pair, float]:
        """Scores of pairs, which are kept: what the table `scores` has already is not computed again.

        Args:
            kind: what the scores are called there.
            scorer: what else they depend on, such as the sha256 of a model's weights.
            compute: gives one score of each pair that is missing.
        """


def alike(seen: Seen, kind: str, pairs: Sequence[Pair]) -> dict[Pair, float]:
    """SSCD cosines of pairs of images, kept as scores of this kind."""

    def cosines(missing: Sequence[Pair]) -> list[float]:
        vectors = seen.sscd.images(list(dict.fromkeys(name for pair in missing for name in pair)))
        return [float(vectors[one] @ vectors[other]) for one, other in missing]

    return seen.scored(kind, seen.sscd.name, pairs, cosines)
