"""Which parts were found sound: a part is checked in full when it is first read, and again whenever it has changed.

What was found is remembered on this machine, for this user alone, in `$ENGRAM_CACHE` or `~/.cache/engram`: a line a
part, by what the system says of the file. Losing it costs another check, nothing else.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds

from storage import remembered
from storage.backend import Backend, Entry
from storage.errors import StoreError, one_line
from storage.layout import matching, partition_of
from storage.parts import MERGED, Seal, name_digest, unseal
from storage.render import visible
from storage.tables import TABLES, VERSION, Table
from storage.units import Counting, Digests, counting, digests

OnDamage: TypeAlias = Callable[[str, str], None]
"""Called with the address of a part that is left out, and the reason."""

_SETTLED = remembered.SETTLED
_AT_ONCE = 4
_SPARE = 200
"""Lines of no use that may lie in a log beside as many as are used."""
_LOCK = threading.Lock()


@dataclass(frozen=True)
class Counted:
    """Which of some parts count."""

    whole: list[Entry]
    """Parts of which every row counts, sorted by address."""
    shared: dict[str, list[tuple[Entry, Digests]]]
    """By folder, in their order, parts that share units with others, and the units that count as each has them."""
    faults: dict[str, str]
    """By address, what is wrong with those parts that are not sound; they do not count."""

    @property
    def entries(self) -> list[Entry]:
        """All parts that count, sorted by address."""
        some = (entry for group in self.shared.values() for entry, _ in group)
        return sorted((*self.whole, *some), key=lambda entry: entry.path)


def is_merged(address: str) -> bool:
    """Whether a part was made of others, by its name."""
    return address.rsplit("/", 1)[-1].startswith(MERGED)


class Checked:
    """What is known of the parts of one backend."""

    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        self._log = _log_of(backend.url)
        self._counted: dict[str, tuple[tuple[tuple[str, str], ...], Counting]] = {}

    @cached_property
    def _known(self) -> dict[str, tuple[str, Seal]]:
        """By address, the stamp of a part and its seal, of all stores that this process opens there; read when first
        asked, since a question about no part needs it not."""
        return {} if self._log is None else _remembered(self._log)

    def seal(self, entry: Entry) -> Seal:
        """The seal of a part, checked now or before.

        Raises:
            StoreError: what is wrong with it, without its address.
        """
        return self.known(entry) or self._check(entry)

    def known(self, entry: Entry) -> Seal | None:
        """The seal of a part that was checked before and has not changed since."""
        found = self._known.get(entry.path)
        return found[1] if entry.fault is None and found is not None and found[0] == entry.stamp else None

    def counted(self, entries: Iterable[Entry]) -> Counted:
        """Of these parts, those that count: each unit once, however parts overlap.

        A part that a merged one holds is not looked at: it adds nothing, and may be removed at any moment.
        """
        listed = sorted(entries, key=lambda entry: entry.path)
        merged = self.look(entry for entry in listed if is_merged(entry.path))
        held = self.held(merged)
        seen = merged | self.look(entry for entry in listed if entry.path not in merged and not held(entry.path))
        seen = {address: one for address, one in seen.items() if not held(address)}
        faults = {address: one for address, one in seen.items() if isinstance(one, str)}
        sound = {address: one for address, one in seen.items() if isinstance(one, Seal)}
        faults |= doubles(sound)
        folders: dict[str, dict[str, Seal]] = {}
        for address, seal in sound.items():
            if address not in faults:
                folders.setdefault(address.rsplit("/", 1)[0], {})[address] = seal
        found = {folder: self._counting(folder, seals) for folder, seals in folders.items()}
        by_path = {entry.path: entry for entry in listed}
        return Counted(
            [by_path[address] for address in sorted(one for each in found.values() for one in each.whole)],
            {
                folder: [(by_path[one], units) for one, units in each.shared.items()]
                for folder, each in found.items()
                if each.shared
            },
            faults,
        )

    def held(self, parts: Mapping[str, Seal | str]) -> Callable[[str], bool]:
        """Whether the part at an address is held by one of these merged parts."""
        of = holders(parts)
        return lambda address: bool(of(address))

    def look(self, entries: Iterable[Entry]) -> dict[str, Seal | str]:
        """By address, the seal of each part, or what is wrong with it."""

        def look(entry: Entry) -> Seal | str:
            try:
                return self._check(entry)
            except StoreError as error:
                return str(error)

        listed = list(entries)
        found: dict[str, Seal | str] = {entry.path: seal for entry in listed if (seal := self.known(entry)) is not None}
        if new := [entry for entry in listed if entry.path not in found]:
            with ThreadPoolExecutor(_AT_ONCE) as pool:
                found |= zip((entry.path for entry in new), pool.map(look, new), strict=True)
        return found

    def _counting(self, folder: str, seals: Mapping[str, Seal]) -> Counting:
        """Which parts of one partition count; what was found is kept while this process runs."""
        if len(seals) == 1:
            return Counting(list(seals), {})
        state = tuple((address, seal.sha256) for address, seal in seals.items())
        if folder not in self._counted or self._counted[folder][0] != state:
            self._counted[folder] = state, counting({address: seal.units for address, seal in seals.items()})
        return self._counted[folder][1]

    def _check(self, entry: Entry) -> Seal:
        if entry.fault is not None:
            raise StoreError(entry.fault)
        now = time.time()
        try:
            data = self.backend.read(entry.path)
            seal = unseal(data, TABLES[entry.path.split("/")[0]], entry.path)
            after = self.backend.find(entry.path)
        except OSError as error:
            raise StoreError(one_line(error)) from error
        if after == entry and now - entry.changed > _SETTLED:
            with _LOCK:
                self._known[entry.path] = (entry.stamp, seal)
                line = (entry.stamp, seal.sha256, f"{seal.bound:d}", seal.packed_units, seal.packed_held)
                remembered.append(self._log, "\t".join((*line, json.dumps(seal.range), entry.path)))
        return seal


class Parts(ds.FileSystemDataset):  # type: ignore[misc]
    """Parts of one table as an Arrow dataset that knows the partition of each, and counts each unit once.

    Each scan checks the parts that it will read before it begins, and their pages when it reads them. A part that is
    not sound is refused; where `on_damage` is given, it is left out.
    """

    checked: Checked
    table: Table
    entries: Mapping[str, Entry]
    """By path in the backend's file system."""
    on_damage: OnDamage | None
    refused: dict[str, str]
    """By address, why a part was refused or left out."""

    def scanner(self, columns: Any = None, filter: Any = None, **options: Any) -> ds.Scanner:
        """As of any dataset.

        Raises:
            StoreError: a part that the scan would read is not sound.
        """
        chosen = {self.entries[fragment.path].path: fragment for fragment in self.get_fragments(filter=filter)}
        counted = self.checked.counted(self.entries[fragment.path] for fragment in chosen.values())
        faults = counted.faults
        if faults and self.on_damage is None:
            self.refused |= faults
            raise refusal(faults)
        for address in sorted(set(faults) - set(self.refused)):
            self.refused[address] = faults[address]
            self.on_damage(address, faults[address])  # type: ignore[misc]
        whole = ds.FileSystemDataset(
            [chosen[entry.path] for entry in counted.whole], self.schema, self.format, self.filesystem
        )
        plain = whole.scanner(columns=columns, filter=filter, **options)
        shared = [(chosen[entry.path], units) for group in counted.shared.values() for entry, units in group]
        if not shared:
            return plain
        batches = self._batches(plain, shared, columns, filter, options)
        return ds.Scanner.from_batches(batches, schema=plain.projected_schema)

    def _batches(
        self,
        plain: ds.Scanner,
        shared: list[tuple[ds.Fragment, Digests]],
        columns: Any,
        filter: Any,
        options: Mapping[str, Any],
    ) -> Iterator[pa.RecordBatch]:
        """The rows of `plain`, then of each shared part those of the units that count as it has them."""
        yield from plain.to_batches()
        wanted = columns if isinstance(columns, Mapping) else {name: ds.field(name) for name in columns or ()}
        if columns is None:
            wanted = {name: ds.field(name) for name in self.schema.names}
        names = plain.projected_schema.names
        # Beside what is asked for, the columns that name a unit, under names that no column has.
        own = {f"unit {name}": ds.field(name) for name in self.table.unit}
        for fragment, units in shared:
            scanner = fragment.scanner(schema=self.schema, columns={**wanted, **own}, filter=filter, **options)
            for batch in scanner.to_batches():
                unit = pa.RecordBatch.from_arrays([batch[name] for name in own], list(self.table.unit))
                counts = np.isin(digests(self.table, unit), units)
                yield batch.select(names).filter(pa.array(counts))


