from __future__ import annotations

from pathlib import Path

from storage import queries
from storage.catalog import MACROS, VIEWS
from storage.tables import TABLES

PAGE = Path(__file__).parents[2] / "docs" / "store.md"


def test_the_page_knows_every_table_column_view_and_query() -> None:
    text = PAGE.read_text()
    for table in TABLES.values():
        section = text.split(f"### `{table.name}`")[1].split("### ")[0]
        assert [name for name in table.schema.names if f"| `{name}` |" not in section] == [], table.name
    assert [name for name in (*VIEWS, *queries()) if f"`{name}`" not in text] == []
    assert all(f"`{name}(" in text for name in MACROS)
