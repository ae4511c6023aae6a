"""The manifest of a folder of weights: what the folder holds, with a digest over the manifest itself."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from storage.backend import MANIFEST
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


def write_manifest(table: str, folder: Path, address: str, below: str = "") -> bytes:
    """Describe the files in `folder`, which will lie in the folder `below` beside the manifest.

    Args:
        table: the table whose rows will name the folder.
        folder: the files.
        address: where the manifest's folder will lie, relative to the store; another folder is noticed.
        below: a name of the upload, on S3.

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
    return _sealed({"table": table, "version": VERSION, "address": address, "below": below, "files": files})


def read_manifest(data: bytes, address: str) -> Manifest:
    """The files in a manifest, and where they lie.

    Args:
        data: the manifest.
        address: where its folder lies. Manifests of earlier releases do not know theirs.

    Raises:
        ValueError: if any byte of it has changed, or it is another folder's.
    """
    content = json.loads(data)
    if not isinstance(content, dict) or content.pop("sha256", None) is None or _sealed(content) != data:
        raise ValueError("its bytes have changed since it was written")
    if (own := content.get("address", address)) != address:
        raise ValueError(f"is a copy of {own} or was moved from there: remove it, or move it back")
    return Manifest(content["files"], content["below"])


def check_files(folder: Path, manifest: Manifest) -> None:
    """Compare the files in a local folder with its manifest; those that were, and have not changed since, are not read.

    Raises:
        ValueError: a file has changed, or is none of the folder's.
        OSError: one is missing.
    """
    found = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir()}
    if foreign := found - set(manifest.files) - {MANIFEST}:
        raise ValueError(f"{min(foreign)} does not belong to it: remove it")
    for name, entry in manifest.files.items():
        path = folder / name
        status = os.stat(path)
        stamp = (status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino, entry["sha256"])
        if _seen.get(path) == stamp:
            continue
        with open(path, "rb") as file:
            if digest(file) != entry["sha256"]:
                raise ValueError(f"{name} has changed since it was written: remove the folder and run its stage again")
        _seen[path] = stamp


_seen: dict[Path, tuple[int | str, ...]] = {}
"""By file, what the system said of it when it was whole."""


def digest(file: BinaryIO) -> str:
    """sha256 of a file, without holding it in memory."""
    total = hashlib.sha256()
    while chunk := file.read(1 << 20):
        total.update(chunk)
    return total.hexdigest()


def _sealed(content: dict[str, Any]) -> bytes:
    plain = json.dumps(content, sort_keys=True).encode()
    return json.dumps(content | {"sha256": hashlib.sha256(plain).hexdigest()}, indent=1, sort_keys=True).encode()
