"""The benchmark of full-size models: their shapes are the published ones, and what it measures is what was done."""

import json
from pathlib import Path

import psutil
import pytest
import torch

from benchmarks import full_size
from benchmarks.full_size import ALL_STAGES, AUDIT, LIMIT, Meter, counted, measure, read, table
from benchmarks.published import SHAPES, components, write_weights
from tasks.diffusion.folder import problems_of
from tasks.diffusion.footprint import bytes_of
from tasks.diffusion.model import load_model
from tasks.diffusion.outline import weightless
from tests.support.pipelines import write_v, write_xl

MIB = 2**20


@pytest.mark.parametrize(
    ("name", "millions"),
    [
        ("pixart", {"transformer": 611, "text_encoder": 4762, "vae": 84}),
        (
            "sd3-medium",  # with its table of positions
            {"transformer": 2085, "text_encoder": 124, "text_encoder_2": 695, "text_encoder_3": 4762, "vae": 84},
        ),
        ("flux.1", {"transformer": 11901, "text_encoder": 123, "text_encoder_2": 4762, "vae": 84}),
    ],
)
def test_models_have_their_published_sizes(name: str, millions: dict[str, int], tmp_path: Path) -> None:
    SHAPES[name](tmp_path)
    assert all("is missing" in problem for problem in problems_of(tmp_path))  # all but weights is there
    sizes = {part: bytes_of(module) / 4e6 for part, module in components(weightless(tmp_path)).items()}
    assert sizes == pytest.approx(millions, rel=0.01)


def test_random_weights_are_those_that_a_model_is_loaded_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.published.SHARD", 2000)  # several files of each component
    for write in (write_v, write_xl):
        folder = write(tmp_path / write.__name__)
        for weights in folder.rglob("*.safetensors"):
            weights.unlink()
        write_weights(folder, weightless(folder), torch.float32)
        assert len(list((folder / "unet").glob("*-of-*.safetensors"))) > 2
        model = load_model(folder, "cpu")
        latents = torch.randn(1, *model.latent_shape, generator=torch.Generator().manual_seed(0))
        output = model.output(latents, 1, model.encode(["a"]))
        assert 1e-3 < float(output.std()) < 1e3


def test_a_meter_sees_what_is_taken_and_given_back(tmp_path: Path) -> None:
    meter = Meter(torch.device("cpu"), tmp_path)

    def work() -> None:
        torch.ones(64 * MIB // 4)
        torch.ones(32 * MIB // 4)
        (tmp_path / "file").write_bytes(bytes(1_000_000))

    found = meter.of(work)
    assert found["MB"] == 1 and found["seconds"] > 0
    assert found["GiB"] * 1024 == pytest.approx(64, abs=16)
    assert meter.of(lambda: None)["GiB"] * 1024 < 16
    assert psutil.Process().memory_info().rss > 0


def test_limits_are_kept_or_not() -> None:
    one = {"seconds": 1.0, "GiB": 2.5, "MB": 0.0}
    rows = {"collect: a": one, "evaluate: b": one, "mitigate: apply c": one, "localize: d": one | {"GiB": 1.5}}
    lines = {line.split(":")[0].strip(): line for line in table(rows, 6.0) if ":" in line.split("limit")[0]}
    assert LIMIT == 2 * 2**30
    assert "EXCEEDED" in lines["collect"] and "kept" in lines["localize"] and "limit" not in lines["evaluate"]
    assert "limit 3.00: kept" in lines["mitigate"]
    assert any("FAILED" in line for line in table({"FAILED": {"exit code": -9}}, 6.0))


def test_every_stage_of_an_audit_is_measured_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write(folder: Path) -> None:
        for weights in write_v(folder).rglob("*.safetensors"):
            weights.unlink()  # a shape, whose weights the benchmark writes

    monkeypatch.setitem(SHAPES, "tiny", write)
    monkeypatch.setitem(AUDIT, "sampling", {"steps": 1})
    monkeypatch.setenv("ENGRAM_CACHE", str(tmp_path / "cache"))
    results = tmp_path / "results.json"
    measure("tiny", tmp_path, "float32", "cpu", ("load", "check", "confirm", "collect"), results)
    first = read(results)
    assert {label.split(":")[0] for label in first} == {"load", "check", "confirm", "collect"}
    measure("tiny", tmp_path, "float32", "cpu", ALL_STAGES, results)
    rows = read(results)
    stages = {*ALL_STAGES} - {"count", "diagnose"}  # this audit has no diagnosis
    assert {label.split(":")[0] for label in rows} == stages
    assert {label: rows[label] for label in first} == first
    assert {"mitigate: apply wanda", "mitigate: apply random"} <= rows.keys()
    assert any(of["MB"] > 0 for of in rows.values() if "MB" in of)


def test_what_does_not_fit_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*given: object) -> None:
        raise AssertionError("a model was measured that does not fit")

    monkeypatch.setattr(full_size, "measured", never)
    command = ["full-size", "--only", "sd1.4", "--memory", "5", "--device", "cpu"]
    figures = tmp_path / "figures.json"
    monkeypatch.setattr("sys.argv", [*command, "--folder", str(tmp_path / "models"), "--json", str(figures)])
    assert full_size.main() == 0
    found = json.loads(figures.read_text())
    assert found["sd1.4 weights GiB"] == pytest.approx(3.97, abs=0.01)
    assert found["sd1.4 evaluation TFLOP"] == pytest.approx(0.80, abs=0.01)  # 0.40 T multiplications and as many sums
    assert found["sd1.4 adversarial-finetune GiB"] > 7 * found["sd1.4 denoiser GiB"]
    again, said = counted("sd1.4", tmp_path / "models", "bfloat16", in_detail=False)
    assert again["sd1.4 weights GiB"] == pytest.approx(found["sd1.4 weights GiB"] / 2, rel=1e-3)
    assert len(said) == 1 and "1.99 GiB of weights" in said[0]
    (line,) = counted("flux.1", tmp_path / "models", "bfloat16", in_detail=False)[1]
    assert "31.42 GiB of weights (transformer 22.17" in line
