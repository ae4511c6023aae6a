"""From version to version of the tables: one file a migration, and what the tables of each version were.

Whoever changes a schema raises `storage.tables.VERSION` by one, adds `v6.py` with a function `migrate` to `MIGRATIONS`,
and keeps the new schemas with `python -m tests.storage.keep_schemas`. How rows get from one folder to the other is the
same for all and stands in `storage.migrate`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from importlib.resources import files
from typing import Any, TypeAlias

import pyarrow as pa

from storage.migrations import v4, v5
from storage.tables import COUNT, FLOAT, INT, TEXT, TIME, Table, column

ReadFile: TypeAlias = Callable[[str, str], str | None]
"""Takes the address of a folder of weights and the name of a file in it, and gives its text; None if it is gone."""

MIGRATIONS: Mapping[int, Callable[[str, pa.Table, ReadFile], pa.Table]] = {
    4: v4.migrate,
    5: v5.migrate,
}
"""By the version that it leads to, a function that takes a table's name and rows of the version before, and gives the
rows of this version. It depends on nothing else, keeps the number of rows and their order, and takes rows that have but
some of the table's columns: those that name folders are renamed with it alone. Columns that are new and may be null are
left out.
"""
OLDEST = min(MIGRATIONS) - 1
"""The first version that stores can be migrated from."""

_KINDS = {
    str(kind): kind
    for kind in (TEXT, INT, COUNT, FLOAT, TIME, pa.float32(), pa.uint32(), pa.uint64(), pa.bool_(), pa.binary())
}


def tables_of(version: int) -> dict[str, Table]:
    """The tables of a version as they were, by name; they have no descriptions."""
    kept = json.loads((files("storage.migrations") / f"v{version}.json").read_text("utf-8"))
    return {name: _table(name, version, **content) for name, content in kept.items()}


def kept_schemas(tables: Mapping[str, Table]) -> str:
    """What is kept of tables for `tables_of`: names, folders, types, what may be null and which values are allowed."""
    blocks = []
    for name, table in tables.items():
        columns = [f"   {json.dumps(field.name)}: {json.dumps(_kept(field))}" for field in table.schema]
        head = f' {json.dumps(name)}: {{\n  "partition": {json.dumps(table.partition)},\n  "columns": {{\n'
        blocks.append(head + ",\n".join(columns) + "\n  }\n }")
    return "{\n" + ",\n".join(blocks) + "\n}\n"


def _kept(field: pa.Field) -> dict[str, Any]:
    kind = f"{field.type.value_type}[]" if pa.types.is_list(field.type) else str(field.type)
    values = (field.metadata or {}).get(b"values", b"").decode()
    return {"type": kind} | ({"optional": True} if field.nullable else {}) | ({"values": values} if values else {})


def _table(name: str, version: int, partition: list[str], columns: Mapping[str, Mapping[str, Any]]) -> Table:
    fields = [
        column(one, _kind(kept["type"]), "", kept.get("optional", False), kept.get("values", ""))
        for one, kept in columns.items()
    ]
    metadata = {"engram.table": name, "engram.version": str(version)}
    return Table(name, "", pa.schema(fields, metadata), tuple(partition), (), name)


def _kind(name: str) -> pa.DataType:
    return pa.list_(_KINDS[name.removesuffix("[]")]) if name.endswith("[]") else _KINDS[name]
