"""Engram from Python: audits, scans, methods and the store; see docs/python.md.

`import engram` is light: what stands behind a name is imported when the name is first asked for. The store's names do
without torch and Prefect, which take seconds.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from flows.audit import Audited as Audited
    from flows.audit import AuditParams as AuditParams
    from flows.audit import audit as audit
    from flows.lifetime import prefect_server as prefect_server
    from flows.scan import Scanned as Scanned
    from flows.scan import ScanRun as ScanRun
    from flows.scan import scan as scan
    from flows.settings import Settings as Settings
    from storage import Store as Store
    from storage import StoreError as StoreError
    from storage import connect as connect
    from storage import iou as iou
    from storage import query as query
    from storage import run_sql as run_sql
    from tasks.collect.values import value_activations as value_activations
    from tasks.diffusion.detection import estimate_threshold as estimate_threshold
    from tasks.diffusion.detection import pairwise_scores as pairwise_scores
    from tasks.diffusion.detection import prompt_differences as prompt_differences
    from tasks.diffusion.families import Model as Model
    from tasks.diffusion.model import load_model as load_model
    from tasks.diffusion.sites import Layer as Layer
    from tasks.diffusion.sites import Site as Site
    from tasks.errors import InputError as InputError
    from tasks.localize.nemo import NemoParams as NemoParams
    from tasks.localize.nemo import NemoResult as NemoResult
    from tasks.localize.nemo import nemo as nemo
    from tasks.localize.statistics import Moments as Moments
    from tasks.scan.task import ScanParams as ScanParams

_HOMES = {
    "flows.audit": ("AuditParams", "Audited", "audit"),
    "flows.lifetime": ("prefect_server",),
    "flows.scan": ("ScanRun", "Scanned", "scan"),
    "flows.settings": ("Settings",),
    "storage": ("Store", "StoreError", "connect", "iou", "query", "run_sql"),
    "tasks.collect.values": ("value_activations",),
    "tasks.diffusion.detection": ("estimate_threshold", "pairwise_scores", "prompt_differences"),
    "tasks.diffusion.families": ("Model",),
    "tasks.diffusion.model": ("load_model",),
    "tasks.diffusion.sites": ("Layer", "Site"),
    "tasks.errors": ("InputError",),
    "tasks.localize.nemo": ("NemoParams", "NemoResult", "nemo"),
    "tasks.localize.statistics": ("Moments",),
    "tasks.scan.task": ("ScanParams",),
}
_HOME = {name: home for home, names in _HOMES.items() for name in names}


if not TYPE_CHECKING:  # for which every name would be known

    def __getattr__(name: str) -> object:
        if name not in _HOME:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = getattr(import_module(_HOME[name]), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted(_HOME)
