"""What a model's tokenizers make of prompts: how many tokens, and which of them the model reads."""

from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

_END, _START = "</w>", "\N{LOWER ONE EIGHTH BLOCK}"
"""What marks a whole word in a vocabulary: its end in CLIP's, its start in SentencePiece's."""


@dataclass(frozen=True, eq=False)
class Tokenizers:
    """The tokenizers of a model, one for each of its text encoders, and how many tokens they read."""

    each: tuple[Any, ...]
    most: int
    """Tokens of a prompt that the model reads, with the start and the end of the text."""
    as_read: Callable[[str], str] = str
    """What the pipeline makes of a prompt first."""
    limits: tuple[int, ...] = ()
    """Tokens that each reads, where some read more than `most`."""

    def counts(self, texts: Sequence[str]) -> list[int]:
        """Tokens of the whole texts, with start and end; by the tokenizer that makes most of them, of those that read
        fewest."""
        read = list(map(self.as_read, texts))
        tightest = [tokenizer for tokenizer, limit in self._limited if limit == self.most]
        found = [[len(ids) for ids in tokenizer(read, verbose=False).input_ids] for tokenizer in tightest]
        return [max(lengths) for lengths in zip(*found, strict=True)]

    def kept(self, texts: Sequence[str]) -> list[bytes]:
        """The ids of the tokens that the model reads, packed: equal for texts that are the same prompt to it."""
        read = list(map(self.as_read, texts))
        how = {"truncation": True, "verbose": False}
        found = [tokenizer(read, max_length=limit, **how).input_ids for tokenizer, limit in self._limited]
        return [b"".join(array("i", [len(ids), *ids]).tobytes() for ids in of) for of in zip(*found, strict=True)]

    @property
    def _limited(self) -> list[tuple[Any, int]]:
        """Each with how many tokens it reads."""
        return list(zip(self.each, self.limits or (self.most,) * len(self.each), strict=True))

    def words(self) -> list[str]:
        """The whole words that the first tokenizer knows: pieces of words would be read with their neighbours."""
        vocabulary = self.each[0].get_vocab()
        words = sorted(word.removesuffix(_END) for word in vocabulary if word.endswith(_END))
        words += sorted(word.removeprefix(_START) for word in vocabulary if word.startswith(_START))
        return [word for word in words if word.isascii() and word.isalpha()] or words
