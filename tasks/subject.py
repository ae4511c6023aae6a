"""What every stage is told: a model, a set of prompts and a store. Small enough to hand to a worker anywhere."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from itertools import zip_longest
from pathlib import Path
from typing import Literal, TypeVar

import torch
from pydantic import BaseModel, ConfigDict, Field
from tqdm import tqdm

from storage import Store
from tasks.diffusion.model import Model, fingerprint, load_model
from tasks.errors import InputError

Kind = Literal["memorized", "null", "ordinary"]
ORIGINAL = "original"
T = TypeVar("T")


class Subject(BaseModel):
    """One model, asked about one set of prompts."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    store: str = Field(description="address of the store: a folder, or an s3:// URL")
    model: str = Field(description="folder of a diffusers pipeline")
    prompt_set: str = Field(description="name of the set of prompts in the store")
    device: str | None = Field(None, description="cpu, cuda, ...; the GPU where there is one if empty")
    dtype: Literal["float32", "bfloat16", "float16"] = Field("float32", description="precision of the model")

    def open(self) -> Store:
        return Store.open(self.store)

    @property
    def model_id(self) -> str:
        return fingerprint(Path(self.model))

    def load(self, variant: str = ORIGINAL) -> Model:
        """The model, or a variant of it that lies in the store.

        Raises:
            InputError: no such model or variant.
        """
        base = _loaded(self.model, self.device, self.dtype, self.model_id)
        if variant == ORIGINAL:
            return base
        store = self.open()
        rows = store.read("variants", columns=["weights"], model_id=self.model_id, variant=variant).to_pylist()
        if not rows:
            raise InputError(f"the store has no variant {variant!r} of this model: run the mitigation first")
        return _variant(self, variant, store.get_folder(rows[0]["weights"]))


@dataclass(frozen=True)
class Asked:
    """One prompt of the set."""

    prompt_id: str
    text: str
    kind: Kind
    memorization: str | None
    subset: str | None
    image_ids: tuple[str, ...]


def prompts_of(subject: Subject, kind: Kind, limit: int | None = None) -> list[Asked]:
    """Prompts of one kind, the first of each subset first, then the second of each, so that a few speak for all.

    Args:
        limit: how many at most; all without it.

    Raises:
        InputError: the set has none of this kind.
    """
    rows = subject.open().read("prompts", prompt_set=subject.prompt_set, kind=kind).to_pylist()
    if not rows:
        raise InputError(f"the prompt set {subject.prompt_set!r} has no {kind} prompts: add some to its file")
    by_subset: dict[str | None, list[Asked]] = {}
    for row in rows:
        asked = Asked(
            row["prompt_id"], row["text"], kind, row["memorization"], row["subset"], tuple(row["image_ids"] or ())
        )
        by_subset.setdefault(asked.subset, []).append(asked)
    turns = [asked for turn in zip_longest(*by_subset.values()) for asked in turn if asked is not None]
    return turns[:limit]


@contextmanager
def progress(total: int, what: str, unit: str) -> Iterator[Callable[[int], None]]:
    """A bar on the terminal: call with what was done. Nothing is shown when there is nothing to do."""
    with tqdm(total=total, desc=what, unit=unit, disable=None if total else True, leave=False) as bar:

        def done(n: int) -> None:
            bar.update(n)

        yield done


def shards(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    """Consecutive pieces of at most `size`: what is written at once, so the most that an interruption costs."""
    for start in range(0, len(items), size):
        yield items[start : start + size]


@lru_cache(maxsize=1)
def _loaded(source: str, device: str | None, dtype: str, model_id: str) -> Model:
    # The fingerprint is part of the key, so a model that changed on disk is loaded anew.
    return load_model(source, device, getattr(torch, dtype))


@lru_cache(maxsize=2)
def _variant(subject: Subject, variant: str, folder: Path) -> Model:
    return subject.load().with_unet(folder)
