"""Nothing that is damaged, moved, copied, forged or gone is counted without a word, however it is read."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import storage.checked
from storage import Store, StoreError, connect, examine, iou, query, record_holdings, run_sql, verify, write_catalog
from storage.parts import encode
from storage.tables import TABLES
from tests.support.rows import SET, neuron_set, put_sets

COUNT = "SELECT count(*) AS n FROM neuron_sets"
READERS: dict[str, Callable[[Store], Any]] = {
    "read": lambda store: store.read("neuron_sets"),
    "sql": lambda store: run_sql(store, COUNT),
    "query": lambda store: query(store, "neurons_by_layer"),
    "iou": iou,
    "connect": lambda store: connect(store).sql(COUNT).fetchall(),
    "connect through Arrow": lambda store: query(connect(store, through_arrow=True), "neurons_by_layer"),
    "catalog": lambda store: write_catalog(store, Path(store.backend.root).parent / "catalog.duckdb"),
}


def path_of(store: Store, address: str) -> Path:
    return Path(store.backend.root, address)


def flip(path: Path, position: int) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)


def rewrite(store: Store, address: str, data: bytes) -> None:
    with store.backend.filesystem.open_output_stream(f"{store.backend.root}/{address}") as file:
        file.write(data)


def unbound(store: Store, address: str) -> bytes:
    """The part as earlier releases wrote it, whose seal knew no address."""
    table = TABLES[address.split("/")[0]]
    rows = pq.read_table(pa.BufferReader(store.backend.read(address))).select(table.schema.names)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("storage.parts._ADDRESS", b"engram.nothing")
        return encode(table, rows.cast(table.schema), "")


@pytest.fixture
def filled(local: Store) -> Store:
    put_sets(local, {"a": range(0, 900, 3), "b": range(0, 900, 2)})
    put_sets(local, {"c": {1}}, layer="other")
    return local


@pytest.mark.parametrize("name", READERS)
def test_a_flipped_bit_is_refused_however_the_part_is_read(filled: Store, name: str) -> None:
    address = filled.parts("neuron_sets", layer=SET["layer"])[0]
    path = path_of(filled, address)
    whole = path.read_bytes()
    for position in range(6, len(whole), len(whole) // 7):
        flip(path, position)
        with pytest.raises(StoreError, match=r"a-0\.parquet") as caught:
            try:
                READERS[name](filled)
            except Exception as error:  # DuckDB's, where a connection is used
                raise StoreError(str(error)) from error
        assert "Traceback" not in str(caught.value)
        path.write_bytes(whole)
    READERS[name](filled)


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize("how", ["copied", "renamed", "swapped", "forged", "of another table", "empty"])
def test_a_part_in_a_wrong_place_is_refused(filled: Store, name: str, how: str) -> None:
    first, second = (path_of(filled, one) for one in filled.parts("neuron_sets", layer=SET["layer"]))
    assert run_sql(filled, COUNT)["n"].to_pylist() == [3]
    other = first.with_name("other.parquet")
    if how == "copied":
        shutil.copy2(first, other)
    elif how == "renamed":
        first.rename(other)
    elif how == "swapped":
        first.rename(other)
        second.rename(first)
        other.rename(second)
    elif how == "forged":
        pq.write_table(pq.read_table(first).select(TABLES["neuron_sets"].schema.names), other)
    elif how == "of another table":
        shutil.copy(path_of(filled, filled.write("accepted", "k", [{"audit_id": "a", "accepted_at": 0}])), other)
    else:
        other.write_bytes(b"")
    with pytest.raises(Exception, match=r"\.parquet"):
        READERS[name](filled)
    assert {found.address.rsplit("/", 1)[1] for found in verify(filled)} & {"other.parquet", "a-0.parquet"}


def test_sql_leaves_out_what_is_not_sound_and_says_so(store: Store) -> None:
    put_sets(store, {"a": {1}, "b": {2}})
    first, second = store.parts("neuron_sets")
    rewrite(store, first, store.backend.read(second))
    damages: list[tuple[str, str]] = []
    rows = run_sql(store, "SELECT scope_id FROM neuron_sets", on_damage=lambda *one: damages.append(one))
    assert rows["scope_id"].to_pylist() == ["b"]
    assert [address for address, _ in damages] == [first] and f"is a copy of {second}" in damages[0][1]


@pytest.mark.parametrize("name", [name for name in READERS if name != "catalog"])
def test_parts_of_earlier_releases_stay_readable_and_are_counted(filled: Store, name: str) -> None:
    for address in filled.parts("neuron_sets"):
        path_of(filled, address).write_bytes(unbound(filled, address))
    READERS[name](filled)
    verdict = examine(filled)
    assert verdict.damages == [] and verdict.notes[0].startswith("3 parts were sealed by an earlier release")
    # What can be checked is: the partition from the columns, and two names of one file.
    old = path_of(filled, filled.parts("neuron_sets", layer="other")[0])
    shutil.copy(old, copy := old.with_name("copy.parquet"))
    with pytest.raises(Exception, match="is the same file as"):
        READERS[name](filled)
    assert len(verify(filled)) == 2
    copy.rename(path_of(filled, filled.parts("neuron_sets", layer=SET["layer"])[0]).with_name("moved.parquet"))
    with pytest.raises(Exception, match="lies under layer="):
        READERS[name](filled)


@pytest.mark.parametrize("kind", ["dangling", "loop", "pipe", "folder", "linked folder"])
def test_what_is_no_file_is_named_and_the_rest_goes_on(filled: Store, tmp_path: Path, kind: str) -> None:
    path = path_of(filled, filled.parts("neuron_sets", layer="other")[0]).with_name("odd.parquet")
    if kind == "dangling":
        path.symlink_to(tmp_path / "nowhere")
    elif kind == "loop":
        path.symlink_to(path)
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        (tmp_path / "elsewhere").mkdir()
        path.symlink_to(tmp_path / "elsewhere")
    (found,) = verify(filled)
    assert found.address.rstrip("/").endswith("odd.parquet")
    damages: list[tuple[str, str]] = []
    assert run_sql(filled, COUNT, on_damage=lambda *one: damages.append(one))["n"].to_pylist() == [3]
    assert len(damages) == 1 and "odd.parquet" in damages[0][0]
    # Questions that do not concern it are answered; those that do name it.
    assert filled.read("neuron_sets", layer=SET["layer"]).num_rows == 2
    assert iou(filled, layer=SET["layer"]).num_rows == 1 and query(filled, "registered").num_rows == 0
    for name in ("read", "sql", "query", "iou", "connect"):
        with pytest.raises(StoreError, match=r"odd\.parquet"):
            READERS[name](filled)
    if kind not in ("folder", "linked folder"):
        with pytest.raises(StoreError, match="something else lies there"):
            filled.write_parts("neuron_sets", "odd", [neuron_set("z", {1})], **(SET | {"layer": "other"}))


def test_a_file_or_folder_that_may_not_be_read_is_named(filled: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    address = filled.parts("neuron_sets", layer="other")[0]
    real, scan = type(filled.backend).read, os.scandir

    def read(place: Any, path: str) -> bytes:
        if path == address:
            raise PermissionError(13, "Permission denied", path)
        return real(place, path)

    def scandir(path: Any) -> Any:
        if str(path).endswith("layer=other"):
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    for patched in ((type(filled.backend), "read", read), (os, "scandir", scandir)):
        with monkeypatch.context() as patch:
            patch.setattr(*patched)
            (found,) = verify(filled)
            assert "layer=other" in found.address and "Permission denied" in found.reason
            with pytest.raises(StoreError, match=r"layer=other.*Permission denied"):
                filled.read("neuron_sets")


def test_a_part_is_read_in_full_once_and_again_when_it_has_changed(
    filled: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage.checked, "_SETTLED", -1.0)
    read: list[str] = []
    real = type(filled.backend).read

    def counted(place: Any, path: str) -> bytes:
        read.append(path)
        return real(place, path)

    monkeypatch.setattr(type(filled.backend), "read", counted)
    connect(filled)
    assert len(read) == 3
    storage.checked._remembered.cache_clear()  # as another process would begin
    again = Store.open(filled.url)
    connect(again)
    again.read("neuron_sets")
    assert len([path for path in read if path.endswith(".parquet")]) == 3
    path = path_of(filled, filled.parts("neuron_sets")[0])
    before = path.stat()
    flip(path, 20)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))  # who hides a change can set this time, not the other
    with pytest.raises(StoreError, match="its bytes have changed"):
        connect(again)


def test_what_changed_a_moment_ago_is_not_remembered(filled: Store) -> None:
    connect(filled)
    assert filled.checked._known == {}
    time.sleep(2.1)
    connect(filled)
    assert len(filled.checked._known) == 3


def test_what_is_remembered_is_this_users_alone(filled: Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(storage.checked, "_SETTLED", -1.0)
    connect(filled)
    log = filled.checked._log
    assert log is not None and stat.S_IMODE(log.stat().st_mode) == 0o600
    assert stat.S_IMODE(log.parent.stat().st_mode) == 0o700
    for path, mode in ((log, 0o666), (log.parent, 0o777)):
        path.chmod(mode)
        storage.checked._remembered.cache_clear()
        assert Store.open(filled.url).checked._known == {}
        path.chmod(0o600 if path == log else 0o700)
    log.write_bytes(b"nonsense\n\xff\xfe\t\t\t\n" + log.read_bytes()[: len(log.read_bytes()) - 9])
    storage.checked._remembered.cache_clear()
    assert Store.open(filled.url).read("neuron_sets").num_rows == 3
    # Without a place to remember, parts are checked each time.
    monkeypatch.setenv("ENGRAM_CACHE", "/proc/nowhere")
    assert Store.open(filled.url).read("neuron_sets").num_rows == 3


def audited(store: Store, audit_id: str, minute: int) -> None:
    """An audit of the model m, and its record."""
    row = {"audit_id": audit_id, "model_id": "m", "prompt_set": "s", "params": "{}", "code_version": "1"}
    begun = row | {"started_at": minute * 60_000_000, "state": "running"}
    store.write("audits", f"{audit_id}-begun", [begun])
    figure = {"variant": "original", "metric": "mr", "value": 1.0}
    store.write("metrics", audit_id, [figure], audit_id=audit_id)
    ended = begun | {"state": "completed", "finished_at": minute * 60_000_000 + 1}
    store.write("audits", f"{audit_id}-ended", [ended])
    record_holdings(store, audit_id)


def computed(store: Store, value: float = 1.0, created_at: int = 0) -> None:
    """What an audit of the model m rests on."""
    model = {"model_id": "m", "source": "x", "family": "y", "created_at": created_at}
    store.write("models", "m", [model])
    store.write(
        "prompts", "s", [{"prompt_id": "p", "text": "t", "kind": "memorized", "image_ids": ["i"]}], prompt_set="s"
    )
    for image in "ij":
        store.write("images", image, [{"image_id": image, "bytes": b"x", "width": 1, "height": 1}])
    shot = {"prompt_id": "p", "seed": 0, "bytes": b"x"}
    for model_id in "mn":
        where = {"model_id": model_id, "variant": "original", "condition": "prompt"}
        store.write("generations", "g", [shot | {"generation_id": f"g{model_id}"}], **where)
        score = {"generation_id": f"g{model_id}", "value": value}
        store.write("scores", f"s{model_id}", [score], metric="sscd")
    put_sets(store, {"a": {1, 2}})


def remove(store: Store, address: str) -> None:
    if store.url.startswith("s3"):
        import boto3

        bucket, _, prefix = store.backend.root.partition("/")
        boto3.client("s3").delete_object(Bucket=bucket, Key=f"{prefix}/{address}")
    else:
        path_of(store, address).unlink()


def test_an_audit_names_what_it_rests_on(store: Store) -> None:
    computed(store)
    audited(store, "A", 1)
    held = set(store.read("audit_parts")["address"].to_pylist())
    everything = {entry.path for table in TABLES for entry in store.entries(table)}
    assert everything - held == {
        "audit_parts/A.parquet",
        "generations/model_id=n/variant=original/condition=prompt/g.parquet",
        "images/j.parquet",
        "scores/metric=sscd/sn.parquet",
    }
    assert verify(store) == [] and examine(store).notes == []
    # A stage that is run again for this audit adds to it, which is no damage.
    store.write("metrics", "later", [{"variant": "original", "metric": "fid", "value": 1.0}], audit_id="A")
    assert verify(store) == []
    for address in sorted(held):
        data = store.backend.read(address)
        remove(store, address)
        assert [(one.address, "audit A rests on it" in one.reason) for one in verify(store)] == [(address, True)]
        rewrite(store, address, data[:-1])
        assert ["audit A rests on it" in one.reason for one in verify(store)] == [True]
        rewrite(store, address, data)
    assert verify(store) == []


def test_what_is_computed_anew_does_not_stay_damaged(local: Store) -> None:
    computed(local)
    audited(local, "A", 1)
    for address in ("models/m.parquet", "scores/metric=sscd/sm.parquet"):
        path_of(local, address).unlink()
    assert len(verify(local)) == 2
    computed(local, created_at=7)  # the same rows, made at another time
    assert verify(local) == [] and examine(local).notes == []
    path_of(local, "scores/metric=sscd/sm.parquet").unlink()
    computed(local, value=2.0)  # other rows, as another device may compute them
    (found,) = verify(local)
    assert found.address == "scores/metric=sscd/sm.parquet" and "is another part than the one" in found.reason
    audited(local, "B", 2)
    assert verify(local) == [] and examine(local).notes == ["1 parts were computed anew since audit A ended"]
    # The loss of what an audit rests on is accepted by deleting its record.
    path_of(local, "metrics/A.parquet").unlink()
    assert len(verify(local)) == 1
    path_of(local, "audit_parts/A.parquet").unlink()
    assert verify(local) == []
    assert examine(local).notes == ["1 completed audits have no record of the parts that they rest on"]


def test_no_audit_rests_on_a_damaged_part(local: Store) -> None:
    computed(local)
    flip(path_of(local, local.parts("neuron_sets")[0]), 20)
    with pytest.raises(StoreError, match="its bytes have changed"):
        audited(local, "A", 1)
    with pytest.raises(StoreError, match="no audit 'Z'"):
        record_holdings(local, "Z")


def test_the_command_says_what_it_leaves_out_and_verify_which_audit_rests_on_it(filled: Store) -> None:
    computed(filled)
    audited(filled, "A", 1)
    path = path_of(filled, filled.parts("neuron_sets", layer="other")[0])
    flip(path, 20)

    def engram(*arguments: str) -> subprocess.CompletedProcess[str]:
        program = [sys.executable, "-c", "from flows.cli import main; main()", *arguments, "--store", filled.url]
        return subprocess.run(program, cwd=Path(__file__).parents[2], check=False, capture_output=True, text=True)

    answer = engram("sql", COUNT, "--format", "csv")
    assert answer.stdout == "n\n2\n" and "left out neuron_sets/model_id=m" in answer.stderr and answer.returncode == 0
    refused = engram("query", "neurons_by_layer")
    assert refused.returncode == 2 and refused.stderr.count("\n") == 1 and "layer=other" in refused.stderr
    verified = engram("verify")
    assert (
        verified.returncode == 1
        and "its bytes have changed since it was written; audit A rests on it" in verified.stdout
    )
    wrote = engram("catalog", str(Path(filled.backend.root).parent / "x.duckdb"))
    assert wrote.returncode == 2 and "layer=other" in wrote.stderr
    path.unlink()
    wrote = engram("catalog", str(Path(filled.backend.root).parent / "x.duckdb"))
    assert wrote.returncode == 0 and "unchecked and without limits" in wrote.stdout


def test_a_name_of_several_lines_is_told_in_one(filled: Store) -> None:
    path_of(filled, "neuron_sets/x\n\x1b[31m.parquet").write_bytes(b"x")
    for name in ("read", "query"):
        with pytest.raises(StoreError, match=r"x\\n\\x1b") as refused:
            READERS[name](filled)
        assert "\n" not in str(refused.value)
    (found,) = verify(filled)
    assert found.reason.startswith("does not lie where")
