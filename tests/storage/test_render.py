from __future__ import annotations

import csv
import io
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage import FORMATS, Store, StoreError, render, run_sql, safe_cell, visible
from storage.render import visible_lines

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


ODD = {
    "'infinity'::timestamp": "infinity",
    "'-infinity'::timestamptz": "-infinity",
    "'infinity'::timestamp_ns": "infinity",
    "'infinity'::timestamp_s": "infinity",
    "'infinity'::timestamp_ms": "infinity",
    "'-infinity'::date": "-infinity",
    "'290000-01-01'::date": "290000-01-01",
    "'290000-01-01 01:02:03'::timestamp": "290000-01-01T01:02:03.000000",
    "'0044-03-15 (BC)'::date": "-0043-03-15",
    "'2024-01-01 00:00:00.000000001'::timestamp_ns": "2024-01-01T00:00:00.000000001",
    "time '01:02:03'": "01:02:03",
    "'01:02:03+02'::timetz": "01:02:03+02",
    "interval 14 month + interval 3 day": "1 year 2 months 3 days",
    "'101'::bit": "101",
    "170141183460469231731687303715884105727::hugeint": "170141183460469231731687303715884105727",
    "340282366920938463463374607431768211455::uhugeint": "340282366920938463463374607431768211455",
    f"'{10**50}'::bignum": str(10**50),
    "1.50::decimal(9, 2)": "1.50",
    "'f81d4fae-7dec-11d0-a765-00a0c91e6bf6'::uuid": "f81d4fae-7dec-11d0-a765-00a0c91e6bf6",
    "'a'::enum('a', 'b')": "a",
    "date '2024-01-01'": "2024-01-01",
    "union_value(a := 1)": "1",
    "{'a': ['infinity'::timestamp]}": '{"a": ["infinity"]}',
    "['-infinity'::date, NULL]": '["-infinity", null]',
    "map {'k': 'infinity'::date}": '[["k", "infinity"]]',
    "['2024-01-01 00:00:00.000000001'::timestamp_ns]": '["2024-01-01T00:00:00.000000001"]',
    "[interval 1 day]": "[1 day]",
    "NULL": "",
}
"""SQL, and what a cell of CSV says."""


def test_every_value_of_sql_has_every_format(local: Store) -> None:
    rows = run_sql(local, "SELECT " + ", ".join(f'{value} AS "c{number}"' for number, value in enumerate(ODD)))
    (cells,) = list(csv.reader(io.StringIO(render(rows, "csv").decode())))[1:]
    assert dict(zip(ODD, cells, strict=True)) == ODD
    (found,) = json.loads(render(rows, "json"))
    assert len(found) == len(ODD) and found["c0"] == "infinity"
    assert "infinity" in render(rows).decode()
    for number, value in enumerate(ODD):
        assert render(rows.select([f"c{number}"]), "parquet"), value
    with pytest.raises(StoreError, match="cannot be written as Parquet, cast its columns"):
        render(pa.table({"x": pa.array([2**63 - 1], pa.timestamp("s"))}), "parquet")
    with pytest.raises(StoreError, match="Parquet has no type for the column 'x'"):
        render(run_sql(local, "SELECT row() AS x"), "parquet")
    for value in ("row()", "'x'::variant", "'\\xff'::blob", "[]", "{'a': {'b': [interval 1 day]}}"):
        answer = run_sql(local, f"SELECT {value} AS x")
        assert all(render(answer, form) for form in ("table", "csv", "json"))


def test_columns_of_one_name_are_all_there(local: Store) -> None:
    rows = run_sql(local, "SELECT 1 AS a, 2 AS a, interval 3 day AS b, 4 AS a")
    for form, expected in (
        ("csv", "a,a,b,a\n1,2,3 days,4\n"),
        ("json", '[{"a": 1, "a_1": 2, "b": "3 days", "a_2": 4}]\n'),
    ):
        assert render(rows, form).decode() == expected


STEERING = "\x1b]0;owned\x07 \x9b31m \x7f \r\n\t \u202egnp.\u2066 \u2028 \ufeff"


def test_nothing_steers_a_terminal_or_turns_its_text() -> None:
    rows = [{f"c{STEERING}": f"a{STEERING}", "list": [STEERING]}]
    shown = render(rows, widest=500).decode()
    assert shown.count("\n") == 3 and all(line.isprintable() for line in shown.splitlines())
    assert "\\x1b]0;owned\\x07 \\x9b31m \\x7f \\r\\n\\t \\u202egnp.\\u2066 \\u2028 \\ufeff" in shown
    found = render(rows, "json").decode()
    assert found.strip().isprintable() and json.loads(found) == rows
    assert visible("zur Übung: 図\u00a0e\u0301 👩\u200d💻") == "zur Übung: 図\u00a0e\u0301 👩\u200d💻"
    assert visible_lines("a\x1b\nb") == "a\\x1b\nb"


@given(st.text())
def test_what_is_shown_of_any_text_is_harmless(text: str) -> None:
    assert not any(one in visible(text) for one in "\x1b\x9b\x07\x08\r\n\u202e\u2066")
    assert json.loads(render([{"x": text}], "json")) == [{"x": text}]


@given(st.text("'=+-@\t\r\na＝", max_size=6))
def test_no_cell_of_csv_is_a_formula_and_no_text_gets_lost(text: str) -> None:
    (header, cells) = csv.reader(io.StringIO(render([{text or "x": text, "y": 1}], "csv").decode(), newline=""))
    for cell in (header[0], cells[0]):
        assert not cell.startswith(("=", "+", "-", "@", "\t", "\r", "＝"))
    assert cells[0] in (text, f"'{text}") and cells[0] == safe_cell(text)


def test_numbers_of_csv_stay_numbers() -> None:
    rows = [{"a": -1, "b": -0.5, "text": "-1", "formula": "=cmd|' /C calc'!A0"}]
    assert render(rows, "csv").decode() == "a,b,text,formula\n-1,-0.5,'-1,'=cmd|' /C calc'!A0\n"
