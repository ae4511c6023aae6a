"""A part: one Parquet file that vouches for itself.

Its footer carries the part's address, which is table, partition and key, and the sha256 of the whole file, taken while
64 zeros stand in the digest's own place: the seal. So a change of any byte, in the data or in the footer, and a copy or
a move to another place are found with nothing but the file; no second file can get lost or lag behind.

The footer also holds digests of the units whose rows it has, and a merged part's the names of the parts that it was
made of, for which it answers; see `storage.units` and `storage.compaction`.

A seal finds what happens by accident and what is done without care. It is no signature: who can write to the store and
knows this file can seal a part of their own.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from storage.errors import StoreError, one_line
from storage.layout import partition_of
from storage.rows import check_rules
from storage.tables import Table
from storage.units import Digests, digest, packed, units_of, unpacked

MERGED = "merged~"
"""What the name of a merged part begins with; '~' is in no key."""
_SEAL = b"engram.sha256"
_ADDRESS = b"engram.address"
_UNITS = b"engram.units"
_HELD = b"engram.held"
_BLANK = b"0" * 64
# In Parquet's footer (Thrift's compact protocol) a metadata entry is: key, 0x18 (field 2, string), length 64, value.
_PATTERN = re.compile(re.escape(_SEAL) + rb"\x18\x40([0-9a-f]{64})")
# About a million list elements a row group, or 8 MiB of files: large enough to compress, small enough to read one step,
# or some of the images, of many. So few rows that statistics tell where an audit is among hundreds.
_GROUP_ELEMENTS = 1 << 20
_GROUP_BYTES = 1 << 23
_GROUP_ROWS = 1 << 13


@dataclass(frozen=True)
class Seal:
    """What a sound part says of itself."""

    sha256: str
    """The digest in its footer."""
    bound: bool
    """Whether the footer names the part's address; earlier releases sealed parts without one."""
    packed_units: str
    """The digests of its units."""
    packed_held: str = ""
    """Of a merged part, the digests of the names that it holds; see `name_digest`."""
    range: tuple[str, str] | None = None
    """The least and the greatest value of the first column that names its units, where that is known."""

    @cached_property
    def units(self) -> Digests:
        """The digests of its units, sorted."""
        return unpacked(self.packed_units)

    @cached_property
    def held(self) -> Digests:
        """The digests of the names that it holds, sorted."""
        return unpacked(self.packed_held)


@dataclass(frozen=True)
class Held:
    """A part of the same partition whose rows are in a merged part."""

    name: str
    """Its key, or the name of what was a merged part itself."""
    siblings: int
    """How many parts were written together with it; 0 where some of its rows were taken out since, so that its work
    counts as not done."""
    said: str
    """What it said; see `statement`."""


def name_digest(name: str) -> int:
    """What `Seal.held` has for the name of a part, without its ending."""
    return digest(name)


def encode(table: Table, rows: pa.Table, address: str, siblings: int = 1, held: Sequence[Held] = ()) -> bytes:
    """Rows, already conforming, as the bytes of a sealed part.

    Args:
        address: where the part will lie, relative to the store.
        siblings: how many parts were written together under the same key.
        held: the parts whose rows these are.
    """
    sink = pa.BufferOutputStream()
    with pq.ParquetWriter(sink, rows.schema, **_layout(table)) as writer:
        writer.write_table(rows, row_group_size=_group_rows(table, rows))
        entries = {"engram.siblings": str(siblings)}
        if table.unit:
            entries[_UNITS.decode()] = packed(units_of(table, rows))
        if held:
            entries[_HELD.decode()] = json.dumps([[one.name, one.siblings, one.said] for one in held])
        entries |= {_ADDRESS.decode(): address, _SEAL.decode(): _BLANK.decode()}
        writer.add_key_value_metadata(entries)
    data = bytearray(sink.getvalue())
    spot = _find_seal(data)
    if spot is None:
        raise StoreError("this pyarrow writes Parquet footers in another form; the part cannot be sealed")
    data[spot : spot + 64] = hashlib.sha256(data).hexdigest().encode()
    return bytes(data)


def unseal(data: bytes, table: Table, address: str) -> Seal:
    """Check a part of `table` that lies at `address`: its bytes, that this is its place, and that its columns fit.

    Raises:
        StoreError: what is wrong with it, without its address.
    """
    spot = _find_seal(data)
    if spot is None:
        raise StoreError("not a whole part: no seal in its footer")
    view = memoryview(data)
    total = hashlib.sha256(view[:spot])
    total.update(_BLANK)
    total.update(view[spot + 64 :])
    sealed = bytes(view[spot : spot + 64]).decode()
    if total.hexdigest() != sealed:
        raise StoreError("its bytes have changed since it was written")
    # From here on the file is what some writer sealed; what follows finds parts that were sealed wrong or moved.
    try:
        with pq.ParquetFile(pa.BufferReader(data)) as file:
            footer, schema = file.metadata.metadata or {}, file.schema_arrow
            _check_footer(footer, schema, table, address)
            bound = _ADDRESS in footer
            if not bound:
                # Its columns say where it belongs, all but its key.
                _check_partition(file.read(list(table.partition)), table, address)
            units = footer[_UNITS].decode() if _UNITS in footer else _units(table, file)
            names = np.unique(np.array([name_digest(one.name) for one in held(footer) if one.siblings], np.uint64))
            ends = _range(table, file.metadata)
    except (pa.ArrowException, OSError) as error:
        raise StoreError(one_line(error)) from error
    return Seal(sealed, bound, units, packed(names), ends)


