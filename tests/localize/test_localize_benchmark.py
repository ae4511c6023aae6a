"""The benchmark finds the plain transcriptions and ours at one, with fewer UNet calls for ours."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from benchmarks.localize import benchmark_nemo, benchmark_wanda, main, own_prompts, spread
from tasks.diffusion.sampling import SamplingParams
from tasks.localize.nemo import NemoParams
from tests.support.hand_made import MEMORIZED, NULL_PROMPTS, model_of, planted_unet, random_unet


def test_nemo_is_identical_and_saves_evaluations() -> None:
    model = model_of(planted_unet(((0, 5), (0, 6), (2, 3))))
    params = NemoParams(threshold=0.428)
    found = benchmark_nemo(model, [MEMORIZED, "abc"], NULL_PROMPTS, params, None)
    assert found["nemo_identical"] == found["nemo_memorized"] == 1
    assert found["nemo_group_agreement"] == 1
    assert found["nemo_evaluations_saved"] > 2


def test_nemo_is_identical_on_a_random_unet() -> None:
    model = model_of(random_unet())
    with torch.no_grad():
        model.denoiser.conv_out.weight.mul_(30)
    params = NemoParams(threshold=0.08, seeds=3, theta_step=0.5)
    found = benchmark_nemo(model, ["xyz"], NULL_PROMPTS, params, None)
    assert found["nemo_identical"] == found["nemo_memorized"] == 1


def test_wanda_collects_the_same_norms() -> None:
    found = benchmark_wanda(model_of(random_unet()), ["ab", "cd"], SamplingParams(steps=2, scheduler="ddim"))
    assert found["wanda_difference"] < 1e-4
    assert found["wanda_sets_iou"] > 0.99
    assert found["wanda_bytes_kept"] < found["wanda_bytes_kept_plain"] / 50


def test_a_model_brings_its_own_prompts(tmp_path: Path) -> None:
    assert own_prompts(str(tmp_path), "null") == []
    rows = [{"text": f"{kind} {n}", "kind": kind} for n in range(6) for kind in ("memorized", "null")]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "prompts.parquet")
    (tmp_path / "engram.json").write_text(json.dumps({"prompts": "prompts.parquet"}))
    found = own_prompts(str(tmp_path), "memorized")
    assert found == [f"memorized {n}" for n in range(6)]
    assert spread(found, 3) == ["memorized 0", "memorized 2", "memorized 4"]
    assert spread(found, 4) == found[:4] and spread(found, 100) == found


def test_bad_input_is_one_line_and_code_2(capsys) -> None:  # type: ignore[no-untyped-def]
    assert main(["--model", "nowhere"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
