"""From what a caller hands in to an Arrow table that fits the schema, or a clear refusal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from storage.errors import StoreError, one_line
from storage.tables import TABLES, Table

Rows: TypeAlias = Sequence[Mapping[str, Any]] | pa.Table


def find_table(name: str) -> Table:
    """The table called `name`.

    Raises:
        StoreError: if there is none.
    """
    if name not in TABLES:
        raise StoreError(f"no table {name!r}; the tables are {', '.join(TABLES)}")
    return TABLES[name]


def conform(table: Table, rows: Rows, partition: Mapping[str, Any]) -> pa.Table:
    """Check `rows` against the schema of `table`.

    Args:
        rows: dicts, or an Arrow table; columns named in `partition` and nullable columns may be left out.
        partition: values that hold for every row.

    Returns:
        Table with exactly the columns of the schema, in its order.

    Raises:
        StoreError: unknown or missing columns, values of another type, nulls where none may be, values that contradict
            `partition` or the rules of the table.
    """
    if isinstance(rows, pa.Table):
        given, length = set(rows.column_names), rows.num_rows
    else:
        given, length = set().union(*rows) if rows else set(), len(rows)
    if unknown := (given | set(partition)) - set(table.schema.names):
        raise StoreError(f"{table.name} has no column {', '.join(sorted(unknown))}; see storage.tables")
    columns = []
    for field in table.schema:
        if field.name in given:
            values = _column(table, field, rows)
            if field.name in partition and not _all_equal(values, partition[field.name]):
                raise StoreError(f"{table.name}.{field.name} in the rows is not {partition[field.name]!r} throughout")
        elif field.name in partition:
            values = pa.chunked_array([_cast(table, field, [partition[field.name]] * length)])
        elif field.nullable or length == 0:
            values = pa.chunked_array([pa.nulls(length, field.type)])
        else:
            raise StoreError(f"{table.name} needs a column {field.name} ({field.metadata[b'description'].decode()})")
        if values.null_count and not field.nullable:
            raise StoreError(f"{table.name}.{field.name} must not be null")
        columns.append(values)
    result = pa.table(columns, schema=table.schema)
    check_rules(table, result)
    return result


def check_rules(table: Table, rows: pa.Table) -> None:
    """Check what types cannot say: allowed values, and that members are sorted, unique and inside their universe.

    Raises:
        StoreError: naming the column and the rule.
    """
    for field in table.schema:
        allowed = (field.metadata or {}).get(b"values")
        if allowed is not None:
            values = pc.unique(rows[field.name]).drop_null().to_pylist()
            if wrong := set(values) - set(allowed.decode().split()):
                raise StoreError(f"{table.name}.{field.name} is {min(wrong)!r}, not one of: {allowed.decode()}")
    if table.name == "neuron_sets":
        _check_members(rows["members"].combine_chunks(), rows["universe"].combine_chunks())


def _check_members(members: pa.ListArray, universe: pa.UInt64Array) -> None:
    flat = members.flatten()
    if flat.null_count:
        raise StoreError("neuron_sets.members must be without nulls")
    values = flat.to_numpy()
    lengths = pc.list_value_length(members).to_numpy()
    filled = lengths > 0
    starts = (np.cumsum(lengths) - lengths)[filled]
    rising = np.ones(len(values), dtype=bool)
    rising[1:] = values[1:] > values[:-1]
    rising[starts] = True
    if not rising.all():
        raise StoreError("neuron_sets.members must be sorted and without repeats")
    if (values[starts + lengths[filled] - 1] >= universe.to_numpy()[filled]).any():
        raise StoreError("neuron_sets.members holds a member outside its universe")


def _column(table: Table, field: pa.Field, rows: Rows) -> pa.ChunkedArray:
    if not isinstance(rows, pa.Table):
        return pa.chunked_array([_cast(table, field, [row.get(field.name) for row in rows])])
    values = rows[field.name].combine_chunks() if rows.num_rows else pa.array([], field.type)
    try:
        return pa.chunked_array([values.cast(field.type)])
    except (pa.ArrowException, ValueError) as error:
        raise StoreError(f"{table.name}.{field.name} must be {field.type}: {one_line(error)}") from error


def _cast(table: Table, field: pa.Field, values: list[Any]) -> pa.Array:
    try:
        return pa.array(values, field.type)
    except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
        raise StoreError(f"{table.name}.{field.name} must be {field.type}: {one_line(error)}") from error


def _all_equal(values: pa.ChunkedArray, value: Any) -> bool:
    return all(item == value for item in pc.unique(values).to_pylist())
