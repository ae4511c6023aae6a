"""What a question may take: time, memory and room, and that nothing of it is left behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import pytest

import storage.limits
from storage import Limits, Store, StoreError, connect, iou, query, run_sql, time_limit
from storage.limits import machine_memory, remove_dead, spill_folder
from storage.local import machine
from tests.support.processes import descendants
from tests.support.rows import SET, neuron_set

ROOT = Path(__file__).parents[2]
ENDLESS = "WITH RECURSIVE t(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM t) SELECT count(*) FROM t"
SMALL = Limits(seconds=300, memory=300 << 20, spill=64 << 20)


def put_many(store: Store) -> None:
    """Sets whose overlaps take longer to count than any test waits."""
    for layer in range(6):
        rows = [neuron_set(f"s{number}", range(number % 3, 1000, 2)) for number in range(1000)]
        store.write("neuron_sets", "k", rows, **(SET | {"layer": f"l{layer}"}))


@pytest.mark.parametrize(
    "statement",
    [
        ENDLESS,
        "SELECT count(*) FROM range(100000000000000) WHERE hash(range) % 7 = 8",
        "SELECT count(*) FROM range(10000000) a, range(10000000) b",
        "FROM range(100000000000) WHERE range < 0",
    ],
)
def test_time_ends_a_question(local: Store, statement: str) -> None:
    before, began = descendants(os.getpid()), time.monotonic()
    with pytest.raises(StoreError, match="no answer within 3 seconds"):
        run_sql(local, statement, Limits(seconds=3))
    assert time.monotonic() - began < 30 and descendants(os.getpid()).keys() <= before.keys()


@pytest.mark.parametrize(
    "statement",
    [
        "SELECT range(3000000000)",
        "SELECT list(range) FROM range(3000000000)",
        "SELECT len(list(range::VARCHAR)) FROM range(3000000000)",
        "SELECT repeat('x', 2000000000)",
        "FROM range(3000000000)",
        "SELECT repeat('x', 10000) FROM range(3000000000)",
        "SELECT * FROM range(3000000000) ORDER BY hash(range)",
        "SELECT count(DISTINCT hash(range)) FROM range(3000000000)",
    ],
)
def test_memory_and_room_end_a_question(
    local: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, statement: str
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    before = psutil.Process().memory_info().rss
    with pytest.raises(StoreError) as caught:
        run_sql(local, statement, SMALL)
    said = str(caught.value)
    assert "\n" not in said and "no answer within" not in said
    assert psutil.Process().memory_info().rss - before < 600 << 20
    assert list(tmp_path.rglob("engram-spill-*/*")) == []


def test_what_fits_is_answered_whole(local: Store) -> None:
    rows = run_sql(local, "SELECT range AS n FROM range(3000000) ORDER BY n", SMALL)
    assert rows["n"].to_numpy().tolist() == list(range(3000000))
    spilled = "SELECT count(*) AS n FROM (SELECT DISTINCT hash(range), repeat('x', 50) FROM range(1000000))"
    assert run_sql(local, spilled, Limits(seconds=100, memory=200 << 20)).to_pylist() == [{"n": 1000000}]


PROGRAM = """
import sys
from storage import *
store = Store.open(sys.argv[1])
print("ready", flush=True)
try:
    {call}
except KeyboardInterrupt:
    print("interrupted", flush=True)
