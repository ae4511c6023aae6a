"""Units of work: rows that were made together, which count once, whichever parts hold them.

Workers and audits that overlap write parts that share units, and a merged part holds the units of those it was made of.
So parts of one partition have an order, those with the most units first and then by address, and a unit counts as the
first part has it. That depends on nothing but the parts themselves: every reader finds the same rows, without locks.

Which columns name a unit is said by `storage.tables`. A part keeps digests of its units in its footer.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from storage.tables import Table

Digests = npt.NDArray[np.uint64]
"""Digests of units. A collision, which a million units have once in 30 million stores, hides a part at worst if it has
that one unit alone; where parts overlap SQL compares the columns themselves."""
_DIGEST = np.dtype(">u8")


def digest(*values: object) -> int:
    """The digest of a unit: the first 8 bytes of the sha256 of its values as JSON, read as a number."""
    text = json.dumps(values, separators=(",", ":"))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def digests(table: Table, rows: pa.Table | pa.RecordBatch) -> Digests:
    """For each row the digest of its unit; times count as microseconds since 1970.

    Args:
        rows: with the columns that name a unit; others are of no account.
    """
    columns = []
    for name in table.unit:
        values = rows[name]
        columns.append((values.cast(pa.int64()) if pa.types.is_timestamp(values.type) else values).to_pylist())
    known: dict[tuple[object, ...], int] = {}
    found = np.empty(rows.num_rows, np.uint64)
    for number, values in enumerate(zip(*columns, strict=True)):
        if values not in known:
            known[values] = digest(*values)
        found[number] = known[values]
    return found


def units_of(table: Table, rows: pa.Table) -> Digests:
    """The digests of the units in these rows, sorted, without repeats."""
    return np.unique(digests(table, rows))


def packed(found: Digests) -> str:
    """Digests as text."""
    return base64.b64encode(found.astype(_DIGEST).tobytes()).decode()


def unpacked(text: str | bytes) -> Digests:
    """The digests that `packed` wrote.

    Raises:
        ValueError: it is no such text.
    """
    return np.frombuffer(base64.b64decode(text, validate=True), _DIGEST).astype(np.uint64)


@dataclass(frozen=True)
class Counting:
    """Of parts of one partition, those that count."""

    whole: list[str]
    """Addresses of parts that share no unit with another one of these; all of their rows count."""
    shared: dict[str, Digests]
    """By address, in their order, parts that do share some, and which of their units count as they have them."""


def counting(parts: Mapping[str, Digests]) -> Counting:
    """Which parts of one partition count, and for what. A part whose units all lie in those before it is left out.

    Args:
        parts: by address, the digests of its units, without repeats.
    """
    order = sorted(parts, key=lambda address: (-len(parts[address]), address))
    sizes = np.array([len(parts[address]) for address in order], int)
    every = np.concatenate([parts[address] for address in order]) if order else np.empty(0, np.uint64)
    owners = np.repeat(np.arange(len(order)), sizes)
    # The first occurrence in this order is the part that the unit counts of.
    different, first, inverse = np.unique(every, return_index=True, return_inverse=True)
    owned = np.bincount(owners[first], minlength=len(order))
    if len(different) == len(every):
        return Counting([address for address, size in zip(order, sizes, strict=True) if size], {})
    owner_of = owners[first][inverse]
    left_out = owned == 0
    foreign = (owner_of != owners) & ~left_out[owners]
    shared = set(owners[foreign]) | set(owner_of[foreign])
    whole = [address for n, address in enumerate(order) if owned[n] and n not in shared]
    kept = {address: every[(owners == n) & (owner_of == n)] for n, address in enumerate(order) if n in shared}
    return Counting(whole, kept)


def overlapping(parts: Mapping[str, Digests]) -> list[list[str]]:
    """The parts of one partition in groups, so that no unit lies in parts of two groups; each sorted by address."""
    names = sorted(parts)
    parent = list(range(len(names)))

    def root(number: int) -> int:
        while parent[number] != number:
            parent[number] = number = parent[parent[number]]
        return number

    if names:
        every = np.concatenate([parts[name] for name in names])
        owners = np.repeat(np.arange(len(names)), [len(parts[name]) for name in names])
        order = np.argsort(every, kind="stable")
        same = every[order][1:] == every[order][:-1]
        for one, other in zip(owners[order][:-1][same].tolist(), owners[order][1:][same].tolist(), strict=True):
            parent[root(other)] = root(one)
    groups: dict[int, list[str]] = {}
    for number, name in enumerate(names):
        groups.setdefault(root(number), []).append(name)
    return list(groups.values())
