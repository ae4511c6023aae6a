"""The door of fine-tuning: what stands for a memorized picture, and what nothing can stand for."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from storage import Store
from tasks.collect.task import import_set
from tasks.diffusion.noise import Key
from tasks.diffusion.sampling import SamplingParams
from tasks.errors import InputError
from tasks.evaluate.sscd import SscdParams
from tasks.mitigate import task as door
from tasks.mitigate.finetune import FineTuneParams
from tasks.mitigate.task import erasing
from tasks.subject import ORIGINAL, Asked, Subject, prompts_of
from tests.flows.world import tiny_world

TRAINING = FineTuneParams(
    epochs=1, images_per_step=2, noises=1, ordinary_batch=2, attack_steps=1, attack_batch=1, starts=("prompt",)
)


@pytest.fixture
def subject(tmp_path: Path) -> Subject:
    model = tiny_world(tmp_path / "world")
    store = Store.open(str(tmp_path / "store"))
    name = import_set(store, tmp_path / "world" / "prompts.parquet", tmp_path / "world" / "images.parquet")
    return Subject(store=store.url, model=str(model), prompt_set=name, device="cpu")


def erase(subject: Subject, asked: list[Asked]) -> str:
    place = (ORIGINAL, TRAINING, SamplingParams(steps=2), SscdParams(side=96), "audit-7")
    return door.erase(subject, "adversarial-finetune", asked, prompts_of(subject, "ordinary"), *place)[
        "adversarial-finetune"
    ]


def copying(subject: Subject, asked: list[Asked], seeds: dict[str, int]) -> Any:
    """A generator of pictures that are copies of a prompt's picture up to a seed, and a ramp from there on."""
    pictures = {one.prompt_id: subject.pictures(one.image_ids[:1])[0] for one in asked}

    def generate(model: Any, text: torch.Tensor, keys: Sequence[Key], sampling: SamplingParams) -> np.ndarray:
        side = pictures[keys[0][0]].shape[1]
        ramp = np.tile(np.linspace(0, 255, side, dtype=np.uint8)[:, None], (side, 1, 3))
        return np.stack([pictures[name] if seed < seeds[name] else ramp for name, seed in keys])

    return generate


def test_a_prompt_of_which_only_copies_come_is_left_out(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = prompts_of(subject, "memorized")[:3]
    first_free = dict(zip((one.prompt_id for one in asked), (0, 4, 99), strict=True))
    monkeypatch.setattr("tasks.mitigate.task.erasing.generate", copying(subject, asked, first_free))
    variant = erase(subject, asked)
    assert door.not_erased(subject, variant) == [asked[2].text]
    assert len(door.history_of(subject, variant)) == 1  # two pictures in one step


def test_a_surrogate_is_unlike_every_picture_of_its_prompt(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = [replace(prompts_of(subject, "memorized")[0], image_ids=("one", "two"))]
    pictures = np.random.default_rng(0).integers(0, 256, (18, 32, 32, 3), np.uint8)
    alike = np.full((18, 2), 0.1)
    alike[2:18, 1] = 0.65  # near copies of the second picture, but for one that comes late
    alike[12, 1] = 0.55
    monkeypatch.setattr(Subject, "pictures", lambda self, names: pictures[:2])
    monkeypatch.setattr(
        "tasks.mitigate.task.erasing.generate",
        lambda model, text, keys, sampling: np.stack([pictures[2 + seed] for _, seed in keys]),
    )

    class Measure:
        def embed(self, some: np.ndarray) -> np.ndarray:
            rows = [next(n for n, one in enumerate(pictures) if (one == each).all()) for each in some]
            return np.eye(2) if rows == [0, 1] else alike[rows]

    (found,) = erasing._surrogates(subject, ORIGINAL, asked, SamplingParams(steps=2), Measure())  # type: ignore[arg-type]
    assert found is not None and (found == pictures[12]).all()
    alike[2:18, 1] = 0.65
    alike[4, 1] = 0.2  # among the first four: nothing more is made
    alike[17, 1] = 0.0
    (found,) = erasing._surrogates(subject, ORIGINAL, asked, SamplingParams(steps=2), Measure())  # type: ignore[arg-type]
    assert found is not None and (found == pictures[4]).all()


def test_where_nothing_but_copies_come_it_is_refused(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = prompts_of(subject, "memorized")[:2]
    always = {one.prompt_id: 99 for one in asked}
    monkeypatch.setattr("tasks.mitigate.task.erasing.generate", copying(subject, asked, always))
    before = subject.open().parts("variants")
    with pytest.raises(InputError, match="copies every memorized picture still"):
        erase(subject, asked)
    assert subject.open().parts("variants") == before


def test_inner_attacks_do_not_begin_where_the_held_out_one_does() -> None:
    with pytest.raises(ValidationError, match="starts"):
        FineTuneParams.model_validate({"starts": ("prompt", "other")})
