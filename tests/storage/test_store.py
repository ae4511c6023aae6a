from __future__ import annotations

import errno
import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from storage import Store, StoreError, content_key, verify
from storage.migrations import OLDEST
from storage.tables import TABLES, VERSION
from tests.support.rows import SET, neuron_set


def test_what_is_written_is_read(store: Store) -> None:
    rows = [neuron_set("a", {5, 1, 9}), neuron_set("a", set(), step=None)]
    assert not store.has("neuron_sets", "k", **SET)
    address = store.write("neuron_sets", "k", rows, **SET)
    assert address == "neuron_sets/model_id=m/method=wanda/site=ff/layer=down.0%2Fff%20net/k.parquet"
    assert store.has("neuron_sets", "k", **SET) and store.has("neuron_sets", "k", model_id="m")
    assert not store.has("neuron_sets", "k", model_id="other") and not store.has("neuron_sets", "other", **SET)
    read = store.read("neuron_sets", **SET)
    assert read.to_pylist() == [{**row, **SET, "width": None} for row in rows]
    assert read.column_names == TABLES["neuron_sets"].schema.names
    assert verify(store) == []


def test_a_part_is_never_changed(store: Store) -> None:
    first = store.write("accepted", "k", [{"audit_id": "a", "accepted_at": 0}])
    assert store.write("accepted", "k", [{"audit_id": "b", "accepted_at": 0}]) == first
    assert store.read("accepted")["audit_id"].to_pylist() == ["a"]


def test_reading_selects_parts_rows_and_columns(store: Store) -> None:
    for layer in ("x", "y"):
        for name in ("a", "b"):
            store.write("neuron_sets", name, [neuron_set(name, {1})], **(SET | {"layer": layer}))
    assert store.read("neuron_sets", layer="x", columns=["layer", "scope_id"]).to_pylist() == [
        {"layer": "x", "scope_id": "a"},
        {"layer": "x", "scope_id": "b"},
    ]
    assert store.read("neuron_sets", "a")["layer"].to_pylist() == ["x", "y"]
    assert store.read("neuron_sets", scope_id="b").num_rows == 2
    assert store.read("neuron_sets", scope_id=["a", "c"]).num_rows == 2
    assert store.read("neuron_sets", scope_id=["b", "a"], layer="x").num_rows == 2
    assert store.read("neuron_sets", layer=["y", "z"])["layer"].to_pylist() == ["y", "y"]
    assert store.read("neuron_sets", scope_id=[]).num_rows == 0
    assert store.read("neuron_sets", layer="z").schema.names == TABLES["neuron_sets"].schema.names
    assert store.read("neuron_sets", step=None).num_rows == 0
    with pytest.raises(StoreError, match="cannot read neuron_sets"):
        store.read("neuron_sets", step="first")


def test_parts_of_several_partitions_count_as_work_done_when_all_are_there(store: Store) -> None:
    rows = [neuron_set("a", {i}) | {"layer": f"l{i}"} for i in range(3)]
    where = {name: SET[name] for name in ("model_id", "method", "site")}
    with pytest.raises(StoreError, match="span 3 partitions"):
        store.write("neuron_sets", "k", rows, **where)
    addresses = store.write_parts("neuron_sets", "k", rows, **where)
    assert len(addresses) == 3 and store.has("neuron_sets", "k", **where)
    store.backend.filesystem.delete_file(f"{store.backend.root}/{addresses[1]}")
    assert not store.has("neuron_sets", "k", **where)
    assert store.write_parts("neuron_sets", "k", rows, **where) == addresses
    assert store.has("neuron_sets", "k", **where)


def test_no_rows_can_be_a_result(store: Store) -> None:
    with pytest.raises(StoreError, match="give layer, method, model_id, site"):
        store.write("neuron_sets", "k", [])
    store.write("neuron_sets", "k", [], **SET)
    assert store.has("neuron_sets", "k", **SET) and store.read("neuron_sets").num_rows == 0


def test_an_arrow_table_is_as_good_as_dicts(local: Store) -> None:
    table = pa.table({"audit_id": ["a"], "accepted_at": pa.array([1], pa.timestamp("s", tz="UTC"))})
    local.write("accepted", "k", table)
    assert local.read("accepted")["accepted_at"].to_pylist()[0].timestamp() == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scope": "planet"}, "not one of: prompt subset trigger"),
        ({"members": [3, 1]}, "sorted"),
        ({"members": [1, 1]}, "without repeats"),
        ({"members": [1, None]}, "without nulls"),
        ({"members": [1000]}, "outside its universe"),
        ({"members": [-1]}, "must be list<"),
        ({"universe": None}, "must not be null"),
        ({"step": "first"}, "must be int32"),
        ({"colour": "red"}, "no column colour"),
        ({"layer": "other"}, "not 'down.0/ff net' throughout"),
    ],
)
def test_rows_that_do_not_fit_are_refused(local: Store, change: dict[str, object], message: str) -> None:
    with pytest.raises(StoreError, match=message) as caught:
        local.write("neuron_sets", "k", [neuron_set("a", {1}) | change], **SET)
    assert "\n" not in str(caught.value)
    assert local.parts("neuron_sets") == [] and verify(local) == []


