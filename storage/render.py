"""A table of an answer as text or bytes, for people and for programs."""

from __future__ import annotations

import base64
import json
import math
import re
import unicodedata
from collections.abc import Iterable, Iterator
from datetime import date, datetime, time
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from storage.errors import StoreError, one_line

FORMATS = ("table", "csv", "json", "parquet")
"""Formats of `render`."""
WIDEST = 60
"""Characters of a cell that `table` shows."""
_BATCH = 1024
"""Rows that are Python objects at a time."""
_FORMULA = re.compile(r"'*[=+\-@\t\r＝＋－＠]")
"""The beginning of a text that a spreadsheet takes for a formula, or that `safe_cell` has put a quote before."""
_MARK = '"'
_QUOTED = re.compile(r'[,"\r\n]')
_JOINERS = "\u200c\u200d"
"""Invisible, but part of the spelling of some languages, and of emoji."""


def render(rows: pa.Table | list[dict[str, Any]], form: str = "table", widest: int = WIDEST) -> bytes:
    """An answer in one of `FORMATS`.

    `table` shortens cells longer than `widest` and writes control characters as escapes (`visible`); `csv` writes lists
    as JSON and puts a quote before texts that a spreadsheet would take for formulas (`safe_cell`); `json` is one array
    of objects, NaN as null; blobs are base64 in both. Of two columns of one name the second is called name_1 in `json`.

    Raises:
        StoreError: another format; a column that Parquet has no type for.
    """
    return b"".join(rendered(rows, form, widest))


def rendered(rows: pa.Table | list[dict[str, Any]], form: str = "table", widest: int = WIDEST) -> Iterator[bytes]:
    """The same piece by piece, so that a large answer needs little more memory than it has already."""
    if isinstance(rows, list):
        rows = pa.Table.from_pylist(rows)
    if form == "parquet":
        yield _parquet(rows)
    elif form == "json":
        yield from _json_pieces(rows)
    elif form == "csv":
        yield csv_line(map(safe_cell, rows.column_names)).encode()
        for batch in _batches(rows):
            yield "".join(csv_line(map(_exact, row)) for row in batch).encode("utf-8", "surrogateescape")
    elif form == "table":
        yield from _aligned(rows, widest)
    else:
        raise StoreError(f"no format {form!r}; there are {', '.join(FORMATS)}")


def visible(text: str) -> str:
    r"""A text for a terminal: whatever could steer it, or show the text otherwise than it is, as an escape like `\x1b`.

    These are control characters of both ranges, line and paragraph separators, and invisible ones, such as those that
    turn the direction of writing; not the joiners that some languages and emoji are spelt with.
    """
    return "".join(map(_visible, text)) if not text.isprintable() else text


def visible_lines(text: str) -> str:
    """The same for a text of several lines."""
    return "\n".join(map(visible, text.split("\n")))


def safe_cell(text: str) -> str:
    """A text for a cell of a CSV file: with a quote before it if a spreadsheet would take it for a formula.

    A formula may run programs and send data. Texts begin so that begin with =, +, -, @, tab or carriage return, also
    after quotes, so that `plain_cell` gives back every text as it was.
    """
    return f"'{text}" if _FORMULA.match(text) else text


def csv_line(cells: Iterable[str]) -> str:
    """A line of a CSV file; Python's writer leaves a carriage return unquoted, which ends the line for readers."""
    quoted = [f'"{cell.replace(_MARK, 2 * _MARK)}"' if _QUOTED.search(cell) else cell for cell in cells]
    return ('""' if quoted == [""] else ",".join(quoted)) + "\n"


