"""SQL over the store: an in-memory DuckDB with one view a table, the views on top, and the named queries."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

from storage.backend import Entry
from storage.checked import Counted, OnDamage, dataset, refusal
from storage.errors import StoreError, one_line
from storage.limits import Limits, interruptible, limit, spill_folder
from storage.listed import Listed
from storage.local import LocalBackend
from storage.store import Store
from storage.tables import TABLES, Table

TEMPLATES = ("table", "table_shared")
"""Text that is filled in for each table."""
MACROS = ("iou_of", "statistics_of")
"""Functions that return a table; their files hold the whole CREATE MACRO."""
VIEWS = ("audits", "audited", "neurons", "members", "iou", "shared_neurons", "drift")
"""Views on top of the tables, each after those it stands on."""

_TYPES = {
    pa.string(): "VARCHAR",
    pa.binary(): "BLOB",
    pa.bool_(): "BOOLEAN",
    pa.int32(): "INTEGER",
    pa.int64(): "BIGINT",
    pa.uint32(): "UINTEGER",
    pa.uint64(): "UBIGINT",
    pa.float32(): "FLOAT",
    pa.float64(): "DOUBLE",
    pa.timestamp("us", tz="UTC"): "TIMESTAMPTZ",
}


def connect(
    store: Store,
    through_arrow: bool = False,
    spill: str | None = None,
    limits: Limits | None = None,
    on_damage: OnDamage | None = None,
) -> duckdb.DuckDBPyConnection:
    """An in-memory database with a view for each table and the views on top, of the parts that are there now.

    Args:
        store: the store.
        through_arrow: let Arrow read the parts, so that DuckDB itself needs no file; those of a table are the ones that
            are there when a question first reads it, each is checked when it is opened, and its pages when they are
            read. Always so on S3. Otherwise DuckDB reads those that are there now, and every one is checked now, unless
            it was before.
        spill: folder for what does not fit in memory; None for one of its own in the system's temporary folder.
        limits: of memory and disk; time is limited by `time_limit`.
        on_damage: called with the address of a part that is not sound and the reason, and the part is left out; such
            a part is refused if None. Parts are left out only where Arrow reads.

    Raises:
        StoreError: a store that cannot be read; a part that is not sound, where DuckDB reads.
    """
    if isinstance(store.backend, LocalBackend) and not through_arrow:
        if on_damage is not None:
            raise ValueError("parts can be left out only where Arrow reads")
        return _database(store, sound(store), None, spill, limits)
    return connect_guarded(store, spill, limits, on_damage)[0]


def connect_guarded(
    store: Store, spill: str | None = None, limits: Limits | None = None, on_damage: OnDamage | None = None
) -> tuple[duckdb.DuckDBPyConnection, list[Listed]]:
    """A connection for which Arrow reads, and the tables that it reads; none is listed before a question is asked."""
    readers = {name: Listed.of(store, TABLES[name], on_damage) for name in TABLES}
    return _database(store, {}, readers, spill, limits), list(readers.values())


def connect_to(store: Store, table: Table, entries: list[Entry], limits: Limits) -> duckdb.DuckDBPyConnection:
    """A connection with these parts of one table and no other rows; DuckDB reads them where it can, else Arrow.

    Raises:
        StoreError: a part that is not sound.
    """
    counted = store.checked.counted(entries)
    if counted.faults:
        raise refusal(counted.faults)
    if isinstance(store.backend, LocalBackend):
        return _database(store, {table.name: counted}, None, None, limits)
    found = {each.name: entries if each is table else [] for each in TABLES.values()}
    readers = {name: dataset(store.checked, TABLES[name], these) for name, these in found.items()}
    return _database(store, {}, readers, None, limits)


def sound(store: Store, tables: Iterable[str] = tuple(TABLES)) -> dict[str, Counted]:
    """By table, the parts that count, all of them sound; those that were found so before are not read again.

    Raises:
        StoreError: naming one that is not sound.
    """
    found = {name: store.checked.counted(store.entries(name)) for name in tables}
    if faults := {address: reason for one in found.values() for address, reason in one.faults.items()}:
        raise refusal(faults)
    return found


def _database(
    store: Store,
    parts: Mapping[str, Counted],
    readers: Mapping[str, Any] | None,
    spill: str | None,
    limits: Limits | None,
) -> duckdb.DuckDBPyConnection:
    """A connection with all views: DuckDB reads `parts`, by table, unless there are `readers`."""
    con = duckdb.connect(config={"python_enable_replacements": "false"})
    with _clear("cannot open the catalog"):
        # Nothing is fetched behind the caller's back.
        con.execute("SET autoinstall_known_extensions = false; SET autoload_known_extensions = false")
        # What does not fit in memory goes outside the store, into a folder that DuckDB makes when it needs one, and
        # removes. It is this connection's own: two databases that spill into one would write over each other.
        con.execute(f"SET temp_directory = {_quoted(spill or spill_folder())}")
        limit(con, limits or Limits())
        # The bar would be drawn on standard output, into the answer.
        con.execute("SET TimeZone = 'UTC'; SET enable_progress_bar = false")
        for table in TABLES.values():
            if readers is None:
                _create(con, table.view, _select(store, table, parts.get(table.name)), table)
            else:
                con.register(f"{table.name}_parts", readers[table.name])
                _create(con, table.view, f"FROM {table.name}_parts", table)
        _create_on_top(con)
    return con


def write_catalog(store: Store, path: Path | str) -> None:
    """Write the views into a DuckDB file, for the `duckdb` shell and other SQL tools; the data stay in the store.

    Every DuckDB from 1.4 on can open it. It names the parts that are there now: until it is written again it lacks
    those that come later, and misses those that `engram compact --gc` removes. An older catalog at `path` is replaced
    in one step.

    Whatever opens the file reads the parts unchecked, and is not kept from reading other files: it is for people who
    trust their own SQL. The parts that are there now are checked before it is written.

    Raises:
        StoreError: a part that is not sound; something else lies at `path`; no right to write there; a store on S3
            without DuckDB's httpfs.
    """
    path = Path(path).absolute()
    if path.exists() and not (path.is_file() and _is_duckdb(path)):
        raise StoreError(f"{path} is there already and is no DuckDB file; choose another name")
    parts = sound(store)
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with _clear(f"cannot write the catalog {path}"), duckdb.connect() as con:
            if not isinstance(store.backend, LocalBackend):
                con.execute("LOAD httpfs")
            con.execute(f"ATTACH {_quoted(str(aside))} AS catalog_file (STORAGE_VERSION 'v1.0.0'); USE catalog_file")
            for table in TABLES.values():
                _create(con, table.view, _select(store, table, parts[table.name]), table)
            _create_on_top(con)
        os.replace(aside, path)
    except OSError as error:
        raise StoreError(f"cannot write the catalog {path}: {one_line(error)}") from error
    finally:
        aside.unlink(missing_ok=True)


def query(
    con_or_store: duckdb.DuckDBPyConnection | Store, name: str, limits: Limits | None = None, /, **params: Any
) -> pa.Table:
    """Run a named query.

    Args:
        con_or_store: a connection from `connect`, or a store.
        name: file in `storage/sql` without its ending; `queries` lists them.
        limits: what it may take; None for the default memory and no limit of time. Of a connection, only the time.
        params: values for the query's `$parameters`; those left out are NULL, which the header of each explains.

    Raises:
        StoreError: no such query or parameter; a store that cannot be read; a part that is not sound; no answer within
            the time.
    """
    if name not in queries():
        raise StoreError(f"no query {name!r}; there are {', '.join(queries())}")
    text = sql(name)
    steps = duckdb.extract_statements(text)
    known = {name for step in steps for name in step.named_parameters}
    if unknown := set(params) - known:
        raise StoreError(f"the query {name} takes {', '.join(sorted(known)) or 'nothing'}, not {min(unknown)}")
    limits = limits or Limits()
    read: list[Listed] = []
    if isinstance(con_or_store, Store):
        # Arrow looks at the checksums of pages, DuckDB does not.
        con, read = connect_guarded(con_or_store, limits=limits)
    else:
        con = con_or_store

    def answer() -> pa.Table:
        # Statements before the last set variables: DuckDB then knows a value that it would else find row by row, and
        # with it which parts there are to read.
        for step in steps:
            given = {key: params.get(key) for key in step.named_parameters}
            found = con.sql(step.query, params=given)
        return found.to_arrow_table()

    with _clear(f"the query {name} failed"):
        try:
            return interruptible(con, answer, limits.seconds)
        except (duckdb.Error, pa.ArrowException, OSError) as error:
            raise refused(read) or error from error


def refused(read: Iterable[Listed]) -> StoreError | None:
    """The error that says what could not be listed, or names the parts that were refused while they were read, if any
    were."""
    if failures := [parts.failure for parts in read if parts.failure is not None]:
        return failures[0]
    faults = {address: reason for parts in read for address, reason in parts.refused.items()}
    return refusal(faults) if faults else None


@cache
def queries() -> dict[str, str]:
    """Names of the queries, each with the first line of its header: what it answers."""
    names = {item.name.removesuffix(".sql") for item in (files("storage") / "sql").iterdir()}
    asked = sorted(names - {*TEMPLATES, *MACROS, *VIEWS})
    return {name: sql(name).splitlines()[0].removeprefix("-- ") for name in asked}


@cache
def sql(name: str) -> str:
    """The text of a file in `storage/sql`."""
    return (files("storage") / "sql" / f"{name}.sql").read_text("utf-8")


def _create_on_top(con: duckdb.DuckDBPyConnection) -> None:
    for name in MACROS:
        con.execute(sql(name))
    for name in VIEWS:
        _create(con, name, sql(name))


def _create(con: duckdb.DuckDBPyConnection, name: str, select: str, table: Table | None = None) -> None:
    con.execute(f"CREATE VIEW {name} AS {select}")
    text = table.text if table else " ".join(re.findall(r"^-- (.*)$", select.split("\n\n")[0], re.MULTILINE))
    con.execute(f"COMMENT ON VIEW {name} IS {_quoted(text)}")
    for field in table.schema if table else ():
        con.execute(f"COMMENT ON COLUMN {name}.{field.name} IS {_quoted(field.metadata[b'description'].decode())}")


def _select(store: Store, table: Table, parts: Counted | None) -> str:
    """The rows of a table, each unit once."""
    kinds = {field.name: sql_type(field.type) for field in table.schema}
    branches = [f"SELECT {', '.join(f'NULL::{kind} AS {name}' for name, kind in kinds.items())} WHERE false"]
    options = [f"hive_partitioning = {str(bool(table.partition)).lower()}"]
    if table.partition:
        options.append(f"hive_types = {{{', '.join(f'{name}: {kinds[name]}' for name in table.partition)}}}")
    filled = {"columns": ", ".join(kinds), "options": ", ".join(options)}
    if parts is not None and parts.whole:
        branches.append(sql("table").format(files=_list(store, parts.whole), **filled))
    if parts is not None and parts.shared:
        # Folders of one table differ in a partition column, so one order will do.
        files = _list(store, [entry for group in parts.shared.values() for entry, _ in group])
        unit = ", ".join((*table.partition, *table.unit))
        branches.append(sql("table_shared").format(files=files, unit=unit, **filled))
    return "\nUNION ALL\n".join(branches)


def sql_type(kind: pa.DataType) -> str:
    """What SQL calls the type of a column."""
    return f"{_TYPES[kind.value_type]}[]" if pa.types.is_list(kind) else _TYPES[kind]


def _list(store: Store, entries: Iterable[Entry]) -> str:
    prefix = store.backend.root if isinstance(store.backend, LocalBackend) else store.backend.url
    return f"[{', '.join(_quoted(f'{prefix}/{entry.path}') for entry in entries)}]"


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _is_duckdb(path: Path) -> bool:
    with open(path, "rb") as file:
        return file.read(12)[8:] == b"DUCK"


@contextmanager
def _clear(what: str) -> Iterator[None]:
    try:
        yield
    except duckdb.Error as error:
        raise StoreError(f"{what}: {one_line(error)}") from error
