"""What a model's tokenizers make of prompts: how many tokens, and which of them the model reads."""

import json
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import transformers

from tasks.errors import InputError

LongPrompts = Literal["truncate", "refuse", "skip"]
"""What is done with prompts of more tokens than the model reads; training truncates captions."""


@dataclass(frozen=True, eq=False)
class Tokenizers:
    """The tokenizers of a model, one for each of its text encoders, and how many tokens they read."""

    each: tuple[Any, ...]
    most: int
    """Tokens of a prompt that the model reads, with the start and the end of the text."""

    def counts(self, texts: Sequence[str]) -> list[int]:
        """Tokens of the whole texts, with start and end; by the tokenizer that makes most of them."""
        found = [[len(ids) for ids in tokenizer(list(texts), verbose=False).input_ids] for tokenizer in self.each]
        return [max(lengths) for lengths in zip(*found, strict=True)]

    def kept(self, texts: Sequence[str]) -> list[bytes]:
        """The ids of the tokens that the model reads, packed: equal for texts that are the same prompt to it."""
        how = {"truncation": True, "max_length": self.most, "verbose": False}
        found = [tokenizer(list(texts), **how).input_ids for tokenizer in self.each]
        return [b"".join(array("i", [len(ids), *ids]).tobytes() for ids in of) for of in zip(*found, strict=True)]


def tokenizers_of(folder: Path) -> Tokenizers:
    """The tokenizers of a pipeline's folder; no weights are loaded, so this takes a second.

    Raises:
        InputError: a tokenizer is missing, cannot be loaded, or is of a class that transformers does not have.
    """
    files = [folder / "model_index.json", folder / "text_encoder" / "config.json"]
    files += sorted(path for part in ("tokenizer", "tokenizer_2") for path in (folder / part).glob("*"))
    return _loaded(folder, tuple((str(path), path.stat().st_mtime_ns) for path in files if path.is_file()))


@lru_cache(maxsize=4)
def _loaded(folder: Path, files: tuple[tuple[str, int], ...]) -> Tokenizers:
    try:
        index = json.loads((folder / "model_index.json").read_text())
        config = transformers.AutoConfig.from_pretrained(
            folder / "text_encoder", local_files_only=True, trust_remote_code=False
        )
        each = []
        for part in ("tokenizer", "tokenizer_2"):
            library, name = index.get(part) or (None, None)
            if name is None:
                continue
            kind = getattr(transformers, name, None) if library == "transformers" else None
            if kind is None or not issubclass(kind, transformers.PreTrainedTokenizerBase):
                raise InputError(f"{folder} has a {part} of class {library}.{name}: only those of transformers are run")
            each.append(kind.from_pretrained(folder / part, local_files_only=True))
    except InputError:
        raise
    except Exception as error:  # whatever a broken file makes a tokenizer raise
        told = (str(error) or type(error).__name__).splitlines()[0]
        raise InputError(f"cannot load the tokenizer of {folder}: {told}") from error
    if not each:
        raise InputError(f"the pipeline at {folder} has no tokenizer: audits need all of a base model")
    return Tokenizers(tuple(each), int(min(each[0].model_max_length, config.max_position_embeddings)))
