"""Each detector by hand, and that neither the batch nor what else is scanned changes a score."""

import math
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from tasks.diffusion.detection import DetectionParams, pairwise_scores, prompt_differences
from tasks.diffusion.families import Model, layers_of
from tasks.diffusion.families.schedule import Schedule
from tasks.diffusion.noise import initial_noise
from tasks.diffusion.sites import Site
from tasks.errors import InputError
from tasks.methods import method, names
from tasks.scan.task import ScanParams
from tests.support.hand_made import MEMORIZED, NULL_PROMPTS, TOKENS, WIDTH, model_of, planted_unet, random_unet

SEEDS = 3
DETECTORS = names("detector")
FIRST, LAST = 980, 40
"""The first timestep of the hand-made model's schedule of 50, and the third from the end."""


class Answering:
    """A denoiser that predicts what it is given: `answer(latents, timestep, strength)`.

    A text says its strength in its first number; that of the null prompt is 0.
    """

    config = SimpleNamespace(sample_size=4, in_channels=2)
    dtype = torch.float32

    def __init__(self, answer: Callable[[torch.Tensor, int, torch.Tensor], torch.Tensor]) -> None:
        self.answer, self.timesteps = answer, list[int]()

    def __call__(self, latents: torch.Tensor, steps: torch.Tensor, text: torch.Tensor, **_: Any) -> Any:
        self.timesteps.append(int(steps[0]))
        strength = text[:, 0, 0].where(text[:, 0, 0] >= 1, 0).view(-1, 1, 1, 1)
        return (self.answer(latents, self.timesteps[-1], strength),)


def answering(answer: Callable[[torch.Tensor, int, torch.Tensor], torch.Tensor]) -> tuple[Model, Answering]:
    unet: Any = Answering(answer)
    return model_of(unet), unet


def scores(
    model: Model, name: str, embeddings: torch.Tensor, prompt_ids: list[str], batch: int = 32, **changes: Any
) -> torch.Tensor:
    detector = method("detector", name)
    params = detector.params(**{"seeds": SEEDS} | changes)
    found: torch.Tensor = detector.score(model, embeddings, prompt_ids, params, batch)
    return found


def texts(*strengths: float) -> torch.Tensor:
    return torch.tensor(strengths).view(-1, 1, 1).expand(-1, TOKENS, WIDTH)


def lengths(model: Model, prompt: str) -> torch.Tensor:
    """Of the initial noise of each seed."""
    return initial_noise(model, [(prompt, seed) for seed in range(SEEDS)]).flatten(1).norm(dim=1)


def test_the_norm_is_that_of_the_guidance_at_the_first_step_averaged_over_seeds() -> None:
    model, unet = answering(lambda latents, step, strength: latents * (0.5 + strength))
    found = scores(model, "norm", texts(1, 2), ["a", "b"])
    assert found.tolist() == pytest.approx([lengths(model, "a").mean().item(), 2 * lengths(model, "b").mean().item()])
    assert set(unet.timesteps) == {FIRST}
    assert len(unet.timesteps) == 2  # a pair of passes, over all samples at once


def test_anisotropy_is_the_norm_at_high_noise_and_the_cosine_at_low_noise() -> None:
    def answer(latents: torch.Tensor, step: int, strength: torch.Tensor) -> torch.Tensor:
        if step == FIRST:
            return latents * (1 + strength)
        unconditional = torch.tensor([1.0, 0.0]).view(1, 2, 1, 1)
        guidance = torch.zeros(2, 4, 4)
        guidance[0] = 5.0
        guidance[1, :, :2] = 5.0  # at 45 degrees in one half of the image, alongside in the other
        return (unconditional + strength * guidance).expand_as(latents)

    model, unet = answering(answer)
    norm = math.sqrt(4 * 64 * 64 / (2 * 4 * 4)) * lengths(model, "a").mean().item()
    cosine = (1 + math.sqrt(0.5)) / 2
    for weight in (0.0, 2.0, 10.0):
        found = scores(model, "anisotropy", texts(1), ["a"], cosine=weight)
        assert found.tolist() == pytest.approx([norm + weight * cosine])
    assert unet.timesteps == 3 * [FIRST, FIRST, LAST, LAST]  # two pairs of passes, nothing denoised


