"""Where the pages of audits lie: in the store, `reports/<audit id>/`, whatever backend it is kept in."""

import shutil
from pathlib import Path
from urllib.parse import unquote, urlsplit

from storage import REPORTS, Store
from storage.keys import check_key
from tasks.errors import InputError

PAGE = "report.html"


def page_file(audit_id: str, name: str = PAGE) -> str:
    """The address in the store of an audit's page, or of what belongs to it, for `Store.put_file`."""
    return f"{REPORTS}/{audit_id}/{name}"


def page_place(store: Store, audit_id: str) -> str:
    """Where the page of an audit lies, or will lie, for people: a path of this machine, or an s3:// URL.

    Earlier releases wrote pages into a folder beside the store, where theirs are still found.
    """
    former = _former(store, audit_id)
    if former is not None and not store.has_file(page_file(audit_id)):
        return str(former)
    return store.place(page_file(audit_id))


def page_here(store: Store, audit_id: str) -> Path:
    """The page of an audit as a file of this machine; from S3 it is downloaded, with what belongs to it.

    Raises:
        InputError: the audit has no page.
        StoreError: it cannot be downloaded.
    """
    if store.has_file(page_file(audit_id)):
        return store.copied(f"{REPORTS}/{audit_id}") / PAGE
    former = _former(store, audit_id)
    if former is None:
        raise InputError(f"the audit {audit_id} has no page: run `engram report` with the options of the audit")
    return former


def page_bytes(store: Store, audit_id: str) -> int:
    """Bytes of the page of an audit and of what belongs to it; 0 where it has none.

    Raises:
        StoreError: the store cannot be read.
    """
    former = _former(store, audit_id)
    beside = [] if former is None else [path.stat().st_size for path in former.parent.rglob("*") if path.is_file()]
    return sum(beside) + sum(entry.size for entry in store.files(f"{REPORTS}/{check_key(audit_id)}"))


def remove_page(store: Store, audit_id: str) -> None:
    """Removes the page of an audit and what belongs to it, if it has one.

    Raises:
        StoreError: it cannot be removed.
    """
    former = _former(store, audit_id)
    for entry in store.files(f"{REPORTS}/{check_key(audit_id)}"):
        store.remove_file(entry.path)
    if former is not None:
        shutil.rmtree(former.parent)


def _former(store: Store, audit_id: str) -> Path | None:
    """The page that an earlier release wrote beside a local store, if there is one."""
    parts = urlsplit(store.url)
    path = Path(unquote(parts.path)).parent / "reports" / audit_id / PAGE
    return path if parts.scheme == "file" and path.is_file() else None
