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
    rows = store.read("audits", audit_id=audit_id, columns=["model_id", "prompt_set"]).to_pylist()
    if not rows:
        raise StoreError(f"the store has no audit {audit_id!r}")
    counted = store.checked.counted(_holdings(store, audit_id, **rows[0]))
    if counted.faults:
        raise refusal(counted.faults)
    parts = [{"address": entry.path, "sha256": _statement(store, entry)} for entry in counted.entries]
    return store.write(RECORD, audit_id, parts, audit_id=audit_id)


def _holdings(store: Store, audit_id: str, model_id: str, prompt_set: str | None) -> Iterator[Entry]:
    for table in TABLES.values():
        if table.partition[:1] == ("model_id",):
            yield from store.entries(table.name, model_id=model_id)
    for name in (*ESTIMATES, "audits"):
        yield from _with(store, name, "audit_id", pa.array([audit_id]))
    yield from _with(store, "models", "model_id", pa.array([model_id]))
    if prompt_set is not None:
        yield from store.entries("prompts", prompt_set=prompt_set)
        images = store.read("prompts", columns=["image_ids"], prompt_set=prompt_set)["image_ids"]
        yield from _with(store, "images", "image_id", pc.list_flatten(images))
    made = store.read("generations", columns=["generation_id"], model_id=model_id)["generation_id"]
    yield from _with(store, "scores", "generation_id", made)


def _with(store: Store, table: str, column: str, values: Any) -> list[Entry]:
    """The parts of a table with a row whose column has one of these values."""
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
