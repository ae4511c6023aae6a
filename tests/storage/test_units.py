"""However work was split, repeated or done twice: every reader finds each unit once, and all readers the same rows."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from storage import Store, StoreError, connect, iou, record_holdings, run_sql, verify, write_catalog
from storage.catalog import _select, connect_guarded, sound
from storage.checked import dataset
from storage.migrations import tables_of
from storage.parts import Held, check_rows, encode, unseal
from storage.tables import TABLES, VERSION
from storage.units import counting, digests, overlapping, packed, units_of, unpacked
from tests.support.rows import SET, neuron_set

MANY = settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
SPLITS = st.lists(st.frozensets(st.integers(0, 9)), min_size=1, max_size=6)
"""What each of several workers did: the numbers of the units in its part."""


@dataclass(frozen=True)
class Kind:
    """A table to write units into."""

    table: str
    partition: dict[str, str]
    rows: Callable[[int, float], list[dict[str, Any]]]
    """The rows of a unit by its number; the second number is what a worker found."""


KINDS = [
    Kind(  # a unit is one row; a column that names it may be null
        "scores",
        {"metric": "sscd"},
        lambda unit, value: [
            {
                "generation_id": f"g{unit // 2}",
                "reference_id": [None, "r"][unit % 2],
                "scorer": "s",
                "value": value,
            }
        ],
    ),
    Kind(  # a unit is several rows
        "nemo_traces",
        {"model_id": "m", "variant": "original"},
        lambda unit, value: [
            {"prompt_id": f"p{unit}", "params_id": "x", "phase": "layer", "step_number": n, "score": value}
            for n in range(1 + unit % 3)
        ],
    ),
    Kind(  # a time and a number name it
        "registrations",
        {},
        lambda unit, value: [{"name": "n", "state": "registered", "params": repr(value), "changed_at": unit}],
    ),
    Kind(
        "activations",
        {"model_id": "m", "variant": "original", "site": "ff", "layer": "down.0/ff net"},
        lambda unit, value: [{"prompt_id": f"p{unit}", "params_id": "x", "step": unit % 2, "mean_abs": [value, 1.0]}],
    ),
]
each_kind = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.table)


def write(store: Store, kind: Kind, splits: Sequence[frozenset[int]], differ: bool) -> None:
    """Each worker's units as a part; where they differ, a worker finds values of its own."""
    for number, units in enumerate(splits):
        rows = [row for unit in sorted(units) for row in kind.rows(unit, float(number if differ else unit))]
        store.write(kind.table, f"k{number}", rows, **kind.partition)


def expected(kind: Kind, splits: Sequence[frozenset[int]], differ: bool) -> list[str]:
    """The rows by the rule: each unit as the part has it that has the most units, of several the first by name."""
    found: dict[int, float] = {}
    for number in sorted(range(len(splits)), key=lambda number: (-len(splits[number]), number)):
        for unit in splits[number]:
            found.setdefault(unit, float(number if differ else unit))
    every = [{**row, **kind.partition} for unit, value in found.items() for row in kind.rows(unit, value)]
    table = pa.Table.from_pylist(every, TABLES[kind.table].schema)
    return sorted(map(repr, table.to_pylist()))


def asked(store: Store, kind: Kind, question: str = "") -> Iterator[tuple[str, pa.Table]]:
    """All rows of the table, or the answer to a question about `parts`, by its view as DuckDB reads them, and as Arrow
    does. A whole connection has all tables, and takes longer than the tests of one."""
    table = TABLES[kind.table]
    text = question or f"SELECT {', '.join(table.schema.names)} FROM parts"
    with duckdb.connect() as con:
        con.execute(f"CREATE VIEW parts AS {_select(store, table, sound(store, [kind.table])[kind.table])}")
        yield "DuckDB", con.sql(text).to_arrow_table()
    with duckdb.connect() as con:
        con.register("parts", dataset(store.checked, table, store.entries(kind.table)))
        yield "Arrow", con.sql(text).to_arrow_table()


def as_read(store: Store, kind: Kind) -> list[str]:
    """All rows of the table, which every reader finds."""
    found = sorted(map(repr, store.read(kind.table).to_pylist()))
    for name, rows in asked(store, kind):
        assert sorted(map(repr, rows.cast(TABLES[kind.table].schema).to_pylist())) == found, name
    return found


@each_kind
@pytest.mark.parametrize("differ", [False, True], ids=["equal", "different"])
@MANY
@given(splits=SPLITS)
def test_any_split_gives_the_same_rows_to_every_reader(
    tmp_path_factory: pytest.TempPathFactory, kind: Kind, differ: bool, splits: list[frozenset[int]]
) -> None:
    store = Store.open(tmp_path_factory.mktemp("units"))
    write(store, kind, splits, differ)
    assert as_read(store, kind) == expected(kind, splits, differ)
    assert verify(store) == []


