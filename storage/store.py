"""The store: immutable, content-keyed Parquet parts in a local folder or on S3.

    <table>/<column>=<value>/.../<content key>.parquet      parts
    weights/<content key>/...                               folders of model weights
    reports/<audit id>/...                                  pages of audits
    checkpoints/...                                         states of trainings that are not done
    store.json                                              format and schema version; see `storage.mark`
    .aside/                                                 files being written; nobody reads there

Of a store that was migrated the tables lie in a folder of it, which store.json names.

Many processes write at once without locks: each part appears in one atomic step and is never changed afterwards. What
lies in several parts is read once; see `storage.units`.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import unquote, urlsplit

import pyarrow as pa
import pyarrow.parquet as pq

from storage import parts
from storage.backend import CHECKPOINTS, MANIFEST, REPORTS, WEIGHTS, Backend, Entry
from storage.checked import Checked, dataset, is_merged, refusal
from storage.errors import NoStore, StoreError, one_line
from storage.keys import check_key
from storage.layout import matching, partition_of, segment, split
from storage.local import LocalBackend
from storage.mark import MARK, Mark, Tables, check_version, read_mark
from storage.parts import name_digest
from storage.render import visible
from storage.rows import Rows, conform, find_table
from storage.s3 import S3Backend
from storage.tables import VERSION, Table

DEFAULT = ".engram/store"


class Store:
    """Open one with `Store.open`."""

    written: ClassVar[Counter[str]] = Counter()
    """Rows that this process wrote, by table: what it did, for whoever reports it."""

    def __init__(self, home: Backend, tables: str = "") -> None:
        self.home = home
        """The store itself: `store.json` and the folders of weights."""
        self.backend = home.below(tables)
        """Where its tables are; addresses of parts are relative to it."""
        self.checked = Checked(self.backend)

    @classmethod
    def open(cls, url: str | Path | None = None, create: bool = True) -> Store:
        """Open the store at `url`.

        Args:
            url: a path, `file://` path or `s3://bucket/prefix`; None for `$ENGRAM_STORE`, or else `.engram/store`.
            create: begin a new store if there is none.

        Raises:
            StoreError: no store there and `create` is false; a store of another version; a backend out of reach.
        """
        url = url_of(url)
        with clear(f"cannot open the store {url}"):
            home = backend_of(url)
            if not home.exists(MARK):
                if not create:
                    raise NoStore(f"there is no store at {url}; give its address with --store or ENGRAM_STORE")
                home.put(MARK, Mark(Tables(VERSION, "")).encode())
            mark = read_mark(url, home.read(MARK))
            check_version(url, mark)
            return cls(home, mark.tables.folder)

    @property
    def url(self) -> str:
        """Where the store is, as a `file://` or `s3://` URL; `Store.open(store.url)` opens it elsewhere."""
        return self.home.url

    def __repr__(self) -> str:
        return f"Store({self.url!r})"

    def has(self, table: str, key: str, **partition: Any) -> bool:
        """Whether the work named `key` is in the store, and the whole of it.

        With every partition column given this asks for one part. With fewer it asks whether all the parts that
        `write_parts` was given under this key are there.

        Raises:
            StoreError: an unknown table or partition column; a store that cannot be read.
        """
        found = self.parts(table, key, **partition)
        if not found or len(partition) == len(find_table(table).partition):
            return bool(found)
        with clear(f"cannot read {found[0]}"):
            footer = pq.read_metadata(f"{self.backend.root}/{found[0]}", filesystem=self.backend.filesystem).metadata
            of_key = [one.siblings for one in parts.held(footer) if one.name == key]
        return len(found) >= max(of_key, default=parts.siblings(footer))

    def parts(self, table: str, key: str | None = None, **partition: Any) -> list[str]:
        """Addresses of the parts of a table, sorted; of one key and of some partitions only, if given.

        For a key that was merged with others this is the part that holds it.

        Raises:
            StoreError: an unknown table or partition column; a store that cannot be read.
        """
        found = self.entries(table, key, **partition)
        if faults := {entry.path: entry.fault for entry in found if entry.fault}:
            raise refusal(faults)
        return [entry.path for entry in found]

    def entries(self, table: str, key: str | None = None, **partition: Any) -> list[Entry]:
        """As `parts`, but with what the backend says of each; what cannot be a part though it seems one has a fault.

        Raises:
            StoreError: an unknown table or partition column; a store that cannot be read.
        """
        definition = find_table(table)
        if unknown := set(partition) - set(definition.partition):
            raise StoreError(f"{table} is not partitioned by {', '.join(sorted(unknown))}")
        wanted = {name: str(value) for name, value in partition.items()}
        folder = table
        for name in definition.partition:
            if name not in wanted:
                break
            folder += f"/{segment(name, wanted[name])}"
        with clear(f"cannot list {table}"):
            if key is not None and len(wanted) == len(definition.partition):
                one = self.backend.find(f"{folder}/{check_key(key)}.parquet")
                if one is not None:
                    return [one]
            # A folder that cannot be looked into may hold any part.
            found = (_placed(definition, entry) for entry in self.backend.files(folder) if _is_part(entry))
            listed = sorted((one for one in found if _may_hold(definition, one, wanted)), key=lambda one: one.path)
        return listed if key is None else self._of_key(key, listed)

    def _of_key(self, key: str, listed: list[Entry]) -> list[Entry]:
        """Of these parts those that hold a key, one a folder; its own part where that is there."""
        own = (f"/{key}.parquet", "/")
        found = {entry.path.rpartition("/")[0]: entry for entry in listed if entry.path.endswith(own)}
        for entry in listed:
            folder = entry.path.rpartition("/")[0]
            if folder in found or not is_merged(entry.path):
                continue
            try:
                if name_digest(key) in self.checked.seal(entry).held:
                    found[folder] = entry
            except StoreError as error:  # it may hold the key
                found[entry.path] = replace(entry, fault=str(error))
        return sorted(found.values(), key=lambda one: one.path)

    def write(self, table: str, key: str, rows: Rows, **partition: Any) -> str:
        """Put rows in place as one part.

        Args:
            table: name of the table.
            key: content key of the work; if its part is there already, that part is left as it is.
            rows: dicts or an Arrow table; see `storage.tables` for the columns. No rows at all say that the work was
                done and found nothing; every partition value must then be given.
            partition: values of partition columns, which may then be left out of the rows.

        Returns:
            Address of the part: its path relative to the store.

        Raises:
            StoreError: rows that do not fit the table or span several partitions; a full disk, missing rights. Nothing
                is visible then.
        """
        definition = find_table(table)
        # Asked first, so that work that is there already costs neither a check of its rows nor their encoding.
        asked = set(definition.partition) <= set(partition)
        if asked and (found := self._holding(definition, key, partition)):
            return found
        checked = conform(definition, rows, partition)
        pieces = split(definition, checked, partition)
        if len(pieces) != 1:
            raise StoreError(f"these rows span {len(pieces)} partitions of {table}; use write_parts")
        return self._put(definition, key, *pieces[0], siblings=1, asked=asked)

    def write_parts(self, table: str, key: str, rows: Rows, **partition: Any) -> list[str]:
        """Put rows in place as one part for each partition among them, all under one key.

        Each part appears on its own; `has(table, key)` turns true when the last one is there. After a crash the same
        call puts the missing ones.

        Args, Raises: as `write`, but rows may span partitions and there must be at least one.

        Returns:
            Addresses of the parts, in the order of the partitions' first rows.
        """
        definition = find_table(table)
        pieces = split(definition, conform(definition, rows, partition), partition)
        return [self._put(definition, key, *piece, siblings=len(pieces)) for piece in pieces]

    def read(self, table: str, key: str | None = None, columns: list[str] | None = None, **where: Any) -> pa.Table:
        """Read rows; of parts that overlap each unit of work counts once.

        Args:
            table: name of the table.
            key: only the part, or parts, that hold this key. A merged part has rows of other keys as well, so `where`
                has to say which are meant.
            columns: only these columns, in this order.
            where: only rows with these values, or with one of a list of values; a partition column's value spares the
                reading of other parts.

        Returns:
            Table with the columns of the schema; no rows if there are none.

        Raises:
            StoreError: an unknown table or column; a damaged part.
        """
        definition = find_table(table)
        if unknown := ({*where, *(columns or ())}) - set(definition.schema.names):
            raise StoreError(f"{table} has no column {', '.join(sorted(unknown))}")
        inside = {
            name: value for name, value in where.items() if name in definition.partition and not isinstance(value, list)
        }
        found = dataset(self.checked, definition, self.entries(table, key, **inside))
        with clear(f"cannot read {table}"):
            return found.to_table(columns=columns, filter=matching(definition, where))

    def put_folder(self, table: str, key: str, local_folder: Path) -> str:
        """Keep a copy of a folder of model weights.

        Args:
            table: the table whose rows will name it, e.g. 'variants'; recorded in the folder's manifest.
            key: content key of the weights; if its folder is there already, that one is left as it is.
            local_folder: files and folders to copy.

        Returns:
            Address of the folder, for `get_folder` and for the column `variants.weights`.

        Raises:
            StoreError: nothing to copy; a full disk, missing rights. Nothing is visible then.
        """
        address = f"{WEIGHTS}/{check_key(key)}"
        with clear(f"cannot put {local_folder} into {address}"):
            if not self.has_folder(address):
                self.home.put_folder(address, Path(local_folder), find_table(table).name)
        return address

    def has_folder(self, address: str) -> bool:
        """Whether the folder behind an address from `put_folder` is in the store."""
        with clear(f"cannot look for {address}"):
            return self.home.exists(f"{address}/{MANIFEST}")

    def get_folder(self, address: str) -> Path:
        """The local folder behind an address from `put_folder`: read it, do not change it.

        From S3 it is downloaded once, into `$ENGRAM_CACHE` or `~/.cache/engram`.

        Raises:
            StoreError: no such folder; a damaged download.
        """
        with clear(f"cannot fetch {address}"):
            if not self.has_folder(address):
                raise StoreError(f"there is no folder {address} in {self.url}")
            return self.home.get_folder(address)

    def put_file(self, address: str, data: bytes) -> None:
        """Let a file that is no part, such as a page, have these bytes, from one step to the next.

        Args:
            address: its path relative to the store, below `REPORTS` or `CHECKPOINTS`.

        Raises:
            StoreError: a full disk, missing rights; what was there stays then.
        """
        with clear(f"cannot write {address}"):
            self.home.replace(_checked(address), data)

    def has_file(self, address: str) -> bool:
        """Whether there is such a file, see `put_file`."""
        with clear(f"cannot look for {address}"):
            return self.home.exists(_checked(address))

    def read_file(self, address: str) -> bytes:
        """The bytes of a file, see `put_file`.

        Raises:
            StoreError: there is none.
        """
        with clear(f"cannot read {address}"):
            return self.home.read(_checked(address))

    @contextmanager
    def writing(self, address: str) -> Iterator[Path]:
        """Within, a local file to write into, which is put in place at the end as `put_file` does it. It may be large.

        Raises: as `put_file`; an error within leaves what was there, too.
        """
        with clear(f"cannot write {address}"), self.home.writing(_checked(address)) as path:
            yield path

    @contextmanager
    def reading(self, address: str) -> Iterator[Path]:
        """Within, a local file with the bytes of a file of the store, which may be large; it must not be changed.

        Raises:
            StoreError: there is none.
        """
        with clear(f"cannot read {address}"), self.home.reading(_checked(address)) as path:
            yield path

    def place(self, address: str) -> str:
        """Where a file lies, or would, for people: a path of this machine, or an s3:// URL."""
        return self.home.place(_checked(address))

    def copied(self, folder: str) -> Path:
        """A local folder with the files below a folder of the store, see `put_file`; read them, do not change them.

        From S3 they are downloaded as they are now, into `$ENGRAM_CACHE` or `~/.cache/engram`.

        Raises:
            StoreError: they cannot be read, or written here.
        """
        with clear(f"cannot fetch {folder}"):
            return self.home.copied(_checked(folder))

    def files(self, folder: str) -> list[Entry]:
        """The files below a folder of the store, see `put_file`.

        Raises:
            StoreError: it cannot be listed.
        """
        with clear(f"cannot list {folder}"):
            return list(self.home.files(_checked(folder)))

    def remove_file(self, address: str) -> None:
        """Remove a file, see `put_file`; no error if it is gone.

        Raises:
            StoreError: missing rights; on S3, no boto3.
        """
        with clear(f"cannot remove {address}"):
            self.home.remove([_checked(address)])

    def _put(self, table: Table, key: str, folder: str, rows: pa.Table, siblings: int, asked: bool = False) -> str:
        """Put a part in place, unless a part has its key; `asked` says that this was looked for a moment ago."""
        address = f"{folder}/{check_key(key)}.parquet"
        if not asked and (found := self._holding(table, key, partition_of(table, address))):
            return found
        with clear(f"cannot write {address}"):
            self.backend.put(address, parts.encode(table, rows, address, siblings))
            Store.written[table.name] += rows.num_rows
        return address

    def _holding(self, table: Table, key: str, partition: Mapping[str, Any]) -> str | None:
        """The address of a part that has this key in this partition."""
        inside = {name: partition[name] for name in table.partition}
        return next((entry.path for entry in self.entries(table.name, key, **inside) if not entry.fault), None)


