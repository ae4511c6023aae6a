from __future__ import annotations

import csv
import io
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from storage import FORMATS, Store, StoreError, render, run_sql

ANSWER = pa.table(
    {
        "name": ["a,b", "two\nlines", None],
        "value": [0.1 + 0.2, float("nan"), None],
        "list": [[1, 2], [], None],
        "bytes": pa.array([b"\x00\xff", b"", None], pa.binary()),
    }
)


def test_json_is_strict_and_exact() -> None:
    def refuse(name: str) -> None:
        raise AssertionError(name)

    rows = json.loads(render(ANSWER, "json"), parse_constant=refuse)
    assert rows[0] == {"name": "a,b", "value": 0.1 + 0.2, "list": [1, 2], "bytes": "AP8="}
    assert rows[1]["value"] is None and rows[2] == dict.fromkeys(ANSWER.column_names)


def test_csv_comes_back() -> None:
    rows = list(csv.reader(io.StringIO(render(ANSWER, "csv").decode())))
    assert rows[0] == ANSWER.column_names
    assert rows[1] == ["a,b", "0.30000000000000004", "[1, 2]", "AP8="] and rows[2][0] == "two\nlines"


def test_parquet_comes_back() -> None:
    assert pq.read_table(pa.BufferReader(render(ANSWER, "parquet"))).schema == ANSWER.schema


def test_a_table_is_aligned_and_a_row_is_a_line() -> None:
    lines = render(ANSWER.append_column("long", pa.array(["x" * 99] * 3))).decode().splitlines()
    assert len(lines) == 2 + 3 and lines[0].startswith("name") and max(map(len, lines)) < 120
    assert "2 bytes" in lines[2] and "two\\nlines" in lines[3]


@pytest.mark.parametrize("form", FORMATS)
def test_every_answer_has_every_format(local: Store, form: str) -> None:
    for sql in (
        "FROM metrics",
        "SELECT 1 AS a, 2 AS a",
        "SELECT TIMESTAMPTZ '2024-01-01', DATE '2024-01-01', {'a': [1]}",
    ):
        assert render(run_sql(local, sql), form)
    with pytest.raises(StoreError, match="table, csv, json, parquet"):
        render(ANSWER, "xml")
