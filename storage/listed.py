"""A table of the store as an Arrow dataset that looks for parts when a question reads it, and only where it asks."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

import pyarrow.dataset as ds

from storage.checked import OnDamage, Parts, dataset
from storage.errors import StoreError
from storage.store import Store
from storage.tables import Table

_SMALL = 1 << 20
"""Bytes of a part, in the mean."""
_SMALL_AT_ONCE = 32


class Listed(ds.FileSystemDataset):  # type: ignore[misc]
    """All parts of one table. None is listed before the first scan, so a table that nobody asks for costs nothing.

    A scan whose condition fixes leading partition columns, such as `model_id = 'M'`, lists the folder of these values
    alone. What was listed is kept, so that the scans of one question see the same parts.
    """

    store: Store
    table: Table
    on_damage: OnDamage | None
    seen: dict[tuple[str, ...], Parts]
    """By the values of leading partition columns, the parts that lie there."""
    failure: StoreError | None
    """Why the parts could not be listed, if they could not: DuckDB, which asks for them, hides the error in its own."""
    lock: threading.Lock

    @classmethod
    def of(cls, store: Store, table: Table, on_damage: OnDamage | None = None) -> Listed:
        """The table `table` of a store; for `on_damage` see `storage.checked.Parts`."""
        found = cls([], table.schema, ds.ParquetFileFormat(), store.backend.filesystem)
        found.store, found.table, found.on_damage, found.seen = store, table, on_damage, {}
        found.failure, found.lock = None, threading.Lock()
        return found

    def scanner(self, columns: Any = None, filter: Any = None, **options: Any) -> ds.Scanner:
        """As of any dataset.

        Raises:
            StoreError: the store cannot be listed; a part that the scan would read is not sound.
        """
        fixed = {} if filter is None else ds.get_partition_keys(filter)
        with self.lock:
            found = self._parts(fixed)
        # Small parts are waited for more than they are read, on S3 above all: many of them at once.
        if sum(entry.size for entry in found.entries.values()) < _SMALL * len(found.entries):
            options.setdefault("fragment_readahead", _SMALL_AT_ONCE)
        return found.scanner(columns=columns, filter=filter, **options)

    @property
    def refused(self) -> dict[str, str]:
        """By address, why a part was refused or left out."""
        return {address: reason for parts in self.seen.values() for address, reason in parts.refused.items()}

    def _parts(self, fixed: Mapping[str, Any]) -> Parts:
        values: dict[str, str] = {}
        for name in self.table.partition:
            if not isinstance(fixed.get(name), str):
                break
            values[name] = fixed[name]
        # What was listed for a scan with fewer of these conditions holds the same parts, too.
        wanted = tuple(values.values())
        for known in (wanted[:length] for length in range(len(wanted) + 1)):
            if known in self.seen:
                return self.seen[known]
        try:
            entries = self.store.entries(self.table.name, **values)
        except StoreError as error:
            self.failure = error
            raise
        found = dataset(self.store.checked, self.table, entries, self.on_damage)
        # Whoever is told of parts that are left out is told once of each.
        found.refused.update(self.refused)
        self.seen[wanted] = found
        return found
