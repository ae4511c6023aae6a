"""The manifest of a folder of weights: what the folder holds, with a digest over the manifest itself."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, BinaryIO

from storage.place import MANIFEST
from storage.tables import VERSION


def write_manifest(table: str, folder: Path) -> bytes:
    """Describe the files below `folder`.

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
    return _sealed({"table": table, "version": VERSION, "files": files})


def read_manifest(data: bytes) -> dict[str, dict[str, Any]]:
    """The files in a manifest: relative path to `size` and `sha256`.

    Raises:
        ValueError: if any byte of it has changed.
    """
    content = json.loads(data)
    if not isinstance(content, dict) or content.pop("sha256", None) is None or _sealed(content) != data:
        raise ValueError("its bytes have changed since it was written")
    files: dict[str, dict[str, Any]] = content["files"]
    return files


def digest(file: BinaryIO) -> str:
    """sha256 of a file, without holding it in memory."""
    total = hashlib.sha256()
    while chunk := file.read(1 << 20):
        total.update(chunk)
    return total.hexdigest()


def _sealed(content: dict[str, Any]) -> bytes:
    plain = json.dumps(content, sort_keys=True).encode()
    return json.dumps(content | {"sha256": hashlib.sha256(plain).hexdigest()}, indent=1, sort_keys=True).encode()
