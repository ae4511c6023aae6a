"""Forget audits: remove what is theirs, and what they rest on that nothing else needs.

What an audit rests on is its record, see `storage.holdings`. A part goes once it is in the record of an audit that is
forgotten and in that of none that stays; a merged part once this is so of all that it holds. Who has no record, because
it runs, did not complete, or is of an earlier release, is taken to need everything of its model and of its prompts.
Rows that name an audit go whatever part they are in, and so do the scores of generations that go.

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
import pyarrow.compute as pc

from storage.backend import HOUR, MANIFEST, WEIGHTS, Entry
from storage.catalog import query
from storage.checked import dataset, holders, is_merged, refusal
from storage.compaction import take_out
from storage.errors import StoreError
from storage.holdings import RECORD, parts_with, prompt_parts, shared_parts
from storage.layout import partition_of
from storage.parts import Seal
from storage.processes import ENDED, not_ended
from storage.render import visible
from storage.store import Store, clear
from storage.tables import ESTIMATES, TABLES

_ORDER = (
    RECORD, "metrics", "evidence", "scores", "variants", "neuron_sets", "nemo_traces", "activations", "detections",
    "triggers", "generations", "images", "clusters", "prompts", "models", "nights", "accepted", "runs", "processes",
    "audits",
)  # fmt: skip
"""Tables in the order in which their parts go."""
_OF_AUDITS = (RECORD, *ESTIMATES, "nights", "accepted", "processes", "audits")
"""Tables of rows of single audits."""


@dataclass(frozen=True)
class Rows:
    """Rows that are taken out of parts which have others, too: those with one of these values in a column."""

    table: str
    column: str
    values: frozenset[str]


@dataclass(frozen=True)
class Forgetting:
    """What is removed."""

    audits: tuple[str, ...]
    parts: list[Entry] = field(default_factory=list)
    """In the order in which they go."""
    rows: list[Rows] = field(default_factory=list)
    """What is taken out of parts that stay, as far as they have other rows."""
    weights: dict[str, int] = field(default_factory=dict)
    """Bytes of folders of weights, by address."""
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
    scanned = {*store.read("findings", columns=["model_id"])["model_id"].to_pylist()}
    held = audits.claimed(staying) | _of_scans(store, scanned)
    for prompt_set in {row["prompt_set"] for row in runs if row["run_id"] not in gone_runs}:
        held |= {entry.path for entry in prompt_parts(store, prompt_set)}
    models = {audits.last[name]["model_id"] for name in chosen}
    # Rows that name an audit or a run go by what they say, whatever a record names.
    going = {address for address in audits.claimed(chosen) if address.split("/")[0] not in (*_OF_AUDITS, "runs")}
    shared = sum(is_merged(address) for address in going & held)
    going -= held
    going -= _sets_of_variants(store, models, going)
    going = audits.with_hidden(going)
    rows = []
    for table, column, values in (
        *((table, "audit_id", {*chosen}) for table in _OF_AUDITS),
        ("runs", "run_id", gone_runs - {None}),
        ("models", "model_id", models - {audits.last[name]["model_id"] for name in staying} - scanned),
        ("scores", "generation_id", _only_in(store, "generations", "generation_id", going)),
        ("images", "image_id", _only_in(store, "prompts", "image_ids", going)),
    ):
        whole, partly = _having(store, table, column, values)
        going |= whole
        if partly - going:
            rows.append(Rows(table, column, frozenset(values)))
    parts = audits.in_order(going)
    weights = _weights(store, parts, anybody_runs=bool(audits.running))
    notes = audits.notes(chosen, staying)
    if shared:
        notes.append(f"{shared} merged parts stay whole, since some of what they hold is needed by others")
    return Forgetting(tuple(chosen), parts, rows, weights, notes)


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
    # Looked for by their model, not in records, of which a call that was killed has taken them out already.
    models = {audits.last[name]["model_id"] for name in recorded}
    going = {
        entry.path
        for entry in store.entries("generations")
        if not entry.fault and partition_of(TABLES["generations"], entry.path)["model_id"] in models
    }
    going -= audits.claimed(set(audits.last) - set(recorded))
    going = audits.with_hidden(going)
    named = {one for name in recorded for one in audits.records[name] if audits.at(one) and audits.at(one) <= going}
    whole, partly = _having(store, RECORD, "address", named)
    rows = [Rows(RECORD, "address", frozenset(named))] * bool(partly - whole)
    notes = [f"{_named(silent)} no record of all that it rests on, so its images stay"] if silent else []
    return Forgetting(tuple(chosen), audits.in_order(going | whole), rows, notes=notes)


def forget_images(store: Store, audit_ids: Iterable[str]) -> Forgetting:
    """Remove the generations of audits that no other audit needs; their estimates, scores and all else stays.

    Their records name what they still rest on. It may be killed at any moment, as `forget`.

    Returns:
        What was removed.

    Raises:
        StoreError: as `forgetting_images`; something cannot be removed, or on S3 without boto3.
    """
    found = forgetting_images(store, audit_ids)
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
        self._half = {*self.last} - {row["audit_id"] for row in rows if row["state"] == "running"}
        """Those of which the first row is gone."""
        self.records: dict[str, dict[str, str]] = {}
        """By id, what the record of an audit says of each part, by address."""
        same: dict[str, str] = {}  # records of nights name the same parts again and again
        for batch in store.read(RECORD, columns=["audit_id", "address", "sha256"]).to_batches():
            for name, address, sha256 in zip(*(column.to_pylist() for column in batch.columns), strict=True):
                record = self.records.setdefault(name, {})
                record[same.setdefault(address, address)] = same.setdefault(sha256, sha256)
        with clear(f"cannot list {store.url}"):
            self._present = {entry.path: entry for name in TABLES for entry in store.entries(name)}
        merged = store.checked.look(entry for entry in self._present.values() if is_merged(entry.path))
        self._holders = holders(merged)
        self._own: dict[str, set[str]] = {}
        """By id, the addresses of the parts that have an audit's estimates."""
        for name in ESTIMATES:
            for address, audit_ids in _values(store, name, "audit_id").items():
                for audit_id in audit_ids:
                    self._own.setdefault(audit_id, set()).add(address)

    def at(self, address: str) -> set[str]:
        """The addresses of the parts that have what was put at this one: itself, and merged ones that hold it."""
        return {address} & self._present.keys() | {*self._holders(address)}

    def with_hidden(self, addresses: set[str]) -> set[str]:
        """With these parts those that they hold and that are there still, which would count again without them."""
        return addresses | {one for one in self._present if not addresses.isdisjoint(self._holders(one))}

    def in_order(self, addresses: Collection[str]) -> list[Entry]:
        """These parts in the order in which they go."""

        def place(address: str) -> tuple[int, bool, bool, bool, str]:
            # Of an audit's two rows that of its end is the last to go: without it, it would stand as running. What a
            # merged part holds goes before it.
            ended, held = address.endswith(f"{ENDED}.parquet"), bool(self._holders(address))
            return _ORDER.index(address.split("/")[0]), ended, not held, is_merged(address), address

        return [self._present[address] for address in sorted(addresses, key=place)]

    def chosen(self, audit_ids: Iterable[str]) -> list[str]:
        """Those of these audits that there are.

        Raises:
            StoreError: no such audit. It is passed over where another one was forgotten half: then it is gone already.
        """
        wanted = list(dict.fromkeys(audit_ids))
        known = [name for name in wanted if name in self.last]
        if (unknown := sorted(set(wanted) - set(known))) and self._half.isdisjoint(known):
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
        return audit_id in self.records and self._own.get(audit_id, set()) <= self._recorded(audit_id)

    def _recorded(self, audit_id: str) -> set[str]:
        """The addresses of the parts that have what the record of an audit names."""
        return {one for address in self.records.get(audit_id, ()) for one in self.at(address)}

    def claimed(self, names: Collection[str]) -> set[str]:
        """The addresses of what these audits need.

        Raises:
            StoreError: a part that has to be looked into is not sound.
        """
        found = {one for name in names for one in self._recorded(name)}
        silent = [self.last[name] for name in names if not self.is_recorded(name)]
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


