"""Is everything in the store still what was written?"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from storage.errors import StoreError, one_line
from storage.folders import digest, read_manifest
from storage.layout import partition_of
from storage.local import LocalPlace
from storage.parts import damage
from storage.place import MANIFEST, WEIGHTS
from storage.store import Store
from storage.tables import TABLES, Table


@dataclass(frozen=True)
class Damage:
    """Something that is not as it was written."""

    address: str
    """Path relative to the store."""
    reason: str


def verify(store: Store, gc: bool = False, progress: Callable[[int, int], None] | None = None) -> list[Damage]:
    """Read every part and every folder of weights, and say which are damaged. Nothing is repaired or removed.

    A damaged part can be deleted, and so can a whole folder of weights of which a file is: the stage that wrote it will
    find its work missing and do it again.

    Args:
        store: the store.
        gc: also remove what writers that died left behind; it was never visible. What a live writer began less than an
            hour ago stays.
        progress: called with the files done and the files in all.

    Returns:
        The damage, sorted by address; empty if all is well.

    Raises:
        StoreError: a store that cannot be read at all.
    """
    if gc:
        collect_litter(store)
    try:
        tables = [(entry.path, TABLES[name]) for name in TABLES for entry in store.place.files(name)]
        weights = [entry.path for entry in store.place.files(WEIGHTS)]
    except OSError as error:
        raise StoreError(f"cannot list {store.url}: {one_line(error)}") from error
    found = []
    total = len(tables) + len(weights)
    checks = _checks(store, sorted(tables, key=lambda item: item[0]), weights)
    for done, (address, reason) in enumerate(checks, start=1):
        if reason:
            found.append(Damage(address, reason))
        if progress:
            progress(min(done, total), total)
    return sorted(found, key=lambda item: item.address)


def collect_litter(store: Store) -> list[str]:
    """Remove what dead writers left behind, and say what that was.

    Raises:
        StoreError: something cannot be removed; unfinished uploads on S3 without boto3.
    """
    try:
        names = sorted(store.place.litter())
        for name in names:
            store.place.remove_litter(name)
    except OSError as error:
        raise StoreError(f"cannot collect litter in {store.url}: {one_line(error)}") from error
    return names


def _checks(store: Store, tables: list[tuple[str, Table]], weights: list[str]) -> Iterator[tuple[str, str | None]]:
    """Each file with what is wrong with it; what a manifest or a variant names but that is missing comes on top."""
    for address, table in tables:
        yield address, _check_part(store, table, address)
    manifests = [path for path in weights if path.split("/", 2)[2:] == [MANIFEST]]
    for path in manifests:
        yield from _check_folder(store, path, set(weights))
    whole = {path.removesuffix(f"/{MANIFEST}") for path in manifests}
    if isinstance(store.place, LocalPlace):  # on S3 it may be an upload that goes on
        for folder in {"/".join(path.split("/")[:2]) for path in weights} - whole:
            yield folder, f"has no {MANIFEST}: remove it"
    # Asked again: a variant may have come since the folders were listed.
    for address in (one for one in _named_weights(store) - whole if not store.has_folder(one)):
        yield address, "is gone, though a variant names it: run `engram mitigate` again"


def _named_weights(store: Store) -> set[str]:
    try:
        return set(store.read("variants", columns=["weights"])["weights"].to_pylist()) - {None}
    except StoreError:  # a part of the table is damaged, and told of as such
        return set()


def _check_part(store: Store, table: Table, address: str) -> str | None:
    try:
        if not address.endswith(".parquet"):
            return "is no part; move it out of the store"
        return damage(store.place.read(address), table, partition_of(table, address))
    except (StoreError, OSError) as error:
        return one_line(error)


def _check_folder(store: Store, manifest: str, present: set[str]) -> Iterator[tuple[str, str | None]]:
    try:
        found = read_manifest(store.place.read(manifest))
    except (OSError, ValueError) as error:
        yield manifest, one_line(error)
        return
    yield manifest, None
    for name, entry in found.files.items():
        address = f"{manifest.removesuffix(MANIFEST)}{found.address(name)}"
        yield address, _check_file(store, address, entry["sha256"]) if address in present else "is missing"


def _check_file(store: Store, address: str, expected: str) -> str | None:
    try:
        with store.place.filesystem.open_input_stream(f"{store.place.root}/{address}") as file:
            return None if digest(file) == expected else "its bytes have changed since it was written"
    except OSError as error:
        return one_line(error)