def check_rows(data: bytes, table: Table, address: str) -> pa.Table:
    """The rows of a part that `unseal` found sound, after a check that they lie in their partition, keep the rules, and
    are those of the units in its footer.

    Raises:
        StoreError: what is wrong with them.
    """
    try:
        with pq.ParquetFile(pa.BufferReader(data), page_checksum_verification=True) as file:
            rows, footer = file.read(), file.metadata.metadata or {}
    except (pa.ArrowException, OSError) as error:
        raise StoreError(one_line(error)) from error
    _check_partition(rows, table, address)
    check_rules(table, rows)
    if table.unit and _UNITS in footer and footer[_UNITS].decode() != packed(units_of(table, rows)):
        raise StoreError("its rows are not of the units that its footer names")
    return rows


def statement(table: Table, sha256: str, rows: pa.Table | None) -> str:
    """Digest of what a part says, the same when it is deleted and computed anew to the same rows.

    That is its seal. Where a column tells when the row was made, which differs at each making, it is the sha256 of the
    rows without these columns.

    Args:
        sha256: the part's seal.
        rows: its rows; None if the table has no such column.
    """
    if not timed(table):
        return sha256
    if rows is None:
        raise ValueError(f"the rows of a part of {table.name} are needed")
    kept = [field.name for field in table.schema if not pa.types.is_timestamp(field.type)]
    plain = json.dumps(rows.select(kept).to_pylist(), sort_keys=True, default=lambda value: value.hex())
    return hashlib.sha256(plain.encode()).hexdigest()


def timed(table: Table) -> bool:
    """Whether a column tells when the row was made."""
    return any(pa.types.is_timestamp(kind) for kind in table.schema.types)


def _check_footer(footer: Mapping[bytes, bytes], schema: pa.Schema, table: Table, address: str) -> None:
    version = footer.get(b"engram.version", b"none").decode()
    own, name = footer.get(_ADDRESS), footer.get(b"engram.table", b"none").decode()
    if own is not None and own != address.encode():
        raise StoreError(f"is a copy of {own.decode()} or was moved from there: remove it, or move it back")
    if name != table.name:
        raise StoreError(f"is a part of {name}, not of {table.name}; move it out of the store")
    if version != (wanted := table.schema.metadata[b"engram.version"].decode()):
        raise StoreError(f"has schema version {version}, not {wanted} as the store; move it out of the store")
    if not schema.equals(table.schema, check_metadata=False):
        raise StoreError(f"its columns are not those of {table.name}")


def _units(table: Table, file: pq.ParquetFile) -> str:
    """The units of a part that does not name them, as earlier releases wrote it; of their own tables none are known."""
    return packed(units_of(table, file.read(list(table.unit)))) if table.unit else ""


def _range(table: Table, metadata: pq.FileMetaData) -> tuple[str, str] | None:
    """The least and the greatest value of the first column that names a unit, as the statistics of a part have them."""
    if not table.unit or not metadata.num_rows:
        return None
    number = metadata.schema.names.index(table.unit[0])
    groups = [metadata.row_group(group).column(number).statistics for group in range(metadata.num_row_groups)]
    if not all(
        one is not None and one.has_min_max and isinstance(one.min, str) and not one.null_count for one in groups
    ):
        return None
    return min(one.min for one in groups), max(one.max for one in groups)


def _check_partition(rows: pa.Table, table: Table, address: str) -> None:
    for name, value in partition_of(table, address).items():
        if rows[name].unique().to_pylist() not in ([value], []):
            raise StoreError(f"lies under {name}={value} but holds another {name}")


def siblings(footer: Mapping[bytes, bytes] | None) -> int:
    """How many parts were written together with the part that has this footer metadata.

    Raises:
        ValueError: it is the footer of no part.
    """
    count = (footer or {}).get(b"engram.siblings", b"")
    if not count.isdigit():
        raise ValueError("it is no part of a store: remove it")
    return int(count)


def held(footer: Mapping[bytes, bytes] | None) -> list[Held]:
    """The parts whose rows are in the part that has this footer metadata; none if it is not a merged one."""
    return [Held(*one) for one in json.loads((footer or {}).get(_HELD, b"[]"))]


def _find_seal(data: bytes | bytearray) -> int | None:
    if len(data) < 12 or data[-4:] != b"PAR1":
        return None
    start = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    found = list(_PATTERN.finditer(data, max(start, 0))) if start >= 4 else []
    return found[-1].start(1) if found else None


def _layout(table: Table) -> dict[str, Any]:
    """Encodings by type: deltas for members, split bytes for floats, dictionaries for names, blobs as they are.

    Chosen by measurement (benchmarks/store.py; docs/store.md has numbers): nothing else comes below 1.3 bytes a member
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
    blobs = [rows[field.name] for field in table.schema if pa.types.is_binary(field.type)]
    size: int = sum(pc.sum(pc.binary_length(column)).as_py() or 0 for column in blobs)
    return max(
        1,
        min(
            _GROUP_ROWS,
            *(
                rows.num_rows * most // max(there, 1)
                for most, there in ((_GROUP_ELEMENTS, elements), (_GROUP_BYTES, size))
            ),
        ),
    )
