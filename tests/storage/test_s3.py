"""What is particular to S3; the rest is tested on both kinds of store."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import boto3
import pytest

import storage.s3
from storage import Store, StoreError, collect_litter, connect, query, run_sql, verify, write_catalog
from tests.support.outage import Outage
from tests.support.rows import SET, neuron_set, put_sets


def test_objects_lie_under_the_prefix_and_nowhere_else(s3: Store) -> None:
    address = s3.write("accepted", "k", [{"audit_id": "a", "accepted_at": 0}])
    bucket = s3.url.split("/")[2]
    listed = boto3.client("s3").list_objects_v2(Bucket=bucket)["Contents"]
    assert sorted(item["Key"] for item in listed) == [f"some/prefix/{address}", "some/prefix/store.json"]
    assert Store.open(s3.url).has("accepted", "k")


def test_sql_reads_parts_through_arrow(s3: Store) -> None:
    put_sets(s3, {"a": {1, 2, 3}, "b": {2, 3, 4}})
    put_sets(s3, {"c": {1}}, layer="other")
    assert run_sql(s3, "SELECT count(*) AS n FROM members").to_pylist() == [{"n": 7}]
    assert run_sql(s3, "SELECT iou FROM iou").to_pylist() == [{"iou": 0.5}]
    assert run_sql(s3, "SELECT DISTINCT scope_id FROM neuron_sets WHERE layer = 'other'").to_pylist() == [
        {"scope_id": "c"}
    ]
    assert query(s3, "neurons_by_layer").num_rows == 2
    for view in ("activations", "neurons", "drift", "audits"):
        assert connect(s3).sql(f"FROM {view}").fetchall() == []
    for statement in ("FROM read_csv('/etc/passwd')", f"FROM '{s3.url}/store.json'", "COPY metrics TO '/tmp/x.csv'"):
        with pytest.raises(StoreError):
            run_sql(s3, statement)


def test_a_layer_is_read_from_its_own_parts(s3: Store) -> None:
    put_sets(s3, {"a": {1}})
    put_sets(s3, {"b": {2}}, layer="other")
    damaged = s3.parts("neuron_sets", layer="other")[0]
    with s3.backend.filesystem.open_output_stream(f"{s3.backend.root}/{damaged}") as file:
        file.write(b"not Parquet")
    sql = "SELECT scope_id FROM neuron_sets WHERE layer = '{}'"
    assert run_sql(s3, sql.format(SET["layer"])).to_pylist() == [{"scope_id": "a"}]
    with pytest.raises(StoreError):
        run_sql(s3, sql.format("other"))


def test_a_large_part_is_uploaded_in_pieces(s3: Store) -> None:
    data = os.urandom(12 << 20)
    s3.write("images", "k", [{"image_id": "x", "bytes": data, "width": 1, "height": 1}])
    assert s3.read("images")["bytes"][0].as_py() == data and verify(s3) == []


def keys_in(bucket: str) -> set[str]:
    return {item["Key"] for item in boto3.client("s3").list_objects_v2(Bucket=bucket).get("Contents", [])}


def test_unfinished_uploads_and_folders_are_collected_after_an_hour(
    s3: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client, bucket = boto3.client("s3"), s3.url.split("/")[2]
    (tmp_path / "unet").write_bytes(b"whole")
    s3.put_folder("variants", "whole", tmp_path)
    before = keys_in(bucket)
    client.create_multipart_upload(Bucket=bucket, Key="some/prefix/images/k.parquet")
    client.create_multipart_upload(Bucket=bucket, Key="some/prefix/backup of somebody.tar")
    for key in ("k/1/unet", "whole/2/unet"):
        client.put_object(Bucket=bucket, Key=f"some/prefix/weights/{key}", Body=b"half")
    assert not s3.has_folder("weights/k") and s3.parts("images") == [] and verify(s3) == []
    # The test server says of every upload that it began years ago; the folders are a moment old.
    assert len(collect_litter(s3)) == 1 and collect_litter(s3) == []
    monkeypatch.setattr(storage.s3, "HOUR", -1.0)
    assert collect_litter(s3) == ["weights/k/1", "weights/whole/2"] and collect_litter(s3) == []
    left = client.list_multipart_uploads(Bucket=bucket)["Uploads"]
    assert [upload["Key"] for upload in left] == ["some/prefix/backup of somebody.tar"]
    assert keys_in(bucket) == before and (s3.get_folder("weights/whole") / "unet").read_bytes() == b"whole"


def test_a_writer_of_weights_that_are_there_changes_nothing(
    s3: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two writers begin at once; the second ends, or dies, when the first one's folder is visible."""
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "unet").write_bytes(name.encode())
    address = s3.put_folder("variants", "k", tmp_path / "first")
    s3.backend.put_folder(address, tmp_path / "second", "variants")
    with monkeypatch.context() as patched, pytest.raises(StoreError):
        patched.setattr(s3.backend, "exists", lambda _: False)
        patched.setattr(s3.backend, "put", lambda *_: (_ for _ in ()).throw(OSError("died")))
        s3.put_folder("variants", "k", tmp_path / "second")
    assert (s3.get_folder(address) / "unet").read_bytes() == b"first" and verify(s3) == []


