"""`store.json`: the version of a store's schemas, and where its tables lie.

    {"format": "engram", "version": 5}                              a store that was begun with this version

A migration writes the tables anew into a folder of their own, and this file says which folder counts:

    {..., "version": 5, "tables": "v5", "former": {"version": 4, "tables": ""}, "migrating": true}     it is at work
    {..., "version": 5, "tables": "v5", "former": {"version": 4, "tables": ""}}                         it is done
    {..., "version": 5, "tables": "v5"}                              and the former tables were removed

While it is at work the file names the new version already: programs of the former one refuse the store by that.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from storage.errors import StoreError
from storage.migrations import OLDEST
from storage.tables import VERSION

MARK = "store.json"


@dataclass(frozen=True)
class Tables:
    """Tables of one version."""

    version: int
    folder: str
    """Where they lie in the store; empty for the store's own folder."""


@dataclass(frozen=True)
class Mark:
    """What `store.json` says."""

    tables: Tables
    """Those that count, or that a migration writes."""
    former: Tables | None = None
    """Those that they were made from, while these are kept."""
    migrating: bool = False

    def encode(self) -> bytes:
        """The file."""
        content: dict[str, Any] = {"format": "engram", "version": self.tables.version}
        content |= {"tables": self.tables.folder} if self.tables.folder else {}
        content |= {"former": {"version": self.former.version, "tables": self.former.folder}} if self.former else {}
        content |= {"migrating": True} if self.migrating else {}
        return json.dumps(content).encode() + b"\n"


def read_mark(url: str, data: bytes) -> Mark:
    """What the `store.json` of the store at `url` says.

    Raises:
        StoreError: it is damaged.
    """
    try:
        content = json.loads(data)
        if content["format"] != "engram":
            raise ValueError("of another program")
        former = _tables(content["former"]) if "former" in content else None
        return Mark(_tables(content), former, content.get("migrating", False))
    except (ValueError, KeyError, TypeError) as error:
        raise StoreError(f'{url}/{MARK} is damaged; put back \'{{"format": "engram", "version": ...}}\'') from error


def check_version(url: str, mark: Mark) -> None:
    """See to it that this program reads the store.

    Raises:
        StoreError: it is of another version, or between two; the message says what to do.
    """
    version = mark.tables.version
    if mark.migrating and version <= VERSION:
        raise StoreError(f"the store {url} is being migrated; if that was interrupted, {_command(url)} goes on with it")
    if version == VERSION:
        return
    way = "begin a new store, or use the engram that wrote it"
    if version > VERSION:
        way = "install a newer engram"
    elif version >= OLDEST:
        way = f"run {_command(url)}"
    raise StoreError(f"the store {url} has schema version {version}, this engram reads {VERSION}: {way}")


def _tables(content: dict[str, Any]) -> Tables:
    return Tables(int(content["version"]), str(content.get("tables", "")))


def _command(url: str) -> str:
    return f"`engram migrate --store {url}`"
