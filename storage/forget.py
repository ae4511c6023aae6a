"""Forget audits: remove what is theirs, and what they rest on that nothing else needs.

What an audit rests on is its record, see `storage.holdings`. A part goes once it is in the record of an audit that is
forgotten and in that of none that stays. Who has no record, because it runs, did not complete, or is of an earlier
release, is taken to need everything of its model and of its prompts.

Parts go in an order in which the store is whole at every moment: records before what they name, estimates before the
rows of their audits, scores before the generations by which they are found, variants before their sets and weights, the
rows of the audits last. So whoever is killed leaves a store that verifies, and the same call finishes.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from storage.backend import HOUR, MANIFEST, WEIGHTS, Entry
from storage.catalog import query
from storage.checked import dataset
from storage.errors import StoreError
from storage.holdings import RECORD, parts_with, prompt_parts, shared_parts
from storage.keys import content_key
from storage.layout import partition_of
from storage.processes import BEGUN, ENDED, not_ended
from storage.render import visible
from storage.store import Store, clear
from storage.tables import TABLES

_ORDER = (
    RECORD, "metrics", "evidence", "scores", "variants", "neuron_sets", "nemo_traces", "activations", "detections",
    "triggers", "generations", "images", "prompts", "models", "nights", "accepted", "runs", "processes", "audits",
)  # fmt: skip
"""Tables in the order in which their parts go."""
_OF_AUDITS = ("nights", "accepted", "processes")
"""Tables of rows of single audits, whose parts go when none of their rows is of an audit that stays."""


@dataclass(frozen=True)
class Forgetting:
    """What is removed."""

    audits: tuple[str, ...]
    parts: list[Entry] = field(default_factory=list)
    """In the order in which they go."""
    weights: dict[str, int] = field(default_factory=dict)
    """Bytes of folders of weights, by address."""
    records: dict[str, pa.Table] = field(default_factory=dict)
    """By audit that stays without its images, the record that takes the place of its former one."""
    notes: list[str] = field(default_factory=list)
    """Why something stays, a line each."""

    @property
    def size(self) -> int:
        """Bytes."""
        return sum(entry.size for entry in self.parts) + sum(self.weights.values())

    def counts(self) -> dict[str, int]:
        """By table, how many parts go, and how many folders of weights; in the order in which they go."""
        found = {name: sum(entry.path.split("/")[0] == name for entry in self.parts) for name in _ORDER}
        return {name: count for name, count in (found | {WEIGHTS: len(self.weights)}).items() if count}


def forgetting(store: Store, audit_ids: Iterable[str]) -> Forgetting:
    """What `forget` would remove of a store, which stays as it is.

    Raises:
        StoreError: no such audit; one that runs, or is the accepted baseline of its model and prompts; a part that has
            to be looked into is not sound.
    """
    audits = _Audits(store)
    chosen = audits.chosen(audit_ids)
    audits.refuse_running(chosen)
    if baselines := sorted({*query(store, "baselines")["audit_id"].to_pylist()} & {*chosen}):
        why = "is the accepted baseline of its model and prompts: accept another first"
        raise StoreError(f"the audit {baselines[0]} {why}")
    staying = sorted(set(audits.last) - set(chosen))
    runs = store.read("runs", columns=["run_id", "prompt_set"]).to_pylist()
    gone_runs = {audits.last[name]["run_id"] for name in chosen} - {audits.last[name]["run_id"] for name in staying}
    held = audits.claimed(staying) | _of_scans(store)
    for prompt_set in {row["prompt_set"] for row in runs if row["run_id"] not in gone_runs}:
        held |= {entry.path for entry in prompt_parts(store, prompt_set)}
    going = audits.claimed(chosen) - held
    going -= _sets_of_variants(store, {audits.last[name]["model_id"] for name in chosen}, going)
    # The rows of audits go by what they say, whatever a record names.
    going = {address for address in going if not address.startswith("audits/")}
    for table in (RECORD, "metrics", "evidence"):
        going |= {entry.path for name in chosen for entry in store.entries(table, audit_id=name)}
    for table in _OF_AUDITS:
        going |= _all_of(store, table, "audit_id", set(chosen))
    going |= _all_of(store, "runs", "run_id", gone_runs - {None})
    going |= _all_of(store, "audits", "audit_id", set(chosen))
    parts = _there(store, going)
    weights = _weights(store, parts, anybody_runs=bool(audits.running))
    return Forgetting(tuple(chosen), parts, weights, notes=audits.notes(chosen, staying))


def forget(store: Store, audit_ids: Iterable[str]) -> Forgetting:
    """Remove audits, and what they rest on that no other audit, no run and no scan needs.

    It may be killed at any moment: the store is whole then, and the same call finishes. An audit of the same model that
    begins at the same time may find that something is gone which it took for done; it fails then, and makes it when it
    is asked again.

    Returns:
        What was removed.

    Raises:
        StoreError: as `forgetting`; something cannot be removed, or on S3 without boto3.
    """
    found = forgetting(store, audit_ids)
    _remove(store, found)
    return found


def forgetting_images(store: Store, audit_ids: Iterable[str]) -> Forgetting:
    """What `forget_images` would remove of a store, which stays as it is.

    Raises:
        StoreError: no such audit; one that runs or was accepted; a part that has to be looked into is not sound.
    """
    audits = _Audits(store)
    chosen = audits.chosen(audit_ids)
    audits.refuse_running(chosen)
    if accepted := sorted({*store.read("accepted", columns=["audit_id"])["audit_id"].to_pylist()} & {*chosen}):
        raise StoreError(f"the audit {accepted[0]} was accepted, so its images stay")
    recorded = [name for name in chosen if audits.is_recorded(name)]
    silent = sorted(set(chosen) - set(recorded))
    # Looked for by their model, not in records, which a call that was killed has written anew already.
    models = {audits.last[name]["model_id"] for name in recorded}
    images = {entry.path for entry in store.entries("generations") if not entry.fault}
    going = {path for path in images if partition_of(TABLES["generations"], path)["model_id"] in models}
    going -= audits.claimed(set(audits.last) - set(recorded))
    records = {}
    for name in recorded:
        rows = audits.records[name]
        if going & rows.keys():
            kept = [{"address": one, "sha256": sha256} for one, sha256 in sorted(rows.items()) if one not in going]
            records[name] = pa.Table.from_pylist(kept)
    notes = [f"{_named(silent)} no record of all that it rests on, so its images stay"] if silent else []
    return Forgetting(tuple(chosen), _there(store, going), records=records, notes=notes)


def forget_images(store: Store, audit_ids: Iterable[str]) -> Forgetting:
    """Remove the generations of audits that no other audit needs; their estimates, scores and all else stays.

    Their records name what they still rest on. It may be killed at any moment, as `forget`.

    Returns:
        What was removed.

    Raises:
        StoreError: as `forgetting_images`; something cannot be removed, or on S3 without boto3.
    """
    found = forgetting_images(store, audit_ids)
    for audit_id, rows in found.records.items():
        former = store.parts(RECORD, audit_id=audit_id)
        new = store.write(RECORD, content_key(audit_id, rows["address"].to_pylist()), rows, audit_id=audit_id)
        with clear(f"cannot replace the record of {audit_id}"):
            store.backend.remove(address for address in former if address != new)
    _remove(store, found)
    return found


class _Audits:
    """The audits of a store, and what each needs."""

    def __init__(self, store: Store) -> None:
        self.store = store
        rows = store.read("audits").to_pylist()
        self.running = not_ended(rows)
        self.last: dict[str, dict[str, Any]] = {
            row["audit_id"]: row for row in sorted(rows, key=lambda row: row["state"] != "running")
        }
        """By id, the row that says how it ended, if it has."""
        self.keys = {entry.path.rpartition("/")[2].removesuffix(".parquet") for entry in store.entries("audits")}
        self.records: dict[str, dict[str, str]] = {}
        """By id, what the record of an audit says of each part, by address."""
        same: dict[str, str] = {}  # records of nights name the same parts again and again
        for batch in store.read(RECORD, columns=["audit_id", "address", "sha256"]).to_batches():
            for name, address, sha256 in zip(*(column.to_pylist() for column in batch.columns), strict=True):
                record = self.records.setdefault(name, {})
                record[same.setdefault(address, address)] = same.setdefault(sha256, sha256)
        self.own: dict[str, set[str]] = {}
        """By id, the addresses of an audit's estimates and of what is kept beside them."""
        for name in ("metrics", "evidence"):
            for entry in store.entries(name):
                if not entry.fault:
                    self.own.setdefault(partition_of(TABLES[name], entry.path)["audit_id"], set()).add(entry.path)

    def chosen(self, audit_ids: Iterable[str]) -> list[str]:
        """Those of these audits that there are.

        Raises:
            StoreError: no such audit. It is passed over where another one was forgotten half: then it is gone already.
        """
        wanted = list(dict.fromkeys(audit_ids))
        known = [name for name in wanted if name in self.last]
        half = [name for name in known if f"{name}{BEGUN}" not in self.keys and f"{name}{ENDED}" in self.keys]
        if (unknown := sorted(set(wanted) - set(known))) and not half:
            raise StoreError(f"the store has no audit {visible(unknown[0])!r}: `engram audits` lists them")
        return known

    def refuse_running(self, chosen: Sequence[str]) -> None:
        """See to it that none of these runs.

        Raises:
            StoreError: one does.
        """
        if running := sorted(self.running.keys() & set(chosen)):
            raise StoreError(f"the audit {running[0]} is running: wait until it ends, or end it")

    def is_recorded(self, audit_id: str) -> bool:
        """Whether an audit has a record that says all: it does not where parts of its own came later."""
        record = self.records.get(audit_id)
        return record is not None and self.own.get(audit_id, set()) <= record.keys()

    def claimed(self, names: Collection[str]) -> set[str]:
        """The addresses of what these audits need.

        Raises:
            StoreError: a part that has to be looked into is not sound.
        """
        silent = [self.last[name] for name in names if not self.is_recorded(name)]
        found = {address for name in names for address in (*self.records.get(name, ()), *self.own.get(name, ()))}
        for model_id, prompt_set in {(row["model_id"], row["prompt_set"]) for row in silent}:
            found |= {entry.path for entry in shared_parts(self.store, model_id, prompt_set)}
        return found

    def notes(self, chosen: Collection[str], staying: Collection[str]) -> list[str]:
        """What stays because nobody knows who needs it."""
        models = {self.last[name]["model_id"] for name in chosen}
        silent = [name for name in staying if self.last[name]["model_id"] in models and not self.is_recorded(name)]
        return [f"{_named(silent)} no record of all that it rests on, so all of its model stays"] if silent else []


