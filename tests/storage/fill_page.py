"""Run as a program: fills in what docs/store.md says of tables and queries, and the outputs of its worked queries.

    python -m tests.storage.fill_page [STORE]

With a store, every block of SQL that a block of text follows is run as `engram sql` runs it, and the text replaced.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path

from storage import Store, queries, render, run_sql
from storage.catalog import sql_type
from storage.tables import TABLES, Table

PAGE = Path(__file__).parents[2] / "docs" / "store.md"
_WORKED = re.compile(r"```sql\n(?P<sql>.*?)```\n\n```text\n(?P<text>.*?)```", re.DOTALL)


def worked_queries(page: str) -> list[tuple[str, str]]:
    """The SQL of each worked query, and the output that the page shows."""
    return [(found["sql"], found["text"]) for found in _WORKED.finditer(page)]


def filled(page: str, answer: Callable[[str], str]) -> str:
    """The page with the answers of now."""
    return _WORKED.sub(lambda found: f"```sql\n{found['sql']}```\n\n```text\n{answer(found['sql'])}```", page)


def queries_section() -> str:
    """The named queries, each with the first line of its header."""
    rows = (f"| `{name}` | {header} |\n" for name, header in queries().items())
    return "| query | answers |\n|---|---|\n" + "".join(rows)


def tables_section() -> str:
    """All tables with their columns."""
    return "\n".join(map(_table, TABLES.values()))


def _table(table: Table) -> str:
    lines = [f"### `{table.name}`: {table.text}", ""]
    if table.view != table.name:
        lines += [f"In SQL these rows are the view `{table.view}`.", ""]
    folders, unit = (", ".join(f"`{name}`" for name in names) for names in (table.partition, table.unit))
    lines += [f"Folders: {folders or 'none'}. Unit: {unit}.", ""]
    lines += ["| column | type | |", "|---|---|---|"]
    for field in table.schema:
        text = field.metadata[b"description"].decode().replace("|", "\\|")
        if values := field.metadata.get(b"values", b"").decode().split():
            text += f"; one of {', '.join(f'`{value}`' for value in values)}"
        kind = sql_type(field.type) + (" (may be null)" if field.nullable else "")
        lines.append(f"| `{field.name}` | {kind} | {text} |")
    return "\n".join(lines) + "\n"


def main(url: str | None) -> None:
    page = PAGE.read_text()
    page = re.sub(r"\| query \| answers \|\n(\|.*\n)*", lambda _: queries_section(), page)
    page = re.sub(r"(?<=## Tables\n\n).*", lambda _: tables_section(), page, flags=re.DOTALL)
    if url is not None:
        store = Store.open(url, create=False)

        def answer(sql: str) -> str:
            rows = run_sql(store, sql)
            if not rows.num_rows:
                sys.exit(f"no rows, so nothing to show, for\n{sql}")
            return render(rows).decode()

        page = filled(page, answer)
    PAGE.write_text(page)


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else None)