def _is_part(entry: Entry) -> bool:
    return entry.path.endswith((".parquet", "/"))


def _checked(address: str) -> str:
    """The address of a file that is no part; whoever gives another one is mistaken."""
    top, _, rest = address.partition("/")
    if top not in (REPORTS, CHECKPOINTS) or not rest or ".." in rest.split("/"):
        raise ValueError(f"{visible(address)} is no file of {REPORTS} or {CHECKPOINTS}")
    return address


def _placed(table: Table, entry: Entry) -> Entry:
    """The entry, with a fault if it does not lie where a part of the table does."""
    try:
        partition_of(table, entry.path)
    except StoreError as error:
        return replace(entry, fault=entry.fault or str(error).removeprefix(f"{visible(entry.path)} "))
    return entry


def _may_hold(table: Table, entry: Entry, wanted: Mapping[str, str]) -> bool:
    """Whether rows with these values may lie there; who cannot say must not hide them."""
    try:
        return wanted.items() <= partition_of(table, entry.path).items()
    except StoreError:
        return True


def address_of(url: str | Path | None = None) -> str:
    """The address of a store in full, where there is one that can be written to, or one can be begun; writes nothing.

    Args:
        url: as `Store.open` takes it.

    Raises:
        StoreError: a store of another version; a backend out of reach, or without the right to write there.
    """
    url = url_of(url)
    with clear(f"cannot open the store {url}"):
        backend = backend_of(url)
        if backend.exists(MARK):
            check_version(url, read_mark(url, backend.read(MARK)))
        if isinstance(backend, LocalBackend):
            there = next(folder for folder in (backend.path, *backend.path.parents) if os.path.lexists(folder))
            if not there.is_dir():
                raise StoreError(f"cannot open the store {url}: {there} is no folder; choose another with --store")
            if not os.access(there, os.W_OK | os.X_OK):
                raise StoreError(f"cannot write into {there}: choose another folder for the store with --store")
    return backend.url


