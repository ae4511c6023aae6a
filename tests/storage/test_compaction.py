"""Compaction changes how many files there are, and nothing that anybody reads, finds or relies on."""

from __future__ import annotations

import shutil
import tarfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

import storage.checked
import storage.compaction
from flows.cli.commands import app
from storage import (
    Store,
    StoreError,
    begun_here,
    compact,
    connect,
    examine,
    migrate,
    query,
    record_holdings,
    run_sql,
    verify,
)
from storage.backend import Entry
from storage.checked import dataset, is_merged
from storage.compaction import LARGEST, SMALL, _put_merged, _source, batches, take_out
from storage.migrations import OLDEST
from storage.tables import TABLES
from tests.storage.test_crashes import survives
from tests.storage.test_integrity import audited, computed
from tests.storage.test_migrate import FIXTURES
from tests.storage.test_units import KINDS, Kind, as_read, each_kind, write
from tests.support.rows import SET, neuron_set, put_sets

FEW = settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
UNITS = st.frozensets(st.integers(0, 9))


@contextmanager
def later() -> Iterator[None]:
    """More than an hour later."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(storage.compaction, "HOUR", -60.0)
        yield


def contents(store: Store, table: str) -> list[str]:
    return sorted(map(repr, store.read(table).to_pylist()))


def everything(store: Store) -> dict[str, list[str]]:
    return {table: contents(store, table) for table in TABLES}


def files(store: Store) -> list[str]:
    return [entry.path for table in TABLES for entry in store.entries(table)]


@each_kind
@FEW
@given(
    history=st.lists(
        st.one_of(UNITS, st.sampled_from(["compact", "gc"]), st.tuples(st.just("killed"), st.integers(0, 25))),
        min_size=1,
        max_size=8,
    ),
    differ=st.booleans(),
)
def test_any_history_leaves_the_rows_that_it_would_leave_without(
    tmp_path_factory: pytest.TempPathFactory, kind: Kind, history: list[Any], differ: bool
) -> None:
    folder = tmp_path_factory.mktemp("history")
    store, plain = Store.open(folder / "store"), Store.open(folder / "plain")
    splits: list[frozenset[int]] = []
    for step in [*history, "compact", "gc"]:
        before = contents(store, kind.table)
        if isinstance(step, frozenset):
            splits.append(step)
            # Where workers find different values, which of them counts may change with a part that comes, not after.
            for each in (store, plain):
                write(each, kind, splits, differ)
            before = contents(store, kind.table)
        elif step == "compact":
            compact(store)
        elif step == "gc":
            with later():
                compact(store, gc=True)
        else:
            with later():
                survives(store, lambda: compact(store, gc=True), step[1])
        assert contents(store, kind.table) == before == as_read(store, kind)
        assert verify(store) == []
        if not differ:
            assert before == contents(plain, kind.table)
        for number in range(len(splits)):
            assert store.has(kind.table, f"k{number}", **kind.partition) and store.has(kind.table, f"k{number}")
    with later():
        compact(store, gc=True)
        compact(store, gc=True)
    assert len(store.parts(kind.table)) == (1 if splits else 0)


@each_kind
@FEW
@given(splits=st.lists(UNITS, min_size=2, max_size=6), seen=st.lists(st.frozensets(st.integers(0, 5)), max_size=4))
def test_any_number_may_compact_at_once(
    tmp_path_factory: pytest.TempPathFactory, kind: Kind, splits: list[frozenset[int]], seen: list[frozenset[int]]
) -> None:
    """Each as it saw the store, which was some of the parts that there are."""
    store = Store.open(tmp_path_factory.mktemp("racing"))
    write(store, kind, splits, differ=False)
    before, table = contents(store, kind.table), TABLES[kind.table]
    entries = store.entries(kind.table)
    for some in seen:
        chosen = [entries[number] for number in sorted(some) if number < len(entries)]
        if len(chosen) > 1:
            address = _put_merged(store, table, [_source(store, table, entry) for entry in chosen])
            # Who does the same again does nothing.
            assert _put_merged(store, table, [_source(store, table, entry) for entry in chosen[::-1]]) == address
        assert contents(store, kind.table) == before == as_read(store, kind)
    for _ in range(3):
        with later():
            compact(store, gc=True)
        assert contents(store, kind.table) == before == as_read(store, kind)
        assert verify(store) == []
    assert len(store.parts(kind.table)) == 1
    assert all(store.has(kind.table, f"k{number}", **kind.partition) for number in range(len(splits)))


@pytest.fixture
def busy(store: Store) -> Store:
    """A store with audits, and what they rest on."""
    computed(store)
    for number, audit_id in enumerate("AB"):
        audited(store, audit_id, number)
    for layer in ("x", "y"):
        put_sets(store, {"a": {1, 2}, "b": {2, 3}, "c": {4}}, layer=layer)
    return store


def test_audits_rest_on_what_was_merged(busy: Store) -> None:
    before = everything(busy)
    done = compact(busy)
    assert done.merged > done.into > 3 and done.waiting == 0 and done.notes == []
    assert everything(busy) == before and verify(busy) == [] and examine(busy).notes == []
    waiting = compact(busy, gc=True)
    assert (waiting.merged, waiting.removed) == (0, 0) and waiting.waiting == done.merged
    with later():
        removed = compact(busy, gc=True)
    assert removed.removed == done.merged and removed.freed == done.size
    assert everything(busy) == before and verify(busy) == [] and examine(busy).notes == []
    # One that rests on merged parts, which are merged again.
    audited(busy, "C", 3)
    before = everything(busy)
    with later():
        assert compact(busy, gc=True).merged > 0
        assert compact(busy, gc=True).removed > 0
    assert everything(busy) == before and verify(busy) == [] and examine(busy).notes == []
    folders = [path.rpartition("/")[0] for path in files(busy)]
    assert len(folders) == len(set(folders))


def test_verify_misses_a_merged_part_and_finds_it_damaged(local: Store) -> None:
    computed(local)
    for number, audit_id in enumerate("AB"):
        audited(local, audit_id, number)
    with later():
        compact(local)
        compact(local, gc=True)
    (merged,) = local.parts("metrics")
    path = Path(local.backend.root, merged)
    data = path.read_bytes()
    path.write_bytes(data[:-1])
    assert any(one.address == merged for one in verify(local))
    path.unlink()
    assert {("rest" in one.reason, "is missing" in one.reason) for one in verify(local)} == {(True, True)}
    path.write_bytes(data)
    assert verify(local) == []


def test_it_may_die_at_every_step(tmp_path: Path) -> None:
    filled = Store.open(tmp_path / "filled")
    computed(filled)
    audited(filled, "A", 0)
    put_sets(filled, {"a": {1}, "b": {2}, "c": {3}}, layer="x")
    before, step, survived = everything(filled), 0, False
    with later():
        compact(filled)
        while not survived:
            store = Store.open(shutil.copytree(tmp_path / "filled", tmp_path / str(step)))
            audited(store, "B", 1)
            whole = everything(store)
            survived = survives(store, lambda store=store: compact(store, gc=True), step)  # type: ignore[misc]
            assert everything(store) == whole and verify(store) == []
            compact(store, gc=True)
            compact(store, gc=True)
            assert everything(store) == whole and verify(store) == []
            step += 1
    assert step > 20 and before.keys() == whole.keys()


def test_readers_and_writers_go_on_meanwhile(local: Store) -> None:
    over, wrong, reads = threading.Event(), list[object](), [0]
    put_sets(local, {f"s{number}": {number} for number in range(4)})

    def read() -> None:
        try:
            while not over.is_set():
                store = Store.open(local.url)
                rows = store.read("neuron_sets")["scope_id"].to_pylist()
                asked = connect(store).sql("SELECT scope_id FROM neuron_sets").fetchall()
                if len(set(rows)) != len(rows) or len(set(asked)) != len(asked) or len(asked) < len(rows):
                    wrong.append((rows, asked))
                if not {"s0", "s1", "s2", "s3"} <= set(rows):
                    wrong.append(rows)
                reads[0] += 1
        except Exception as error:
            wrong.append(error)

    readers = [threading.Thread(target=read) for _ in range(2)]
    for reader in readers:
        reader.start()
    for number in range(4, 24):
        put_sets(local, {f"s{number}": {number}})
        compact(local)
    over.set()
    for reader in readers:
        reader.join()
    assert wrong == [] and reads[0] > 3
    assert sorted(local.read("neuron_sets")["members"].to_pylist()) == [[number] for number in range(24)]


def test_who_listed_the_store_before_old_parts_went_reads_on(local: Store) -> None:
    put_sets(local, {"a": {1}, "b": {2}, "c": {3}})
    compact(local)
    listed = local.entries("neuron_sets")
    with later():
        assert compact(local, gc=True).removed == 3
    fresh = Store.open(local.url)
    assert dataset(fresh.checked, TABLES["neuron_sets"], listed).to_table().num_rows == 3


def test_a_running_audit_keeps_its_parts(local: Store) -> None:
    put_sets(local, {"a": {1}, "b": {2}, "c": {3}})
    local.write("neuron_sets", "both", [neuron_set(name, {4}) for name in "xy"], **SET)
    time.sleep(0.02)
    begun_here(local, "A")
    row = {"audit_id": "A", "model_id": "m", "params": "{}", "code_version": "1", "started_at": datetime.now(UTC)}
    local.write("audits", "A-begun", [row | {"state": "running"}])
    put_sets(local, {"d": {5}})
    local.write("neuron_sets", "later", [neuron_set(name, {4}) for name in "yz"], **SET)
    done = compact(local)
    assert (done.merged, done.into) == (3, 1)
    assert done.notes == ["3 parts stay as they are while the audit A is running"]
    kept = {path.rpartition("/")[2] for path in local.parts("neuron_sets") if not is_merged(path)}
    assert {"d-0.parquet", "later.parquet", "both.parquet"} <= kept
    local.write("audits", "A-ended", [row | {"state": "completed", "finished_at": datetime.now(UTC)}])
    with later():
        assert compact(local, gc=True).notes == []
        compact(local, gc=True)
    assert len(local.parts("neuron_sets")) == 1 and local.read("neuron_sets").num_rows == 7


def test_a_damaged_part_is_named_and_its_folder_stays(local: Store) -> None:
    for layer in ("x", "y"):
        put_sets(local, {"a": {1}, "b": {2}}, layer=layer)
    damaged = local.parts("neuron_sets", layer="x")[0]
    path = Path(local.backend.root, damaged)
    path.write_bytes(path.read_bytes()[:-1])
    done = compact(local)
    assert done.merged == 2 and len(done.notes) == 1 and damaged in done.notes[0]
    assert path.exists() and local.read("neuron_sets", layer="y").num_rows == 2


def test_work_under_a_key_that_was_merged_is_done(store: Store) -> None:
    rows = [neuron_set("a", {1}) | {"layer": f"l{i}"} for i in range(3)]
    where = {name: SET[name] for name in ("model_id", "method", "site")}
    store.write_parts("neuron_sets", "k", rows, **where)
    for row in rows:
        store.write("neuron_sets", "other", [row | {"scope_id": "b"}], **where)
    store.write("neuron_sets", "none", [], **(where | {"layer": "l0"}))
    store.write("accepted", "a", [{"audit_id": "a", "accepted_at": 0}])
    store.write("accepted", "b", [{"audit_id": "b", "accepted_at": 0}])
    with later():
        compact(store)
        compact(store, gc=True)
    assert len(files(store)) == 4 and all(map(is_merged, files(store)))
    assert store.has("neuron_sets", "k", **where) and store.has("neuron_sets", "k", **where, layer="l1")
    assert store.has("neuron_sets", "none", **where, layer="l0") and not store.has("neuron_sets", "none", layer="l1")
    assert store.has("accepted", "a") and not store.has("accepted", "c")
    assert store.parts("accepted", "a") == store.parts("accepted")
    assert store.write("accepted", "a", [{"audit_id": "z", "accepted_at": 0}]) == store.parts("accepted")[0]
    assert store.write_parts("neuron_sets", "k", rows, **where) == store.parts("neuron_sets")
    assert len(files(store)) == 4
    # The work of one layer was lost: it alone is missing.
    store.backend.filesystem.delete_file(f"{store.backend.root}/{store.parts('neuron_sets', layer='l1')[0]}")
    assert not store.has("neuron_sets", "k", **where)
    store.write_parts("neuron_sets", "k", rows, **where)
    assert store.has("neuron_sets", "k", **where) and store.read("neuron_sets", scope_id="a").num_rows == 3


def test_what_a_release_wrote_has_the_same_figures_afterwards(tmp_path: Path) -> None:
    with tarfile.open(FIXTURES / f"v{OLDEST}.tar.xz") as archive:
        archive.extractall(tmp_path / "store", filter="data")
    migrate(tmp_path / "store")
    store = Store.open(tmp_path / "store")
    figures = "SELECT * FROM drift ORDER BY ALL"

    def asked() -> list[Any]:
        return [everything(store), run_sql(store, figures).to_pylist(), *(query(store, name) for name in NAMED)]

    before, many = asked(), len(files(store))
    with later():
        compact(store)
        compact(store, gc=True)
    assert asked() == before
    assert examine(store).damages == [] and examine(store).notes == []
    folders = {path.rpartition("/")[0] for path in files(store)}
    assert len(files(store)) == len(folders) < many / 2


NAMED = ("audit_metrics", "copies", "drift_from_accepted", "prompts_with_most_neurons")


def test_nights_add_no_files(local: Store) -> None:
    counts = []
    for night in range(6):
        audited(local, f"night{night}", night)
        for condition in ("prompt", "ordinary"):
            figure = {"variant": "original", "metric": "mr", "value": 1.0, "condition": condition}
            local.write("metrics", f"{night}-{condition}", [figure], audit_id=f"night{night}")
        with later():
            compact(local, gc=True)
            compact(local, gc=True)
        counts.append(len(files(local)))
    assert set(counts[1:]) == {3}  # audits, metrics, audit_parts
    assert verify(local) == []


def test_a_question_about_one_audit_opens_its_parts_alone(local: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage.checked, "_SETTLED", -1.0)
    for number in range(8):
        figures = [{"variant": f"v{n}", "metric": "mr", "value": float(number)} for n in range(50)]
        local.write("metrics", f"k{number}", figures, audit_id=f"2024010{number}")
    local.read("metrics")
    asked = ds.field("audit_id") == "20240103"
    fresh = Store.open(local.url)
    found = list(dataset(fresh.checked, TABLES["metrics"], fresh.entries("metrics")).get_fragments(filter=asked))
    assert [fragment.path.rpartition("/")[2] for fragment in found] == ["k3.parquet"]
    # Of one merged part, statistics tell which row groups.
    monkeypatch.setattr("storage.parts._GROUP_ROWS", 50)
    with later():
        compact(local)
        compact(local, gc=True)
    (merged,) = dataset(local.checked, TABLES["metrics"], local.entries("metrics")).get_fragments()
    assert merged.num_row_groups == 8 and merged.subset(filter=asked).num_row_groups == 1
    assert local.read("metrics", audit_id="20240103")["value"].to_pylist() == [3.0] * 50


@FEW
@given(splits=st.lists(UNITS, min_size=1, max_size=5), wanted=st.integers(-1, 5), compacted=st.booleans())
def test_what_is_remembered_of_parts_changes_no_answer(
    tmp_path_factory: pytest.TempPathFactory, splits: list[frozenset[int]], wanted: int, compacted: bool
) -> None:
    """Between which values a part's units lie is known from the second time on that it is read."""
    kind, name = KINDS[0], f"g{wanted}"
    store = Store.open(tmp_path_factory.mktemp("remembered"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(storage.checked, "_SETTLED", -1.0)
        write(store, kind, splits, differ=True)
        if compacted:
            compact(store)
        whole = [row for row in store.read(kind.table).to_pylist() if row["generation_id"] == name]
        again = Store.open(store.url)
        assert again.checked._known
        found = again.read(kind.table, generation_id=name).to_pylist()
    assert sorted(map(repr, found)) == sorted(map(repr, whole))


def test_what_is_remembered_of_merged_parts_is_dropped(local: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a store of many nights is opened the slower the more there were."""
    monkeypatch.setattr(storage.checked, "_SETTLED", -1.0)
    monkeypatch.setattr(storage.checked, "_SPARE", 0)
    log = local.checked._log
    assert log is not None
    sizes = []
    for night in range(12):
        with later():
            for number in range(3):
                figures = [{"variant": "original", "metric": f"m{number}", "value": 1.0}]
                local.write("metrics", f"{night}-{number}", figures, audit_id=f"{night:02}")
            local.read("metrics")
            compact(local, gc=True)
        storage.checked._remembered.cache_clear()  # as another process would begin
        local = Store.open(local.url)
        assert local.read("metrics").num_rows == 3 * (night + 1)
        assert set(local.checked._known) <= set(local.parts("metrics"))
        sizes.append(len([line for line in log.read_text().splitlines() if line]))
    assert max(sizes) <= 12  # not 12 nights of 3 parts and a merged one each
    # What is made anew under the name of a part that a merged one held is remembered again.
    storage.checked._remembered.cache_clear()
    assert all(map(is_merged, Store.open(local.url).checked._known))
    for part in local.parts("metrics"):
        (Path(local.backend.root) / part).unlink()
    local.write("metrics", "3-0", [{"variant": "original", "metric": "m0", "value": 1.0}], audit_id="03")
    assert local.read("metrics").num_rows == 1
    storage.checked._remembered.cache_clear()
    assert [path for path in Store.open(local.url).checked._known if path in local.parts("metrics")]


def test_images_are_read_by_the_row_group(local: Store) -> None:
    where = {"model_id": "m", "variant": "original", "condition": "prompt"}
    for number in range(4):
        shots = [
            {"prompt_id": "p", "seed": n, "generation_id": f"g{number}{n}", "bytes": bytes(1 << 20)} for n in range(5)
        ]
        local.write("generations", f"k{number}", shots, **where)
    compact(local)
    (merged,) = (one for one in local.parts("generations") if is_merged(one))
    metadata = pq.read_metadata(f"{local.backend.root}/{merged}")
    assert metadata.num_rows == 20 and [metadata.row_group(n).num_rows for n in range(3)] == [8, 8, 4]


@FEW
@given(
    splits=st.lists(UNITS, min_size=1, max_size=5),
    compacted=st.integers(0, 2),
    taken=st.frozensets(st.integers(0, 9), max_size=4),
    step=st.integers(0, 20),
)
def test_rows_are_taken_out_of_whatever_parts(
    tmp_path_factory: pytest.TempPathFactory,
    splits: list[frozenset[int]],
    compacted: int,
    taken: frozenset[int],
    step: int,
) -> None:
    store = Store.open(tmp_path_factory.mktemp("taken"))
    kind = KINDS[1]
    for number in range(1, len(splits) + 1):
        write(store, kind, splits[:number], differ=False)
        for _ in range(compacted):
            compact(store)
    names = [f"p{unit}" for unit in sorted(taken)]
    audit = {"audit_id": "A", "model_id": "m", "params": "{}", "code_version": "1", "started_at": 0}
    store.write("audits", "A-ended", [audit | {"state": "completed", "finished_at": 1}])
    record_holdings(store, "A")
    whole = [row for row in store.read(kind.table).to_pylist() if row["prompt_id"] not in names]
    gone = {row["prompt_id"] for row in store.read(kind.table).to_pylist()} & set(names)
    if not survives(store, lambda: take_out(store, kind.table, "prompt_id", names), step):
        found = [row for row in store.read(kind.table).to_pylist() if row["prompt_id"] not in names]
        assert sorted(map(repr, found)) == sorted(map(repr, whole))
        take_out(store, kind.table, "prompt_id", names)
    assert contents(store, kind.table) == sorted(map(repr, whole)) == as_read(store, kind)
    assert take_out(store, kind.table, "prompt_id", names) == []
    for path in store.parts(kind.table):
        rows = pq.ParquetFile(f"{store.backend.root}/{path}").read()
        assert not set(rows["prompt_id"].to_pylist()) & set(names)
    # What an audit rests on is missed where a part is gone as a whole, and nowhere else.
    assert all("is missing" in one.reason for one in verify(store))
    # Who is asked for it again makes it again.
    write(store, kind, splits, differ=False)
    assert gone <= set(store.read(kind.table)["prompt_id"].to_pylist())
    with later():
        compact(store, gc=True)
        compact(store, gc=True)
    assert gone <= set(store.read(kind.table)["prompt_id"].to_pylist())
    assert all(store.has(kind.table, f"k{number}", **kind.partition) for number in range(len(splits)))


@given(sizes=st.lists(st.lists(st.integers(1, LARGEST), min_size=1, max_size=3), max_size=30))
def test_what_is_merged(sizes: list[list[int]]) -> None:
    groups = [[Entry(f"{n:02}/{m}", size, 0.0) for m, size in enumerate(group)] for n, group in enumerate(sizes)]
    found = batches(groups)
    chosen = [entry.path for batch in found for entry in batch]
    assert len(chosen) == len(set(chosen)) and all(len(batch) > 1 for batch in found)
    of_group = {entry.path: n for n, group in enumerate(groups) for entry in group}
    for batch in found:
        whole = {of_group[entry.path] for entry in batch}
        assert len(batch) == sum(len(groups[n]) for n in whole), "a group was divided"
        assert sum(entry.size for entry in batch) <= LARGEST or len(whole) == 1
    left = sorted(sum(entry.size for entry in group) for group in groups if group[0].path not in chosen)
    assert len([size for size in left if size <= SMALL]) <= 1


@given(sizes=st.lists(st.integers(1, 1 << 16), min_size=1, max_size=200))
def test_few_parts_are_left_however_they_come(sizes: Sequence[int]) -> None:
    """One part a night, and a compaction after each; a byte is written anew a few times."""
    parts, written = list[int](), 0
    unit = SMALL  # so that the rule for small parts has no say
    for size in sizes:
        parts.append(size * unit)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(storage.compaction, "LARGEST", 1 << 60)
            entries = [[Entry(f"{n:04}", each, 0.0)] for n, each in enumerate(parts)]
            merged = batches(entries)
        gone = {entry.path for batch in merged for entry in batch}
        written += sum(entry.size for batch in merged for entry in batch)
        kept = [each for n, each in enumerate(parts) if f"{n:04}" not in gone]
        parts = kept + [sum(entry.size for entry in batch) for batch in merged]
    total = sum(sizes) * unit
    assert sum(parts) == total
    assert len(parts) <= 2 + total.bit_length() - unit.bit_length()
    assert written <= total * (2 + 2 * (total // unit).bit_length())


def engram(*words: str) -> list[str]:
    found = CliRunner().invoke(app, ["compact", *words])
    assert found.exit_code == 0, found.output
    return found.stdout.splitlines()


def test_the_command_says_what_it_does(local: Store) -> None:
    at = ("--store", local.url)
    assert engram(*at) == ["there is nothing to merge"]
    put_sets(local, {"a": {1}, "b": {2}, "c": {3}})
    before = files(local)
    (said,) = engram("--dry-run", *at)
    assert said.startswith("would have merged 3 parts (0.0 MB) into 1") and files(local) == before
    assert engram(*at) == ["merged 3 parts (0.0 MB) into 1"]
    assert engram("--gc", *at) == [
        "there is nothing to merge",
        "3 parts that were merged stay; `engram compact --gc` removes them an hour later",
    ]
    with later():
        assert engram("--gc", "--dry-run", *at) == ["would have removed 3 parts that were merged (0.0 MB)"]
        assert engram("--gc", *at) == ["removed 3 parts that were merged (0.0 MB)"]
    assert len(files(local)) == 1
    with pytest.raises(StoreError, match="there is no store"):
        compact(Store.open(f"{local.url}-none", create=False))


def test_one_table_of_rows_fits_what_the_schema_says(local: Store) -> None:
    """A merged part has the same columns, their descriptions too, as any other."""
    write(local, KINDS[3], [frozenset({1}), frozenset({2})], differ=False)
    compact(local)
    one, merged = (pq.read_schema(f"{local.backend.root}/{part}") for part in local.parts("activations")[1:])
    assert one.equals(merged, check_metadata=False) and isinstance(merged, pa.Schema)
    assert merged.field("prompt_id").metadata == one.field("prompt_id").metadata
