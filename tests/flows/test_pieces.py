"""Models that are given in pieces, from the command to the report."""

import json
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image

from flows.audit import audit
from flows.cli import main
from flows.nightly import register, registered
from flows.params import AuditParams, command_of, resolved
from flows.run.spec import resolve, spec_of
from flows.settings import Settings
from storage import Store
from tests.flows.test_run import SETTINGS
from tests.support.adapters import Adapter
from tests.support.drawings import drawings
from tests.support.world import DISTINCT, SIDE, tiny_world

FITS = ["--set", "wanda.sparsity=0.1", "--set", "attacked=1", "--set", "controls=1"]
"""Settings that suit the small model."""


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where models are put together."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("ENGRAM_CACHE", str(folder))
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def lora(model: Path) -> Path:
    return Adapter(StableDiffusionPipeline.from_pretrained(model)).write(model.parent / "mine.safetensors")


def params_of(model: Path, store: Path, **more: Any) -> AuditParams:
    settings = Settings.model_validate(SETTINGS)
    return AuditParams(model=str(model), store=str(store), device="cpu", settings=settings, **more)


def test_an_adapter_makes_another_model_with_the_prompts_of_its_base(
    model: Path, lora: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = tmp_path / "store"
    monkeypatch.chdir(lora.parent)
    plain = resolve(params_of(model, store))
    specs = [resolve(params_of(model, store, lora=(text,))) for text in ("mine.safetensors", "mine.safetensors=0.5")]
    assert len({spec.subject.model_id for spec in (plain, *specs)}) == 3
    assert {spec.subject.prompt_set for spec in (plain, *specs)} == {plain.subject.prompt_set}
    assert [spec.subject.source for spec in specs] == [
        f"{model} + {name}" for name in ("mine.safetensors", "mine.safetensors=0.5")
    ]
    # Of an adapter, text encoders speak otherwise, too.
    prompts = plain.chosen.memorized
    before = plain.subject.embed(prompts).clone()
    assert not torch.equal(specs[0].subject.embed(prompts), before)
    # Any worker puts it together from what the run says, wherever it stands.
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ENGRAM_CACHE", str(tmp_path / "another machine"))
    again = spec_of(specs[1].run)
    assert again.subject.model_id == specs[1].subject.model_id
    assert again.subject.model != specs[1].subject.model
    assert again.params.lora == (f"{lora}=0.5",)


def test_the_command_and_the_registration_name_the_pieces(model: Path, lora: Path, tmp_path: Path) -> None:
    params = params_of(model, tmp_path / "store", lora=(f"{lora}=0.5",))
    words = shlex.split(command_of(params))
    assert words[words.index("--lora") + 1] == f"{lora}=0.5"
    store = Store.open(tmp_path / "store")
    register(store, "mine", params)
    assert json.loads(registered(store)["mine"])["lora"] == [f"{lora}=0.5"]
    assert resolved(params).lora == (f"{lora}=0.5",)
    assert params.named == f"{model} + {lora}=0.5"


def test_what_is_wrong_is_told_before_anything_is_put_together(
    model: Path, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    store = tmp_path / "store"
    for words, wanted in (
        (
            ["--lora", "gone.safetensors", "--prompts", "none.csv"],
            ["there is no none.csv, which was given with --prompts"],
        ),
        (["--lora", "gone.safetensors", "--vae", "none"], ["--lora gone.safetensors is not there", "there is no none"]),
        (["--config", str(model)], ["--config is for a model in one file"]),
        (["--compare-base", *FITS], ["--compare-base says what LoRA adapters bring back: give them with --lora"]),
    ):
        monkeypatch.setattr("sys.argv", ["engram", "audit", "--model", str(model), "--store", str(store), *words])
        with pytest.raises(SystemExit) as end:
            main()
        said = capsys.readouterr().err
        assert end.value.code == 2 and all(line in said for line in wanted), said
    assert not store.exists()
    assert not [path for path in cache.rglob("*") if path.is_file()]


@pytest.mark.slow
@pytest.mark.usefixtures("prefect")
def test_a_model_with_an_adapter_is_audited_and_exported(
    model: Path, lora: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = audit(params_of(model, tmp_path / "store", lora=(str(lora),)))
    store = Store.open(tmp_path / "store")
    (row,) = store.read("models").to_pylist()
    assert row["source"] == f"{model} + mine.safetensors"
    (variant, *_) = [
        row["variant"] for row in store.read("variants").to_pylist() if row["variant"].startswith("wanda-")
    ]
    out = tmp_path / "out"
    words = [
        "export",
        variant,
        str(out),
        "--model",
        str(model),
        "--lora",
        str(lora),
        "--store",
        str(tmp_path / "store"),
    ]
    monkeypatch.setattr("sys.argv", ["engram", *words])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 0
    pipeline = StableDiffusionPipeline.from_pretrained(out)
    wanted = Adapter(StableDiffusionPipeline.from_pretrained(model)).fused(
        StableDiffusionPipeline.from_pretrained(model), "text_encoder"
    )
    for name, value in pipeline.text_encoder.state_dict().items():
        torch.testing.assert_close(value, wanted[name], atol=1e-6, rtol=0)
    assert store.read("metrics", audit_id=found.audit_id).num_rows > 0


@pytest.mark.slow
def test_a_training_set_is_audited_with_an_adapter_and_without(
    model: Path, lora: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The one command for a fine-tune: neither null prompts nor any other file is needed."""
    looks = drawings(DISTINCT[3], SIDE)[list(DISTINCT[:3])]
    for number in range(3):
        path = tmp_path / "train" / "10_thing" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(looks[number]).save(path)
        path.with_suffix(".txt").write_text(f"thing {number}")
    base = shutil.copytree(model, tmp_path / "base")
    (base / "engram.json").unlink()
    settings = SETTINGS | {
        "memorized": 3,
        "mitigations": ["wanda"],
        "attacked": 0,
        "nulls": 4,
        "wanda": {"sparsity": 0.1, "tau": 1},
    }
    words = ["audit", "--model", str(base), "--lora", str(lora), "--dataset", str(tmp_path / "train"), "--compare-base"]
    words += ["--clip", str(model.parent / "clip"), "--store", str(tmp_path / "store"), "--device", "cpu"]
    words += [word for name, value in settings.items() for word in ("--set", f"{name}={json.dumps(value)}")]
    monkeypatch.setattr("sys.argv", ["engram", *words])
    with pytest.raises(SystemExit) as end:
        main()
    said = capsys.readouterr()
    assert end.value.code == 0, said.err
    assert "null prompts are the 500 neutral ones that ship" in said.err
    assert "Of 3 prompts, the training image of 0 comes back with the adapters and not without them" in said.out
    assert said.out.count("0 of 2") == 6  # of each prompt, without and with
    rows = Store.open(tmp_path / "store").read("models")["source"].to_pylist()
    assert sorted(rows) == [str(base), f"{base} + mine.safetensors"]
