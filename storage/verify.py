"""Is everything in the store still what was written?"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from storage.backend import CHECKPOINTS, MANIFEST, WEIGHTS, Entry
from storage.checked import doubles, is_merged
from storage.errors import StoreError, one_line
from storage.folders import digest, read_manifest
from storage.holdings import RECORD
from storage.layout import partition_of, segment
from storage.local import LocalBackend
from storage.parts import Seal, check_rows, held, statement, unseal
from storage.render import visible
from storage.store import Store, clear
from storage.tables import ESTIMATES, TABLES, Table


@dataclass(frozen=True)
class Damage:
    """Something that is not as it was written."""

    address: str
    """Path relative to the store."""
    reason: str


@dataclass(frozen=True)
class Verdict:
    """What `examine` found."""

    damages: list[Damage]
    """Sorted by address; empty if all is well."""
    notes: list[str]
    """What is no damage, but good to know: a line each."""


def verify(store: Store, gc: bool = False, progress: Callable[[int, int], None] | None = None) -> list[Damage]:
    """The damages that `examine` finds."""
    return examine(store, gc, progress).damages


def examine(store: Store, gc: bool = False, progress: Callable[[int, int], None] | None = None) -> Verdict:
    """Read every part and every folder of weights, and say which are damaged, in a wrong place, double or missing.

    Nothing is repaired or removed. A damaged part can be deleted, and so can a whole folder of weights of which a file
    is: the stage that wrote it will find its work missing and do it again.

    What is missing is known from the records of completed audits (`audit_parts`). A part that was deleted and computed
    anew is as good as the old one if it says the same. If it does not, it is a damage until an audit that rests on the
    new part has ended; from then on there is a note on the older audits. Who wants to lose what an audit rests on
    forgets the audit.

    Args:
        store: the store.
        gc: also remove what writers that died left behind; it was never visible. What a live writer began less than an
            hour ago stays.
        progress: called with the files done and the files in all.

    Raises:
        StoreError: a store that cannot be read at all.
    """
    if gc:
        collect_litter(store)
    try:
        tables = [(entry, TABLES[name]) for name in TABLES for entry in store.backend.files(name)]
        weights = list(store.home.files(WEIGHTS))
    except OSError as error:
        raise StoreError(f"cannot list {store.url}: {one_line(error)}") from error
    found: dict[str, list[str]] = {}
    total = len(tables) + len(weights)
    parts = _Parts(store)
    checks = _checks(parts, sorted(tables, key=lambda item: item[0].path), weights)
    for done, (address, reason) in enumerate(checks, start=1):
        if reason:
            found.setdefault(address, []).append(reason)
        if progress:
            progress(min(done, total), total)
    for address, reason in doubles(parts.seals).items():
        found.setdefault(address, []).append(reason)
    for address, reason in (*_of_no_audit(parts, found), *_lost_sets(parts)):
        found.setdefault(address, []).append(reason)
    notes = parts.notes() + _missing(parts, found) + _unfinished(store)
    return Verdict([Damage(address, reason) for address in sorted(found) for reason in found[address]], notes)


def collect_litter(store: Store) -> list[str]:
    """Remove what dead writers left behind, and say what that was.

    Raises:
        StoreError: something cannot be removed; unfinished uploads on S3 without boto3.
    """
    try:
        found = {(one.url, name): one for one in (store.home, store.backend) for name in one.litter()}
        for (_, name), backend in sorted(found.items()):
            backend.remove_litter(name)
    except OSError as error:
        raise StoreError(f"cannot collect litter in {store.url}: {one_line(error)}") from error
    return [name for _, name in sorted(found)]


class _Parts:
    """The sound parts, as they are checked."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.seals: dict[str, Seal] = {}
        self.statements: dict[str, str] = {}
        """By address, what a part says; see `storage.parts.statement`."""
        self.held: dict[str, set[str]] = {}
        """By address, what a part said that merged parts hold."""
        self.records: set[tuple[str, str, str]] = set()
        """The rows of `audit_parts`: audit, address and sha256."""
        self.audits: set[str] = set()
        """The ids in `audits`."""
        self.of_audits: dict[str, set[str]] = {}
        """By address of estimates and records, the ids of the audits that they are of."""
        self.completed: dict[str, datetime] = {}
        """By completed audit, when it ended."""
        self.variants: list[dict[str, Any]] = []
        """The rows of `variants`."""
        self.sets: dict[tuple[str, ...], set[str]] = {}
        """Layers in `neuron_sets` by model and site, and by these with method, parameters and scope."""

    def check(self, table: Table, entry: Entry) -> str | None:
        try:
            if entry.fault:
                return entry.fault
            if not entry.path.endswith(".parquet"):
                return "is no part; move it out of the store"
            partition_of(table, entry.path)
            data = self.store.backend.read(entry.path)
            seal = unseal(data, table, entry.path)
            rows = check_rows(data, table, entry.path)
            parts = held(pq.read_metadata(pa.BufferReader(data)).metadata)
        except (StoreError, OSError) as error:
            return one_line(error).removeprefix(f"{visible(entry.path)} ")
        self.seals[entry.path] = seal
        self.statements[entry.path] = statement(table, seal.sha256, rows)
        for part in parts:
            self.held.setdefault(f"{entry.path.rpartition('/')[0]}/{part.name}.parquet", set()).add(part.said)
        if table.name in (*ESTIMATES, RECORD):
            self.of_audits[entry.path] = set(rows["audit_id"].to_pylist())
        if table.name == RECORD:
            self.records |= {tuple(row.values()) for row in rows.to_pylist()}
        elif table.name == "variants":
            self.variants += rows.to_pylist()
        elif table.name == "neuron_sets":
            for row in rows.select(["model_id", "site", "method", "params_id", "scope_id", "layer"]).to_pylist():
                *of, layer = row.values()
                for partition in (of[:2], of):
                    self.sets.setdefault(tuple(partition), set()).add(layer)
        elif table.name == "audits":
            for row in rows.to_pylist():
                self.audits.add(row["audit_id"])
                if row["state"] == "completed":
                    self.completed[row["audit_id"]] = row["finished_at"]
        return None

    def notes(self) -> list[str]:
        old = sum(not seal.bound for seal in self.seals.values())
        silent = len(set(self.completed) - {audit_id for audit_id, *_ in self.records})
        return [
            *(
                [f"{old} parts were sealed by an earlier release, without their key: a new name is not noticed"]
                * (old > 0)
            ),
            *([f"{silent} completed audits have no record of the parts that they rest on"] * (silent > 0)),
        ]