def test_names_that_lead_elsewhere_are_refused(local: Store) -> None:
    for key in ("../k", "a/b", "", ".hidden", "k" * 200):
        with pytest.raises(StoreError, match="is no key"):
            local.write("neuron_sets", key, [neuron_set("a", {1})], **SET)
    with pytest.raises(StoreError, match="must not be empty"):
        local.write("neuron_sets", "k", [neuron_set("a", {1})], **(SET | {"layer": ""}))
    local.write("neuron_sets", "k", [neuron_set("a", {1})], **(SET | {"layer": "../../.."}))
    assert local.read("neuron_sets", layer="../../..").num_rows == 1 and verify(local) == []
    with pytest.raises(StoreError, match="no table 'planets'"):
        local.write("planets", "k", [])


def test_columns_carry_their_descriptions(local: Store) -> None:
    address = local.write("accepted", content_key(1), [{"audit_id": "a", "accepted_at": 0}])
    schema = pq.read_schema(f"{local.backend.root}/{address}")
    assert schema.field("audit_id").metadata[b"description"] == b"the audit"
    assert schema.metadata[b"engram.version"] == str(VERSION).encode()
    for table in TABLES.values():
        assert all(field.metadata[b"description"] for field in table.schema), table.name


def test_a_store_of_another_version_says_what_to_do(tmp_path: Path) -> None:
    mark = tmp_path / "store.json"
    for version, message in (
        (VERSION + 1, "install a newer engram"),
        (OLDEST, "run `engram migrate --store "),
        (OLDEST - 1, "begin a new store"),
    ):
        mark.write_text(json.dumps({"format": "engram", "version": version}))
        with pytest.raises(StoreError, match=message):
            Store.open(tmp_path)
    mark.write_text("{}")
    with pytest.raises(StoreError, match="damaged"):
        Store.open(tmp_path)


def test_where_a_store_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert Store.open().url == (tmp_path / ".engram/store").as_uri()
    monkeypatch.setenv("ENGRAM_STORE", "here")
    assert Store.open().url == (tmp_path / "here").as_uri()
    assert Store.open((tmp_path / "a folder").as_uri()).backend.root == str(tmp_path / "a folder")
    with pytest.raises(StoreError, match="no store at nowhere"):
        Store.open("nowhere", create=False)
    assert not Path("nowhere").exists()
    for url in ("gs://bucket", "s3://", "s3://bucket/a?b", "file:///a#b", "file://host/x", "what*ever"):
        with pytest.raises(StoreError):
            Store.open(url)


def test_folders_of_weights(store: Store, tmp_path: Path) -> None:
    source = tmp_path / "weights"
    (source / "unet").mkdir(parents=True)
    (source / "model_index.json").write_text("{}")
    (source / "unet" / "model.safetensors").write_bytes(os.urandom(100_000))
    assert not store.has_folder("weights/k")
    address = store.put_folder("variants", "k", source)
    assert store.put_folder("variants", "k", tmp_path) == address and store.has_folder("weights/k")
    for _ in range(2):
        copy = store.get_folder(address)
        for path in ("model_index.json", "unet/model.safetensors"):
            assert (copy / path).read_bytes() == (source / path).read_bytes()
    assert verify(store) == []
    with pytest.raises(StoreError, match="no folder weights/other"):
        store.get_folder("weights/other")
    with pytest.raises(StoreError, match="empty"):
        store.put_folder("variants", "other", tmp_path / "nothing")


@pytest.mark.parametrize("fault", [errno.ENOSPC, errno.EACCES, errno.EIO])
def test_an_error_of_the_disk_is_one_line_and_leaves_nothing(
    local: Store, monkeypatch: pytest.MonkeyPatch, fault: int
) -> None:
    def fail(_: int) -> None:
        raise OSError(fault, os.strerror(fault))

    with monkeypatch.context() as patched, pytest.raises(StoreError, match=os.strerror(fault)) as caught:
        patched.setattr(os, "fsync", fail)
        local.write("neuron_sets", "k", [neuron_set("a", {1})], **SET)
    assert "\n" not in str(caught.value)
    assert local.parts("neuron_sets") == [] and list(Path(local.backend.root, ".aside").iterdir()) == []


def test_a_folder_that_may_not_be_read_is_an_error_not_an_empty_table(
    local: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    local.write("neuron_sets", "k", [neuron_set("a", {1})], **SET)

    def refuse(path: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(StoreError, match="Permission denied"):
        local.read("neuron_sets")


def test_a_part_that_comes_while_it_is_looked_for_is_there(local: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    address = local.write("neuron_sets", "k", [neuron_set("a", {1})], **SET)
    looked, missing = os.stat, [address]

    def stat(path: str, **more: bool) -> os.stat_result:
        if str(path).endswith(address) and missing:
            missing.clear()
            raise FileNotFoundError(path)
        return looked(path, **more)

    monkeypatch.setattr("storage.local.os.stat", stat)
    assert local.write("neuron_sets", "k", [neuron_set("a", {1})], **SET) == address and not missing


def test_many_writers_of_the_same_keys(store: Store) -> None:
    def work(number: int) -> str:
        return store.write("neuron_sets", f"k{number % 4}", [neuron_set(f"s{number % 4}", {number})], **SET)

    with ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(work, range(32)))) == 4
    assert sorted(store.read("neuron_sets")["scope_id"].to_pylist()) == ["s0", "s1", "s2", "s3"]
    assert verify(store, gc=True) == []
