from __future__ import annotations

import pytest

from storage import Store, run_sql
from storage.catalog import MACROS, VIEWS
from tests.storage.fill_page import PAGE, filled, queries_section, tables_section, worked_queries

WORKED = worked_queries(PAGE.read_text())


def test_the_page_knows_every_table_column_view_and_query() -> None:
    text = PAGE.read_text()
    # Where this fails, `python -m tests.storage.fill_page` puts the page right.
    assert text.endswith(f"## Tables\n\n{tables_section()}") and queries_section() in text
    assert [name for name in VIEWS if f"`{name}`" not in text] == []
    assert all(f"`{name}(" in text for name in MACROS)


@pytest.mark.parametrize(("sql", "shown"), WORKED)
def test_worked_queries_run_and_have_the_columns_shown(local: Store, sql: str, shown: str) -> None:
    assert run_sql(local, sql).column_names == shown.splitlines()[0].split()
    assert len(shown.splitlines()) > 2, "no rows are shown"


def test_there_are_ten_worked_queries_and_they_can_be_filled_in() -> None:
    assert len(WORKED) >= 10
    page = filled(PAGE.read_text(), lambda sql: f"{len(sql)}\n")
    assert [shown for _, shown in worked_queries(page)] == [f"{len(sql)}\n" for sql, _ in WORKED]
