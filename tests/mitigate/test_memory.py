"""What a training takes in memory is known before it begins, and one that does not fit is refused with what would."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tasks.diffusion.footprint import Tally, bytes_of_model, without_weights
from tasks.diffusion.model import memory_of
from tasks.methods import Mitigation, method
from tasks.mitigate.finetune import FineTuneParams, finetune, memory_of_training
from tasks.mitigate.task import gigabytes, memory, memory_needed, too_large
from tasks.mitigate.training import Lesson, Memorized, Ordinary
from tests.support.denoisers import TOKENS, WIDTH, tiny_model

CPU = torch.device("cpu")
ONE_BY_ONE = FineTuneParams(
    epochs=2, images_per_step=1, noises=1, ordinary_batch=1, attack_steps=1, attack_batch=1, images_at_once=1
)


def adversarial() -> Mitigation:
    return method("mitigation", "adversarial-finetune")


class Nowhere:
    """A checkpoint that is kept nowhere."""

    def load(self) -> Any:
        return None

    def save(self, state: Any) -> None:
        pass


@pytest.mark.parametrize("rank", [0, 2])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_what_is_reckoned_is_what_a_training_takes(rank: int, checkpointing: bool) -> None:
    model, draw = tiny_model(), torch.Generator().manual_seed(0)
    params = ONE_BY_ONE.model_copy(update={"gradient_checkpointing": checkpointing})
    latents, texts = torch.randn(2, 4, 8, 8, generator=draw), torch.randn(2, TOKENS, WIDTH, generator=draw)
    lesson = Lesson(
        model,
        Memorized(["a"], ["cat"], latents[:1], latents[1:]),
        Ordinary(latents, texts),
        Nowhere(),
        lambda *asked, **how: 1.0,
    )
    with Tally() as taken:
        finetune(lesson, params, rank)
    reckoned = memory_of_training(params, without_weights(model), rank) - bytes_of_model(model)
    # A processor steps weight by weight, where a GPU takes another denoiser for it.
    assert 0.85 * taken.peak < reckoned < 1.35 * taken.peak


def test_seven_denoisers_and_what_backpropagation_keeps() -> None:
    model = without_weights(tiny_model())
    denoiser = sum(4 * one.numel() for one in model.denoiser.parameters())
    others = bytes_of_model(model) - denoiser
    needs = memory_needed(adversarial(), FineTuneParams(), model)
    again = memory_needed(adversarial(), FineTuneParams(gradient_checkpointing=True), model)
    assert needs is not None and again is not None
    assert others + 7 * denoiser <= again < needs
    ordinary: Mitigation = method("mitigation", "ordinary-finetune")
    fewer = memory_needed(ordinary, FineTuneParams(), model)
    assert fewer is not None and fewer < needs  # one loss has one gradient


def test_what_does_not_fit_is_refused_with_what_would(monkeypatch: pytest.MonkeyPatch) -> None:
    model, params = without_weights(tiny_model()), FineTuneParams()
    needs, again = (
        memory_needed(adversarial(), params.model_copy(update={"gradient_checkpointing": one}), model) or 0.0
        for one in (False, True)
    )
    monkeypatch.setattr(memory, "memory_of", lambda device: int(needs))
    assert too_large([(adversarial(), params)], model, CPU) == []
    monkeypatch.setattr(memory, "memory_of", lambda device: int(needs) - 1)
    (found,) = too_large([(adversarial(), params)], model, CPU)
    assert found.startswith(f"adversarial-finetune needs {gigabytes(needs)} of memory at the least, and cpu has ")
    assert "adversarial-finetune with --set finetune.gradient_checkpointing=true" in found
    assert "lora-finetune (" in found
    monkeypatch.setattr(memory, "memory_of", lambda device: int(again) - 1)
    (found,) = too_large([(adversarial(), params)], model, CPU)
    assert "adversarial-finetune with" not in found and "lora-finetune" in found
    monkeypatch.setattr(memory, "memory_of", lambda device: 1)
    (found,) = too_large([(adversarial(), params)], model, CPU)
    assert "where no such training fits: take a device of more" in found
    monkeypatch.setattr(memory, "memory_of", lambda device: None)  # nobody knows
    assert too_large([(adversarial(), params)], model, CPU) == []


def test_a_training_that_says_nothing_of_its_memory_is_let_begin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "memory_of", lambda device: 1)
    silent = replace(adversarial(), memory=None)
    assert too_large([(silent, FineTuneParams())], without_weights(tiny_model()), CPU) == []


def test_a_container_has_the_memory_that_it_was_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limit = tmp_path / "memory.max"
    monkeypatch.setattr("tasks.diffusion.model._LIMITS", (limit,))
    whole = memory_of(CPU)
    assert whole is not None and whole > 1e8
    for text, expected in (("max\n", whole), ("1000000\n", 1_000_000), (f"{2**62}\n", whole)):
        limit.write_text(text)
        assert memory_of(CPU) == expected
    assert memory_of(torch.device("meta")) is None
