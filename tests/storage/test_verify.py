from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from storage import Store, StoreError, query, verify
from storage.folders import _sealed, read_manifest
from storage.local import LocalBackend
from storage.parts import encode, unseal
from storage.tables import TABLES, VERSION
from tests.support.rows import SET, neuron_set


def test_every_flipped_byte_of_a_part_is_found(local: Store) -> None:
    address = local.write("accepted", "k", [{"audit_id": "a", "accepted_at": 0}])
    data = local.backend.read(address)
    assert unseal(data, TABLES["accepted"], address).bound
    for position in range(len(data)):
        flipped = bytearray(data)
        flipped[position] ^= 0x20
        with pytest.raises(StoreError):
            unseal(bytes(flipped), TABLES["accepted"], address)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_changed_byte_anywhere_in_a_store_is_found_by_verify(local: Store, data: st.DataObject) -> None:
    address = local.write("neuron_sets", "k", [neuron_set("a", range(0, 900, 3))], **SET)
    path = Path(local.backend.root, address)
    whole = path.read_bytes()
    position = data.draw(st.integers(0, len(whole) - 1))
    value = data.draw(st.integers(0, 255).filter(lambda value: value != whole[position]))
    try:
        path.write_bytes(whole[:position] + bytes([value]) + whole[position + 1 :])
        assert [found.address for found in verify(local)] == [address]
        path.write_bytes(whole[:position])
        assert [found.address for found in verify(local)] == [address]
    finally:
        path.write_bytes(whole)
    assert verify(local) == []


def test_reading_damaged_pages_is_an_error_not_a_wrong_answer(local: Store) -> None:
    address = local.write("images", "k", [{"image_id": "x", "bytes": b"0" * 1000, "width": 1, "height": 1}])
    path = Path(local.backend.root, address)
    path.write_bytes(path.read_bytes().replace(b"0" * 500, b"0" * 499 + b"1", 1))
    with pytest.raises(StoreError, match=r"images/k\.parquet its bytes have changed"):
        local.read("images")


def test_parts_that_were_moved_or_do_not_belong_are_found(local: Store) -> None:
    address = local.write("neuron_sets", "k", [neuron_set("a", {1})], **SET)
    root = Path(local.backend.root)
    other = root / address.replace("method=wanda", "method=nemo")
    other.parent.mkdir(parents=True)
    (root / address).rename(other)
    (root / "metrics").mkdir()
    (root / "detections").mkdir()
    (root / "detections/stray.parquet").write_bytes(other.read_bytes())
    (root / "metrics/notes.txt").write_text("mine")
    reasons = {found.address: found.reason for found in verify(local)}
    assert f"is a copy of {address} or was moved" in reasons[other.relative_to(root).as_posix()]
    assert "does not lie where a part" in reasons["detections/stray.parquet"]
    assert "is no part" in reasons["metrics/notes.txt"]


def test_parts_of_another_version_are_found(local: Store) -> None:
    address = local.write("accepted", "k", [{"audit_id": "a", "accepted_at": 0}])
    rows = local.read("accepted")
    old = rows.replace_schema_metadata(TABLES["accepted"].schema.metadata | {b"engram.version": b"1"})
    Path(local.backend.root, address).write_bytes(encode(TABLES["accepted"], old, address))
    assert [found.reason for found in verify(local)] == [
        f"has schema version 1, not {VERSION} as the store; move it out of the store"
    ]


def test_damaged_weights_are_found(store: Store, tmp_path: Path) -> None:
    source = tmp_path / "weights"
    source.mkdir()
    for name in ("a", "b"):
        (source / name).write_bytes(os.urandom(1000))
    store.put_folder("variants", "k", source)
    files, root = store.backend.filesystem, store.backend.root
    lying = {entry.path.rsplit("/", 1)[1]: entry.path for entry in store.backend.files("weights")}
    for name in ("a", "manifest.json"):
        whole = store.backend.read(lying[name])
        data = bytearray(whole)
        data[len(data) // 2] ^= 1
        for content, expected in ((bytes(data), [lying[name]]), (whole, [])):
            with files.open_output_stream(f"{root}/{lying[name]}") as file:
                file.write(content)
            assert [found.address for found in verify(store)] == expected
    files.delete_file(f"{root}/{lying['b']}")
    assert [(found.address, found.reason) for found in verify(store)] == [(lying["b"], "is missing")]


def test_progress_ends_at_the_number_of_files(local: Store) -> None:
    for key in "abc":
        local.write("accepted", key, [{"audit_id": key, "accepted_at": 0}])
    seen: list[tuple[int, int]] = []
    verify(local, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 3), (2, 3), (3, 3)]


