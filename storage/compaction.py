"""Compaction: the small parts of a partition are merged into larger ones, beside readers and writers, without locks.

A merged part holds every unit of the parts that it was made of, and their names. It appears in one step, and from then
on readers leave these parts out; see `storage.units`. They are removed later, when nobody can be reading them any more.
So whatever interrupts a compaction, or does it twice at once, every table has the same rows at every moment.

Nothing that a part is asked for is lost with it: work that was done under its key is found by that key, and the merged
part answers for its address and its seal where an audit rests on it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from storage.backend import HOUR, Entry
from storage.checked import dataset, is_merged, refusal
from storage.errors import StoreError, one_line
from storage.keys import content_key
from storage.parts import MERGED, Held, Seal, check_rows, encode, held, siblings, statement, unseal
from storage.processes import not_ended, still_there
from storage.render import visible
from storage.rows import find_table
from storage.store import Store, clear
from storage.tables import TABLES, Table
from storage.units import counting, digests, overlapping

SMALL = 1 << 20
"""Bytes. Of parts that are smaller, a partition keeps one."""
LARGEST = 1 << 26
"""Bytes of the parts that are merged into one at most, since their rows have to fit in memory."""


@dataclass
class Compaction:
    """What was done, or would be."""

    merged: int = 0
    """How many parts were merged,"""
    into: int = 0
    """into how many,"""
    size: int = 0
    """and their bytes."""
    removed: int = 0
    """How many parts were removed whose rows are in merged ones,"""
    freed: int = 0
    """and their bytes."""
    waiting: int = 0
    """How many such parts stay, since somebody may be reading them."""
    notes: list[str] = field(default_factory=list)
    """What was left as it is, and why: a line each."""

    def words(self, dry_run: bool = False) -> list[str]:
        """What was done, or would be, in lines for a person."""
        would = "would have " * dry_run
        lines = []
        if self.merged:
            lines += [f"{would}merged {self.merged} parts ({self.size / 1e6:.1f} MB) into {self.into}"]
        if self.removed:
            lines += [f"{would}removed {self.removed} parts that were merged ({self.freed / 1e6:.1f} MB)"]
        lines = lines or ["there is nothing to merge"]
        if self.waiting:
            lines += [f"{self.waiting} parts that were merged stay; `engram compact --gc` removes them an hour later"]
        return lines + self.notes


def compact(
    store: Store, gc: bool = False, dry_run: bool = False, on_progress: Callable[[int, int], None] | None = None
) -> Compaction:
    """Merge small parts of each partition into larger ones.

    Parts that were written since the first of the running audits began are left, and so are those that share rows with
    them; and folders with a part that is not sound. It may be killed at any moment and run by several at once.

    Args:
        store: the store.
        gc: also remove parts that were merged more than an hour ago. Who has been reading since then is told that a
            part is gone.
        dry_run: say what would be done, and write nothing.
        on_progress: called with the parts that were merged, and how many there are to merge.

    Raises:
        StoreError: a store that cannot be listed or written; on S3 with `gc`, no boto3.
    """
    found = Compaction()
    before, running = _running(store)
    plans: list[tuple[Table, list[Entry]]] = []
    gone: list[Entry] = []
    busy = 0
    for table in TABLES.values():
        folders: dict[str, list[Entry]] = {}
        for entry in store.entries(table.name):
            folders.setdefault(entry.path.rpartition("/")[0], []).append(entry)
        for entries in folders.values():
            plan = _plan(store, entries, before)
            plans += [(table, batch) for batch in plan.batches]
            gone += plan.gone
            found.waiting += plan.waiting
            found.notes += plan.notes
            busy += plan.busy
    if busy:
        found.notes.append(f"{busy} parts stay as they are while the audit {running} is running")
    total = sum(len(batch) for _, batch in plans)
    for table, batch in plans:
        if not dry_run:
            try:
                _put_merged(store, table, [_source(store, table, entry) for entry in batch])
            except FileNotFoundError:  # whoever compacts at the same time has removed what both merge
                continue
        found.merged += len(batch)
        found.into += 1
        found.size += sum(entry.size for entry in batch)
        if on_progress:
            on_progress(found.merged, total)
    if gc:
        found.removed, found.freed = len(gone), sum(entry.size for entry in gone)
        if gone and not dry_run:
            with clear("cannot remove parts that were merged"):
                store.backend.remove([entry.path for entry in gone])
    else:
        found.waiting += len(gone)
    return found


def take_out(store: Store, table: str, column: str, values: Collection[Any]) -> list[str]:
    """Remove all rows of a table that have one of these values in a column, whatever parts they lie in.

    A part that has other rows as well is replaced by one with these alone, which answers for it where audits rest on
    it; work that was done under the keys of the part counts as not done, and is done again if it is asked for. It may
    be killed at any moment, and then removes the rest when it is called again. A compaction that runs at the same time
    may bring the rows back: call it again then.

    Returns:
        Addresses of the parts that were removed.

    Raises:
        StoreError: an unknown table; a part that is not sound; something cannot be removed, or on S3 without boto3.
    """
    definition = find_table(table)
    entries = store.entries(table)
    seals = store.checked.look(entries)
    if faults := {address: one for address, one in seals.items() if isinstance(one, str)}:
        raise refusal(faults)
    is_held = store.checked.held(seals)
    chosen = pc.field(column).isin(pa.array(values, definition.schema.field(column).type))
    leftovers, replaced = list[str](), list[str]()
    for entry, fragment in zip(entries, dataset(store.checked, definition, entries).get_fragments(), strict=True):
        with clear(f"cannot read {visible(entry.path)}"):
            if not fragment.count_rows(filter=chosen):
                continue
        if is_held(entry.path):
            leftovers.append(entry.path)
            continue
        part = _source(store, definition, entry)
        others = part.rows.filter(~chosen)
        if others.num_rows:
            # It has fewer units than the part itself, so it begins to count when that is gone.
            _put_merged(store, definition, [part], others)
        replaced.append(entry.path)
    with clear(f"cannot remove rows of {table}"):
        # Those that a merged part hides go before it does.
        for addresses in (leftovers, replaced):
            if addresses:
                store.backend.remove(addresses)
    return [*leftovers, *replaced]


@dataclass
class _Plan:
    """What is to be done in one folder."""

    batches: list[list[Entry]] = field(default_factory=list)
    """Parts to merge, each list into one."""
    gone: list[Entry] = field(default_factory=list)
    """Parts that have been in merged ones for an hour."""
    waiting: int = 0
    """How many have been for less."""
    busy: int = 0
    """How many are left for an audit that runs."""
    notes: list[str] = field(default_factory=list)


def _plan(store: Store, entries: list[Entry], before: float) -> _Plan:
    """What is to be done with the parts of one folder; those that are not older than `before` stay as they are."""
    plan = _Plan()
    merged = store.checked.look(entry for entry in entries if is_merged(entry.path))
    old = time.time() - HOUR
    settled = {entry.path for entry in entries if is_merged(entry.path) and entry.modified < old}
    is_held = store.checked.held(merged)
    is_gone = store.checked.held({address: one for address, one in merged.items() if address in settled})
    plan.gone = [entry for entry in entries if is_gone(entry.path)]
    plan.waiting = sum(is_held(entry.path) for entry in entries) - len(plan.gone)
    rest = [entry for entry in entries if not is_held(entry.path)]
    if len(rest) < 2:
        return plan
    seals = store.checked.look(rest)
    if faults := {address: one for address, one in seals.items() if isinstance(one, str)}:
        address, reason = min(faults.items())
        plan.notes = [f"{visible(address)} {reason}; its folder stays as it is"]
        return plan
    by_path = {entry.path: entry for entry in rest}
    units = {address: seal.units for address, seal in seals.items() if isinstance(seal, Seal)}
    groups = [[by_path[address] for address in group] for group in overlapping(units)]
    idle = [group for group in groups if all(entry.modified < before for entry in group)]
    plan.batches = batches(idle)
    plan.busy = len(rest) - sum(map(len, idle))
    return plan


def batches(groups: list[list[Entry]]) -> list[list[Entry]]:
    """Which parts of one folder are merged, each list into one.

    Parts below `SMALL` always are. Of others the smallest are as long as the next one is not more than twice as large
    as all before it together: then a byte is written anew about as often as the logarithm of the number of parts, and
    there are as many parts at most.

    Args:
        groups: parts that overlap are in one group, which is not divided: who merged some of them could change which
            of them counts.
    """
    found: list[list[Entry]] = []
    batch: list[Entry] = []
    size = 0
    for group in sorted(groups, key=lambda group: (_size(group), group[0].path)):
        own = _size(group)
        if batch and (own > max(2 * size, SMALL) or size + own > LARGEST):
            found.append(batch)
            batch, size = [], 0
        batch, size = batch + group, size + own
    return [batch for batch in (*found, batch) if len(batch) > 1]


def _size(group: list[Entry]) -> int:
    return sum(entry.size for entry in group)


@dataclass
class _Source:
    """A part that is merged."""

    entry: Entry
    seal: Seal
    rows: pa.Table
    held: list[Held]
    """Itself, and what it holds."""


def _source(store: Store, table: Table, entry: Entry) -> _Source:
    """A part, read and checked anew.

    Raises:
        StoreError: it is not sound.
        FileNotFoundError: it is gone.
    """
    try:
        data = store.backend.read(entry.path)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise StoreError(f"cannot read {visible(entry.path)}: {one_line(error)}") from error
    seal, rows = unseal(data, table, entry.path), check_rows(data, table, entry.path).cast(table.schema)
    footer = pq.read_metadata(pa.BufferReader(data)).metadata
    name = entry.path.rpartition("/")[2].removesuffix(".parquet")
    own = Held(name, siblings(footer), statement(table, seal.sha256, rows))
    return _Source(entry, seal, rows, [own, *held(footer)])


def _put_merged(store: Store, table: Table, sources: list[_Source], left: pa.Table | None = None) -> str:
    """Put the part in place that has the rows of these and answers for them, and return its address.

    Args:
        left: the only rows that it is to have, of one source from which the others are taken out. It then answers for
            what that was, but neither hides it nor counts as its work.
    """
    # The same parts are merged into the same part, whoever does it.
    folder = sources[0].entry.path.rpartition("/")[0]
    named = sorted((one.entry.path, one.seal.sha256, None if left is None else left.num_rows) for one in sources)
    address = f"{folder}/{MERGED}{content_key(named)}.parquet"
    counts = counting({one.entry.path: one.seal.units for one in sources})
    kept = []
    for one in sorted(sources, key=lambda one: one.entry.path):
        if one.entry.path in counts.whole:
            kept.append(one.rows)
        elif one.entry.path in counts.shared:
            mask = np.isin(digests(table, one.rows), counts.shared[one.entry.path])
            kept.append(one.rows.filter(pa.array(mask)))
    rows = pa.concat_tables(kept) if kept else sources[0].rows.slice(0, 0)
    rows = (rows if left is None else left).combine_chunks()
    # By what names a unit, so that statistics tell where it is; rows of one unit stay in their order.
    place = pa.array(range(rows.num_rows), pa.int64())
    order = pa.table([*(rows[name] for name in table.unit), place], names=[*table.unit, "place in the parts"])
    order = order.sort_by([(name, "ascending") for name in order.column_names])
    rows = rows.take(order["place in the parts"].combine_chunks())
    every: dict[tuple[str, str], int] = {}
    for part in (part for one in sources for part in one.held):
        there = part.siblings if left is None else 0
        every[part.name, part.said] = max(there, every.get((part.name, part.said), 0))
    holding = [Held(name, together, said) for (name, said), together in sorted(every.items())]
    with clear(f"cannot write {address}"):
        store.backend.put(address, encode(table, rows, address, held=holding))
    return address


def _running(store: Store) -> tuple[float, str]:
    """When the first of the running audits began, in seconds since 1970, and its id; infinity where none runs."""
    running = not_ended(store.read("audits").to_pylist())
    there = still_there(running, store.read("processes").to_pylist())
    began = {name: running[name]["started_at"].timestamp() for name in there}
    first = min(began, key=lambda name: began[name], default="")
    return began.get(first, math.inf), first
