"""What metrics look at, made by hand."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from tasks.conditions import PROMPT, Condition
from tasks.evaluate.seen import Detected, Generation, Pair


@dataclass
class Vectors:
    """Embeddings by name of the image, or text."""

    known: Mapping[str, np.ndarray]
    name: str = "by hand"

    def images(self, names: Sequence[str]) -> dict[str, np.ndarray]:
        return {name: self.known[name] for name in names}

    def texts(self, texts: Sequence[str]) -> np.ndarray:
        return np.stack([self.known[text] for text in texts])


@dataclass
class HandMade:
    """See `tasks.evaluate.seen.Seen`."""

    generations: Sequence[Generation] = ()
    scores: Mapping[str, Mapping[Pair, float]] = field(default_factory=dict)
    """By kind, those that are kept already."""
    vectors: Mapping[str, np.ndarray] = field(default_factory=dict)
    images: Mapping[str, np.ndarray] = field(default_factory=dict)
    originals: Sequence[str] = ()
    detected: Sequence[Detected] = ()
    scanned: Mapping[str, Sequence[Detected]] = field(default_factory=dict)
    shared: tuple[float, int] | None = None
    variant: str = "original"
    condition: Condition = PROMPT

    @property
    def sscd(self) -> Vectors:
        return Vectors(self.vectors)

    @property
    def clip(self) -> Vectors:
        return Vectors(self.vectors)

    def pixels(self, names: Sequence[str]) -> dict[str, np.ndarray]:
        return {name: self.images[name] for name in names}

    def scored(
        self, kind: str, scorer: str, pairs: Sequence[Pair], compute: Callable[[Sequence[Pair]], Iterable[float]]
    ) -> dict[Pair, float]:
        known = self.scores.get(kind, {})
        missing = [pair for pair in pairs if pair not in known]
        found = dict(zip(missing, compute(missing), strict=True)) if missing else {}
        return {pair: known[pair] if pair in known else found[pair] for pair in pairs}
