from __future__ import annotations

import os
import re
from pathlib import Path

import duckdb
import pytest

from storage import Store, StoreError, connect, queries, query, write_catalog
from storage.catalog import VIEWS
from storage.tables import TABLES
from tests.support.rows import SET, activation, neuron_set, put_sets


def test_an_empty_store_has_every_view_with_its_columns(store: Store) -> None:
    con = connect(store)
    for table in TABLES.values():
        view = con.sql(f"FROM {table.view}")
        assert view.columns == table.schema.names and view.fetchall() == []
    for name in VIEWS:
        assert con.sql(f"FROM {name}").fetchall() == []


def test_every_type_survives_the_way_through_sql(store: Store) -> None:
    rows = [neuron_set("a", {1, 5}), neuron_set("a", {2}, step=None)]
    store.write("neuron_sets", "k", rows, **SET)
    columns = ", ".join(TABLES["neuron_sets"].schema.names)
    answer = connect(store).sql(f"SELECT {columns} FROM neuron_sets").to_arrow_table()
    assert answer.to_pylist() == store.read("neuron_sets").to_pylist()
    expected = [str(kind).replace("<item:", "<l:") for kind in TABLES["neuron_sets"].schema.types]
    assert [str(kind) for kind in answer.schema.types] == expected


def test_a_connection_is_of_the_parts_that_were_there(local: Store) -> None:
    put_sets(local, {"a": {1}})
    before = connect(local)
    put_sets(local, {"b": {2}})
    assert before.sql("SELECT member FROM members").fetchall() == [(1,)]
    assert connect(local).sql("SELECT member FROM members ORDER BY 1").fetchall() == [(1,), (2,)]


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT * FROM neuron_sets WHERE layer = 'l3'",
        "SELECT count(*) FROM members WHERE layer = 'l3' AND member > 0",
        "SELECT * FROM iou_of(of_layer := 'l3')",
        "SELECT * FROM neurons WHERE layer = 'l3'",
        "SELECT avg(mean_abs) FROM neurons WHERE layer = 'l3' GROUP BY neuron",
    ],
)
def test_a_query_for_one_layer_reads_that_layers_files_only(local: Store, sql: str) -> None:
    for number in range(6):
        layer = f"l{number}"
        put_sets(local, {"a": {1, 2}, "b": {2, 3}}, layer=layer)
        where = {"model_id": "m", "variant": "original", "site": "ff", "layer": layer}
        for shard in "ab":
            local.write("activations", shard, [activation(shard, [1.0])], **where)
    plan = connect(local).sql(f"EXPLAIN ANALYZE {sql}").fetchall()[0][1]
    # Every scan of the plan reads the two files of that layer, of twelve.
    scans = [int(number) for number in re.findall(r"Total Files Read: (\d+)", plan)]
    assert scans and set(scans) == {2}, plan


def test_names_of_folders_come_back_as_they_were(local: Store) -> None:
    names = ["007", "a b%2F/..=", "é'\"", "true", "2024-01-01", "__HIVE_DEFAULT_PARTITION"]
    for number, name in enumerate(names):
        local.write("neuron_sets", f"k{number}", [neuron_set("a", {1})], **(SET | {"layer": name}))
    con = connect(local)
    assert sorted(con.sql("SELECT layer FROM neuron_sets").fetchall()) == sorted((name,) for name in names)
    assert con.execute("SELECT layer FROM neuron_sets WHERE layer = ?", [names[2]]).fetchall() == [(names[2],)]


def test_the_catalog_file_opens_without_this_program(local: Store, tmp_path: Path) -> None:
    path = tmp_path / "it's.duckdb"
    write_catalog(local, path)
    put_sets(local, {"a": {1, 2}, "b": {2, 3}})
    write_catalog(local, path)
    with duckdb.connect(str(path), read_only=True) as con:
        assert con.sql("SELECT count(*) FROM members").fetchall() == [(4,)]
        assert con.sql("SELECT intersection FROM iou").fetchall() == [(1,)]
        assert con.sql("SELECT intersection FROM iou_of(of_step := 0)").fetchall() == [(1,)]
        comments = con.sql("SELECT comment FROM duckdb_columns() WHERE table_name = 'metrics' AND comment IS NULL")
        assert comments.fetchall() == []
    assert [item.name for item in tmp_path.iterdir() if "duckdb" in item.name] == [path.name]


def test_older_programs_can_read_the_catalog(local: Store, tmp_path: Path) -> None:
    path = tmp_path / "catalog.duckdb"
    put_sets(local, {"a": {1, 2}, "b": {2, 3}})
    write_catalog(local, path)
    with duckdb.connect(str(path), read_only=True) as con:
        version = con.sql("SELECT tags['storage_version'] FROM duckdb_databases() WHERE path = $1", params=[str(path)])
        assert version.fetchall() == [("v1.0.0+",)]
        texts = con.sql("SELECT sql FROM duckdb_views() WHERE NOT internal").fetchall()
        assert len(texts) == len(TABLES) + len(VIEWS) and not any("allow_empty" in text for (text,) in texts)
        assert con.sql("SELECT intersection FROM iou").fetchall() == [(1,)]
        assert con.sql("SELECT * FROM metrics").columns == TABLES["metrics"].schema.names


def test_the_catalog_replaces_nothing_but_a_catalog(local: Store, tmp_path: Path) -> None:
    path = tmp_path / "thesis.txt"
    path.write_text("years of work")
    with pytest.raises(StoreError, match="is no DuckDB file"):
        write_catalog(local, path)
    assert path.read_text() == "years of work"
    with pytest.raises(StoreError, match="cannot write the catalog"):
        write_catalog(local, tmp_path / "nowhere" / "catalog.duckdb")


def test_queries_run_on_an_empty_store_and_say_what_they_answer(local: Store) -> None:
    con = connect(local)
    assert len(queries()) >= 10
    for name, header in queries().items():
        assert header and not header.startswith("SELECT"), name
        assert query(con, name).num_rows == 0, name
    with pytest.raises(StoreError, match="no query 'everything'"):
        query(con, "everything")
    with pytest.raises(StoreError, match="takes kind, layer"):
        query(con, "nemo_statistics", planet="mars")


def test_spilling_goes_outside_the_store(local: Store) -> None:
    before = set(os.listdir(local.backend.root))
    con = connect(local)
    con.execute("SET memory_limit = '60MB'; SET threads = 1")
    con.sql("SELECT count(*) FROM (SELECT DISTINCT hash(i) FROM range(2000000) r(i))").fetchall()
    assert set(os.listdir(local.backend.root)) == before
