"""The door of fine-tuning: what stands for a memorized image, and what nothing can stand for."""

import copy
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel
from pydantic import ValidationError
from safetensors import safe_open

from storage import Store, StoreError
from tasks.collect.task import import_set
from tasks.diffusion.noise import Key
from tasks.diffusion.sampling import SamplingParams
from tasks.dori import DoriParams
from tasks.errors import InputError, TooLarge
from tasks.methods import Mitigation, method
from tasks.mitigate import task as door
from tasks.mitigate.finetune import FineTuneParams, finetune
from tasks.mitigate.task import erasing
from tasks.mitigate.task import surrogates as making
from tasks.mitigate.training import Lesson, Memorized, Trained
from tasks.scorers.sscd import SscdParams
from tasks.subject import ORIGINAL, Prompt, Subject, prompts_of
from tests.support.world import tiny_world

TRAINING = FineTuneParams(
    epochs=1, images_per_step=2, noises=1, ordinary_batch=2, attack_steps=1, attack_batch=1, starts=("prompt",)
)


@pytest.fixture
def subject(tmp_path: Path) -> Subject:
    model = tiny_world(tmp_path / "world")
    store = Store.open(str(tmp_path / "store"))
    name = import_set(store, tmp_path / "world" / "prompts.parquet", tmp_path / "world" / "images.parquet")
    return Subject(store=store.url, model=str(model), prompt_set=name, device="cpu")


Training = Callable[[Lesson, Any], Trained]


def erase(subject: Subject, prompts: list[Prompt], train: Training = finetune) -> str:
    """The variant that adversarial fine-tuning gives, or another training in its place."""
    mitigation: Mitigation = replace(method("mitigation", "adversarial-finetune"), function=train)
    place = (ORIGINAL, TRAINING, SamplingParams(steps=2), SscdParams(side=96), "audit-7")
    return door.erase(subject, mitigation, prompts, prompts_of(subject, "ordinary"), *place)[mitigation.name]


def copying(subject: Subject, prompts: list[Prompt], seeds: dict[str, int]) -> Any:
    """A generator of images that are copies of a prompt's image up to a seed, and a ramp from there on."""
    images = {one.prompt_id: subject.training_images(one.image_ids[:1])[0] for one in prompts}

    def generate(model: Any, text: torch.Tensor, keys: Sequence[Key], *rest: Any) -> np.ndarray:
        side = images[keys[0][0]].shape[1]
        ramp = np.tile(np.linspace(0, 255, side, dtype=np.uint8)[:, None], (side, 1, 3))
        return np.stack([images[name] if seed < seeds[name] else ramp for name, seed in keys])

    return generate