"""
CALLS = {
    "run_sql": f"run_sql(store, {ENDLESS!r})",
    "bomb": "run_sql(store, 'SELECT count(*) FROM range(100000000000000) WHERE hash(range) % 7 = 8')",
    "query": "query(store, 'iou_pairs')",
    "iou": "iou(store)",
}


@pytest.mark.slow
@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGKILL])
def test_ctrl_c_ends_at_once_and_a_kill_leaves_nothing_for_long(
    local: Store, tmp_path: Path, name: str, sign: signal.Signals
) -> None:
    put_many(local)
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    program = [sys.executable, "-c", PROGRAM.format(call=CALLS[name]), local.url]
    environment = os.environ | {"TMPDIR": str(temporary)}
    process = subprocess.Popen(program, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    time.sleep(3)
    others = psutil.Process(process.pid).children(recursive=True)
    began = time.monotonic()
    process.send_signal(sign)
    said = process.stdout.readline()
    if sign == signal.SIGINT:
        assert said == "interrupted\n" and time.monotonic() - began < 3, (
            "a second, and as much again for a busy machine"
        )
        process.wait(30)
    process.wait(30)
    psutil.wait_procs(others, timeout=10)
    assert not any(other.is_running() for other in others)
    if sign == signal.SIGKILL and name != "sql":  # whose own process tidies up
        remove_dead(str(temporary))
    deadline = time.monotonic() + 10
    while list(temporary.iterdir()) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert list(temporary.iterdir()) == []


def test_a_process_that_hears_nothing_ends_with_the_one_that_asked(tmp_path: Path) -> None:
    """As where a library holds Python's lock."""
    spill = tmp_path / "own" / "spill"
    spill.mkdir(parents=True)
    deaf = "import re, storage.sandbox as s; s._run = lambda *_: re.match('(a+)+b', 'a' * 80); s.main()"
    asker = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    answering = subprocess.Popen([sys.executable, "-c", deaf], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert answering.stdin is not None and asker.stdin is not None
    answering.stdin.write(json.dumps({"asker": asker.pid, "spill": str(spill)}).encode() + b"\n")
    answering.stdin.flush()
    with pytest.raises(subprocess.TimeoutExpired):
        answering.wait(3)
    asker.kill()
    asker.wait()
    # A fork of the one that asked may hold the pipe open, as this process does here.
    assert answering.wait(30) == -signal.SIGKILL
    deadline = time.monotonic() + 10
    while spill.parent.exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert list(tmp_path.iterdir()) == []


def test_time_ends_a_query_and_overlaps_and_a_connection(local: Store) -> None:
    put_many(local)
    with pytest.raises(StoreError, match=r"no answer within 0\.01 seconds"):
        query(local, "iou_pairs", Limits(seconds=0.01))
    with pytest.raises(StoreError, match=r"no answer within 0\.01 seconds"):
        iou(local, seconds=0.01)
    for through_arrow in (False, True):
        con = connect(local, through_arrow=through_arrow, limits=Limits(memory=300 << 20))
        with pytest.raises(StoreError, match="no answer within 1 seconds"), time_limit(con, 1):
            con.sql(ENDLESS).fetchall()
        with time_limit(con, 100):
            assert con.sql("SELECT 1").fetchall() == [(1,)]
        (shown,) = con.sql("SELECT value FROM duckdb_settings() WHERE name = 'memory_limit'").fetchall()
        assert shown == ("300.0 MiB",)


def test_limits_that_cannot_be_kept_are_refused() -> None:
    for wrong in ({"seconds": 0.0}, {"seconds": -1.0}, {"seconds": float("nan")}, {"memory": 5}, {"spill": -1}):
        with pytest.raises(StoreError, match="limit"):
            Limits(**wrong)  # type: ignore[arg-type]


def test_a_containers_memory_counts_not_the_machines(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert 0 < machine_memory() <= psutil.virtual_memory().total
    (tmp_path / "groups" / "a" / "b").mkdir(parents=True)
    (tmp_path / "groups" / "a" / "memory.max").write_text("1000000000\n")
    (tmp_path / "groups" / "a" / "b" / "memory.max").write_text("max\n")
    (tmp_path / "own").write_text("0::/a/b\n")
    monkeypatch.setattr(storage.limits, "_GROUPS", tmp_path / "groups")
    monkeypatch.setattr(storage.limits, "_OWN_GROUP", tmp_path / "own")
    assert machine_memory() == 1_000_000_000 and Limits().bytes_of_memory() == 500_000_000


def test_what_dead_processes_spilled_is_removed_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    dead = subprocess.Popen(["true"])
    dead.wait()
    where = machine()
    names = {f"engram-spill-{where}~{dead.pid}~x": False, f"engram-spill-{where}~{os.getpid()}~x": True}
    names |= {"engram-spill-elsewhere~1~x": True, "somebody's": True}
    for name in names:
        (tmp_path / name / "inside").mkdir(parents=True)
    (tmp_path / f"engram-spill-{where}~{dead.pid}~link").symlink_to(tmp_path / "somebody's")
    own = Path(spill_folder()).parent
    assert own.parent == tmp_path and own.stat().st_mode & 0o777 == 0o700
    for name, stays in names.items():
        assert (tmp_path / name).exists() == stays, name
    assert (tmp_path / "somebody's" / "inside").exists()
    old = tmp_path / "engram-spill-elsewhere~1~x"
    os.utime(old, (0, 0))
    remove_dead(str(tmp_path))
    assert not old.exists()


def test_nothing_of_the_folder_it_is_started_from_is_imported(
    local: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("json", "storage", "duckdb"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('imported')")
    monkeypatch.chdir(tmp_path)
    assert run_sql(local, "SELECT 1 AS n").to_pylist() == [{"n": 1}]
