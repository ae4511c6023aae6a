from __future__ import annotations

import itertools
import os
import tempfile
from pathlib import Path

import pyarrow as pa
import pytest

import storage.sandbox
from storage import Store, StoreError, run_sql
from tests.support.rows import put_sets

WRITES = [
    "COPY metrics TO '{outside}'",
    "COPY metrics TO '{store}/x.csv'",
    "COPY (SELECT 1) TO '{store}/x.parquet'",
    "EXPLAIN ANALYZE COPY metrics TO '{store}/x.csv'",
    "/* SELECT */ EXPLAIN /* x */ ANALYZE COPY metrics TO '{store}/x.csv'",
    "EXPLAIN (FORMAT json) COPY metrics TO '{store}/x.csv'",
    "EXPORT DATABASE '{store}/x'",
    "ATTACH '{outside}'",
    "ATTACH '{store}/x.db'",
    "DETACH memory",
    "CREATE TABLE x AS SELECT 1",
    "DROP VIEW metrics",
    "INSERT INTO metrics VALUES (1)",
    "SELECT 1; COPY metrics TO '{store}/x.csv'",
    "SELECT * FROM query('COPY metrics TO ''{store}/x.csv''')",
    "PREPARE p AS COPY metrics TO '{store}/x.csv'",
    "WITH x AS (COPY metrics TO '{store}/x.csv') SELECT 1",
    "FROM query('WITH x AS (COPY metrics TO ''{store}/x.csv'') SELECT 1')",
    "FROM json_execute_serialized_sql(json_serialize_sql('WITH x AS (COPY metrics TO ''{store}/x.csv'') SELECT 1'))",
]
READS = [
    "FROM read_csv('/etc/passwd')",
    "FROM '/etc/passwd'",
    "FROM read_text('/etc/passwd')",
    "FROM read_blob('{store}/../secret.csv')",
    "FROM read_csv('{outside}')",
    "FROM sniff_csv('/etc/passwd')",
    "FROM read_json('/proc/self/environ')",
    "FROM read_parquet('s3://bucket/x.parquet')",
    "FROM 'https://example.com/x.parquet'",
    "FROM glob('/*')",
    "FROM glob('{store}/../*')",
    "FROM glob('{store}/*')",
    "FROM read_text('{store}/store.json')",
    "FROM read_duckdb('{outside}')",
    "SELECT getenv('HOME')",
    "FROM arrow_scan(1, 1, 1)",
    "FROM json_execute_serialized_sql(json_serialize_sql('FROM read_text(''/etc/passwd'')'))",
]
SETTINGS = [
    "SET enable_external_access = true",
    "SET threads = 1",
    "RESET lock_configuration",
    "PRAGMA enable_profiling",
    "CALL pragma_version()",
    "INSTALL httpfs",
    "LOAD httpfs",
    "LOAD '{outside}'",
    "CREATE SECRET (TYPE s3)",
    "FROM enable_logging()",
    "USE memory",
    "VACUUM",
    "CHECKPOINT",
]


@pytest.mark.parametrize("statement", WRITES + READS + SETTINGS)
def test_nothing_but_the_store_is_in_reach(local: Store, tmp_path: Path, statement: str) -> None:
    secret = tmp_path / "secret.csv"
    secret.write_text("the secret")
    before = sorted(os.walk(tmp_path))
    with pytest.raises(StoreError) as caught:
        run_sql(local, statement.format(store=local.backend.root, outside=secret))
    assert "\n" not in str(caught.value)
    assert sorted(os.walk(tmp_path)) == before and secret.read_text() == "the secret"


def test_the_folder_for_spilling_is_no_way_out(local: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """DuckDB lets SQL into that folder whatever else is forbidden."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    setting = "SELECT value FROM duckdb_settings() WHERE name = 'temp_directory'"
    spill = Path(run_sql(local, setting)["value"][0].as_py())
    assert spill.parents[1] == tmp_path and not spill.exists()
    assert run_sql(local, setting)["value"][0].as_py() != str(spill)
    (tmp_path / "secret.csv").write_text("the secret")
    number = itertools.count()

    def ask(statement: str) -> pa.Table:
        own = tmp_path / f"spill{next(number)}"
        monkeypatch.setattr(storage.sandbox, "spill_folder", lambda: str(own))
        return run_sql(local, statement.format(spill=own))

    # The folder is gone when the answer is here, so the number of rows written is what shows that it was written to.
    written = ask("WITH x AS (COPY (SELECT 1) TO '{spill}/x.csv') FROM x")
    assert written.to_pylist() == [{"Count": 1}], "DuckDB has closed this way; the test has lost its point"
    for beside in ("{spill}/../secret.csv", "{spill}x.csv", "{spill}/..//secret.csv"):
        for statement in (f"FROM read_text('{beside}')", f"WITH x AS (COPY (SELECT 1) TO '{beside}') SELECT 1"):
            with pytest.raises(StoreError, match="reads the store and nothing else"):
                ask(statement)
    assert (tmp_path / "secret.csv").read_text() == "the secret"


@pytest.mark.parametrize(
    ("statement", "rows"),
    [
        ("SELECT sum(member) AS n FROM members", 1),
        ("FROM members;", 3),
        ("WITH a AS (FROM members) SELECT * FROM a WHERE member > 1", 2),
        ("-- what is there\nVALUES (1), (2)", 2),
        ("DESCRIBE metrics", 8),
        ("SUMMARIZE members", 13),
        ("EXPLAIN SELECT 1", 1),
        ("explain analyze SELECT * FROM neuron_sets WHERE layer = 'x'", 1),
        ("SELECT * FROM (PIVOT members ON member IN (1, 2) USING count(*) GROUP BY scope_id)", 1),
        ("SELECT comment FROM duckdb_views() WHERE view_name = 'metrics'", 1),
    ],
)
def test_questions_are_answered(local: Store, statement: str, rows: int) -> None:
    put_sets(local, {"a": {1, 2, 3}})
    assert run_sql(local, statement).num_rows == rows


@pytest.mark.parametrize("statement", ["", "  ", "-- nothing", "SELEC 1", "SELECT nothing", "FROM metrics WHERE"])
def test_mistakes_are_one_line(local: Store, statement: str) -> None:
    with pytest.raises(StoreError) as caught:
        run_sql(local, statement)
    assert "\n" not in str(caught.value)


def test_a_quote_in_the_path_does_not_open_the_cage(tmp_path: Path) -> None:
    store = Store.open(tmp_path / "o'brien', '")
    put_sets(store, {"a": {1}})
    assert run_sql(store, "FROM members").num_rows == 1
    with pytest.raises(StoreError):
        run_sql(store, "FROM read_csv('/etc/passwd')")
