"""SQL from a person, run so that it can read the store and do nothing else."""

from __future__ import annotations

import re
import tempfile

import duckdb
import pyarrow as pa

from storage.catalog import connect
from storage.errors import StoreError, one_line
from storage.store import Store

_EXPLAIN = re.compile(r"\s*EXPLAIN(\s+ANALYZE)?\b", re.IGNORECASE)


def run_sql(store: Store, text: str) -> pa.Table:
    """Answer one question.

    Args:
        store: what it may read; nothing outside is in reach, and nothing can be changed.
        text: one SELECT (or FROM, WITH, VALUES, DESCRIBE, SUMMARIZE, SHOW), or EXPLAIN [ANALYZE] of one.

    Returns:
        The rows of the answer.

    Raises:
        StoreError: any other statement, more than one, a mistake in the SQL, a file outside the store.
    """
    statement = _only_select(text)
    # DuckDB may always reach the folder it spills into, so that is a new one, which nobody else can enter and which is
    # removed with all that is in it.
    with tempfile.TemporaryDirectory(prefix="engram-") as spill, connect(store, True, spill) as con:
        try:
            # No other directory is allowed, not even the store's: SQL hides writes well, as in
            # WITH x AS (COPY ...) SELECT 1, and DuckDB knows no directory that is for reading only.
            con.execute("SET enable_external_access = false")
            con.execute("SET lock_configuration = true")
            return con.sql(statement).to_arrow_table()
        except duckdb.PermissionException as error:
            raise StoreError(f"SQL reads the store and nothing else: {one_line(error)}") from error
        except (duckdb.Error, pa.ArrowException) as error:
            raise StoreError(one_line(error)) from error


def _only_select(text: str) -> str:
    # The locked connection could not write anyway; this says so before it tries. EXPLAIN ANALYZE runs what it explains,
    # so what follows it is looked at as well.
    try:
        statements = duckdb.extract_statements(text)
        kinds = [statement.type for statement in statements]
        if kinds == [duckdb.StatementType.EXPLAIN] and (explain := _EXPLAIN.match(text)):
            kinds = [statement.type for statement in duckdb.extract_statements(text[explain.end() :])]
    except duckdb.Error as error:
        raise StoreError(one_line(error)) from error
    if kinds != [duckdb.StatementType.SELECT]:
        raise StoreError("only a single SELECT is run here: nothing that writes, attaches, loads or sets")
    return statements[0].query
