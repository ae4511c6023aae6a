"""Tables, the store, the catalog and the queries. Imports neither torch nor prefect."""

from storage import tables
from storage.backend import CHECKPOINTS, REPORTS
from storage.catalog import connect, queries, query, write_catalog
from storage.compaction import Compaction, compact
from storage.errors import NoStore, StoreError, out_of_reach
from storage.forget import Forgetting, forget, forget_images, forgetting, forgetting_images
from storage.holdings import record_holdings
from storage.iou import iou
from storage.keys import Written, content_key
from storage.limits import Limits, time_limit
from storage.migrate import Amount, drop_former, migrate
from storage.processes import begun_here, mark_lost
from storage.remembered import private_folder, sha256_of
from storage.render import FORMATS, csv_line, render, rendered, safe_cell, visible, visible_lines
from storage.sandbox import run_sql
from storage.store import Store, address_of
from storage.verify import Damage, collect_litter, examine, verify

__all__ = [
    "CHECKPOINTS",
    "FORMATS",
    "REPORTS",
    "Amount",
    "Compaction",
    "Damage",
    "Forgetting",
    "Limits",
    "NoStore",
    "Store",
    "StoreError",
    "Written",
    "address_of",
    "begun_here",
    "collect_litter",
    "compact",
    "connect",
    "content_key",
    "csv_line",
    "drop_former",
    "examine",
    "forget",
    "forget_images",
    "forgetting",
    "forgetting_images",
    "iou",
    "mark_lost",
    "migrate",
    "out_of_reach",
    "private_folder",
    "queries",
    "query",
    "record_holdings",
    "render",
    "rendered",
    "run_sql",
    "safe_cell",
    "sha256_of",
    "tables",
    "time_limit",
    "verify",
    "visible",
    "visible_lines",
    "write_catalog",
]