def _of_scans(store: Store, models: Collection[str]) -> set[str]:
    """The addresses of what the findings of scans of these models go by: the models' rows, and scores of detectors."""
    found = parts_with(store, "models", "model_id", pa.array(models, pa.string())) if models else []
    return {entry.path for entry in found} | {
        entry.path for name in models for entry in store.entries("detections", model_id=name)
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


def _values(store: Store, table: str, column: str) -> dict[str, set[str]]:
    """By address of each part of a table, hidden ones among them, the values of a column, or of its lists.

    Raises:
        StoreError: a part is not sound.
    """
    entries = store.entries(table)
    seals = store.checked.look(entries)
    if faults := {address: one for address, one in seals.items() if isinstance(one, str)}:
        raise refusal(faults)
    found: dict[str, set[str]] = {}
    for entry, fragment in zip(entries, dataset(store.checked, TABLES[table], entries).get_fragments(), strict=True):
        seal = seals[entry.path]
        first = TABLES[table].unit[0] == column and isinstance(seal, Seal) and seal.range
        if first and first[0] == first[1]:
            found[entry.path] = {first[0]}
            continue
        with clear(f"cannot read {visible(entry.path)}"):
            rows = fragment.to_table(schema=TABLES[table].schema, columns=[column])[column]
        found[entry.path] = set((pc.list_flatten(rows) if pa.types.is_list(rows.type) else rows).to_pylist())
    return found


def _having(store: Store, table: str, column: str, values: Collection[str]) -> tuple[set[str], set[str]]:
    """The addresses of the parts of a table whose rows all have one of these values, and of those that have others."""
    if not values:
        return set(), set()
    chosen = set(values)
    found = {address: there for address, there in _values(store, table, column).items() if not chosen.isdisjoint(there)}
    whole = {address for address, there in found.items() if there <= chosen}
    return whole, found.keys() - whole


def _only_in(store: Store, table: str, column: str, going: Collection[str]) -> set[str]:
    """The values of a column that are in parts that go, and in none that stays."""
    if not any(address.startswith(f"{table}/") for address in going):
        return set()
    found = _values(store, table, column)
    gone = {one for address, there in found.items() if address in going for one in there}
    return gone - {one for address, there in found.items() if address not in going for one in there}


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
            for one in found.rows:
                if one.table == name:
                    take_out(store, one.table, one.column, one.values)
            if name == "variants":
                for address in found.weights:
                    store.home.remove_folder(address)
