"""Tables, the store, the catalog and the queries. Imports neither torch nor prefect."""

from storage import tables
from storage.catalog import connect, queries, query, write_catalog
from storage.errors import StoreError, out_of_reach
from storage.iou import iou
from storage.keys import content_key
from storage.processes import begun_here, mark_lost
from storage.render import FORMATS, render
from storage.sandbox import run_sql
from storage.store import Store, address_of
from storage.verify import Damage, collect_litter, verify

__all__ = [
    "FORMATS",
    "Damage",
    "Store",
    "StoreError",
    "address_of",
    "begun_here",
    "collect_litter",
    "connect",
    "content_key",
    "iou",
    "mark_lost",
    "out_of_reach",
    "queries",
    "query",
    "render",
    "run_sql",
    "tables",
    "verify",
    "write_catalog",
]
