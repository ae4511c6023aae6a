"""Models of every family are loaded, read their prompts as diffusers' own pipelines do, and are refused in a line."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    PNDMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
)

from tasks.collect.values import value_activations
from tasks.diffusion.families import layers_of
from tasks.diffusion.families.schedule import Schedule
from tasks.diffusion.hooks import observed
from tasks.diffusion.model import fingerprint, load_model
from tasks.diffusion.noise import initial_noise
from tasks.diffusion.sampling import SamplingParams, decode, denoise, first_timestep, generate
from tasks.diffusion.sites import Layer, Site
from tasks.dori import DoriParams, start_embeddings
from tasks.errors import InputError
from tests.support.hand_made import model_of, random_unet
from tests.support.pipelines import KEYS, PROMPTS, sampled_by_diffusers


def test_xl_samples_as_its_own_pipeline_does(xl_folder: Path) -> None:
    model = load_model(xl_folder, "cpu")
    text = model.encode(PROMPTS)
    assert text.shape == (2, model.tokens + 1, 28)
    noise, params = initial_noise(model, KEYS), SamplingParams(steps=3)
    found = denoise(model, text, model.unconditional(), noise, params)
    expected = sampled_by_diffusers(StableDiffusionXLPipeline, xl_folder, model, 3)
    torch.testing.assert_close(found, expected, atol=2e-3, rtol=1e-3)
    # The pooled vector counts, and so does it that guidance is away from zeros.
    unpooled = torch.cat([text[:, :-1], torch.zeros_like(text[:, -1:])], 1)
    assert (denoise(model, unpooled, model.unconditional(), noise, params) - expected).abs().max() > 0.01
    assert (denoise(model, text, model.encode([""]), noise, params) - expected).abs().max() > 0.01
    assert generate(model, text, KEYS, SamplingParams(steps=1)).shape == decode(model, found).shape == (2, 16, 16, 3)


def test_velocity_is_turned_into_noise(v_folder: Path) -> None:
    model = load_model(v_folder, "cpu")
    assert model.encode(PROMPTS).shape[1] == model.tokens
    found = denoise(
        model, model.encode(PROMPTS), model.unconditional(), initial_noise(model, KEYS), SamplingParams(steps=3)
    )
    torch.testing.assert_close(
        found, sampled_by_diffusers(StableDiffusionPipeline, v_folder, model, 3), atol=1e-4, rtol=1e-4
    )


def test_values_of_xl_are_those_of_the_tokens_alone(xl_folder: Path) -> None:
    model = load_model(xl_folder, "cpu")
    layers = layers_of(model.denoiser, Site.VALUE)
    assert len(layers) == 1 + 2 + 2
    text = model.encode(PROMPTS)
    seen: dict[int, torch.Tensor] = {}

    def see(layer: Layer, inputs: torch.Tensor, output: torch.Tensor) -> None:
        seen[layer.index] = output.abs().mean(1)

    with observed(layers, see):
        model.output(initial_noise(model, KEYS), 900, text)
    for layer, found in zip(layers, value_activations(layers, model.text_input(Site.VALUE, text)), strict=True):
        torch.testing.assert_close(found, seen[layer.index])


def test_another_dtype_gives_nearly_the_same(xl_folder: Path) -> None:
    whole, half = load_model(xl_folder, "cpu"), load_model(xl_folder, "cpu", "bfloat16")
    exact, coarse = (
        model.predict(initial_noise(model, KEYS), 900, model.encode(PROMPTS)).noise for model in (whole, half)
    )
    assert coarse.dtype == torch.bfloat16
    torch.testing.assert_close(coarse.float(), exact, atol=0.05, rtol=0.05)


def test_the_fingerprint_is_that_of_the_content(v_folder: Path, tmp_path: Path) -> None:
    known = load_model(v_folder, "cpu").model_id
    copy = shutil.copytree(v_folder, tmp_path / "copy")
    assert load_model(copy, "cpu").model_id == known
    config = copy / "scheduler" / "scheduler_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"prediction_type": "epsilon"}))
    assert load_model(copy, "cpu").model_id != known


def test_files_that_are_not_loaded_do_not_change_the_fingerprint(v_folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(v_folder, tmp_path / "copy")
    known = fingerprint(copy)
    weights = copy / "unet" / "diffusion_pytorch_model.safetensors"
    for name in (
        "diffusion_pytorch_model.fp16.safetensors",
        "diffusion_pytorch_model.non_ema.safetensors",
        "diffusion_pytorch_model.fp16-00001-of-00002.safetensors",
        "diffusion_pytorch_model.safetensors.index.fp16.json",
    ):
        (weights.parent / name).write_bytes(b"other")
    (copy / "safety_checker").mkdir()
    (copy / "safety_checker" / "config.json").write_text("{}")
    assert fingerprint(copy) == known
    for name in (
        "diffusion_pytorch_model-00001-of-00002.safetensors",
        "diffusion_pytorch_model.safetensors.index.json",
    ):
        (weights.parent / name).write_bytes(b"a shard")
        assert fingerprint(copy) != known
        (weights.parent / name).unlink()
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    assert fingerprint(copy) != known
    for content in ("{", "[1]"):
        (copy / "model_index.json").write_text(content)
        with pytest.raises(InputError, match="no index of a pipeline"):
            fingerprint(copy)


def test_what_is_no_base_model_is_refused_in_a_line(xl_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="the folder is empty"):
        load_model(tmp_path)
    refiner = shutil.copytree(xl_folder, tmp_path / "refiner")
    index = json.loads((refiner / "model_index.json").read_text())
    for name in ("text_encoder", "tokenizer"):
        index[name] = [None, None]
    (refiner / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(InputError, match="has no text_encoder"):
        load_model(refiner, "cpu")


def test_noise_predicted_by_a_schedule_that_ends_without_signal_is_refused(v_folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(v_folder, tmp_path / "copy")
    path = copy / "scheduler" / "scheduler_config.json"
    own = {"rescale_betas_zero_snr": True}
    path.write_text(json.dumps(json.loads(path.read_text()) | own))
    assert load_model(copy, "cpu").schedule.ends_in_noise
    path.write_text(json.dumps(json.loads(path.read_text()) | own | {"prediction_type": "epsilon"}))
    with pytest.raises(InputError, match="zero terminal SNR"):
        load_model(copy, "cpu")


def test_noise_to_start_from_is_matched_to_tokens_and_to_pooled_vectors_apart(xl_folder: Path) -> None:
    model: Any = load_model(xl_folder, "cpu")
    text_encoder, pooled = model.text_encoder_2, model.encode(PROMPTS)[:, -1]
    assert text_encoder is not None and not pooled[:, text_encoder.config.projection_dim :].any()
    found = start_embeddings(model, "noise", PROMPTS, KEYS, DoriParams(), PROMPTS)
    # Where pooled vectors are padded, noise is nothing, too; two prompts' mean lies between them.
    assert not found[:, -1, text_encoder.config.projection_dim :].any()
    many = start_embeddings(model, "noise", PROMPTS * 500, [("a", n) for n in range(1000)], DoriParams(), PROMPTS)
    real = model.encode(PROMPTS)
    for rows in (slice(0, -1), slice(-1, None)):
        mine, theirs = many[:, rows].flatten(0, 1), real[:, rows].flatten(0, 1)
        torch.testing.assert_close(mine.mean(0), theirs.mean(0), atol=0.1, rtol=0.1)
        torch.testing.assert_close(mine.std(0), theirs.std(0), atol=0.1, rtol=0.1)


@pytest.mark.parametrize("family", ["v_folder", "xl_folder"])
def test_a_long_prompt_is_truncated_as_in_training(family: str, request: pytest.FixtureRequest) -> None:
    model = load_model(request.getfixturevalue(family), "cpu")
    full = "x " * (model.tokens - 2)
    assert model.tokenizers.counts([full, full + "y"]) == [model.tokens, model.tokens + 1]
    short, exact, long, longer = model.encode([full[2:], full, full + "y", full + "z " * 500])
    torch.testing.assert_close(long, exact)
    torch.testing.assert_close(longer, exact)
    assert not torch.allclose(short, exact)


def test_a_model_that_predicts_images_is_refused() -> None:
    model = model_of(random_unet())
    model.schedule.own.register_to_config(prediction_type="sample")
    with pytest.raises(InputError, match="predicts 'sample'"):
        model.predict(initial_noise(model, [("a", 0)]), 3, model.encode(["a"]))


@pytest.mark.parametrize("kind", [DDIMScheduler, EulerDiscreteScheduler, DPMSolverMultistepScheduler, PNDMScheduler])
def test_schedulers_without_noise_of_their_own_are_taken(kind: Any) -> None:
    model = replace(model_of(random_unet()), schedule=Schedule(kind(beta_schedule="scaled_linear")))
    assert first_timestep(model, SamplingParams(steps=10)) > 800


@pytest.mark.parametrize(
    "scheduler",
    [EulerAncestralDiscreteScheduler(), DPMSolverMultistepScheduler(algorithm_type="sde-dpmsolver++")],
)
def test_schedulers_that_draw_noise_are_refused(scheduler: Any) -> None:
    model = replace(model_of(random_unet()), schedule=Schedule(scheduler))
    before = torch.random.get_rng_state()
    with pytest.raises(InputError, match=r"draws noise at every step, .* sampling.scheduler=ddim"):
        first_timestep(model, SamplingParams(steps=10))
    assert torch.random.get_rng_state().equal(before)
    assert first_timestep(model, SamplingParams(steps=10, scheduler="ddim")) > 800


def test_a_device_that_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text("{}")
    with pytest.raises(InputError, match=r"no device 'gpu' here .*: try cpu"):
        load_model(tmp_path, "gpu")


def test_mixed_precision_is_another_model_in_the_store_and_nearly_the_same_to_the_eye(v_folder: Path) -> None:
    exact, mixed = load_model(v_folder, "cpu"), load_model(v_folder, "cpu", "mixed")
    assert mixed.model_id != exact.model_id and mixed.dtype == torch.float32
    embeddings = exact.encode(PROMPTS)
    assert mixed.encode(PROMPTS).equal(embeddings)
    start = initial_noise(exact, KEYS)
    expected, found = (model.predict(start, 500, embeddings).noise for model in (exact, mixed))
    assert found.dtype == torch.float32 and not found.equal(expected)
    torch.testing.assert_close(found, expected, atol=0.03, rtol=0.03)
    alone = torch.cat([mixed.predict(start[n : n + 1], 500, embeddings[n : n + 1]).noise for n in range(2)])
    torch.testing.assert_close(alone, found, atol=0.01, rtol=0.01)
    text = embeddings.clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(mixed.predict(start, 500, text).noise.square().sum(), text)
    assert gradient.dtype == torch.float32 and gradient.abs().max() > 0
