"""The whole audit of a model whose text and image attend to both, trained by flow matching; its weights are random."""

import math
from pathlib import Path
from typing import Any

import pytest

from flows.audit import AuditParams
from flows.check import check
from tasks.errors import InputError
from tasks.report.task.pages import page_here
from tasks.subject import Subject
from tests.support.exported import check_exported
from tests.support.families import audited_whole, small_params
from tests.support.pipelines import write_sd3
from tests.support.world import tiny_world

pytestmark = pytest.mark.filterwarnings("ignore")
MITIGATIONS = ("nemo-union", "wanda", "taylor", "adversarial-finetune", "random-tokens")
DETECTORS = ("norm", "ssim", "anisotropy")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_world(tmp_path_factory.mktemp("world"), write_sd3)


def params(model: Path, store: Path, **changed: object) -> AuditParams:
    own: dict[str, Any] = {"mitigations": MITIGATIONS, "detectors": DETECTORS}
    return small_params(model, store, **(own | changed))


@pytest.mark.slow
@pytest.mark.usefixtures("prefect")
def test_every_stage_runs(model: Path, tmp_path: Path) -> None:
    prompted = {"original", "random-nemo-union", "random-wanda", *MITIGATIONS}
    attacked = {"original", "nemo-union", "wanda", "adversarial-finetune"}
    audited, store = audited_whole(params(model, tmp_path / "store"), prompted, attacked)
    (family,) = {row["family"] for row in store.read("models").to_pylist()}
    assert family == "SD3Transformer2DModel 32"
    seen = store.read("activations").to_pylist()
    blocks = [f"transformer_blocks.{number}" for number in range(3)]
    hidden = [f"{block}.{part}.net.2" for block in blocks for part in ("ff", "ff_context")][:-1]
    assert {row["layer"] for row in seen} == {*hidden, *(f"{block}.attn.add_v_proj" for block in blocks)}
    # Text that attends to the image has values of a step, and no others.
    assert {row["timestep"] for row in seen if row["site"] == "value"} == {993}
    for detector in DETECTORS:
        scores = [row["score"] for row in store.read("detections", detector=detector).to_pylist()]
        assert len(set(scores)) == len(scores) > 1 and all(map(math.isfinite, scores))
    assert "flow matching" in page_here(store, audited.audit_id).read_text()
    # A variant leaves the store as a pipeline of the same family.
    subject = Subject(store=store.url, model=str(model), prompt_set="", device="cpu")
    check_exported(subject, audited.variants["wanda"], tmp_path)


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"mitigations": ("reweighted-attention",)}, "in StableDiffusion3 text and image attend to both: leave it out"),
        ({"detectors": ("entropy",)}, "in StableDiffusion3 text and image attend to both: scan with norm"),
        ({"sampling": {"scheduler": "ddim", "steps": 2}}, r"sampled by its own scheduler, not by ddim: --set"),
    ],
)
def test_what_the_family_cannot_do_is_refused_before_any_work(
    change: dict[str, object], line: str, model: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=line) as refused:
        check(params(model, tmp_path / "store", **change))
    assert len(refused.value.problems) == 1
    assert not (tmp_path / "store").exists()