def _named(audits: Sequence[str]) -> str:
    """Some audits as the beginning of a sentence about each of them."""
    more = f" (and {len(audits) - 1} more)" if len(audits) > 1 else ""
    return f"the audit {audits[0]}{more} has"


def _of_scans(store: Store) -> set[str]:
    """The addresses of what the findings of scans go by: the rows of their models, and scores of detectors."""
    models = store.read("findings", columns=["model_id"])["model_id"].unique()
    found = parts_with(store, "models", "model_id", models) if len(models) else []
    return {entry.path for entry in found} | {
        entry.path for name in models.to_pylist() for entry in store.entries("detections", model_id=name)
    }


def _sets_of_variants(store: Store, models: Collection[str], going: Collection[str]) -> set[str]:
    """The addresses of the sets that variants of these models are pruned by whose own part does not go: somebody made
    them after the audits that go had ended."""
    found = set()
    for model_id in models:
        staying = [entry for entry in store.entries("variants", model_id=model_id) if entry.path not in going]
        rows = dataset(store.checked, TABLES["variants"], staying).to_table(columns=["sets_method"])
        for method in set(rows["sets_method"].to_pylist()) - {None}:
            found |= {entry.path for entry in store.entries("neuron_sets", model_id=model_id, method=method)}
    return found


