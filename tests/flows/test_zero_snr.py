"""The whole audit of models trained down to zero terminal SNR, which predict velocity."""

import math
from functools import partial
from pathlib import Path

import pytest

from tasks.report.task.pages import page_here
from tests.support.families import audited_whole, small_params
from tests.support.pipelines import ZERO_SNR, write_xl
from tests.support.world import tiny_world

pytestmark = pytest.mark.filterwarnings("ignore")
MITIGATIONS = ("nemo", "wanda", "taylor", "adversarial-finetune", "perturbed-embedding")
CHANGES = {
    "mitigations": MITIGATIONS,
    "detectors": ("norm", "ssim", "anisotropy"),
}


@pytest.mark.slow
@pytest.mark.usefixtures("prefect")
def test_every_stage_runs(tmp_path: Path) -> None:
    model = tiny_world(tmp_path, partial(write_xl, **ZERO_SNR))
    prompted, attacked = {"original", *MITIGATIONS}, {"original", "wanda", "adversarial-finetune"}
    audited, store = audited_whole(small_params(model, tmp_path / "store", **CHANGES), prompted, attacked)
    # By images and velocities every prompt has a score of its own.
    for detector in CHANGES["detectors"]:
        scores = [row["score"] for row in store.read("detections", detector=detector).to_pylist()]
        assert len(set(scores)) == len(scores) > 1 and all(map(math.isfinite, scores))
        assert min(map(abs, scores)) > 1e-6
    losses = [loss for row in store.read("triggers").to_pylist() for loss in row["loss"]]
    assert losses and all(map(math.isfinite, losses))
    assert "zero terminal SNR" in page_here(store, audited.audit_id).read_text()
