"""The whole audit of models trained down to zero terminal SNR, which predict velocity."""

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from flows.audit import AuditParams, audit
from flows.settings import Settings
from storage import Store, run_sql, verify
from tasks.report.task.pages import page_here
from tests.flows.test_audit import RIVALS, SETTINGS
from tests.support.pipelines import ZERO_SNR, write_v, write_xl
from tests.support.world import tiny_world

pytestmark = pytest.mark.filterwarnings("ignore")
AT_INFERENCE = ("perturbed-embedding", "random-tokens", "reweighted-attention")
CHANGES = {
    "mitigations": (*SETTINGS["mitigations"], "taylor", "adversarial-finetune", *AT_INFERENCE),
    "detectors": ("norm", "ssim", "anisotropy"),
}


@pytest.mark.slow
@pytest.mark.usefixtures("prefect")
@pytest.mark.parametrize("write", [write_v, write_xl], ids=["sd", "xl"])
def test_every_stage_runs(write: Callable[..., Path], tmp_path: Path) -> None:
    model = tiny_world(tmp_path, partial(write, **ZERO_SNR))
    settings = Settings.model_validate(SETTINGS | RIVALS | CHANGES)
    store = Store.open(str(tmp_path / "store"))
    audited = audit(AuditParams(model=str(model), store=store.url, device="cpu", settings=settings))
    assert verify(store) == []
    rows = run_sql(store, "SELECT variant, condition FROM metrics WHERE metric = 'mr'").to_pylist()
    found = {(row["variant"], row["condition"]) for row in rows}
    made = ("original", "nemo", "nemo-union", "wanda", "taylor", "adversarial-finetune", *AT_INFERENCE)
    assert found >= {(variant, "prompt") for variant in made}
    assert found >= {(variant, "dori-noise") for variant in ("original", "wanda", "adversarial-finetune")}
    # By images and velocities every prompt has a score of its own.
    for detector in CHANGES["detectors"]:
        scores = [row["score"] for row in store.read("detections", detector=detector).to_pylist()]
        assert len(set(scores)) == len(scores) > 1 and all(map(math.isfinite, scores))
        assert min(map(abs, scores)) > 1e-6
    losses = [loss for row in store.read("triggers").to_pylist() for loss in row["loss"]]
    assert losses and all(map(math.isfinite, losses))
    assert "zero terminal SNR" in page_here(store, audited.audit_id).read_text()
