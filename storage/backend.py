"""What the store asks of the backend that it is kept in; `local.py` and `s3.py` give it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, Self

from pyarrow import fs

ASIDE = ".aside"
"""Folder of the store where files are written before they are put in place."""
MANIFEST = "manifest.json"
"""File that makes a folder of weights visible on S3, and says in both backends what the folder holds."""
WEIGHTS = "weights"
"""Folder of the store with the folders of weights."""
REPORTS = "reports"
"""Folder of the store with the pages of audits, a folder each."""
CHECKPOINTS = "checkpoints"
"""Folder of the store with the states of trainings that are not done."""
HOUR = 3600.0
"""Seconds after which a file left aside counts as abandoned, whoever wrote it."""


@dataclass(frozen=True)
class Entry:
    """A file in the store."""

    path: str
    """Relative to the root of the store, with '/' between folders."""
    size: int
    """Bytes."""
    modified: float
    """Seconds since 1970."""
    changed: float = 0.0
    """Seconds since 1970 when its bytes or its name last changed."""
    stamp: str = ""
    """Changes whenever the file does, or another takes its place."""
    fault: str | None = None
    """Why this is no file that can be read; the path of a folder that hides its files ends with '/'."""


class Backend(Protocol):
    """A folder or object-store prefix. Paths are relative to its root; every method raises OSError when it fails."""

    url: str
    filesystem: fs.FileSystem
    root: str
    """The root as a path of `filesystem`."""

    def below(self, folder: str) -> Self:
        """The backend that a folder of this one is; with an empty name, this one itself."""

    def exists(self, path: str) -> bool:
        """Whether a file is there."""

    def find(self, path: str) -> Entry | None:
        """What lies at this path, if anything does."""

    def files(self, prefix: str) -> Iterator[Entry]:
        """All files below the folder `prefix`, at any depth, in no order; none if there is no such folder.

        What lies there but is no readable file has a fault.
        """

    def read(self, path: str) -> bytes:
        """The bytes of a file."""

    def put(self, path: str, data: bytes) -> None:
        """Let a file appear whole in one step; one that is there already stays as it is."""

    def replace(self, path: str, data: bytes) -> None:
        """Let a file have these bytes from one step to the next, whatever was there."""

    def writing(self, path: str) -> AbstractContextManager[Path]:
        """Within, a local file to write into; at the end it takes the place of what was there, from one step to the
        next. Where an error ends it, what was there stays."""

    def reading(self, path: str) -> AbstractContextManager[Path]:
        """Within, a local file with the bytes of a file; it must not be changed."""

    def place(self, path: str) -> str:
        """Where a file lies, for people: a path of this machine, or a URL."""

    def copied(self, folder: str) -> Path:
        """A local folder with the files below a folder as they are now, which must not be changed."""

    def remove(self, paths: Iterable[str]) -> None:
        """Remove files, and folders that are empty then; no error for what is gone."""

    def put_folder(self, path: str, source: Path, table: str) -> None:
        """Let a folder of copies of all files below `source` appear in one step, with a manifest that names `table`."""

    def remove_folder(self, path: str) -> None:
        """Let a folder that was put be gone from one step to the next; no error if it is gone."""

    def get_folder(self, path: str) -> Path:
        """A local folder with the files of a folder that was put; it must not be changed."""

    def litter(self) -> Mapping[str, float]:
        """What dead writers left behind, never visible: names, and the age of each in seconds."""

    def remove_litter(self, name: str) -> None:
        """Remove one of them; no error if it is gone."""
