"""Adversarial fine-tuning: a broken run ends with the weights of an unbroken one, and the original is left alone."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tasks.conditions import Start
from tasks.diffusion.families import Model, StableDiffusion
from tasks.dori import start_embeddings
from tasks.errors import Diverged, InputError
from tasks.mitigate import finetune as finetuning
from tasks.mitigate.finetune import FineTuneParams, finetune
from tasks.mitigate.training import HeldOut, Lesson, Memorized, Ordinary, Progress, Trained
from tasks.params import determining
from tests.support.denoisers import TOKENS, WIDTH, tiny_model, tiny_unet

PARAMS = FineTuneParams(
    epochs=3,
    images_per_step=2,
    noises=2,
    ordinary_batch=4,
    learning_rate=1e-3,
    attack_steps=2,
    attack_batch=2,
    attack_every=2,
    save_every=1,
)


def data() -> tuple[Memorized, Ordinary]:
    draw = torch.Generator().manual_seed(0)
    latents, surrogates = (torch.randn(3, 4, 8, 8, generator=draw) for _ in range(2))
    pairs = Ordinary(torch.randn(9, 4, 8, 8, generator=draw), torch.randn(9, TOKENS, WIDTH, generator=draw))
    return Memorized(["a", "b", "c"], ["cat", "dog", "sun"], latents, surrogates), pairs


def never(denoiser: Any, seed: int, seeds: int, images_at_once: int = 4) -> float:
    raise AssertionError("a held-out attack was made that nobody asked for")


class InFile:
    """A checkpoint in a file, which keeps every state that it is given."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def load(self) -> Any:
        return torch.load(self.path, weights_only=True) if self.path.exists() else None

    def save(self, state: Mapping[str, Any]) -> None:
        torch.save(dict(state), self.path)


def train(
    model: Model,
    memorized: Memorized,
    ordinary: Ordinary,
    params: FineTuneParams,
    checkpoint: Path,
    on_progress: Callable[[Progress], None] = lambda progress: None,
    held_out: HeldOut = never,
    rank: int = 0,
) -> Trained:
    return finetune(Lesson(model, memorized, ordinary, InFile(checkpoint), held_out, on_progress), params, rank)


class Killed(Exception):
    pass


def killed_after(step: int) -> Any:
    def on_progress(progress: Progress) -> None:
        if progress.step == step:
            raise Killed

    return on_progress


def weights(unet: Any) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in unet.state_dict().items()}


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_killed_run_ends_like_an_unbroken_one(tmp_path: Path, layout: torch.memory_format) -> None:
    model = tiny_model(tiny_unet().to(memory_format=layout))
    before = weights(model.denoiser)
    unbroken = train(model, *data(), PARAMS, tmp_path / "one.pt")
    for step in (1, 3, 4):
        with pytest.raises(Killed):
            train(model, *data(), PARAMS, tmp_path / "two.pt", killed_after(step))
        torch.manual_seed(step)  # the global generator has no say
    resumed = train(model, *data(), PARAMS, tmp_path / "two.pt")
    wanted = weights(unbroken.denoiser)
    assert all(torch.equal(value, wanted[name]) for name, value in resumed.denoiser.state_dict().items())
    assert resumed.history == unbroken.history
    assert [it.step for it in resumed.history] == [1, 2, 3, 4, 5, 6]
    assert all(torch.equal(value, before[name]) for name, value in model.denoiser.state_dict().items())
    assert not all(torch.equal(value, before[name]) for name, value in wanted.items())
    assert not any(weight.requires_grad for weight in resumed.denoiser.parameters())
    # Epochs 1 and 3 search, epoch 2 keeps the triggers it has.
    assert [it.attack is not None for it in unbroken.history] == [True, True, False, False, True, True]


def test_a_kill_between_checkpoints_repeats_the_steps_since(tmp_path: Path) -> None:
    model, params = tiny_model(), PARAMS.model_copy(update={"save_every": 4})
    unbroken = train(model, *data(), params, tmp_path / "one.pt")
    with pytest.raises(Killed):
        train(model, *data(), params, tmp_path / "two.pt", killed_after(5))
    seen: list[int] = []
    resumed = train(model, *data(), params, tmp_path / "two.pt", lambda progress: seen.append(progress.step))
    assert seen == [5, 6]
    assert resumed.history == unbroken.history
    wanted = weights(unbroken.denoiser)
    assert all(torch.equal(value, wanted[name]) for name, value in resumed.denoiser.state_dict().items())


