"""Which audits are at work: an audit whose process is gone does not stand as running for ever."""

from __future__ import annotations

import os
import platform
import uuid
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil

from storage.checked import dataset
from storage.store import Store, clear
from storage.tables import TABLES

BEGUN, ENDED = "-begun", "-ended"
"""What follows an audit's id in the keys of its two rows in `audits`."""


def begun_here(store: Store, audit_id: str) -> None:
    """Write down that an audit runs in this process.

    Raises:
        StoreError: the store cannot be written.
    """
    process = psutil.Process()
    row = _machine() | {"audit_id": audit_id, "pid": process.pid, "began": process.create_time()}
    store.write("processes", audit_id, [row])


def mark_lost(store: Store, audit_id: str | None = None) -> list[str]:
    """Mark audits as lost that stand as running, but whose process is gone.

    A process is looked for on the machine that it ran on only: what another machine, or another container, is at
    cannot be seen from here, so its audits stay as they are.

    Args:
        audit_id: also this one, wherever it ran: a person says that it is lost.

    Returns:
        Their ids.

    Raises:
        StoreError: the store cannot be read or written.
    """
    if not (running := _without_end(store)):
        return []
    at_work = still_there(running, store.read("processes", audit_id=list(running)).to_pylist())
    lost = [name for name in running if name == audit_id or name not in at_work]
    for name in lost:
        end = running[name] | {"state": "lost", "finished_at": datetime.now(UTC)}
        store.write("audits", f"{name}{ENDED}", [end])
    return lost


def _without_end(store: Store) -> dict[str, dict[str, Any]]:
    """By id, the row of each audit that stands as running.

    The parts of an audit go by its id, so those of most need not be opened: that it has ended says a name. Of parts
    that go by other names the rows say it.
    """
    parts = {entry.path.rpartition("/")[2].removesuffix(".parquet"): entry for entry in store.entries("audits")}
    ended = {key.removesuffix(ENDED) for key, entry in parts.items() if key.endswith(ENDED) and not entry.fault}
    named = {f"{name}{end}" for name in ended for end in (BEGUN, ENDED)}
    left = dataset(store.checked, TABLES["audits"], [entry for key, entry in parts.items() if key not in named])
    with clear("cannot read audits"):
        rows = not_ended(left.to_table().to_pylist())
    return {name: row for name, row in rows.items() if name not in ended}


def not_ended(audits: Iterable[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Of rows of `audits`, those of audits that stand as running, by id."""
    rows = list(audits)
    ended = {row["audit_id"] for row in rows if row["state"] != "running"}
    return {row["audit_id"]: row for row in rows if row["audit_id"] not in ended}


def still_there(audit_ids: Iterable[str], processes: Iterable[dict[str, Any]]) -> list[str]:
    """Of these audits, those whose process is there, or runs where it cannot be seen, by the rows of `processes`."""
    known = {row["audit_id"]: row for row in processes}
    return [name for name in audit_ids if name not in known or not _is_gone(known[name])]


def _is_gone(row: dict[str, Any]) -> bool:
    here = _machine()
    if row["host"] != here["host"]:
        return False
    if row["boot"] != here["boot"]:
        return True
    if row["space"] != here["space"]:
        return False
    try:
        process = psutil.Process(row["pid"])
        # Numbers of processes are given again.
        return abs(process.create_time() - row["began"]) > 1 or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True
    except psutil.AccessDenied:
        return False


def _machine() -> dict[str, str]:
    """What tells machines, their starts, and containers on one machine apart."""

    def read(path: str) -> str:
        try:
            return Path(path).read_text().strip()
        except OSError:
            return ""

    try:
        space = os.readlink("/proc/self/ns/pid")
    except OSError:  # no Linux
        space = ""
    return {
        "host": f"{platform.node()} {read('/etc/machine-id') or uuid.getnode()}",
        "boot": read("/proc/sys/kernel/random/boot_id") or f"{psutil.boot_time():.0f}",
        "space": space,
    }
