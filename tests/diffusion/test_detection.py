"""Noise differences tell memorized prompts from others."""

import pytest
import torch

from tasks.diffusion.detection import (
    DetectionParams,
    detection_timestep,
    estimate_threshold,
    highest_by_seed,
    noise_differences,
    pairwise_scores,
    prompt_differences,
)
from tasks.diffusion.ssim import to_unit_range
from tasks.errors import InputError
from tests.support.hand_made import MEMORIZED, NULL_PROMPTS, model_of, planted_unet, random_unet

PARAMS = DetectionParams(seeds=4)
PLANTED = model_of(planted_unet())
RANDOM = model_of(random_unet())


def test_the_timestep_is_the_second_of_the_schedule_and_the_model_keeps_its_own() -> None:
    RANDOM.schedule.own.set_timesteps(7)
    assert detection_timestep(RANDOM, 50) == 960
    assert len(RANDOM.schedule.own.timesteps) == 7


def test_the_difference_is_the_prediction_less_the_initial_noise() -> None:
    (text,) = RANDOM.encode(["ab"])
    noise, found = prompt_differences(RANDOM, text, "ab", PARAMS)
    predicted = RANDOM.denoiser(noise, 960, text.expand(4, -1, -1)).sample
    torch.testing.assert_close(found, to_unit_range(predicted - noise), atol=1e-5, rtol=1e-4)


def test_seeds_have_their_own_noise_and_the_batch_does_not_matter() -> None:
    (text,) = RANDOM.encode(["ab"])
    noise, found = prompt_differences(RANDOM, text, "ab", PARAMS)
    other_noise, other = prompt_differences(RANDOM, text, "ab", DetectionParams(seeds=7, batch=3))
    assert torch.equal(noise, other_noise[:4])
    torch.testing.assert_close(found, other[:4], atol=1e-5, rtol=1e-4)
    assert not torch.equal(noise, prompt_differences(RANDOM, text, "cd", PARAMS)[0])


def test_pairs_by_hand() -> None:
    scores = torch.tensor([0.1, 0.2, 0.9, 0.3, 0.4, 0.5])  # 01 02 03 12 13 23
    assert highest_by_seed(scores, 4).tolist() == pytest.approx([0.9, 0.4, 0.5, 0.9])
    images = to_unit_range(torch.randn(3, 1, 16, 16))
    images[2] = images[0]
    found = pairwise_scores(images)
    assert found[1].item() == pytest.approx(1, abs=1e-5)
    assert highest_by_seed(found, 3)[[0, 2]].tolist() == pytest.approx([1, 1], abs=1e-5)


def test_the_threshold_is_mean_and_deviation_over_all_pairs() -> None:
    scores = [torch.tensor([0.1, 0.3]), torch.tensor([0.2, 0.2])]
    assert estimate_threshold(scores, DetectionParams()) == pytest.approx(0.2 + (0.02 / 3) ** 0.5)
    assert estimate_threshold(scores, DetectionParams(deviations=0)) == pytest.approx(0.2)
    with pytest.raises(InputError, match="at least two"):
        estimate_threshold([], DetectionParams())


def test_memorized_prompts_stand_out() -> None:
    def score(prompt: str) -> torch.Tensor:
        return pairwise_scores(prompt_differences(PLANTED, PLANTED.encode([prompt])[0], prompt, PARAMS)[1])

    threshold = estimate_threshold([score(prompt) for prompt in NULL_PROMPTS], PARAMS)
    assert threshold < 0.2
    assert score(MEMORIZED).min() > 0.7


def test_predictions_that_are_not_finite_are_refused() -> None:
    with pytest.raises(InputError, match="not finite"):
        noise_differences(RANDOM, torch.full((1, 6, 8), float("nan")), torch.zeros(1, 4, 16, 16), 960)