def test_a_step_that_does_not_fit_in_memory_is_taken_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, params = tiny_model(), PARAMS.model_copy(update={"epochs": 1})
    whole = train(model, *data(), params, tmp_path / "one.pt")
    loss, sizes = StableDiffusion.training_loss, []

    def small(model: StableDiffusion, clean: torch.Tensor, *rest: Any) -> torch.Tensor:
        sizes.append(len(clean))
        if len(clean) > 2:
            raise torch.OutOfMemoryError
        return loss(model, clean, *rest)

    monkeypatch.setattr(StableDiffusion, "training_loss", small)
    pieces = train(model, *data(), params, tmp_path / "two.pt")
    assert max(sizes) == 4 and sizes.count(2) >= 6
    # AdamW's first steps go by the sign of the gradient, so rounding shows where that is next to nothing.
    far = [(a - b).abs().max() for a, b in zip(whole.denoiser.parameters(), pieces.denoiser.parameters(), strict=True)]
    assert max(far) < params.learning_rate / 2
    assert [it.erase for it in pieces.history] == pytest.approx([it.erase for it in whole.history], rel=1e-3)


def test_it_learns_the_surrogates(tmp_path: Path) -> None:
    params = FineTuneParams(
        epochs=40, images_per_step=3, noises=4, ordinary_batch=1, learning_rate=5e-3, attack_steps=0, save_every=1000
    )
    history = train(tiny_model(), *data(), params, tmp_path / "it.pt").history
    first, last = (sum(it.erase or 0 for it in part) for part in (history[:10], history[-10:]))
    assert last < 0.9 * first


def test_searches_of_an_image_begin_in_turn_at_its_prompt_and_at_noise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: dict[str, list[str]] = {}

    def recorded(model: Any, start: Start, prompts: list[str], *rest: Any, **more: Any) -> torch.Tensor:
        begun.setdefault(prompts[0], []).append(start)
        return start_embeddings(model, start, prompts, *rest, **more)

    monkeypatch.setattr(finetuning, "start_embeddings", recorded)
    train(tiny_model(), *data(), PARAMS.model_copy(update={"epochs": 6}), tmp_path / "it.pt")  # searched in three
    assert begun == {
        "cat": ["prompt", "noise", "prompt"],
        "dog": ["noise", "prompt", "noise"],
        "sun": ["prompt", "noise", "prompt"],
    }


def test_ordinary_pairs_alone(tmp_path: Path) -> None:
    params = PARAMS.model_copy(update={"erase_weight": 0.0, "epochs": 1})
    history = train(tiny_model(), *data(), params, tmp_path / "it.pt").history
    assert all(it.erase is None and it.attack is None for it in history)


@pytest.mark.parametrize("zeros", [False, True])
def test_dropped_captions_are_what_guidance_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, zeros: bool) -> None:
    model, seen = tiny_model(), []
    loss, empty = StableDiffusion.training_loss, model.unconditional()
    if zeros:
        monkeypatch.setattr(StableDiffusion, "unconditional", lambda model: torch.zeros_like(empty))

    def looked_at(model: StableDiffusion, *given: torch.Tensor) -> torch.Tensor:
        seen.append(given[-1])
        return loss(model, *given)

    monkeypatch.setattr(StableDiffusion, "training_loss", looked_at)
    params = PARAMS.model_copy(update={"erase_weight": 0.0, "epochs": 1, "drop": 1.0})
    train(model, *data(), params, tmp_path / "it.pt")
    assert seen and all(text.equal(model.unconditional().expand_as(text)) for text in seen)
    assert zeros == (not seen[0].any())


