"""A part: one Parquet file that vouches for itself.

Its footer carries the sha256 of the whole file, taken while 64 zeros stand in the digest's own place. So a change of
any byte, in the data or in the footer, is found with nothing but the file; no second file can get lost or lag behind.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from storage.errors import StoreError, one_line
from storage.rows import check_rules
from storage.tables import VERSION, Table

_SEAL = b"engram.sha256"
_BLANK = b"0" * 64
# In Parquet's footer (Thrift's compact protocol) a metadata entry is: key, 0x18 (field 2, string), length 64, value.
_PATTERN = re.compile(re.escape(_SEAL) + rb"\x18\x40([0-9a-f]{64})")
# About a million list elements a row group: large enough to compress, small enough to read one step of many.
_GROUP_ELEMENTS = 1 << 20


def encode(table: Table, rows: pa.Table, siblings: int = 1) -> bytes:
    """Rows, already conforming, as the bytes of a sealed part.

    Args:
        siblings: how many parts were written together under the same key.
    """
    sink = pa.BufferOutputStream()
    with pq.ParquetWriter(sink, rows.schema, **_layout(table)) as writer:
        writer.write_table(rows, row_group_size=_group_rows(table, rows))
        writer.add_key_value_metadata({"engram.siblings": str(siblings), _SEAL.decode(): _BLANK.decode()})
    data = bytearray(sink.getvalue())
    spot = _find_seal(data)
    if spot is None:
        raise StoreError("this pyarrow writes Parquet footers in another form; the part cannot be sealed")
    data[spot : spot + 64] = hashlib.sha256(data).hexdigest().encode()
    return bytes(data)


def damage(data: bytes, table: Table, partition: Mapping[str, Any]) -> str | None:
    """What is wrong with the bytes of a part of `table` that lies in `partition`; None if nothing is."""
    spot = _find_seal(data)
    if spot is None:
        return "not a whole part: no seal in its footer"
    blank = bytearray(data)
    blank[spot : spot + 64] = _BLANK
    if hashlib.sha256(blank).hexdigest().encode() != data[spot : spot + 64]:
        return "its bytes have changed since it was written"
    # From here on the file is what some writer sealed; what follows finds parts that were sealed wrong or moved.
    try:
        rows = pq.read_table(pa.BufferReader(data), page_checksum_verification=True)
        version = (rows.schema.metadata or {}).get(b"engram.version", b"none").decode()
        if version != str(VERSION):
            return f"has schema version {version}, not {VERSION} as the store; move it out of the store"
        if not rows.schema.equals(table.schema, check_metadata=False):
            return f"its columns are not those of {table.name}"
        for name, value in partition.items():
            if rows[name].unique().to_pylist() not in ([value], []):
                return f"lies under {name}={value} but holds another {name}"
        check_rules(table, rows)
    except (StoreError, pa.ArrowException, OSError) as error:
        return one_line(error)
    return None


def siblings(footer: Mapping[bytes, bytes]) -> int:
    """How many parts were written together with the part that has this footer metadata."""
    return int(footer[b"engram.siblings"])


def _find_seal(data: bytes | bytearray) -> int | None:
    if len(data) < 12 or data[-4:] != b"PAR1":
        return None
    start = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    found = list(_PATTERN.finditer(data, max(start, 0))) if start >= 4 else []
    return found[-1].start(1) if found else None


def _layout(table: Table) -> dict[str, Any]:
    """Encodings by type: deltas for members, split bytes for floats, dictionaries for names, blobs as they are.

    Chosen by measurement (benchmarks/store.py; docs/store.md has figures): nothing else comes below 1.3 bytes a member
    or 3.5 a float, and a higher level of zstd saves half a percent for twice the time.
    """
    encodings, dictionaries, compression = {}, [], {}
    for field in table.schema:
        path = f"{field.name}.list.element" if pa.types.is_list(field.type) else field.name
        kind = field.type.value_type if pa.types.is_list(field.type) else field.type
        if pa.types.is_uint32(kind) and path != field.name:
            encodings[path] = "DELTA_BINARY_PACKED"
        elif pa.types.is_float32(kind) and path != field.name:
            encodings[path] = "BYTE_STREAM_SPLIT"
        elif not pa.types.is_binary(kind):
            dictionaries.append(path)
        compression[path] = "NONE" if pa.types.is_binary(kind) else "ZSTD"
    # Smallest and largest values let a reader skip row groups; of members and blobs nobody asks for a range.
    ranged = [
        field.name for field in table.schema if not (pa.types.is_nested(field.type) or pa.types.is_binary(field.type))
    ]
    return {
        "compression": compression,
        "use_dictionary": dictionaries,
        "column_encoding": encodings or None,
        "write_statistics": ranged,
        "write_page_checksum": True,
    }


def _group_rows(table: Table, rows: pa.Table) -> int:
    lists = [rows[field.name] for field in table.schema if pa.types.is_list(field.type)]
    elements: int = sum(pc.sum(pc.list_value_length(column)).as_py() or 0 for column in lists)
    fitting: int = rows.num_rows * _GROUP_ELEMENTS // max(elements, 1)
    return max(1, min(1 << 17, fitting))