def _of_no_audit(parts: _Parts, found: Mapping[str, list[str]]) -> Iterator[tuple[str, str]]:
    """Numbers of audits whose rows in `audits` were deleted, with their record or without."""
    if any(address.startswith("audits/") for address in found):  # their rows are damaged, and reported as such
        return
    for address in parts.seals:
        for one in sorted(parts.of_audits.get(address, set()) - parts.audits):
            way = "`engram forget` takes them out" if is_merged(address) else "remove it"
            yield address, f"has rows of the audit {one}, of which `audits` has no row: {way}"


def _lost_sets(parts: _Parts) -> Iterator[tuple[str, str]]:
    """Sets that pruned variants name and that are not whole: each scope has a row of every layer of its site."""
    for row in parts.variants:
        model_id, site, method, params_id = (row[name] for name in ("model_id", "site", "sets_method", "sets_id"))
        layers = parts.sets.get((model_id, site), set())
        found = [parts.sets.get((model_id, site, method, params_id, scope)) for scope in row["sets_scopes"] or ()]
        if any(some != layers for some in found):
            address = f"neuron_sets/{segment('model_id', model_id)}/{segment('method', method)}/{segment('site', site)}"
            yield address, f"lacks sets that the variant {row['variant']} is pruned by: run `engram mitigate` again"