def test_weights_that_are_gone_or_half_there_are_found_and_can_be_put_again(local: Store, tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "unet").write_bytes(b"weights")
    address = local.put_folder("variants", "k", tmp_path / "source")
    row = {"variant": "wanda-1", "method": "wanda", "params_id": "p", "weights": address}
    local.write("variants", "k", [row], model_id="m")
    assert verify(local) == []
    (Path(local.backend.root) / address / "manifest.json").unlink()
    assert [(found.address, found.reason.split(":")[0]) for found in verify(local)] == [
        (address, "has no manifest.json"),
        (address, "is gone, though a variant names it"),
    ]
    assert local.put_folder("variants", "k", tmp_path / "source") == address and verify(local) == []
    shutil.rmtree(Path(local.backend.root) / address)
    assert [found.reason.split(",")[0] for found in verify(local)] == ["is gone"]


def test_queries_do_not_answer_from_damaged_pages(local: Store) -> None:
    address = local.write("neuron_sets", "k", [neuron_set("a", range(0, 3000, 3), universe=3000)], **SET)
    path = Path(local.backend.root, address)
    whole, wrong = path.read_bytes(), 0
    right = query(local, "neurons_by_layer").to_pylist()
    for position in range(8, len(whole) // 2, 97):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 1]) + whole[position + 1 :])
        try:
            assert query(local, "neurons_by_layer").to_pylist() == right
        except StoreError:
            wrong += 1
    assert wrong


def copy_objects(store: Store, source: str, target: str, move: bool = False) -> None:
    """Every file below a folder to another one, as an operator does it."""
    files = store.backend.filesystem
    for entry in list(store.backend.files(source)):
        data = store.backend.read(entry.path)
        path = f"{store.backend.root}/{entry.path.replace(source, target, 1)}"
        if isinstance(store.backend, LocalBackend):
            files.create_dir(path.rsplit("/", 1)[0])
        with files.open_output_stream(path) as file:
            file.write(data)
        if move:
            files.delete_file(f"{store.backend.root}/{entry.path}")


@pytest.mark.parametrize("how", ["copied", "swapped", "a file more"])
def test_a_folder_of_weights_knows_its_place_and_its_files(store: Store, tmp_path: Path, how: str) -> None:
    for name in "ab":
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_bytes(name.encode() * 9)
        store.put_folder("variants", name, tmp_path / name)
    assert verify(store) == []
    if how == "copied":
        copy_objects(store, "weights/a", "weights/c")
        wrong = {"weights/c/manifest.json": "weights/c"}
    elif how == "swapped":
        copy_objects(store, "weights/a", "weights/aside", move=True)
        copy_objects(store, "weights/b", "weights/a", move=True)
        copy_objects(store, "weights/aside", "weights/b", move=True)
        if isinstance(store.backend, LocalBackend):
            shutil.rmtree(Path(store.backend.root, "weights/aside"))
        wrong = {"weights/a/manifest.json": "weights/a", "weights/b/manifest.json": "weights/b"}
    else:
        # Sharded weights are taken in place of a single file.
        (beside,) = [one.path for one in store.backend.files("weights/a") if one.path.endswith(".safetensors")]
        more = f"{beside}.index.json"
        with store.backend.filesystem.open_output_stream(f"{store.backend.root}/{more}") as file:
            file.write(b"{}")
        # Of S3 only what the manifest names is fetched.
        wrong = {more: "weights/a"} if isinstance(store.backend, LocalBackend) else {more: ""}
    assert {one.address for one in verify(store)} == set(wrong)
    for address in filter(None, wrong.values()):
        with pytest.raises(StoreError, match=r"is a copy of|does not belong") as caught:
            store.get_folder(address)
        assert "\n" not in str(caught.value)


def test_weights_that_changed_are_not_run(local: Store, tmp_path: Path) -> None:
    (tmp_path / "w").mkdir()
    (tmp_path / "w" / "model.safetensors").write_bytes(b"0" * 99)
    file = local.get_folder(local.put_folder("variants", "k", tmp_path / "w")) / "model.safetensors"
    file.write_bytes(b"0" * 98 + b"1")
    with pytest.raises(StoreError, match=r"weights/k.*model\.safetensors has changed since it was written"):
        local.get_folder("weights/k")


def test_manifests_of_earlier_releases_are_read() -> None:
    content = {"table": "variants", "version": VERSION, "below": "", "files": {"x": {"size": 1, "sha256": "0"}}}
    assert set(read_manifest(_sealed(content), "weights/k").files) == {"x"}


def test_figures_of_an_audit_that_was_deleted_are_found(local: Store) -> None:
    begun = {"audit_id": "A", "model_id": "m", "params": "{}", "code_version": "1", "started_at": 0, "state": "running"}
    row = local.write("audits", "A-begun", [begun])
    figures = local.write("metrics", "k", [{"variant": "original", "metric": "mr", "value": 1.0}], audit_id="A")
    assert verify(local) == []
    Path(local.backend.root, row).unlink()
    assert [(one.address, "audit A" in one.reason) for one in verify(local)] == [(figures, True)]