def test_writers_killed_at_random_moments(s3: Store) -> None:
    program = [sys.executable, "-m", "tests.storage.killed_writers", s3.url, "8", "0.8"]
    ended = subprocess.run(
        program, cwd=Path(__file__).parents[2], check=False, capture_output=True, text=True, timeout=120
    )
    assert ended.returncode == 0, ended.stderr
    assert s3.parts("neuron_sets") and verify(s3) == []


@pytest.mark.parametrize("kind", ["part", "large part", "folder"])
def test_a_write_may_fail_at_every_request(s3: Store, outage: Outage, tmp_path: Path, kind: str) -> None:
    for name in ("a", "b"):
        (tmp_path / name).write_bytes(b"x" * 1000)
    image = {"image_id": "x", "bytes": os.urandom(12 << 20 if kind == "large part" else 1000), "width": 1, "height": 1}

    def work(key: str) -> None:
        if kind == "folder":
            s3.put_folder("variants", key, tmp_path)
        else:
            s3.write("images", key, [image])

    def visible(key: str) -> bool:
        return s3.has_folder(f"weights/{key}") if kind == "folder" else s3.has("images", key)

    failures: list[str] = []
    for requests in range(100):
        key = f"k{requests}"
        outage.left = requests
        try:
            work(key)
            break
        except StoreError as error:
            failures.append(str(error))
        finally:
            outage.left = None
        assert verify(s3) == [] and not visible(key)
        work(key)
        assert visible(key)
    assert visible(key) and len(failures) >= (2 if kind == "part" else 5)
    assert not any("\n" in failure for failure in failures)


def test_errors_are_one_line(s3_url: str, s3_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(StoreError, match="cannot open the store s3://no-such-bucket") as caught:
        Store.open("s3://no-such-bucket/x")
    assert "\n" not in str(caught.value)
    store = Store.open(s3_url)
    with pytest.raises(StoreError, match="httpfs"):
        write_catalog(store, "catalog.duckdb")
    assert not Path("catalog.duckdb").exists()
    monkeypatch.setitem(sys.modules, "boto3", None)
    with pytest.raises(StoreError, match="pip install boto3"):
        collect_litter(store)


def test_a_key_is_written_once(s3: Store) -> None:
    s3.write("neuron_sets", "k", [neuron_set("a", {1})], **SET)
    s3.backend.put(s3.parts("neuron_sets")[0], b"something else")
    assert verify(s3) == []


def test_a_store_that_was_copied_from_a_disk_keeps_its_weights_and_so_does_the_copy_back(
    s3: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, bucket, client = tmp_path / "source", s3.url.split("/")[2], boto3.client("s3")
    (source / "unet").mkdir(parents=True)
    (source / "unet" / "weights").write_bytes(b"w" * 100)
    on_disk = Store.open(tmp_path / "on_disk")
    address = on_disk.put_folder("variants", "k", source)
    for path in (tmp_path / "on_disk" / address).rglob("*"):
        if path.is_file():
            client.upload_file(str(path), bucket, f"some/prefix/{path.relative_to(tmp_path / 'on_disk')}")
    monkeypatch.setattr(storage.s3, "HOUR", -1.0)
    assert collect_litter(s3) == [] and verify(s3) == []
    assert (s3.get_folder(address) / "unet" / "weights").read_bytes() == b"w" * 100
    uploaded = s3.put_folder("variants", "up", source)
    for key in keys_in(bucket):
        if "/weights/up/" in key:
            copy = tmp_path / "on_disk" / key.removeprefix("some/prefix/")
            copy.parent.mkdir(parents=True, exist_ok=True)
            client.download_file(bucket, key, str(copy))
    assert (on_disk.get_folder(uploaded) / "unet" / "weights").read_bytes() == b"w" * 100
    assert verify(on_disk) == []


def test_a_download_that_lost_bytes_is_fetched_again(s3: Store, tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "weights").write_bytes(b"whole")
    address = s3.put_folder("variants", "k", tmp_path / "source")
    found = s3.get_folder(address) / "weights"
    found.write_bytes(b"")  # as after a power cut
    assert (s3.get_folder(address) / "weights").read_bytes() == b"whole"
