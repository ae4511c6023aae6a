"""Families whose text and image attend to both, trained by flow matching: what holds of each of them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tasks.collect.values import SEEDS, seen_activations
from tasks.diffusion.detection import detection_timestep, noise_differences
from tasks.diffusion.families import Model
from tasks.diffusion.hooks import observed, scaled
from tasks.diffusion.masks import without_neurons
from tasks.diffusion.model import load_model
from tasks.diffusion.noise import initial_noise
from tasks.diffusion.sampling import SamplingParams, encode, generate
from tasks.diffusion.sites import Layer, Site
from tasks.diffusion.ssim import to_unit_range
from tasks.dori import DoriParams, attack, start_embeddings
from tasks.errors import InputError
from tasks.scan.noise import pull
from tests.support.pipelines import KEYS, PROMPTS, write_flux, write_sd3

ATTACK = DoriParams(steps=3, batch=2)


@pytest.fixture(scope="module", params=[write_sd3, write_flux])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Model:
    write: Callable[[Path], Path] = request.param
    return load_model(write(tmp_path_factory.mktemp(write.__name__) / "pipeline"), "cpu")


def test_latents_are_shifted_and_scaled_both_ways(model: Model) -> None:
    latents, shift, scale = initial_noise(model, KEYS), model.vae.config.shift_factor, model.vae.config.scaling_factor
    assert (scale, shift) in ((1.5305, 0.0609), (0.3611, 0.1159))
    expected = model.vae.decode(latents / scale + shift, return_dict=False)[0]
    torch.testing.assert_close(model.decode(latents), expected)
    pixels = torch.rand(2, 3, 32, 32) * 2 - 1
    mean = model.vae.encode(pixels).latent_dist.mean
    torch.testing.assert_close(model.encode_images(pixels), (mean - shift) * scale)


@pytest.mark.parametrize("site", [Site.VALUE, Site.VALUE_ALL])
def test_values_are_means_over_tokens_and_noises_at_the_step_that_is_searched(site: Site, model: Model) -> None:
    layers, text = model.layers(site), model.encode(PROMPTS)
    found = seen_activations(model, layers, text, PROMPTS)
    step, tokens = detection_timestep(model, 50), text.shape[1] - 1
    assert step == pytest.approx(model.schedule.timestep(50, 1)) and 900 < step < 1000
    seen: list[list[torch.Tensor]] = [[] for _ in layers]

    def see(layer: Layer, inputs: torch.Tensor, output: torch.Tensor) -> None:
        # The text's alone, or before the image's.
        assert output.shape[1] == tokens + (16 if layer.name.startswith("single") else 0)
        seen[layer.index].append(output[:, :tokens].abs().mean(1))

    with observed(layers, see):
        for prompt, one in zip(PROMPTS, text, strict=True):
            noise = initial_noise(model, [(prompt, seed) for seed in range(SEEDS)])
            model.output(noise, step, one.expand(SEEDS, -1, -1))
    for values, each in zip(found, seen, strict=True):
        torch.testing.assert_close(values, torch.stack([some.mean(0) for some in each]))
    for batch in (1, 3):
        for values, same in zip(found, seen_activations(model, layers, text, PROMPTS, batch), strict=True):
            torch.testing.assert_close(values, same)
    # The first block's values see the step, those behind it the latent, too.
    again = seen_activations(model, layers, text, [f"{name} again" for name in PROMPTS])
    torch.testing.assert_close(again[0], found[0])
    assert not torch.allclose(again[1], found[1], atol=1e-7, rtol=1e-6)
    with pytest.raises(InputError, match=r"add_v_proj are not finite"):
        seen_activations(model, layers, text * float("nan"), PROMPTS)


@pytest.mark.parametrize("site", [Site.VALUE, Site.VALUE_ALL])
def test_a_neuron_is_blocked_as_it_is_pruned(site: Site, model: Model) -> None:
    layers, text, noise = model.layers(site), model.encode(PROMPTS), initial_noise(model, KEYS)
    plain = model.output(noise, 900.0, text)
    last = layers[-1].index
    keep = torch.ones(layers[-1].outputs)
    keep[[3, 5]] = 0
    with scaled(layers, {last: keep}):
        blocked = model.output(noise, 900.0, text)
    with without_neurons(model.denoiser, layers, {last: torch.tensor([3, 5])}):
        torch.testing.assert_close(model.output(noise, 900.0, text), blocked)
    assert not blocked.equal(plain) and model.output(noise, 900.0, text).equal(plain)


def test_signals_are_predicted_images_and_velocities(model: Model) -> None:
    text, noise = model.encode(PROMPTS), initial_noise(model, [("a", 0)] * 2)
    found, output = model.predict(noise, 1000.0, text), model.output(noise, 1000.0, text)
    assert found.noise.equal(noise)  # whatever the prompt
    torch.testing.assert_close(model.memory_signal(found, noise), output - noise)
    differences = noise_differences(model, text, noise, 1000.0)
    torch.testing.assert_close(differences, to_unit_range(output - noise))
    null = model.unconditional()
    expected = output - model.output(noise, 1000.0, null.expand_as(text))
    torch.testing.assert_close(pull(model, text, null, noise, 1000.0), expected)
    assert (expected.flatten(1).norm(dim=1) > 1e-4).all()


def test_losses_are_on_velocity(model: Model) -> None:
    text, noise, clean = model.encode(PROMPTS), initial_noise(model, KEYS), initial_noise(model, [("x", 0), ("y", 0)])
    times = torch.tensor([250.0, 1000.0])
    sigma = (times / 1000).view(-1, 1, 1, 1)
    output = model.output((1 - sigma) * clean + sigma * noise, times, text)
    expected = (output - (noise - clean)).square().mean((1, 2, 3))
    torch.testing.assert_close(model.training_loss(clean, noise, times, text), expected)


@pytest.mark.parametrize("start", ["prompt", "noise", "other"])
def test_attacks_move_tokens_and_pooled_vectors_and_no_filling(start: Any, model: Model) -> None:
    pooled = model.denoiser.config.pooled_projection_dim
    latents = encode(model, generate(model, model.encode(PROMPTS), KEYS, SamplingParams(steps=1)))
    for trigger in attack(model, latents, PROMPTS, KEYS, ATTACK.model_copy(update={"start": start})):
        moved = (trigger.embedding - trigger.start).abs() > 0
        assert moved[:-1].all(1).all() and moved[-1, :pooled].all()
        assert not moved[-1, pooled:].any()
        if start == "noise":  # matched: what fills up is nothing, as in prompts
            filling = model.encode(PROMPTS).eq(0).all(0)
            assert trigger.start[~filling].all() and not trigger.start[filling].any()


def test_noise_is_matched_to_each_kind_of_row(model: Model) -> None:
    keys = [("a", seed) for seed in range(100)]
    found = start_embeddings(model, "noise", ["a cat"] * 100, keys, ATTACK, PROMPTS)
    real = model.encode(PROMPTS)
    *groups, last = model.row_groups
    assert last == slice(real.shape[1] - 1, real.shape[1])
    for rows in groups:
        ours, theirs = (some[:, rows].flatten(0, 1) for some in (found, real))
        torch.testing.assert_close(ours.mean(0), theirs.mean(0), atol=0.1, rtol=0.1)
        torch.testing.assert_close(ours.std(0), theirs.std(0), atol=0.1, rtol=0.1)


def test_mixed_precision_is_nearly_the_same(model: Model) -> None:
    mixed = load_model(model.source, "cpu", "mixed")
    embeddings, noise = model.encode(PROMPTS), initial_noise(model, KEYS)
    expected, found = (one.predict(noise, 500.0, embeddings).clean for one in (model, mixed))
    assert not found.equal(expected)
    torch.testing.assert_close(found, expected, atol=0.05, rtol=0.05)
