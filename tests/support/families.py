"""The smallest whole audit that shows what a family does: each stage once, one training, one defence."""

from pathlib import Path
from typing import Any

from flows.audit import Audited, AuditParams, audit
from flows.settings import Settings
from storage import Store, run_sql, verify
from tests.flows.test_audit import RIVALS, SETTINGS

SMALL: dict[str, Any] = SETTINGS | {
    "memorized": 3,
    "seeds": 1,
    "attacked": 1,
    "unseen": 0,
    "finetune": RIVALS["finetune"],
}


def small_params(model: Path, store: Path, **changed: object) -> AuditParams:
    """Those of such an audit."""
    settings = Settings.model_validate(SMALL | changed)
    return AuditParams(model=str(model), store=str(store), device="cpu", settings=settings)


def audited_whole(params: AuditParams, prompted: set[str], attacked: set[str]) -> tuple[Audited, Store]:
    """Audits; the store must be whole, these variants asked by prompts, and these attacked from noise."""
    audited, store = audit(params), Store.open(params.store)
    assert verify(store) == []
    rows = run_sql(store, "SELECT variant, condition FROM metrics WHERE metric = 'mr'").to_pylist()
    found = {(row["variant"], row["condition"]) for row in rows}
    assert found >= {(variant, "prompt") for variant in prompted}
    assert found >= {(variant, "dori-noise") for variant in attacked}
    return audited, store
