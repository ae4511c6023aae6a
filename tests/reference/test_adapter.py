"""An adapter is trained on what the reference model never saw, and is what audits are given."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file

import tasks.reference.adapter as training
from tasks.collect.training_set import read_training_set
from tasks.diffusion.families import Model
from tasks.diffusion.families.pieces.lora import Lora, factors_of, fuse
from tasks.diffusion.noise import initial_noise
from tasks.errors import InputError
from tasks.reference.adapter import AdapterParams, Trained, train_adapter

WORLD = Path(__file__).parents[2] / "reference"
PARAMS = AdapterParams(images=2, rank=4, steps=2)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> list[Model]:
    """Nothing is generated; the models that would be are kept."""
    seen: list[Model] = []

    def nearest(model: Model, captions: list[str], images: list[object]) -> np.ndarray:
        seen.append(model)
        return np.zeros(len(captions))

    monkeypatch.setattr(training, "nearest", nearest)
    return seen


def test_what_is_trained_is_what_an_audit_fuses(tmp_path: Path, quick: list[Model]) -> None:
    trained = train_adapter(WORLD, tmp_path, PARAMS)
    model = replace(quick[-1], mixed=False)
    pipeline = StableDiffusionPipeline.from_pretrained(WORLD / "model", safety_checker=None, torch_dtype=torch.float32)
    plain = {name: weight.clone() for name, weight in pipeline.unet.state_dict().items()}
    fuse(pipeline, [Lora(trained.adapter, 1.0)])
    fused = pipeline.unet.state_dict()
    changed = {name for name, weight in fused.items() if not weight.equal(plain[name])}
    assert len(changed) == len(list(factors_of(trained.adapter))) > 100
    text, noise = model.encode(["a cat"]), initial_noise(model, [("a cat", 0)])
    with torch.no_grad():
        expected = model.output(noise, 500.0, text)
        found = pipeline.unet(noise, 500.0, text, return_dict=False)[0]
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    images = read_training_set(trained.dataset)
    assert len(images.prompts) == 2 and {one.exposures for one in images.prompts} == {training.REPEATS}


def test_one_that_was_stopped_goes_on_to_the_same_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = train_adapter(WORLD, tmp_path / "whole", PARAMS)

    class Stopped(Exception):
        pass

    monkeypatch.setattr("tasks.reference.training.SAVE_EVERY_S", 0.0)
    with monkeypatch.context() as patch:
        patch.setattr("tasks.reference.training.tell", lambda *progress: stop())

        def stop() -> None:
            if (tmp_path / "part" / "checkpoint.pt").is_file():
                raise Stopped

        with pytest.raises(Stopped):
            train_adapter(WORLD, tmp_path / "part", PARAMS)
    part = train_adapter(WORLD, tmp_path / "part", PARAMS)
    one, other = load_file(whole.adapter), load_file(part.adapter)
    assert one.keys() == other.keys() and all(one[name].equal(other[name]) for name in one)
    with pytest.raises(InputError, match=r"of another training .* name another --folder"):
        train_adapter(WORLD, tmp_path / "part", PARAMS.model_copy(update={"rank": 2}))


def test_what_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no .*heldout.parquet: adapters are trained beside a world") as refused:
        train_adapter(tmp_path, tmp_path / "out", PARAMS)
    assert len(refused.value.problems) == 2  # nor are there images
    with pytest.raises(InputError, match=r"--set images=[0-9]+ at most"):
        train_adapter(WORLD, tmp_path / "out", PARAMS.model_copy(update={"images": 100_000}))


def test_it_says_how_many_come_back() -> None:
    found = np.array([[0.1, 0.2, 0.9], [0.71, 0.8, 0.9]])
    assert Trained(Path("a"), Path("b"), found[0], found[1]).words.startswith(
        "of 3 images 1 come back from their captions without the adapter and 3 with it (SSCD above 0.7, best of 2 seeds"
    )
