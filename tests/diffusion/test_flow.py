"""Schedules of flow matching: conversions, their own scheduler, and what is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from hypothesis import given
from hypothesis import strategies as st

from tasks.diffusion.families.flow import FlowSchedule, read_flow
from tasks.errors import InputError

NAME = "FlowMatchEulerDiscreteScheduler"


def schedule(**config: Any) -> FlowSchedule:
    own: Any = FlowMatchEulerDiscreteScheduler(shift=3.0, **config)
    return FlowSchedule(own)


def random(seed: int, n: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    clean, noise = torch.randn(2, n, 4, 8, 8, generator=torch.Generator().manual_seed(seed))
    return clean, noise


@given(times=st.lists(st.floats(0, 1000, width=32), min_size=3, max_size=3), seed=st.integers(0, 1000))
def test_velocity_gives_back_noise_and_clean_latents_at_any_step(times: list[float], seed: int) -> None:
    """x_t = (1 - s) x + s eps and v = eps - x, so x = x_t - s v and eps = x_t + (1 - s) v."""
    flow, at = schedule(), torch.tensor(times)
    clean, noise = random(seed)
    noisy, velocity = flow.add_noise(clean, noise, at), flow.target(clean, noise, at)
    found = flow.prediction(velocity, noisy, at)
    torch.testing.assert_close(found.noise, noise, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found.clean, clean, atol=1e-5, rtol=1e-5)
    assert found.target is velocity and velocity.equal(noise - clean)
    torch.testing.assert_close(flow.add_noise(clean, noise, times[0])[0], noisy[0])


@pytest.mark.parametrize("trained", [1000, 500])
def test_noise_is_added_as_by_the_scheduler_at_its_own_timesteps(trained: int) -> None:
    flow = schedule(num_train_timesteps=trained)
    flow.own.set_timesteps(5)
    clean, noise = random(0, 5)
    expected = flow.own.scale_noise(clean, flow.own.timesteps, noise)
    torch.testing.assert_close(flow.add_noise(clean, noise, flow.own.timesteps), expected)
    assert flow.trained == trained and flow.timestep(5, 0) == trained
    assert flow.timestep(5, 1) == pytest.approx(float(flow.own.timesteps[1]))


def test_timesteps_are_uniform_over_all_sigmas() -> None:
    drawn = schedule().random_timesteps(20_000, torch.Generator().manual_seed(0)) / 1000
    assert float(drawn.min()) >= 0 and float(drawn.max()) < 1
    shares = torch.histc(drawn, bins=10, min=0, max=1) / len(drawn)
    assert float((shares - 0.1).abs().max()) < 0.01
    assert len(set(drawn.tolist())) > 10_000  # any sigma, not whole timesteps alone


def test_it_is_sampled_by_its_own_scheduler_alone() -> None:
    flow = schedule()
    made = flow.sampler("model", 7)
    assert isinstance(made, FlowMatchEulerDiscreteScheduler) and made is not flow.own
    assert flow.always == "model"  # as a scan asks, too
    for choice in ("ddim", "dpm"):
        with pytest.raises(InputError, match=f"not by {choice}: --set sampling.scheduler=model"):
            flow.sampler(choice, 7)


@pytest.mark.parametrize(
    ("name", "config", "line"),
    [
        ("DDIMScheduler", {}, f"has a DDIMScheduler, and the model is trained by flow matching: put the {NAME}"),
        (NAME, {"use_dynamic_shifting": True}, "use_dynamic_shifting: such a scheduler shifts its steps by the size"),
        (NAME, {"invert_sigmas": True}, "runs from images to noise"),
        (NAME, {"stochastic_sampling": True}, "draws noise at every step"),
        (NAME, {"use_karras_sigmas": True, "use_exponential_sigmas": True}, "can be made of .*: Only one of"),
        (NAME, None, "is not JSON"),
    ],
)
def test_what_cannot_be_followed_is_refused_in_a_line(
    name: str, config: dict[str, Any] | None, line: str, tmp_path: Path
) -> None:
    (tmp_path / "scheduler_config.json").write_text("{" if config is None else json.dumps(config))
    with pytest.raises(InputError, match=line) as refused:
        read_flow(tmp_path, name)
    assert "\n" not in str(refused.value)
