"""A table of an answer as text or bytes, for people and for programs."""

from __future__ import annotations

import base64
import csv
import io
import json
import math
from collections.abc import Iterator
from datetime import date, datetime
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from storage.errors import StoreError

FORMATS = ("table", "csv", "json", "parquet")
"""Formats of `render`."""
WIDEST = 60
"""Characters of a cell that `table` shows."""


def render(rows: pa.Table | list[dict[str, Any]], form: str = "table", widest: int = WIDEST) -> bytes:
    """An answer in one of `FORMATS`.

    `table` shortens cells longer than `widest`; `csv` writes lists as JSON; `json` is one array of
    objects, NaN as null; blobs are base64 in both.

    Raises:
        StoreError: another format.
    """
    if isinstance(rows, list):
        rows = pa.Table.from_pylist(rows)
    if form == "parquet":
        sink = pa.BufferOutputStream()
        pq.write_table(rows, sink, compression="zstd")
        return bytes(sink.getvalue())
    if form == "json":
        objects = [{name: _json(value) for name, value in row.items()} for row in rows.to_pylist()]
        return json.dumps(objects, ensure_ascii=False, allow_nan=False).encode() + b"\n"
    if form == "csv":
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(rows.column_names)
        writer.writerows([_cell(value, None) for value in row] for row in _rows(rows))
        return text.getvalue().encode()
    if form == "table":
        return _aligned(rows, widest).encode()
    raise StoreError(f"no format {form!r}; there are {', '.join(FORMATS)}")


def _rows(rows: pa.Table) -> Iterator[tuple[Any, ...]]:
    # By position, not by name: an answer may have two columns of one name.
    return zip(*(column.to_pylist() for column in rows.columns), strict=True)


def _aligned(rows: pa.Table, widest: int) -> str:
    lines = [rows.column_names] + [[_cell(value, widest) for value in row] for row in _rows(rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    right = [pa.types.is_integer(kind) or pa.types.is_floating(kind) for kind in rows.schema.types]
    lines.insert(1, ["-" * width for width in widths])
    padded = (
        "  ".join(
            cell.rjust(width) if number else cell.ljust(width)
            for cell, width, number in zip(line, widths, right, strict=True)
        ).rstrip()
        for line in lines
    )
    return "\n".join(padded) + "\n"


def _cell(value: Any, widest: int | None) -> str:
    """One value on one line; `widest` None means exact, for a program."""
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.6g}" if widest else repr(value)
    if isinstance(value, bytes):
        return f"{len(value)} bytes" if widest else base64.b64encode(value).decode()
    if isinstance(value, bool | int | str):
        text = str(value)
    elif isinstance(value, datetime):
        text = value.isoformat(sep=" ")
    else:
        text = json.dumps(_json(value), ensure_ascii=False)
    if widest is None:
        return text
    text = text.replace("\n", "\\n")
    return text if len(text) <= widest else text[: widest - 1] + "…"


def _json(value: Any) -> Any:
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, list | tuple):
        return [_json(item) for item in value]
    if isinstance(value, dict):
        return {str(name): _json(item) for name, item in value.items()}
    if value is None or isinstance(value, bool | int | str):
        return value
    return value.isoformat() if isinstance(value, datetime | date) else str(value)
