"""Checkpoints of trainings, in the store: another machine goes on with what was begun elsewhere."""

import time
from collections.abc import Callable, Mapping
from pickle import UnpicklingError
from typing import Any

import torch

from storage import CHECKPOINTS, Store, StoreError
from tasks.errors import InputError, first_line

SHARE = 0.1
"""Of the time of a training, what saving it may take: it is gigabytes, and a store may be far away."""


class StoredCheckpoint:
    """The state of one training, a file of the store; see `tasks.mitigate.training.Checkpoint`."""

    def __init__(self, store: Store, name: str, now: Callable[[], float] = time.monotonic) -> None:
        self._store, self._address, self._now = store, f"{CHECKPOINTS}/{name}.pt", now
        self._due = now()

    def __str__(self) -> str:
        return self._store.place(self._address)

    def load(self) -> Mapping[str, Any] | None:
        """Raises InputError where the file is damaged."""
        if not self._store.has_file(self._address):
            return None
        try:
            with self._store.reading(self._address) as path:
                # Into main memory: beside the training itself there may be no room for it on a GPU. Weights only:
                # whoever may write to the store must not run programs here.
                state: Mapping[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        except (RuntimeError, EOFError, UnpicklingError) as error:
            raise InputError(f"{self} cannot be read ({first_line(error)}): remove it, to train anew") from error
        return state

    def save(self, state: Mapping[str, Any]) -> None:
        """Raises StoreError where it cannot be written; what was saved before stays then."""
        begun = self._now()
        if begun < self._due:
            return
        with self._store.writing(self._address) as path:
            try:
                torch.save(dict(state), path)
            except RuntimeError as error:  # as torch calls a full disk
                raise StoreError(f"cannot write {self}: {first_line(error)}") from error
        ended = self._now()
        self._due = ended + (ended - begun) * (1 / SHARE - 1)

    def remove(self) -> None:
        """No error where there is none. Raises StoreError where it cannot be removed."""
        self._store.remove_file(self._address)
