"""Audits whose process is gone."""

import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil
import pytest

from storage import Store, begun_here, mark_lost, processes, run_sql


def begin(store: Store, audit_id: str) -> None:
    row = {"audit_id": audit_id, "model_id": "m", "params": "{}", "code_version": "1", "state": "running"}
    store.write("audits", f"{audit_id}-begun", [row | {"started_at": datetime.now(UTC)}])


def states(store: Store) -> dict[str, str]:
    return {row["audit_id"]: row["state"] for row in run_sql(store, "SELECT audit_id, state FROM audits").to_pylist()}


def test_only_an_audit_whose_process_is_gone_is_lost(tmp_path: Path) -> None:
    store = Store.open(tmp_path / "store")
    root = str(Path(__file__).resolve().parents[2])
    code = f"from storage import Store, begun_here; begun_here(Store.open({store.url!r}), 'gone')"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=root)
    begun_here(store, "here")
    for name in ("gone", "here", "earlier"):
        begin(store, name)
    assert mark_lost(store) == ["gone"]
    assert states(store) == {"gone": "lost", "here": "running", "earlier": "running"}
    assert mark_lost(store) == []
    assert mark_lost(store, "earlier") == ["earlier"]


@pytest.mark.parametrize(
    ("other", "lost"),
    [
        ({"host": "elsewhere"}, False),  # cannot be seen from here
        ({"space": "of another container"}, False),
        ({"boot": "an earlier one"}, True),
        ({"began": 1.0}, True),  # the number was given again
        ({"pid": 2**22 + 1}, True),
    ],
)
def test_a_process_is_known_by_machine_start_and_number(tmp_path: Path, other: dict[str, Any], lost: bool) -> None:
    store = Store.open(tmp_path / "store")
    own = psutil.Process()
    row = processes._machine() | {"audit_id": "a", "pid": own.pid, "began": own.create_time()} | other
    store.write("processes", "a", [row])
    begin(store, "a")
    assert mark_lost(store) == (["a"] if lost else [])


def test_an_audit_that_has_ended_is_not_lost(tmp_path: Path) -> None:
    store = Store.open(tmp_path / "store")
    begin(store, "a")
    row = {"audit_id": "a", "model_id": "m", "params": "{}", "code_version": "1", "state": "completed"}
    now = datetime.now(UTC)
    store.write("audits", "a-ended", [row | {"started_at": now, "finished_at": now}])
    store.write("processes", "a", [processes._machine() | {"audit_id": "a", "pid": 1, "began": 1.0}])
    assert mark_lost(store) == [] and states(store) == {"a": "completed"}