def holders(parts: Mapping[str, Seal | str]) -> Callable[[str], list[str]]:
    """Which of these merged parts hold the part at an address."""
    folders: dict[str, dict[int, list[str]]] = {}
    for address, one in parts.items():
        if isinstance(one, Seal) and len(one.held):
            names = folders.setdefault(address.rsplit("/", 1)[0], {})
            for name in one.held.tolist():
                names.setdefault(name, []).append(address)

    def of(address: str) -> list[str]:
        folder, _, name = address.rpartition("/")
        return folders[folder].get(name_digest(name.removesuffix(".parquet")), []) if folder in folders else []

    return of


def dataset(checked: Checked, table: Table, entries: list[Entry], on_damage: OnDamage | None = None) -> Parts:
    """These parts of a table, for reading."""
    layout = ds.ParquetFileFormat(
        default_fragment_scan_options=ds.ParquetFragmentScanOptions(page_checksum_verification=True)
    )
    files, by_path = checked.backend.filesystem, {}
    fragments = []
    for entry in entries:
        path = f"{checked.backend.root}/{entry.path}".rstrip("/")
        by_path[path] = entry
        fragments.append(layout.make_fragment(path, files, _condition(table, entry, checked.known(entry))))
    found = Parts(fragments, table.schema, layout, files)
    found.checked, found.table, found.entries = checked, table, by_path
    found.on_damage, found.refused = on_damage, {}
    return found


