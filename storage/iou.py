"""All-pairs IOU of every layer, one layer at a time, so that memory is bounded by the largest layer."""

from __future__ import annotations

from collections.abc import Callable

import duckdb
import pyarrow as pa

from storage.catalog import connect_to, sql
from storage.errors import StoreError, one_line
from storage.layout import partition_of
from storage.limits import Limits, interruptible
from storage.store import Store
from storage.tables import TABLES


def iou(
    store: Store,
    model_id: str | None = None,
    method: str | None = None,
    params_id: str | None = None,
    layer: str | None = None,
    step: int | None = None,
    threads: int | None = None,
    memory_mib: int = 1280,
    seconds: float | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> pa.Table:
    """The rows of the view `iou`, restricted to what is given.

    Args:
        store: the store.
        model_id, method, params_id, layer, step: restrictions.
        threads: how many DuckDB may use; None for one a core.
        memory_mib: what DuckDB may hold in memory; what is more goes to the temporary folder for a while.
        seconds: until it is ended; None for no limit.
        progress: called with the layers done and the layers in all.

    Returns:
        One row for each pair of scopes in each layer and step; columns as in the view.

    Raises:
        StoreError: a store that cannot be read; a part that is not sound; no answer within the time.
    """
    given = {"model_id": model_id, "method": method, "layer": layer}
    table = TABLES["neuron_sets"]
    entries = store.entries(table.name, **{name: value for name, value in given.items() if value is not None})
    con = connect_to(store, table, entries, Limits(memory=memory_mib << 20))
    layers = sorted({partition_of(table, entry.path)["layer"] for entry in entries})
    if threads is not None:
        con.execute(f"SET threads = {threads:d}")

    def pairs() -> pa.Table:
        tables = [con.sql("FROM iou LIMIT 0").to_arrow_table()]
        for done, name in enumerate(layers, start=1):
            wanted = {"model_id": model_id, "method": method, "params_id": params_id, "layer": name, "step": step}
            tables.append(con.sql(sql("iou_pairs"), params=wanted).to_arrow_table())
            if progress:
                progress(done, len(layers))
        return pa.concat_tables(tables)

    try:
        return interruptible(con, pairs, seconds)
    except duckdb.Error as error:
        raise StoreError(f"the overlaps cannot be computed: {one_line(error)}") from error