def url_of(url: str | Path | None) -> str:
    """The address that is meant: `url`, or else `$ENGRAM_STORE`, or else `.engram/store`."""
    return str(url or os.environ.get("ENGRAM_STORE") or DEFAULT)


def backend_of(url: str) -> Backend:
    """The backend that a store's address names.

    Raises:
        StoreError: no address.
    """
    parts = urlsplit(url)
    if parts.scheme in ("s3", "file") and (parts.query or parts.fragment):
        raise StoreError(f"{url}: a store's URL must not contain '?' or '#'")
    if parts.scheme == "s3":
        return S3Backend(url)
    if parts.scheme == "file":
        if parts.netloc not in ("", "localhost"):
            raise StoreError(f"{url}: a file URL has three slashes, file:///folder")
        return LocalBackend(Path(unquote(parts.path)).resolve())
    if "://" in url:
        raise StoreError(f"{url}: a store is a folder, a file:// path or an s3:// URL")
    return LocalBackend(Path(url).expanduser().resolve())


@contextmanager
def clear(what: str) -> Iterator[None]:
    """Turn an error of the disk, the network or Arrow into one line that says what could not be done."""
    try:
        yield
    except (OSError, ValueError, pa.ArrowException) as error:
        raise StoreError(f"{what}: {one_line(error)}") from error
