"""The manifest of a folder of weights: what the folder holds, with a digest over the manifest itself."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from storage.place import MANIFEST
from storage.tables import VERSION


@dataclass(frozen=True)
class Manifest:
    """What `read_manifest` finds."""

    files: Mapping[str, Mapping[str, Any]]
    """By relative path, `size` and `sha256`."""
    below: str
    """Folder beside the manifest that the files lie in; empty if they lie beside it themselves."""

    def address(self, name: str) -> str:
        """Where a file lies, relative to the manifest's folder."""
        return f"{self.below}/{name}" if self.below else name


def write_manifest(table: str, folder: Path, below: str = "") -> bytes:
    """Describe the files in `folder`, which will lie in the folder `below` beside the manifest.

    Raises:
        ValueError: if there are none, or one that has the manifest's own name.
    """
    files = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            with open(path, "rb") as file:
                files[path.relative_to(folder).as_posix()] = {"size": path.stat().st_size, "sha256": digest(file)}
    if not files or MANIFEST in files:
        raise ValueError(f"it is empty, no folder, or has a {MANIFEST} of its own")
    return _sealed({"table": table, "version": VERSION, "below": below, "files": files})


def read_manifest(data: bytes) -> Manifest:
    """The files in a manifest, and where they lie.

    Raises:
        ValueError: if any byte of it has changed.
    """
    content = json.loads(data)
    if not isinstance(content, dict) or content.pop("sha256", None) is None or _sealed(content) != data:
        raise ValueError("its bytes have changed since it was written")
    return Manifest(content["files"], content["below"])


def digest(file: BinaryIO) -> str:
    """sha256 of a file, without holding it in memory."""
    total = hashlib.sha256()
    while chunk := file.read(1 << 20):
        total.update(chunk)
    return total.hexdigest()


def _sealed(content: dict[str, Any]) -> bytes:
    plain = json.dumps(content, sort_keys=True).encode()
    return json.dumps(content | {"sha256": hashlib.sha256(plain).hexdigest()}, indent=1, sort_keys=True).encode()
