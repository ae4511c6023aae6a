"""Bring a store of an earlier version to this one: every part anew in a folder of its own, then one step.

    store.json          names the new version from the first step on, so that nobody else opens the store; see
                        `storage.mark`
    v5/                 the new parts; what lies there is done, which is all that a migration that was killed has to
                        know to go on
    <table>/...         the former parts; never changed, and removed by `drop_former` alone
    weights/...         stay where they are: their versions are their own

What a part's rows become is said by `storage.migrations`. Keys stay, seals are made anew, and the records of what
audits rest on (`audit_parts`) name the new addresses and seals.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa
import pyarrow.parquet as pq

from storage.backend import MANIFEST, Backend, Entry
from storage.errors import StoreError, one_line
from storage.folders import read_manifest
from storage.holdings import RECORD
from storage.layout import folder_of, partition_of
from storage.mark import MARK, Mark, Tables, read_mark
from storage.migrations import MIGRATIONS, OLDEST, tables_of
from storage.parts import Held, check_rows, encode, held, siblings, statement, unseal
from storage.processes import mark_lost, not_ended, still_there
from storage.render import visible
from storage.rows import conform
from storage.store import Store, backend_of, clear, url_of
from storage.tables import TABLES, VERSION, Table

OnProgress = Callable[[int, int], None]
"""Called with the parts done and the parts in all."""


@dataclass(frozen=True)
class Amount:
    """What is written or removed."""

    version: int
    """That of the former tables."""
    parts: int
    size: int
    """Bytes of the former parts; the new ones take about as many."""


def migrate(
    url: str | Path | None = None,
    dry_run: bool = False,
    lost: Iterable[str] = (),
    on_progress: OnProgress | None = None,
) -> Amount | None:
    """Bring the tables of a store to the present version; the former ones stay beside them.

    It may be killed at any moment and is then run again: what is done is not done twice, and the end is the same.

    Args:
        url: as `Store.open` takes it.
        dry_run: say what would be done, and write nothing.
        lost: ids of audits that stand as running though their process, which cannot be seen from here, is gone.
        on_progress: called with how far it is.

    Returns:
        What was done, or would be; None where the store is of the present version.

    Raises:
        StoreError: no store there, or none that can be migrated; an audit that runs; a part that is not sound.
    """
    url = url_of(url)
    with clear(f"cannot migrate the store {url}"):
        home = backend_of(url)
        mark = _mark(url, home)
        if mark.tables.version == VERSION and not mark.migrating:
            if not dry_run:  # of a migration that ended before it came to these
                _mark_lost(url, lost)
            return None
        if mark.former is not None and not mark.migrating:
            raise StoreError(
                f"the store {url} still has the parts of version {mark.former.version} that it was migrated from: run "
                f"`engram migrate --gc --store {url}` first, which removes them"
            )
        # Of a migration that was interrupted these are known from its mark.
        former = mark.former if mark.migrating and mark.former else mark.tables
        if not OLDEST <= former.version < VERSION:
            way = "install a newer engram" if former.version >= VERSION else "begin a new store"
            raise StoreError(f"the store {url} has schema version {former.version}, which cannot be migrated: {way}")
        after = Mark(Tables(VERSION, f"v{VERSION}"), former)
        moving = _Move(home, home.below(former.folder), home.below(after.tables.folder), tables_of(former.version))
        entries = moving.entries()
        amount = Amount(former.version, len(entries), sum(entry.size for entry in entries))
        moving.refuse_running(lost)
        if dry_run:
            return amount
        home.replace(MARK, Mark(after.tables, former, migrating=True).encode())
        try:
            moving.refuse_running(lost)  # one may have begun before the store was closed to it
        except StoreError:
            home.replace(MARK, Mark(former).encode())
            raise
        moving.move(on_progress)
        home.replace(MARK, after.encode())
    _mark_lost(url, lost)
    return amount


def _mark_lost(url: str, audits: Iterable[str]) -> None:
    for audit_id in audits:
        mark_lost(Store.open(url), audit_id)


def drop_former(url: str | Path | None = None, dry_run: bool = False) -> Amount | None:
    """Remove the parts that a migration has brought to a later version, from their former folder.

    Returns:
        What was removed, or would be; None where there are none.

    Raises:
        StoreError: no store there; one that is not migrated yet; on S3, no boto3.
    """
    url = url_of(url)
    with clear(f"cannot remove the former parts of {url}"):
        home = backend_of(url)
        mark = _mark(url, home)
        if mark.migrating or (mark.tables.version != VERSION and mark.former is None):
            raise StoreError(f"the store {url} is not migrated yet: run `engram migrate --store {url}` without --gc")
        if mark.former is None:
            return None
        former = home.below(mark.former.folder)
        tables = tables_of(mark.former.version)
        # What is no part was put there by somebody else, and stays.
        entries = [entry for name in tables for entry in former.files(name) if entry.path.endswith(".parquet")]
        if not dry_run:
            former.remove([entry.path for entry in entries])
            home.replace(MARK, Mark(mark.tables).encode())
        return Amount(mark.former.version, len(entries), sum(entry.size for entry in entries))


@dataclass
class _Move:
    """Parts on their way from one folder to another, and from one version to the next ones."""

    at_once: ClassVar[int] = 4
    home: Backend
    """The store itself, where the folders of weights are."""
    source: Backend
    target: Backend
    tables: dict[str, Table]
    """As they were."""
    statements: dict[str, tuple[str, str]] = field(default_factory=dict)
    """By former address, what a part said and what the new one says."""

    def entries(self) -> list[Entry]:
        """The former parts.

        Raises:
            StoreError: something lies there that may hide a part.
        """
        found = [entry for name in self.tables for entry in self.source.files(name)]
        for entry in found:
            if entry.fault:
                raise StoreError(f"{visible(entry.path)} {entry.fault}")
        return [entry for entry in found if entry.path.endswith(".parquet")]

    def refuse_running(self, lost: Iterable[str]) -> None:
        """Raises StoreError where an audit is at work, which would write on into the former folder."""
        audits, processes = (
            [row for entry in self.source.files(name) for row in self.read(entry.path)[1].to_pylist()]
            for name in ("audits", "processes")
        )
        if running := [name for name in still_there(not_ended(audits), processes) if name not in set(lost)]:
            raise StoreError(
                f"the audit {running[0]} is running: wait until it has ended; if its process is gone, on another "
                f"machine, say so with --lost {running[0]}"
            )

    def move(self, on_progress: OnProgress | None) -> None:
        """Put every part in place."""
        there = {entry.path for name in TABLES for entry in self.target.files(name)}
        seen: set[str] = set()
        # A writer that had the store open may have added a part in the meantime.
        while former := [entry.path for entry in self.entries() if entry.path not in seen]:
            self.refuse_doubles(former)
            total = len(seen) + len(former)
            records = [one for one in former if _table(one) == RECORD]
            for some in (sorted(set(former) - set(records)), records):
                missing = [one for one in some if self.address(one) not in there]
                seen |= set(some) - set(missing)
                with closing(self.converted(missing)) as done:
                    for address in done:
                        seen.add(address)
                        if on_progress:
                            on_progress(len(seen), total)

    def refuse_doubles(self, former: list[str]) -> None:
        """Raises StoreError where two parts would come to lie at one address, since a folder they were told apart by is
        gone."""
        places: dict[str, str] = {}
        for one in sorted(former):
            if (other := places.setdefault(self.address(one), one)) != one:
                raise StoreError(
                    f"{visible(one)} has the key of {visible(other)}, and would take its place: remove one of the two"
                )

    def converted(self, former: list[str]) -> Generator[str, None, None]:
        """Put these parts in place, a few at once, and name each that is; none is begun once one has failed."""
        with ThreadPoolExecutor(self.at_once) as pool:
            futures = [pool.submit(self.convert, address) for address in former]
            try:
                for address, future in zip(former, futures, strict=True):
                    future.result()
                    yield address
            finally:
                pool.shutdown(cancel_futures=True)

    def convert(self, address: str) -> None:
        """Put one part in place."""
        sha256, rows, together, within = self.read(address)
        name, new = _table(address), self.address(address)
        table = TABLES[name]
        if name == RECORD:
            rows = self.record(rows)
        renamed = conform(table, self.migrated(name, rows), partition_of(table, new))
        data = encode(table, renamed, new, together, within)
        self.target.put(new, data)
        before = statement(self.tables[name], sha256, rows)
        self.statements[address] = before, statement(table, unseal(data, table, new).sha256, renamed)

    def record(self, rows: pa.Table) -> pa.Table:
        """What an audit rests on, by new addresses and seals. What is gone, or another part by now, stays so."""
        changed = []
        for row in rows.to_pylist():
            now = self.said(row["address"])
            digest = now[1] if now is not None and now[0] == row["sha256"] else row["sha256"]
            changed.append(row | {"address": self.address(row["address"]), "sha256": digest})
        return pa.Table.from_pylist(changed, rows.schema)

    def said(self, address: str) -> tuple[str, str] | None:
        """What a part said and what the new one says; None where it is gone."""
        if address not in self.statements and self.source.find(address) is not None:
            name, new = _table(address), self.address(address)
            sha256, rows, *_ = self.read(address)
            data = self.target.read(new)
            table = TABLES[name]
            now = statement(table, unseal(data, table, new).sha256, check_rows(data, table, new))
            self.statements[address] = statement(self.tables[name], sha256, rows), now
        return self.statements.get(address)

    def read(self, address: str) -> tuple[str, pa.Table, int, list[Held]]:
        """Seal and rows of a former part, how many were written together, and the parts that were merged in it.

        Raises:
            StoreError: it is not sound.
        """
        table = self.tables[_table(address)]
        data = self.source.read(address)
        try:
            partition_of(table, address)
            seal, rows = unseal(data, table, address), check_rows(data, table, address)
        except StoreError as error:
            reason = one_line(error).removeprefix(f"{visible(address)} ")
            raise StoreError(
                f"{visible(address)} {reason}; once it is removed, the migration goes on, and the stage that wrote it "
                "makes it again"
            ) from error
        footer = pq.read_metadata(pa.BufferReader(data)).metadata
        return seal.sha256, rows, siblings(footer), held(footer)

    def address(self, former: str) -> str:
        """Where the new part of a former address lies."""
        name, key = _table(former), former.rsplit("/", 1)[1]
        values: dict[str, Any] = partition_of(self.tables[name], former)
        if values:
            values = self.migrated(name, pa.Table.from_pylist([values])).to_pylist()[0]
        return f"{folder_of(TABLES[name], values)}/{key}"

    def migrated(self, name: str, rows: pa.Table) -> pa.Table:
        """Rows of the present version."""
        former = int(self.tables[name].schema.metadata[b"engram.version"])
        for version in range(former + 1, VERSION + 1):
            rows = MIGRATIONS[version](name, rows, self.read_file)
        return rows

    def read_file(self, folder: str, name: str) -> str | None:
        """The text of a file in a folder of weights; None where the folder is gone, which `verify` tells of.

        Raises:
            StoreError: it is not what was written.
        """
        if self.home.find(f"{folder}/{MANIFEST}") is None:
            return None
        manifest = read_manifest(self.home.read(f"{folder}/{MANIFEST}"), folder)
        data = self.home.read(f"{folder}/{manifest.address(name)}")
        if hashlib.sha256(data).hexdigest() != manifest.files[name]["sha256"]:
            raise StoreError(f"{folder}/{name} has changed since it was written: remove {folder}, then migrate")
        return data.decode()


def _table(address: str) -> str:
    return address.split("/", 1)[0]


def _mark(url: str, home: Backend) -> Mark:
    if not home.exists(MARK):
        raise StoreError(f"there is no store at {url}; give its address with --store or ENGRAM_STORE")
    return read_mark(url, home.read(MARK))