def test_the_same_through_every_door(local: Store, tmp_path: Path) -> None:
    kind, splits = KINDS[0], [frozenset({0, 1, 2}), frozenset({2, 3}), frozenset({1}), frozenset({7})]
    write(local, kind, splits, differ=True)
    write_catalog(local, tmp_path / "catalog.duckdb")
    question = f"SELECT {', '.join(TABLES[kind.table].schema.names)} FROM scores"
    with duckdb.connect(str(tmp_path / "catalog.duckdb")) as catalog:
        for con in (connect(local), connect_guarded(local)[0], catalog):
            found = con.sql(question).to_arrow_table()
            assert sorted(map(repr, found.to_pylist())) == expected(kind, splits, differ=True)


@MANY
@given(splits=SPLITS, wanted=st.integers(-1, 9))
def test_what_is_asked_of_them_is_asked_of_each_unit_once(
    tmp_path_factory: pytest.TempPathFactory, splits: list[frozenset[int]], wanted: int
) -> None:
    """Also where neither the columns asked for nor the condition name the unit."""
    store = Store.open(tmp_path_factory.mktemp("units"))
    kind = KINDS[1]
    write(store, kind, splits, differ=False)
    units = frozenset().union(*splits)
    numbers = [n for unit in units if unit == wanted for n in range(1 + unit % 3)]
    assert sorted(store.read(kind.table, columns=["step_number"], score=wanted)["step_number"].to_pylist()) == numbers
    assert store.read(kind.table, columns=[]).num_rows == sum(1 + unit % 3 for unit in units)
    for _, rows in asked(store, kind, f"SELECT step_number FROM parts WHERE score = {wanted} ORDER BY 1"):
        assert rows["step_number"].to_pylist() == numbers
    for _, rows in asked(store, kind, "SELECT count(*) AS n FROM parts"):
        assert rows["n"].to_pylist() == [sum(1 + unit % 3 for unit in units)]


def test_the_same_on_both_kinds_of_store(store: Store) -> None:
    kind, splits = KINDS[0], [frozenset({0, 1, 2}), frozenset({2, 3}), frozenset({1}), frozenset({7})]
    write(store, kind, splits, differ=True)
    assert sorted(map(repr, store.read("scores").to_pylist())) == expected(kind, splits, differ=True)
    assert run_sql(store, "SELECT count(*) AS n, sum(value) AS s FROM scores").to_pylist() == [{"n": 5, "s": 4.0}]


def test_overlaps_of_sets_are_counted_once(local: Store) -> None:
    local.write("neuron_sets", "one", [neuron_set(name, {1, 2}) for name in "abc"], **SET)
    local.write("neuron_sets", "two", [neuron_set(name, {1, 2}) for name in "cd"], **SET)
    assert iou(local).num_rows == 6


def test_an_audit_does_not_rest_on_what_does_not_count(local: Store) -> None:
    row = {"audit_id": "a", "model_id": "m", "params": "{}", "code_version": "1", "started_at": 0, "state": "running"}
    local.write("audits", "a-begun", [row])
    local.write("neuron_sets", "one", [neuron_set(name, {1}) for name in "ab"], **SET)
    local.write("neuron_sets", "two", [neuron_set("b", {2})], **SET)
    record_holdings(local, "a")
    held = local.read("audit_parts")["address"].to_pylist()
    assert [one.rsplit("/", 1)[1] for one in held if one.startswith("neuron_sets")] == ["one.parquet"]


def test_a_part_that_is_left_out_takes_the_place_of_a_damaged_one(local: Store) -> None:
    local.write("neuron_sets", "one", [neuron_set(name, {1}) for name in "ab"], **SET)
    local.write("neuron_sets", "two", [neuron_set("b", {2})], **SET)
    path = Path(local.backend.root, local.parts("neuron_sets", "one")[0])
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(StoreError, match=r"one\.parquet"):
        local.read("neuron_sets")
    left_out: list[str] = []
    rows = run_sql(local, "SELECT members FROM neuron_sets", on_damage=lambda address, _: left_out.append(address))
    assert rows["members"].to_pylist() == [[2]] and len(left_out) == 1