def test_a_prompt_of_which_only_copies_come_is_left_out(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    prompts = prompts_of(subject, "memorized")[:3]
    first_free = dict(zip((one.prompt_id for one in prompts), (0, 4, 99), strict=True))
    monkeypatch.setattr("tasks.mitigate.task.surrogates.generate", copying(subject, prompts, first_free))
    variant = erase(subject, prompts)
    assert door.not_erased(subject, variant) == [prompts[2].text]
    assert len(door.history_of(subject, variant)) == 1  # two images in one step


def test_a_trained_variant_keeps_what_training_changed(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    prompts = prompts_of(subject, "memorized")[:1]
    monkeypatch.setattr("tasks.mitigate.task.surrogates.generate", copying(subject, prompts, {prompts[0].prompt_id: 0}))
    before = {name: weight.clone() for name, weight in subject.load().denoiser.named_parameters()}
    frozen = "mid_block.resnets.0.conv1.weight"
    trained: dict[str, torch.Tensor] = {}

    def half_trained(lesson: Lesson, params: Any) -> Trained:
        done = finetune(lesson, params)
        done.denoiser.get_parameter(frozen).data.copy_(before[frozen])
        trained.update(done.denoiser.named_parameters())
        return done

    variant = erase(subject, prompts, half_trained)
    row = subject.row(variant)
    assert row["rule"] is None and row["sets_id"] is None
    folder = subject.open().get_folder(row["weights"])
    with safe_open(folder / "changed.safetensors", framework="pt") as opened:
        kept = set(opened.keys())
    assert kept == {name for name in before if not torch.equal(before[name], trained[name])}
    assert kept and frozen not in kept
    with subject.loaded(variant) as model:
        for name, weight in model.denoiser.named_parameters():
            assert torch.equal(weight, trained[name])
            assert weight.stride() == before[name].stride()
        with pytest.raises(RuntimeError, match="a variant is applied to the model"):
            subject.load()
    assert all(torch.equal(weight, before[name]) for name, weight in subject.load().denoiser.named_parameters())
    shutil.rmtree(folder)
    with pytest.raises(StoreError, match="no folder"), subject.loaded(variant):
        pass
    assert erase(subject, prompts, half_trained) == variant
    with subject.loaded(variant) as model:
        assert torch.equal(model.denoiser.conv_out.bias, trained["conv_out.bias"])


@pytest.mark.parametrize("whole", [True, False])
def test_weights_of_earlier_releases_are_read(subject: Subject, tmp_path: Path, whole: bool) -> None:
    """They kept a whole denoiser, and no more of it in the row than its card."""
    unet = copy.deepcopy(subject.load().denoiser).to(memory_format=torch.contiguous_format)
    unet.conv_out.weight.data[0] = 0
    folder = tmp_path / "old"
    if whole:
        unet.save_pretrained(folder)
    else:
        folder.mkdir()
        (folder / "variant.json").write_text("{}")
    card = {"title": "t", "base": "b", "base_id": "i", "method": "wanda", "audit_id": "audit-1", "site": "ff-hidden"}
    store = subject.open()
    row = {"variant": "wanda-old", "method": "wanda", "params_id": "p"}
    row["card"] = json.dumps(card | {"pruned": 1, "total": 2, "pruned_words": "some weights"})
    row["weights"] = store.put_folder("variants", "old", folder)
    store.write("variants", "old", [row], model_id=subject.model_id)
    if not whole:
        with pytest.raises(InputError, match=r"holds no weights: .* run the mitigation again"):
            door.export_variant(subject, "wanda-old", tmp_path / "out")
        return
    door.export_variant(subject, "wanda-old", tmp_path / "out", changed_only=True)
    loaded = UNet2DConditionModel.from_pretrained(tmp_path / "out", use_safetensors=True)
    assert all(torch.equal(one, two) for one, two in zip(loaded.parameters(), unet.parameters(), strict=True))
    assert "in whose denoiser some weights are set to zero" in (tmp_path / "out" / "README.md").read_text()


def test_every_image_of_a_template_is_erased(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = prompts_of(subject, "memorized")[:2]
    template = replace(first, image_ids=first.image_ids + second.image_ids)
    monkeypatch.setattr("tasks.mitigate.task.surrogates.generate", copying(subject, [template], {first.prompt_id: 0}))
    trained: list[Memorized] = []

    def recorded(lesson: Lesson, params: Any) -> Trained:
        trained.append(lesson.memorized)
        return finetune(lesson, params)

    variant = erase(subject, [template], recorded)
    (memorized,) = trained
    assert list(memorized.ids) == list(template.image_ids)
    assert list(memorized.prompts) == [template.text] * 2
    assert len(memorized.latents) == len(memorized.surrogates) == 2
    assert not torch.equal(memorized.latents[0], memorized.latents[1])
    assert erase(subject, [first]) != variant


SEEN = tuple(np.random.default_rng(0).integers(0, 256, (34, 32, 32, 3), np.uint8))
"""Two training images, what the pruned model makes with seeds 0 to 15, and what it makes of the prompt with words."""


@pytest.mark.parametrize(
    ("alike", "wanted"),
    [
        ({10: 0.55}, [10, 0]),  # none is unlike both images: the two that are least like them
        ({2: 0.2, 15: 0.15}, [15, 2]),  # one among the first four is too few: more are made
        ({0: 0.4, 2: 0.2, 15: 0.15}, [2, 0]),  # two among the first four: nothing more is made
    ],
)
def test_surrogates_are_unlike_every_image_of_their_prompt(
    subject: Subject, monkeypatch: pytest.MonkeyPatch, alike: dict[int, float], wanted: list[int]
) -> None:
    assert chosen(subject, monkeypatch, dict.fromkeys(range(16), 0.65) | alike) == wanted


def test_what_is_no_copy_stands_for_several_images(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    copies = dict.fromkeys(range(16), 0.9)
    assert chosen(subject, monkeypatch, copies | {3: 0.6}) == [3, 3]


def test_words_are_added_to_a_prompt_of_which_only_copies_come(
    subject: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    copies = dict.fromkeys(range(32), 0.9)
    assert chosen(subject, monkeypatch, copies | {21: 0.6, 22: 0.65, 25: 0.1}) == [21, 22]
    # In the second round with words some are no copies, and that is enough: eight are made in place of sixteen.
    rows = subject.open().read("generations", condition="surrogate")
    assert sorted(rows["seed"].to_pylist()) == sorted([*range(16), *range(8)])
    assert chosen(subject, monkeypatch, copies) == []


def test_surrogates_are_made_once(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    alike = {seed: 0.65 - seed / 100 for seed in range(16)}
    first = chosen(subject, monkeypatch, alike)
    assert first == [15, 14]
    parts = subject.open().parts("generations")
    assert chosen(subject, monkeypatch, alike, able=False) == first
    assert subject.open().parts("generations") == parts


def chosen(subject: Subject, monkeypatch: pytest.MonkeyPatch, alike: dict[int, float], able: bool = True) -> list[int]:
    """Which surrogates a prompt with two images gets, to the second of which what is made is so alike.

    They are numbered by their seeds; with words in the prompt, 16 more.

    Args:
        able: whether anything can be made.
    """
    prompts = [replace(prompts_of(subject, "memorized")[0], image_ids=("one", "two"))]
    words = 0

    class Measure:
        def embed(self, some: np.ndarray) -> np.ndarray:
            rows = [next(n for n, one in enumerate(SEEN) if (one == each).all()) for each in some]
            return np.array([np.eye(2)[row] if row < 2 else (0.1, alike[row - 2]) for row in rows])

    def with_random_words(model: Any, texts: Sequence[str], *rest: Any) -> list[str]:
        nonlocal words
        words = 16
        return list(texts)

    def generate(model: Any, text: torch.Tensor, keys: Sequence[Key], *rest: Any) -> np.ndarray:
        assert able
        return np.stack([SEEN[2 + words + seed] for _, seed in keys])

    monkeypatch.setattr(Subject, "training_images", lambda self, names: np.stack(SEEN[:2]))
    monkeypatch.setattr(making, "generate", generate)
    monkeypatch.setattr(making, "with_random_words", with_random_words)
    (found,) = making.surrogates(subject, ORIGINAL, prompts, SamplingParams(steps=2), Measure())  # type: ignore[arg-type]
    return [next(n for n, one in enumerate(SEEN) if (one == each).all()) - 2 for each in found]


def test_the_held_out_attack_counts_what_an_audit_would(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    images = np.stack(SEEN[:3])  # two of a template, one of another prompt
    back = {"a": images[1], "b": SEEN[10], "c": SEEN[11]}  # of the first the second comes back, of the others nothing
    model = subject.load()
    found = [SimpleNamespace(embedding=torch.zeros(1, 1)) for _ in images]
    monkeypatch.setattr(erasing, "attack", lambda *args, **more: found)
    monkeypatch.setattr(
        erasing, "generate", lambda model, text, keys, *rest: np.stack([back[name.split("/")[0]] for name, _ in keys])
    )
    memorized = Memorized(["a", "b", "c"], ["one", "one", "two"], torch.zeros(3, 1), torch.zeros(3, 1))

    class Measure:
        def embed(self, some: np.ndarray) -> np.ndarray:
            return np.eye(len(SEEN))[[next(n for n, one in enumerate(SEEN) if (one == each).all()) for each in some]]

    how: Any = (DoriParams(start="other"), 1, 4, SamplingParams(steps=2), Measure())
    assert erasing._held_out(model, memorized, ["other"], images, *how) == pytest.approx(1 / 3)
    back["c"] = images[0]  # of another prompt: no copy of its own
    assert erasing._held_out(model, memorized, ["other"], images, *how) == pytest.approx(1 / 3)
    back["c"] = images[2]
    assert erasing._held_out(model, memorized, ["other"], images, *how) == pytest.approx(2 / 3)


def test_where_nothing_but_copies_come_it_is_refused(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    prompts = prompts_of(subject, "memorized")[:2]
    always = {one.prompt_id: 99 for one in prompts}
    monkeypatch.setattr("tasks.mitigate.task.surrogates.generate", copying(subject, prompts, always))
    before = subject.open().parts("variants")
    with pytest.raises(InputError, match="copies every memorized image still"):
        erase(subject, prompts)
    assert subject.open().parts("variants") == before


def test_a_training_that_does_not_fit_leaves_the_store_as_it_was(
    subject: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(lesson: Lesson, params: Any) -> Trained:
        raise torch.OutOfMemoryError("CUDA out of memory")

    prompts = prompts_of(subject, "memorized")[:1]
    monkeypatch.setattr("tasks.mitigate.task.surrogates.generate", copying(subject, prompts, {prompts[0].prompt_id: 0}))
    before = subject.open().parts("variants")
    with pytest.raises(TooLarge, match="adversarial-finetune does not fit into the device's memory"):
        erase(subject, prompts, full)
    assert subject.open().parts("variants") == before


def test_a_training_that_cannot_fit_is_refused_before_surrogates_are_made(
    subject: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    def made(*given: Any) -> Any:
        raise AssertionError("surrogates were made of a training that cannot be")

    monkeypatch.setattr(erasing, "surrogates", made)
    monkeypatch.setattr("tasks.mitigate.task.memory.memory_of", lambda device: 1000)
    with pytest.raises(TooLarge, match=r"adversarial-finetune needs .* GB of memory at the least, and cpu has 0.0 GB"):
        erase(subject, prompts_of(subject, "memorized")[:1])


def test_inner_attacks_do_not_begin_where_the_held_out_one_does() -> None:
    with pytest.raises(ValidationError, match="starts"):
        FineTuneParams.model_validate({"starts": ("prompt", "other")})