def test_entropy_is_of_the_attention_of_the_fourth_layer_averaged_over_heads() -> None:
    unet = random_unet()
    layer = layers_of(unet, Site.VALUE_ALL)[3]
    block = unet.get_submodule(layer.name.removesuffix(".attn2.to_v"))
    with torch.no_grad():
        # Every query is all ones; keys of the first head are the text's third number, those of the second nothing.
        block.norm2.weight.zero_()
        block.norm2.bias.fill_(1.0)
        block.attn2.to_q.weight.copy_(torch.eye(WIDTH))
        block.attn2.to_k.weight.zero_()
        block.attn2.to_k.weight[:4, 2] = 1.0
    model = model_of(unet)
    text = model.encode(["ab", "cd"])
    logits = 4 * text[:, :, 2].double().numpy() * block.attn2.scale
    focused = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    attention = (focused + 1 / TOKENS) / 2
    expected = -(attention * np.log(attention)).sum(1)
    assert scores(model, "entropy", text, ["ab", "cd"]).tolist() == pytest.approx(expected.tolist(), rel=1e-5)
    assert expected[0] != pytest.approx(expected[1], rel=1e-3)


def test_attention_on_a_single_token_has_no_entropy() -> None:
    model = model_of(planted_unet())  # its keys are zero: it looks at all tokens alike
    text = model.encode(["ab"])
    assert scores(model, "entropy", text, ["ab"]).item() == pytest.approx(math.log(TOKENS))
    assert scores(model, "entropy", text[:, :1], ["ab"]).item() == pytest.approx(0, abs=1e-6)


def test_entropy_needs_four_layers() -> None:
    model = model_of(random_unet(up_block_types=("UpBlock2D", "UpBlock2D")))
    with pytest.raises(InputError, match="this model has 3"):
        scores(model, "entropy", model.encode(["ab"]), ["ab"])


def test_similarity_is_that_which_nemo_goes_by() -> None:
    model = model_of(random_unet())
    found = scores(model, "ssim", model.encode(["ab", "cd"]), ["ab", "cd"])
    for prompt, score in zip(("ab", "cd"), found.tolist(), strict=True):
        _, differences = prompt_differences(model, model.encode([prompt])[0], prompt, DetectionParams(seeds=3))
        assert score == pytest.approx(pairwise_scores(differences).mean().item(), rel=1e-4)


@pytest.mark.parametrize("detector", DETECTORS)
def test_neither_the_batch_nor_the_others_matter(detector: str) -> None:
    model = model_of(random_unet())
    names = ["ab", "cd", "ef"]
    together = scores(model, detector, model.encode(names), names)
    small = scores(model, detector, model.encode(names), names, batch=2)
    backwards = scores(model, detector, model.encode(names[::-1]), names[::-1]).flip(0)
    alone = torch.cat([scores(model, detector, model.encode([name]), [name]) for name in names])
    for other in (small, backwards, alone):
        torch.testing.assert_close(other, together, rtol=1e-4, atol=1e-5)
    assert len(set(together.tolist())) == 3


@pytest.mark.parametrize("detector", ["ssim", "norm", "anisotropy"])
def test_a_planted_memory_scores_higher_than_every_null_prompt(detector: str) -> None:
    model = model_of(planted_unet())
    names = [MEMORIZED, *NULL_PROMPTS[:5]]
    memorized, *nulls = scores(model, detector, model.encode(names), names).tolist()
    assert memorized > max(nulls)


@pytest.mark.parametrize("detector", DETECTORS)
def test_predictions_that_are_not_finite_are_refused(detector: str) -> None:
    model = model_of(random_unet())
    with pytest.raises(InputError, match="not finite"):
        scores(model, detector, torch.full((1, TOKENS, WIDTH), float("nan")), ["ab"])


def test_velocity_is_looked_at_by_the_noise_it_implies() -> None:
    model, _ = answering(lambda latents, step, strength: strength.expand_as(latents))
    scheduler: Any = type(model.schedule.own)(prediction_type="v_prediction")
    share = scheduler.alphas_cumprod[FIRST].sqrt().item()
    found = scores(replace(model, schedule=Schedule(scheduler)), "norm", texts(3), ["a"])
    assert found.item() == pytest.approx(share * 3 * math.sqrt(2 * 4 * 4), rel=1e-4)


@pytest.mark.parametrize(
    "change",
    [
        {"detectors": ()},
        {"alpha": 0},
        {"norm": {"seeds": 0}},
        {"ssim": {"seeds": 1}},
        {"ssim": {"steps": 2}},
        {"detectors": ("x",)},
    ],
)
def test_parameters_have_bounds(change: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        ScanParams.model_validate(change)
    # As published, of a single noise.
    single = {name: {"seeds": 1} for name in ("entropy", "anisotropy")}
    assert all(getattr(ScanParams.model_validate(single), name).seeds == 1 for name in single)
