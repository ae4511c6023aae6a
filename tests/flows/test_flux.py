"""The whole audit of a model that is distilled: one pass a step, told what guidance is; its weights are random."""

import math
from pathlib import Path
from typing import Any

import pytest

from flows.audit import AuditParams
from flows.check import check
from flows.run.spec import resolve
from flows.run.work import work
from flows.scan import ScanRun, scan
from tasks.errors import InputError
from tasks.report.task.pages import page_here
from tasks.scan.task import ScanParams
from tasks.subject import Subject
from tests.support.exported import check_exported
from tests.support.families import SMALL, audited_whole, small_params
from tests.support.pipelines import write_flux
from tests.support.world import tiny_world

pytestmark = pytest.mark.filterwarnings("ignore")
DETECTORS = ("norm", "ssim")
OWN: dict[str, Any] = {
    "sampling": {"steps": 2, "guidance": 3.5},
    "wanda": SMALL["wanda"] | {"half": "conditional"},
    "mitigations": ("nemo", "wanda", "lora-finetune", "perturbed-embedding"),
    "detectors": DETECTORS,
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_world(tmp_path_factory.mktemp("world"), write_flux)


def params(model: Path, store: Path, **changed: object) -> AuditParams:
    return small_params(model, store, **(OWN | changed))


@pytest.mark.slow
@pytest.mark.usefixtures("prefect")
def test_every_stage_runs(model: Path, tmp_path: Path) -> None:
    prompted = {"original", "random-wanda", *OWN["mitigations"]}
    attacked = {"original", "nemo", "wanda", "lora-finetune"}
    audited, store = audited_whole(params(model, tmp_path / "store"), prompted, attacked)
    (family,) = {row["family"] for row in store.read("models").to_pylist()}
    assert family == "FluxTransformer2DModel 32"
    seen = store.read("activations").to_pylist()
    blocks = [f"transformer_blocks.{number}" for number in range(2)]
    hidden = [f"{block}.{part}.net.2" for block in blocks for part in ("ff", "ff_context")]
    assert {row["layer"] for row in seen} == {*hidden, *(f"{block}.attn.add_v_proj" for block in blocks)}
    # There is no half without text, so of norms there is one half alone.
    halves = {row["params_id"].rpartition("-")[2] for row in seen if row["site"] == "ff-hidden"}
    assert halves == {"cond"}
    for detector in DETECTORS:
        scores = [row["score"] for row in store.read("detections", detector=detector).to_pylist()]
        assert len(set(scores)) == len(scores) > 1 and all(map(math.isfinite, scores))
    page = page_here(store, audited.audit_id).read_text()
    assert "flow matching" in page and "guidance is distilled into the model" in page
    subject = Subject(store=store.url, model=str(model), prompt_set="", device="cpu")
    check_exported(subject, audited.variants["wanda"], tmp_path)


def test_a_step_is_counted_as_one_evaluation(model: Path, tmp_path: Path) -> None:
    spec = resolve(params(model, tmp_path / "store", seeds=3, sampling={"steps": 7}))
    costs = {item.method: item.cost for item in work(spec, "confirm", "collect", foreseen=True)}
    assert costs["ask the model"] == 3 * 7
    assert costs["feature norms at ff-hidden"] == SMALL["wanda"]["tau"]


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"mitigations": ("reweighted-attention",)}, "in Flux text and image attend to both: leave it out"),
        ({"detectors": ("entropy",)}, "in Flux text and image attend to both: scan with norm"),
        ({"sampling": {"scheduler": "ddim", "steps": 2}}, r"sampled by its own scheduler, not by ddim: --set"),
        (
            {"wanda": SMALL["wanda"]},
            "in Flux, whose guidance is distilled, there is no half without text, which wanda.half=both needs: --set"
            " wanda.half=conditional",
        ),
    ],
)
def test_what_the_family_cannot_do_is_refused_before_any_work(
    change: dict[str, object], line: str, model: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=line) as refused:
        check(params(model, tmp_path / "store", **change))
    assert len(refused.value.problems) == 1
    assert not (tmp_path / "store").exists()


def test_guidance_other_than_the_pipelines_own_is_told(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for guidance in (3.5, 7.5):
        check(params(model, tmp_path / "store", sampling={"steps": 2, "guidance": guidance}))
        told = "told a guidance of 7.5 in sampling, where its pipeline's own is 3.5" in capsys.readouterr().err
        assert told == (guidance == 7.5)


@pytest.mark.slow
@pytest.mark.usefixtures("prefect")
def test_prompts_are_scanned(model: Path, tmp_path: Path) -> None:
    nulls = tmp_path / "nulls.txt"
    nulls.write_text("one\ntwo\nthree\n")
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a cat\n")
    given = {"model": str(model), "store": str(tmp_path / "store"), "prompts": str(prompts), "nulls": str(nulls)}
    scanned = scan(ScanRun(**given, device="cpu", scan=ScanParams(alpha=0.8)))
    assert "norm flags" in scanned.words