def _missing(parts: _Parts, found: dict[str, list[str]]) -> list[str]:
    """Adds to `found` what audits rest on and is not there as it was; returns notes on what was computed anew."""
    recorded: dict[str, list[tuple[str, str]]] = {}
    for audit_id, address, sha256 in parts.records:
        recorded.setdefault(address, []).append((audit_id, sha256))
    anew: dict[str, int] = {}
    for address, rows in recorded.items():
        # The last audit to end says which part counts.
        rows.sort(key=lambda row: (str(parts.completed.get(row[0], "")), row[0]))
        present = parts.statements.get(address)
        said = {present, *parts.held.get(address, ())}
        others = [audit_id for audit_id, sha256 in rows if sha256 not in said]
        if not others:
            continue
        resting = _audits(others)
        if address in found:
            found[address][0] += f"; {resting} on it"
        elif said == {None}:
            way = "audit again, or `engram forget` what rests on it"
            found[address] = [f"is missing, and {resting} on it: {way}"]
        elif rows[-1][1] not in said:
            found[address] = [f"is another part than the one that {resting} on: audit again, which rests on this one"]
        else:
            for audit_id in others:
                anew[audit_id] = anew.get(audit_id, 0) + 1
    return [f"{count} parts were computed anew since audit {one} ended" for one, count in sorted(anew.items())]


def _unfinished(store: Store) -> list[str]:
    """A note on checkpoints: a training that nobody goes on with leaves its own for ever."""
    with clear(f"cannot list {CHECKPOINTS}"):
        found = list(store.home.files(CHECKPOINTS))
    size = sum(entry.size for entry in found) / 1e6
    words = f"{len(found)} trainings are not done; their {CHECKPOINTS} take {size:.0f} MB, and may be removed"
    return [words] * bool(found)


def _audits(ids: list[str]) -> str:
    named = ", ".join(ids[:3]) + (f" and {len(ids) - 3} more" if len(ids) > 3 else "")
    return f"audit {named} rests" if len(ids) == 1 else f"audits {named} rest"


def _checks(parts: _Parts, tables: list[tuple[Entry, Table]], weights: list[Entry]) -> Iterator[tuple[str, str | None]]:
    """Each file with what is wrong with it; what a manifest or a variant names but that is missing comes on top."""
    store = parts.store
    for entry, table in tables:
        yield entry.path, parts.check(table, entry)
    yield from ((entry.path, entry.fault) for entry in weights if entry.fault)
    files = {entry.path for entry in weights if not entry.fault}
    manifests = [path for path in files if path.split("/", 2)[2:] == [MANIFEST]]
    for path in sorted(manifests):
        yield from _check_folder(store, path, files)
    whole = {path.removesuffix(f"/{MANIFEST}") for path in manifests}
    if isinstance(store.backend, LocalBackend):  # on S3 it may be an upload that goes on
        for folder in {"/".join(path.split("/")[:2]) for path in files} - whole:
            yield folder, f"has no {MANIFEST}: remove it"
    # Asked again: a variant may have come since the folders were listed.
    for address in (one for one in _named_weights(store) - whole if not store.has_folder(one)):
        yield address, "is gone, though a variant names it: run `engram mitigate` again"


def _named_weights(store: Store) -> set[str]:
    try:
        return set(store.read("variants", columns=["weights"])["weights"].to_pylist()) - {None}
    except StoreError:  # a part of the table is damaged, and reported as such
        return set()


def _check_folder(store: Store, manifest: str, present: set[str]) -> Iterator[tuple[str, str | None]]:
    try:
        found = read_manifest(store.home.read(manifest), manifest.removesuffix(f"/{MANIFEST}"))
    except (OSError, ValueError) as error:
        yield manifest, one_line(error)
        return
    yield manifest, None
    folder = manifest.removesuffix(MANIFEST)
    named = {f"{folder}{found.address(name)}": entry for name, entry in found.files.items()}
    # On S3 other uploads beside the one that is named are litter, or go on.
    within = f"{folder}{found.below}/" if found.below else folder
    for address in present - set(named) - {manifest}:
        if address.startswith(within):
            yield address, "does not belong to the folder of weights that it lies in: remove it"
    for address, entry in named.items():
        yield address, _check_file(store, address, entry["sha256"]) if address in present else "is missing"


def _check_file(store: Store, address: str, expected: str) -> str | None:
    try:
        with store.home.filesystem.open_input_stream(f"{store.home.root}/{address}") as file:
            return None if digest(file) == expected else "its bytes have changed since it was written"
    except OSError as error:
        return one_line(error)