def _all_of(store: Store, table: str, column: str, values: Collection[str]) -> set[str]:
    """The addresses of the parts of a table whose rows all have one of these values."""
    found = dict[str, set[bool]]()
    for entry in parts_with(store, table, column, pa.array(values, pa.string())):
        rows = dataset(store.checked, TABLES[table], [entry]).to_table(columns=[column])[column]
        found[entry.path] = {value in values for value in rows.to_pylist()}
    return {address for address, among in found.items() if among == {True}}


def _there(store: Store, addresses: Collection[str]) -> list[Entry]:
    """Those of these parts that are there, in the order in which they go."""
    tables = {address.split("/")[0] for address in addresses}
    found = []
    with clear(f"cannot list {store.url}"):
        for name in (name for name in _ORDER if name in tables):
            entries = [entry for entry in store.backend.files(name) if entry.path in addresses]
            # Of an audit's two rows that of its end is the last to go: without it, it would stand as running.
            found += sorted(entries, key=lambda entry: (entry.path.endswith(f"{ENDED}.parquet"), entry.path))
    return found


def _weights(store: Store, parts: Sequence[Entry], anybody_runs: bool) -> dict[str, int]:
    """Bytes of the folders of weights that no variant names any more once these parts are gone, by address.

    One that no variant names already was left by a call that was killed, unless it was put just now and its variant is
    still to come.
    """
    going = {entry.path for entry in parts}
    entries = store.entries("variants")

    def named(some: list[Entry]) -> set[str]:
        found = dataset(store.checked, TABLES["variants"], some).to_table(columns=["weights"])
        return set(found["weights"].to_pylist()) - {None}

    with clear("cannot read variants"):
        kept = named([entry for entry in entries if entry.path not in going])
        lost = named([entry for entry in entries if entry.path in going]) - kept
    sizes, whole = dict[str, int](), set[str]()
    with clear(f"cannot list {WEIGHTS}"):
        for entry in store.home.files(WEIGHTS):
            address = "/".join(entry.path.split("/")[:2])
            sizes[address] = sizes.get(address, 0) + entry.size
            if entry.path == f"{address}/{MANIFEST}" and time.time() - entry.modified > HOUR and not anybody_runs:
                whole.add(address)
    return {address: size for address, size in sizes.items() if address in lost | (whole - kept)}


def _remove(store: Store, found: Forgetting) -> None:
    with clear("cannot remove what is forgotten; the same command goes on"):
        for name in _ORDER:
            if some := [entry.path for entry in found.parts if entry.path.split("/")[0] == name]:
                store.backend.remove(some)
            if name == "variants":
                for address in found.weights:
                    store.home.remove_folder(address)
