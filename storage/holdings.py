"""What the numbers of an audit rest on: the record that is written when the audit ends."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from storage.backend import Entry
from storage.checked import dataset, refusal
from storage.errors import StoreError
from storage.parts import check_rows, statement, timed
from storage.processes import BEGUN
from storage.store import Store
from storage.tables import ESTIMATES, TABLES

RECORD = "audit_parts"


def record_holdings(store: Store, audit_id: str) -> str:
    """Write down which parts the numbers of an audit rest on, so that `verify` misses them once they are gone.

    These are all parts of its model, of its prompts and their images, of the scores of the model's generations, and of
    the audit itself, which are there now and count. What comes later, such as a stage that is run again for this audit,
    is not listed, and is no damage.

    Returns:
        Address of the record.

    Raises:
        StoreError: no such audit; a part that is not sound, which no numbers can rest on.
    """
    columns = ["model_id", "prompt_set"]
    rows = store.read("audits", f"{audit_id}{BEGUN}", columns=columns, audit_id=audit_id).to_pylist()
    rows = rows or store.read("audits", columns=columns, audit_id=audit_id).to_pylist()  # of another name
    if not rows:
        raise StoreError(f"the store has no audit {audit_id!r}")
    counted = store.checked.counted([*shared_parts(store, **rows[0]), *own_parts(store, audit_id)])
    if counted.faults:
        raise refusal(counted.faults)
    parts = [{"address": entry.path, "sha256": _statement(store, entry)} for entry in counted.entries]
    return store.write(RECORD, audit_id, parts, audit_id=audit_id)


def shared_parts(store: Store, model_id: str, prompt_set: str | None) -> Iterator[Entry]:
    """All parts that an audit of this model with these prompts may rest on, other than its own.

    Raises:
        StoreError: a part that has to be looked into is not sound.
    """
    for table in TABLES.values():
        if table.partition[:1] == ("model_id",):
            yield from store.entries(table.name, model_id=model_id)
    yield from parts_with(store, "models", "model_id", pa.array([model_id]))
    if prompt_set is not None:
        yield from prompt_parts(store, prompt_set)
    made = store.read("generations", columns=["generation_id"], model_id=model_id)["generation_id"]
    yield from parts_with(store, "scores", "generation_id", made)


def prompt_parts(store: Store, prompt_set: str) -> Iterator[Entry]:
    """The parts of a set of prompts, of its clusters, and of their images.

    Raises:
        StoreError: as `shared_parts`.
    """
    yield from store.entries("prompts", prompt_set=prompt_set)
    yield from store.entries("clusters", prompt_set=prompt_set)
    images = store.read("prompts", columns=["image_ids"], prompt_set=prompt_set)["image_ids"]
    yield from parts_with(store, "images", "image_id", pc.list_flatten(images))


def own_parts(store: Store, audit_id: str) -> Iterator[Entry]:
    """The parts with rows of an audit: its estimates, what these rest on among its images, and its states.

    Raises:
        StoreError: as `shared_parts`.
    """
    for name in (*ESTIMATES, "audits"):
        yield from parts_with(store, name, "audit_id", pa.array([audit_id]))


def parts_with(store: Store, table: str, column: str, values: Any) -> list[Entry]:
    """The parts of a table with a row whose column has one of these values; of those that count.

    Raises:
        StoreError: a part that is not sound.
    """
    counted = store.checked.counted(store.entries(table))
    if counted.faults:
        raise refusal(counted.faults)
    entries, some = counted.entries, pc.field(column).isin(pc.unique(values))
    fragments = dataset(store.checked, TABLES[table], entries).get_fragments()
    holding = {one.path for one in fragments if one.count_rows(filter=some)}
    return [entry for entry in entries if f"{store.backend.root}/{entry.path}" in holding]


def _statement(store: Store, entry: Entry) -> str:
    table = TABLES[entry.path.split("/")[0]]
    rows = check_rows(store.backend.read(entry.path), table, entry.path) if timed(table) else None
    return statement(table, store.checked.seal(entry).sha256, rows)
