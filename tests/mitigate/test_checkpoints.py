"""Checkpoints in the store: another machine, which has the store alone, ends with the weights of an unbroken run."""

import pickle
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from storage import Store, StoreError
from tasks.collect.task import import_set
from tasks.diffusion.sampling import SamplingParams
from tasks.errors import InputError
from tasks.methods import Mitigation, method
from tasks.mitigate import task as door
from tasks.mitigate.finetune import FineTuneParams, finetune
from tasks.mitigate.task.checkpoints import StoredCheckpoint
from tasks.mitigate.training import Lesson, Progress, Trained
from tasks.scorers.sscd import SscdParams
from tasks.subject import Subject, prompts_of
from tests.support.world import tiny_world

TRAINING = FineTuneParams(
    epochs=5, images_per_step=2, noises=1, ordinary_batch=2, attack_steps=1, attack_batch=1, save_every=1
)
STEPS = 10
"""Of four images, two a step, five times."""


class Killed(BaseException):
    """Like a signal: nobody catches it on its way."""


class Clock:
    """A time that passes only when it is told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture(params=["local", "s3"])
def address(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Of a store that two machines reach."""
    return str(tmp_path / "shared" / "store") if request.param == "local" else request.getfixturevalue("s3_url")


def machine(folder: Path, address: str, monkeypatch: pytest.MonkeyPatch) -> Subject:
    """A machine with its own copy of the model, its own working directory and its own cache; it shares the store."""
    model = tiny_world(folder / "world")
    monkeypatch.chdir(folder)
    monkeypatch.setenv("ENGRAM_CACHE", str(folder / "cache"))
    store = Store.open(address)
    name = import_set(store, folder / "world" / "prompts.parquet", folder / "world" / "images.parquet")
    return Subject(store=store.url, model=str(model), prompt_set=name, device="cpu")


def train(subject: Subject, on_progress: Callable[[Progress], None]) -> str:
    """The variant of the baseline that needs no pruned variant, so that nothing but the training takes time."""

    def watched(lesson: Lesson, params: Any) -> Trained:
        return finetune(replace(lesson, on_progress=on_progress), params)

    mitigation: Mitigation = replace(method("mitigation", "adversarial-finetune"), function=watched, surrogates=None)
    prompts, ordinary = (prompts_of(subject, kind) for kind in ("memorized", "ordinary"))
    how = (None, TRAINING, SamplingParams(steps=2), SscdParams(side=96), "audit-7")
    return door.erase(subject, mitigation, prompts, ordinary, *how)[mitigation.name]


def weights(subject: Subject, variant: str) -> bytes:
    folder = subject.open().get_folder(subject.row(variant)["weights"])
    return (folder / "changed.safetensors").read_bytes()


def test_a_second_machine_goes_on_to_the_very_same_weights(
    tmp_path: Path, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = machine(tmp_path / "alone", str(tmp_path / "alone" / "store"), monkeypatch)
    unbroken = train(alone, lambda progress: None)

    def killed(progress: Progress) -> None:
        if progress.step == 4:
            raise Killed

    first = machine(tmp_path / "first", address, monkeypatch)
    monkeypatch.setattr("tasks.mitigate.task.checkpoints.SHARE", 1.0)  # so that each step's state is kept
    with pytest.raises(Killed):
        train(first, killed)
    store = first.open()
    (kept,) = store.home.files("checkpoints")
    shutil.rmtree(tmp_path / "first")

    seen: list[int] = []
    second = machine(tmp_path / "second", address, monkeypatch)
    variant = train(second, lambda progress: seen.append(progress.step))
    assert variant == unbroken
    assert seen == list(range(5, STEPS + 1))
    assert weights(second, variant) == weights(alone, unbroken)
    assert [step["step"] for step in door.history_of(second, variant)] == list(range(1, STEPS + 1))
    assert door.history_of(second, variant) == door.history_of(alone, unbroken)
    assert list(store.home.files("checkpoints")) == []
    assert kept.path.endswith(f"-{variant}.pt")


def test_saving_takes_a_tenth_of_the_time_at_most(
    tmp_path: Path, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    checkpoint = StoredCheckpoint(Store.open(address), "one", clock)

    def slow(state: Any, path: Path, save: Callable[..., None] = torch.save) -> None:
        save(state, path)
        clock.now += 6

    monkeypatch.setattr("torch.save", slow)
    saved: list[int] = []
    for step in range(200):  # of a second each
        checkpoint.save({"step": step})
        if checkpoint.load() == {"step": step}:
            saved.append(step)
        clock.now += 1
    assert saved == [0, 54, 108, 162]
    assert len(saved) * 6 <= 0.11 * (clock.now - 100)


def test_a_state_comes_back_as_it_was(tmp_path: Path, address: str) -> None:
    checkpoint = StoredCheckpoint(Store.open(address), "one")
    assert checkpoint.load() is None
    state = {"weights": [torch.randn(3, 4).to(memory_format=torch.contiguous_format)], "n": 3, "words": "a", "no": None}
    checkpoint.save(state)
    found = StoredCheckpoint(Store.open(address), "one").load()
    assert found is not None and found.keys() == state.keys()
    assert torch.equal(found["weights"][0], state["weights"][0]) and found["words"] == "a"  # type: ignore[index]
    checkpoint.remove()
    checkpoint.remove()
    assert checkpoint.load() is None


def test_a_save_that_fails_leaves_the_one_before(tmp_path: Path, address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    checkpoint = StoredCheckpoint(Store.open(address), "one", clock)
    checkpoint.save({"step": 1})

    def full(state: Any, path: Path) -> None:
        path.write_bytes(b"half of it")
        raise RuntimeError("PytorchStreamWriter failed writing file data/1: file write failed\nmore")

    with monkeypatch.context() as patch:
        patch.setattr("torch.save", full)
        with pytest.raises(StoreError, match=r"cannot write .*one\.pt: PytorchStreamWriter failed") as refused:
            checkpoint.save({"step": 2})
    assert "\n" not in str(refused.value)
    assert checkpoint.load() == {"step": 1}


class Program:
    """What unpickles as a call."""

    def __reduce__(self) -> Any:
        return exec, ("raise SystemExit('it was run')",)


@pytest.mark.parametrize("damage", ["program", "half", "nothing", "other"])
def test_what_is_no_state_is_refused_and_not_run(tmp_path: Path, address: str, damage: str) -> None:
    store = Store.open(address)
    checkpoint = StoredCheckpoint(store, "one")
    checkpoint.save({"weights": torch.zeros(100)})
    whole = store.read_file("checkpoints/one.pt")
    with store.writing("checkpoints/one.pt") as path:
        if damage == "program":
            torch.save({"weights": Program()}, path)
        else:
            path.write_bytes({"half": whole[: len(whole) // 2], "nothing": b"", "other": pickle.dumps(3)}[damage])
    with pytest.raises(InputError, match=r"one\.pt cannot be read \(.*\): remove it, to train anew") as refused:
        checkpoint.load()
    assert "\n" not in str(refused.value)
