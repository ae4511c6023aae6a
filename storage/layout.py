"""Where a part lies: `<table>/<column>=<value>/.../<key>.parquet`, each value percent-encoded."""

from __future__ import annotations

import functools
import operator
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote, unquote

import pyarrow as pa
import pyarrow.compute as pc

from storage.errors import StoreError
from storage.render import visible
from storage.tables import Table


def segment(name: str, value: str) -> str:
    """One folder of a part's address."""
    return f"{name}={quote(value, safe='')}"


def partition_of(table: Table, address: str) -> dict[str, str]:
    """The partition values in the address of a part.

    Raises:
        StoreError: if the address is not one of this table's parts.
    """
    pairs = [folder.partition("=") for folder in address.split("/")[1:-1]]
    if tuple(name for name, _, _ in pairs) != table.partition:
        raise StoreError(f"{visible(address)} does not lie where a part of {table.name} does; move it out of the store")
    return {name: unquote(value) for name, _, value in pairs}


def folder_of(table: Table, values: Mapping[str, Any]) -> str:
    """The folder of the parts of `table` with these partition values.

    Raises:
        StoreError: an empty value.
    """
    if empty := [name for name in table.partition if not values[name]]:
        raise StoreError(f"{table.name}.{empty[0]} names a folder and must not be empty")
    return "/".join([table.name, *(segment(name, values[name]) for name in table.partition)])


def split(table: Table, rows: pa.Table, partition: Mapping[str, Any]) -> list[tuple[str, pa.Table]]:
    """Rows by the folder they belong in.

    Args:
        rows: conforming rows.
        partition: values that say where they belong if there are no rows.

    Raises:
        StoreError: no rows and not every partition value; an empty value.
    """
    if rows.num_rows == 0:
        if missing := set(table.partition) - set(partition):
            raise StoreError(
                f"no rows for {table.name}: give {', '.join(sorted(missing))} to say where none were found"
            )
        return [(folder_of(table, partition), rows)]
    if not table.partition:
        return [(table.name, rows)]
    keys = rows.select(table.partition).group_by(list(table.partition), use_threads=False).aggregate([]).to_pylist()
    if len(keys) == 1:
        return [(folder_of(table, keys[0]), rows)]
    return [(folder_of(table, values), rows.filter(matching(table, values))) for values in keys]


def matching(table: Table, values: Mapping[str, Any]) -> pc.Expression:
    """The condition that columns have these values, or one of them where a list of values is given."""

    def test(name: str, value: Any) -> pc.Expression:
        kind = table.schema.field(name).type
        if isinstance(value, list):
            return pc.field(name).isin(pa.array(value, kind))
        return pc.field(name).is_null() if value is None else pc.field(name) == pa.scalar(value, kind)

    tests = [test(name, value) for name, value in values.items()]
    return functools.reduce(operator.and_, tests) if tests else pc.scalar(True)