def test_a_footer_that_names_other_units_is_found(local: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("storage.parts.units_of", lambda table, rows: units_of(table, rows)[:1])
        local.write("neuron_sets", "one", [neuron_set(name, {1}) for name in "ab"], **SET)
    (found,) = verify(local)
    assert "its rows are not of the units that its footer names" in found.reason


def test_later_versions_can_read_a_part_of_which_they_know_no_units(local: Store) -> None:
    """As a migration does: it knows the columns of former tables alone."""
    address = local.write("neuron_sets", "one", [neuron_set(name, {1}) for name in "ab"], **SET)
    data, former = local.backend.read(address), tables_of(VERSION)["neuron_sets"]
    assert unseal(data, former, address).sha256 == local.checked.seal(local.entries("neuron_sets")[0]).sha256
    assert check_rows(data, former, address).num_rows == 2


def test_units_are_where_the_footer_says(local: Store) -> None:
    address = local.write("neuron_sets", "one", [neuron_set(name, {1}) for name in "ab"], **SET)
    footer = pq.read_metadata(f"{local.backend.root}/{address}").metadata
    table = TABLES["neuron_sets"]
    assert unpacked(footer[b"engram.units"]).tolist() == units_of(table, local.read("neuron_sets")).tolist()
    # Digests are kept in stores, so they stay what they are.
    rows = pa.Table.from_pylist([{"generation_id": "g", "reference_id": None, "scorer": "s"}])
    assert digests(TABLES["scores"], rows).tolist() == [int(content("g", None, "s"), 16)]


def content(*values: Any) -> str:
    return hashlib.sha256(json.dumps(values, separators=(",", ":")).encode()).hexdigest()[:16]


@given(splits=st.dictionaries(st.sampled_from("abcdef"), st.frozensets(st.integers(0, 12))))
def test_which_parts_count(splits: dict[str, frozenset[int]]) -> None:
    """The vectorized rule beside the rule as it is told."""
    parts = {name: np.array(sorted(units), np.uint64) for name, units in splits.items()}
    found = counting(parts)
    seen: set[int] = set()
    kept = {}
    for name in sorted(splits, key=lambda name: (-len(splits[name]), name)):
        if own := splits[name] - seen:
            kept[name] = own
        seen |= own
    alone = {name for name in kept if all(name == other or not splits[name] & splits[other] for other in kept)}
    assert set(found.whole) == alone and set(found.shared) == set(kept) - alone
    assert {name: set(units.tolist()) for name, units in found.shared.items()} == {
        name: set(units) for name, units in kept.items() if name not in alone
    }
    assert list(found.shared) == [name for name in kept if name not in alone]
    for group in overlapping(parts):
        others = frozenset().union(*(splits[name] for name in splits if name not in group))
        assert not any(splits[name] & others for name in group)


@given(numbers=st.frozensets(st.integers(0, 2**64 - 1)))
def test_digests_come_back(numbers: frozenset[int]) -> None:
    assert unpacked(packed(np.array(sorted(numbers), np.uint64))).tolist() == sorted(numbers)


def test_every_table_says_what_names_a_unit() -> None:
    for table in TABLES.values():
        names = set(table.schema.names)
        assert table.unit and set(table.unit) <= names - set(table.partition), table.name
        for name in table.unit:
            kind = table.schema.field(name).type
            assert pa.types.is_string(kind) or pa.types.is_integer(kind) or pa.types.is_timestamp(kind), name


def test_no_key_is_the_name_of_a_merged_part(local: Store) -> None:
    with pytest.raises(StoreError, match="is no key"):
        local.write("accepted", "merged~1", [{"audit_id": "a", "accepted_at": 0}])


def test_what_a_merged_part_holds_is_found_and_not_read_again(local: Store) -> None:
    """A part of this kind as `storage.compaction` writes it."""
    rows = [neuron_set(name, {1}) for name in "ab"]
    one, two = (local.write("neuron_sets", row["scope_id"], [row], **SET) for row in rows)
    whole = local.read("neuron_sets")
    address = f"{one.rpartition('/')[0]}/merged~1.parquet"
    held = [Held("a", 1, "x"), Held("b", 1, "x")]
    local.backend.put(address, encode(TABLES["neuron_sets"], whole, address, held=held))
    assert local.parts("neuron_sets", "a", **SET) == [one]
    Path(local.backend.root, one).unlink()
    Path(local.backend.root, two).write_bytes(b"damaged, but not looked at")
    for partition in (SET, {"model_id": "m"}):
        assert local.has("neuron_sets", "a", **partition)
        assert local.parts("neuron_sets", "a", **partition) == [address]
        assert not local.has("neuron_sets", "c", **partition)
    assert local.read("neuron_sets").to_pylist() == whole.to_pylist()
    for _ in range(2):
        assert local.write("neuron_sets", "a", [rows[0]], **SET) == address
        assert local.write_parts(
            "neuron_sets",
            "a",
            [rows[0] | {"layer": SET["layer"]}],
            **{name: SET[name] for name in ("model_id", "method", "site")},
        ) == [address]
    assert not Path(local.backend.root, one).exists()