def doubles(seals: Mapping[str, Seal]) -> dict[str, str]:
    """By address, those parts that are one file under several names; a seal that knows its address has but one."""
    by_digest: dict[str, list[str]] = {}
    for address, seal in sorted(seals.items()):
        by_digest.setdefault(seal.sha256, []).append(address)
    groups = [group for group in by_digest.values() if len(group) > 1]
    return {one: _double(next(other for other in group if other != one)) for group in groups for one in group}


def _double(other: str) -> str:
    return f"is the same file as {other}: one of them is a copy; remove that one"


def refusal(faults: dict[str, str]) -> StoreError:
    """The error that names the first of the parts that were refused."""
    address, reason = min(faults.items())
    rest = f" ({len(faults) - 1} more; engram verify says which)" if len(faults) > 1 else ""
    return StoreError(
        f"{visible(address)} {reason}{rest}; once a damaged part is removed, the stage that wrote it makes it again"
    )


def _condition(table: Table, entry: Entry, seal: Seal | None) -> Any:
    """What holds for every row of a part, by which a scan leaves out what it need not open: the values of its folders,
    and, of a part that was checked before, between which values its units lie.

    Parts that share a unit all have it in their range, so a condition that leaves out one leaves out all.
    """
    try:
        found = matching(table, partition_of(table, entry.path))
    except StoreError:  # it lies where no part does, so it could be of any partition
        return matching(table, {})
    if seal is None or seal.range is None:
        return found
    first = ds.field(table.unit[0])
    return found & (first >= seal.range[0]) & (first <= seal.range[1])


def _log_of(url: str) -> Path | None:
    """Where verdicts on the parts of a backend are kept; None where that would not be this user's alone."""
    name = hashlib.sha256(
        f"{url} {os.environ.get('AWS_ENDPOINT_URL_S3') or os.environ.get('AWS_ENDPOINT_URL')}".encode()
    )
    return remembered.log(f"{name.hexdigest()[:32]}-{VERSION}")


@cache
def _remembered(log: Path) -> dict[str, tuple[str, Seal]]:
    """By address, the stamp of a part and its seal.

    Lines on parts that were merged since are of no more use, and after many nights nearly all are: they are dropped.
    """
    found, last, lines = {}, dict[str, tuple[int, str]](), remembered.lines(log)
    for number, line in enumerate(lines):
        # A line that was cut off by a full disk has other fields, or a stamp that no file has.
        match line.split("\t"):
            case [stamp, sha256, "0" | "1" as bound, units, held, ends, path] if len(sha256) == 64:
                low_high = json.loads(ends)
                found[path] = (stamp, Seal(sha256, bound == "1", units, held, low_high and tuple(low_high)))
                last[path] = number, line
    of = holders({path: seal for path, (_, seal) in found.items() if is_merged(path)})
    # One that was checked after a part that holds its name is another one, made anew when that part was gone.
    for path in [path for path in found if any(last[holder] > last[path] for holder in of(path))]:
        del found[path]
    if len(lines) > 2 * len(found) + _SPARE:
        remembered.rewrite(log, (line for _, line in sorted(last[path] for path in found)))
    return found