def test_stops_when_the_held_out_attack_finds_nothing(tmp_path: Path) -> None:
    params = PARAMS.model_copy(update={"check_every": 2})
    shares = iter([0.5, 0.0])
    judged: list[dict[str, torch.Tensor]] = []

    def held_out(denoiser: Any, seed: int, seeds: int, images_at_once: int = 4) -> float:
        assert (seed, seeds) == (1, 4)
        assert not any(weight.requires_grad for weight in denoiser.parameters())
        judged.append(weights(denoiser))
        return next(shares)

    result = train(tiny_model(), *data(), params, tmp_path / "it.pt", held_out=held_out)
    assert [it.held_out for it in result.history] == [None, 0.5, None, 0.0]
    # What was judged is what is returned.
    assert all(torch.equal(value, judged[-1][name]) for name, value in result.denoiser.state_dict().items())
    again = train(tiny_model(), *data(), params, tmp_path / "it.pt", held_out=held_out)
    assert again.history == result.history
    assert len(judged) == 2


def test_the_held_out_attack_does_not_change_the_way(tmp_path: Path) -> None:
    plain = train(tiny_model(), *data(), PARAMS, tmp_path / "one.pt")
    params = PARAMS.model_copy(update={"check_every": 1})
    watched = train(tiny_model(), *data(), params, tmp_path / "two.pt", held_out=lambda *given: 1.0)
    wanted = weights(plain.denoiser)
    assert all(torch.equal(value, wanted[name]) for name, value in watched.denoiser.state_dict().items())


def test_refuses(tmp_path: Path) -> None:
    train(tiny_model(), *data(), PARAMS.model_copy(update={"epochs": 1}), tmp_path / "it.pt")
    with pytest.raises(InputError, match="another training"):
        train(tiny_model(), *data(), PARAMS, tmp_path / "it.pt")
    memorized, pairs = data()
    broken = replace(pairs, latents=pairs.latents * float("nan"))
    with pytest.raises(Diverged, match="training diverged at step 1"):
        train(tiny_model(), memorized, broken, PARAMS, tmp_path / "new.pt")
    broken_memories = replace(memorized, latents=memorized.latents * float("nan"))
    with pytest.raises(Diverged, match=r"attack on .* diverged at step 1"):
        train(tiny_model(), broken_memories, pairs, PARAMS, tmp_path / "new.pt")
    half = tiny_model(tiny_unet().half())
    with pytest.raises(InputError, match="float32"):
        train(half, memorized, pairs, PARAMS, tmp_path / "new.pt")


def test_low_rank_changes_touch_the_attention_alone(tmp_path: Path) -> None:
    model = tiny_model()
    before = weights(model.denoiser)
    paths = [tmp_path / f"{name}.pt" for name in ("one", "two")]
    one, two = (train(model, *data(), PARAMS, path, rank=2).denoiser for path in paths)
    after = weights(one)
    assert after.keys() == before.keys()
    changed = {name for name in before if not before[name].equal(after[name])}
    assert changed and all(".attn" in name and name.endswith(".weight") for name in changed)
    for name in changed:
        assert torch.linalg.matrix_rank(after[name] - before[name], atol=1e-6) <= 2
        torch.testing.assert_close(after[name], two.state_dict()[name])


@pytest.mark.parametrize("rank", [0, 2])
def test_gradient_checkpointing_keeps_less_and_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rank: int
) -> None:
    asked = FineTuneParams(gradient_checkpointing=True)
    assert determining(asked) == determining(FineTuneParams())  # part of no id
    model, params = tiny_model(), PARAMS.model_copy(update={"epochs": 1})
    loss, kept = StableDiffusion.training_loss, [0]

    def counted(*given: Any) -> torch.Tensor:
        def keep(tensor: torch.Tensor) -> torch.Tensor:
            kept[-1] += tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            return loss(*given)

    monkeypatch.setattr(StableDiffusion, "training_loss", counted)
    plain = train(model, *data(), params, tmp_path / "one.pt", rank=rank)
    kept.append(0)
    with_it = params.model_copy(update={"gradient_checkpointing": True})
    again = train(model, *data(), with_it, tmp_path / "two.pt", rank=rank)
    assert kept[1] < 0.6 * kept[0]
    assert again.history == plain.history
    wanted = weights(plain.denoiser)
    assert all(torch.equal(value, wanted[name]) for name, value in again.denoiser.state_dict().items())
    # What is given back, and the model that was copied, compute as ever.
    assert not any(getattr(module, "gradient_checkpointing", False) for module in again.denoiser.modules())
    assert not any(getattr(module, "gradient_checkpointing", False) for module in model.denoiser.modules())
