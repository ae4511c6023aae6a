"""Models whose schedule ends in pure noise: what stands in the place of predicted noise. Others stay as they are."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler
from hypothesis import given
from hypothesis import strategies as st

from tasks.diffusion.check import check_sampling
from tasks.diffusion.detection import DetectionParams, detection_timestep, pairwise_scores, prompt_differences
from tasks.diffusion.families import Model
from tasks.diffusion.families.schedule import Schedule
from tasks.diffusion.folder import notes_of, problems_of, signals_of
from tasks.diffusion.model import load_model
from tasks.diffusion.noise import initial_noise
from tasks.diffusion.sampling import SamplingParams, first_timestep
from tasks.diffusion.ssim import to_unit_range
from tasks.dori import DoriParams, search
from tasks.methods import method
from tasks.mitigate.perturbed_embedding import PerturbedEmbeddingParams, with_lower_norm
from tests.support.denoisers import tiny_model
from tests.support.pipelines import KEYS, PROMPTS, ZERO_SNR, write_v, write_xl

TRAINED = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
LAST = 999
TINY = tiny_model()
WRITERS = [write_v, write_xl]


def own(**config: Any) -> Any:
    return DDIMScheduler(**TRAINED | config)


@pytest.fixture(scope="module", params=WRITERS, ids=lambda writer: writer.__name__)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Model:
    write: Callable[..., Path] = request.param
    return load_model(write(tmp_path_factory.mktemp("zero") / "pipeline", **TRAINED, **ZERO_SNR), "cpu")


def random(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    clean, noise = torch.randn(2, 3, 4, 8, 8, generator=torch.Generator().manual_seed(seed))
    return clean, noise


@given(
    times=st.lists(st.integers(0, LAST), min_size=3, max_size=3),
    seed=st.integers(0, 1000),
    zero=st.booleans(),
)
def test_velocity_gives_back_noise_and_clean_latents_at_any_step(times: list[int], seed: int, zero: bool) -> None:
    """v = sqrt(a) eps - sqrt(1 - a) x, so eps = sqrt(a) v + sqrt(1 - a) z and x = sqrt(a) z - sqrt(1 - a) v."""
    schedule = Schedule(own(prediction_type="v_prediction", rescale_betas_zero_snr=zero))
    (clean, noise), at = random(seed), torch.tensor(times)
    noisy = schedule.add_noise(clean, noise, at)
    velocity = schedule.own.get_velocity(clean, noise, at)
    found = schedule.prediction(velocity, noisy, at)
    torch.testing.assert_close(found.noise, noise, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found.clean, clean, atol=1e-5, rtol=1e-5)
    # Losses are on velocity where the schedule ends in noise, and on noise where it does not.
    assert schedule.ends_in_noise == zero
    target = schedule.target(clean, noise, at)
    torch.testing.assert_close(target, velocity if zero else noise, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found.target, target, atol=1e-5, rtol=1e-5)


@given(time=st.integers(0, LAST), seed=st.integers(0, 1000))
def test_differences_of_velocities_are_those_of_noises_and_of_images(time: int, seed: int) -> None:
    """||dv|| = ||d eps|| / sqrt(a) = ||dx|| / sqrt(1 - a); the first has no value at the last step, the norm has."""
    schedule = Schedule(own(**ZERO_SNR))
    (one, two), (latents, _) = random(seed), random(seed + 1)
    first, second = (schedule.prediction(output, latents, time) for output in (one, two))
    a = float(schedule.own.alphas_cumprod[time])
    pulled = (first.target - second.target).norm()
    torch.testing.assert_close((first.noise - second.noise).norm(), a**0.5 * pulled, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close((first.clean - second.clean).norm(), (1 - a) ** 0.5 * pulled, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("predicts", ["epsilon", "v_prediction"])
@given(time=st.integers(0, LAST), seed=st.integers(0, 1000))
def test_nothing_changes_for_schedules_that_keep_some_signal(predicts: str, time: int, seed: int) -> None:
    """Bit by bit: published signals are what these figures rest on."""
    schedule = Schedule(own(prediction_type=predicts))
    output, latents = random(seed)
    found = schedule.prediction(output, latents, time)
    assert not schedule.ends_in_noise and schedule.words is None
    a = schedule.own.alphas_cumprod[torch.full((3,), time)].view(-1, 1, 1, 1)
    noise = output if predicts == "epsilon" else a.sqrt() * output + (1 - a).sqrt() * latents
    assert found.noise.equal(noise) and found.target.equal(noise)
    assert schedule.target(output, latents, time) is latents
    assert replace(TINY, schedule=schedule).memory_signal(found, latents).equal(noise - latents)


def test_at_the_first_step_images_tell_prompts_apart_and_noise_does_not(model: Model) -> None:
    text, noise = model.encode(PROMPTS), initial_noise(model, [("a", 0)] * 2)
    first = first_timestep(model, SamplingParams(steps=50))
    assert first == LAST and detection_timestep(model, 50) == LAST - 20
    found = model.predict(noise, first, text)
    # What is called noise is the latent itself, so that no signal taken of it says anything.
    torch.testing.assert_close(found.noise, noise, atol=1e-3, rtol=1e-3)
    signal = model.memory_signal(found, noise)
    assert signal.isfinite().all() and signal.equal(-found.clean.float())
    scaled = to_unit_range(signal)
    assert float((scaled[0] - scaled[1]).abs().max()) > 1e-4
    assert float((found.target[0] - found.target[1]).norm()) > 1e-3


@pytest.mark.parametrize("detector", ["norm", "ssim", "anisotropy", "entropy"])
def test_every_detector_tells_prompts_apart(detector: str, model: Model) -> None:
    chosen = method("detector", detector)
    found = chosen.score(model, model.encode(PROMPTS), PROMPTS, chosen.params(), 32)
    assert found.isfinite().all() and found[0] != found[1]
    assert (found.abs() > 1e-6).all()


def test_nemo_compares_predicted_images(model: Model) -> None:
    params = DetectionParams(seeds=3)
    noise, found = prompt_differences(model, model.encode(PROMPTS)[0], PROMPTS[0], params)
    output = model.output(noise, LAST - 20, model.encode(PROMPTS[:1]).expand(3, -1, -1))
    a = model.schedule.own.alphas_cumprod[LAST - 20]
    torch.testing.assert_close(found, to_unit_range((1 - a).sqrt() * output - a.sqrt() * noise), atol=1e-5, rtol=1e-4)
    assert pairwise_scores(found).isfinite().all()


def test_losses_are_on_velocity_and_attacks_learn_at_the_last_step(model: Model) -> None:
    clean = initial_noise(model, [("clean", 0)] * 2)
    noise, text = initial_noise(model, KEYS), model.encode(PROMPTS).float().requires_grad_(True)
    losses = model.training_loss(clean, noise, LAST, text)
    output = model.output(noise, LAST, text)  # nothing of the image is left
    torch.testing.assert_close(losses, (output + clean).square().mean((1, 2, 3)), atol=1e-3, rtol=1e-3)
    (gradient,) = torch.autograd.grad(losses.sum(), text)
    assert gradient.isfinite().all() and float(gradient.norm()) > 1e-6
    found = search(model, clean, model.encode(PROMPTS), KEYS, DoriParams(steps=2, batch=2))
    assert all(torch.isfinite(torch.tensor(one.losses)).all() and one.distance(2) > 0 for one in found)


def test_embeddings_are_moved_by_the_norm_of_velocity(model: Model) -> None:
    params, first = PerturbedEmbeddingParams(target=1e-3, steps=3), first_timestep(model, SamplingParams())
    text = model.encode(PROMPTS)
    moved = with_lower_norm(model, text, KEYS, params, first)
    assert not moved.equal(text) and moved.isfinite().all()


@pytest.mark.parametrize("scheduler", ["model", "ddim", "dpm"])
def test_it_samples_as_its_own_pipeline(scheduler: Any, model: Model) -> None:
    for guidance in (7.5, 1.0):
        check_sampling(model, SamplingParams(scheduler=scheduler, guidance=guidance))


def test_a_line_says_what_is_looked_at(model: Model, tmp_path: Path) -> None:
    folder = Path(model.source)
    assert problems_of(folder) == []
    (note,) = notes_of(folder, "float32")
    assert note == signals_of(folder)
    assert "zero terminal SNR" in note and "derived, without a published reference" in note
    plain = write_v(tmp_path / "plain")
    assert signals_of(plain) is None and notes_of(plain, "float32") == []