def _visible(character: str) -> str:
    if character in _JOINERS or unicodedata.category(character) not in ("Cc", "Cf", "Cs", "Zl", "Zp"):
        return character
    known = {"\n": "\\n", "\t": "\\t", "\r": "\\r"}
    code = ord(character)
    if code < 0x100:
        return known.get(character, f"\\x{code:02x}")
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def _parquet(rows: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    for name, column in zip(rows.column_names, rows.columns, strict=True):
        try:
            pq.write_table(pa.table([column.slice(0, 0)], ["column"]), pa.BufferOutputStream())
        except pa.ArrowException as error:
            raise StoreError(
                f"Parquet has no type for the column {visible(name)!r}: cast it, {name}::VARCHAR"
            ) from error
    try:
        pq.write_table(rows, sink, compression="zstd")
    except pa.ArrowException as error:
        raise StoreError(f"the answer cannot be written as Parquet, cast its columns: {one_line(error)}") from error
    return sink.getvalue().to_pybytes()


def _json_pieces(rows: pa.Table) -> Iterator[bytes]:
    names: list[str] = []
    for name in rows.column_names:
        unique, number = name, 0
        while unique in names:
            number += 1
            unique = f"{name}_{number}"
        names.append(unique)
    opening = "["
    for batch in _batches(rows):
        objects = [
            json.dumps(dict(zip(names, map(_json, row), strict=True)), ensure_ascii=False, allow_nan=False)
            for row in batch
        ]
        # JSON escapes control characters of the first range itself; of the rest, an escape says the same.
        yield (opening + _escaped(", ".join(objects))).encode("utf-8", "surrogatepass")
        opening = ", "
    yield b"[]\n" if opening == "[" else b"]\n"


def _escaped(text: str) -> str:
    if text.isprintable():
        return text
    plain = (one if one.isprintable() or _visible(one) == one else json.dumps(one)[1:-1] for one in text)
    return "".join(plain).replace("\x7f", "\\u007f")


def _batches(rows: pa.Table) -> Iterator[list[tuple[Any, ...]]]:
    # By position, not by name: an answer may have two columns of one name.
    for start in range(0, rows.num_rows, _BATCH):
        columns = rows.slice(start, _BATCH).columns
        yield list(zip(*map(_values, columns), strict=True))


def _values(column: pa.ChunkedArray) -> list[Any]:
    if "[ns" not in str(column.type):  # where pandas is installed, nanoseconds would come as values of its own
        try:
            return column.to_pylist()
        except (ValueError, OverflowError):  # times that Python has no word for: infinity, the year 10000
            pass
    return [_value(scalar) for scalar in column]


def _value(scalar: pa.Scalar) -> Any:
    kind = scalar.type
    if not scalar.is_valid:
        return None
    if pa.types.is_map(kind):
        return [(_value(pair[0]), _value(pair[1])) for pair in scalar.values]
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        return [_value(one) for one in scalar.values]
    if pa.types.is_struct(kind):
        return {name: _value(one) for name, one in scalar.items()}
    if pa.types.is_dictionary(kind):
        return _value(scalar.value)
    try:
        if pa.types.is_timestamp(kind) and kind.unit == "ns":
            return scalar.cast(pa.timestamp("us", kind.tz)).as_py()  # refuses what is no whole microsecond
        if pa.types.is_duration(kind) and kind.unit == "ns":
            return scalar.cast(pa.duration("us")).as_py()
        return scalar.as_py()
    except (ValueError, OverflowError):
        return _moment(scalar)


class _Moment(str):
    """A time that Python has no value for."""


def _moment(scalar: pa.Scalar) -> _Moment:
    """A time as text; DuckDB writes its infinities as the largest number of days or seconds."""
    kind, number = scalar.type, scalar.value
    largest = 2**31 - 1 if pa.types.is_date32(kind) else 2**63 - 1
    if abs(number) == largest:
        return _Moment("infinity" if number > 0 else "-infinity")
    if pa.types.is_duration(kind):
        return _Moment(np.timedelta64(number, kind.unit))
    unit: Any = "D" if pa.types.is_date32(kind) else "ms" if pa.types.is_date64(kind) else kind.unit
    text = str(np.datetime64(number, unit))
    if pa.types.is_time(kind):
        return _Moment(text.partition("T")[2])
    if text.startswith("-"):  # ISO 8601 has four digits at least
        text = "-" + text[1:].partition("-")[0].zfill(4) + text[text.index("-", 1) :]
    return _Moment(text + ("+00:00" if pa.types.is_timestamp(kind) and kind.tz else ""))


def _aligned(rows: pa.Table, widest: int) -> Iterator[bytes]:
    header = [visible(name) for name in rows.column_names]
    widths = [len(name) for name in header]
    for batch in _batches(rows):
        for row in batch:
            widths = [max(width, len(_shown(value, widest))) for width, value in zip(widths, row, strict=True)]
    right = [pa.types.is_integer(kind) or pa.types.is_floating(kind) for kind in rows.schema.types]

    def line(cells: list[str]) -> str:
        aligned = zip(cells, widths, right, strict=True)
        return "  ".join(cell.rjust(width) if number else cell.ljust(width) for cell, width, number in aligned).rstrip()

    yield f"{line(header)}\n{line(['-' * width for width in widths])}\n".encode()
    for batch in _batches(rows):
        yield "".join(line([_shown(value, widest) for value in row]) + "\n" for row in batch).encode()


def _shown(value: Any, widest: int) -> str:
    """One value on one line, for a person."""
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, bytes):
        return f"{len(value)} bytes"
    text = visible(_text(value))
    return text if len(text) <= widest else text[: widest - 1] + "…"


def _exact(value: Any) -> str:
    """One value for a program."""
    if isinstance(value, str) and not isinstance(value, _Moment):
        return safe_cell(value)
    if isinstance(value, float):
        return repr(value)
    return base64.b64encode(value).decode() if isinstance(value, bytes) else _text(value)


def _text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, datetime):
        return value.isoformat(sep=" ")
    if isinstance(value, (list, tuple, dict)):
        return json.dumps(_json(value), ensure_ascii=False)
    return str(value)


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
    return value.isoformat() if isinstance(value, datetime | date | time) else str(value)
