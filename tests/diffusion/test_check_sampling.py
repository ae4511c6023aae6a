"""A model whose own pipeline samples it otherwise is refused when it is first seen."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from diffusers import AutoencoderTiny, StableDiffusionXLPipeline

from storage import Store
from tasks.collect import task as collecting
from tasks.diffusion import check
from tasks.diffusion.check import check_sampling
from tasks.diffusion.families import Model, StableDiffusion
from tasks.diffusion.families.schedule import Schedule
from tasks.diffusion.families.sdxl import StableDiffusionXL
from tasks.diffusion.model import load_model
from tasks.diffusion.noise import initial_noise
from tasks.diffusion.precision import Precision
from tasks.diffusion.sampling import SamplingParams, decode, denoise, encode
from tasks.errors import InputError
from tasks.subject import Subject
from tests.support.folders import config
from tests.support.pipelines import KEYS, PROMPTS, write_pixart, write_sd3

REFERENCE = Path(__file__).resolve().parents[2] / "reference" / "model"


@pytest.mark.parametrize("precision", [name for name in get_args(Precision) if name != "float16"])
def test_the_reference_passes_in_every_precision_that_a_processor_has(precision: Precision) -> None:
    model = load_model(REFERENCE, "cpu", precision)
    check_sampling(model, SamplingParams())


@pytest.mark.parametrize("scheduler", ["model", "ddim", "dpm"])
def test_both_families_pass_with_every_scheduler(scheduler: Any, v_folder: Path, xl_folder: Path) -> None:
    for folder in (v_folder, xl_folder):
        for guidance in (7.5, 1.0):
            check_sampling(load_model(folder, "cpu"), SamplingParams(scheduler=scheduler, guidance=guidance))


@pytest.mark.parametrize("written", [write_pixart, write_sd3])
def test_transformers_pass_with_a_tiny_autoencoder(written: Callable[[Path], Path], tmp_path: Path) -> None:
    folder = written(tmp_path / "pipeline")
    blocks = {"encoder_block_out_channels": (8, 8, 8), "num_encoder_blocks": (1, 1, 1)}
    blocks |= {"decoder_block_out_channels": (8, 8, 8), "num_decoder_blocks": (1, 1, 1)}
    shutil.rmtree(folder / "vae")
    AutoencoderTiny(**blocks).save_pretrained(folder / "vae")
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index | {"vae": ["diffusers", "AutoencoderTiny"]}))
    check_sampling(load_model(folder, "cpu"), SamplingParams())


def test_what_does_not_count_is_found_with_both_figures(v_folder: Path, xl_folder: Path) -> None:
    """Each as if our own sampling left something out that the pipeline does."""
    line = r"latents differ by [\d.e+-]+ of their spread, where rounding explains 0.001, and images by [\d.]+ of 255"
    xl, small = load_model(xl_folder, "cpu"), load_model(v_folder, "cpu")
    encode_prompts = StableDiffusion.encode
    with pytest.MonkeyPatch.context() as patch:  # another prompt, as with a truncation of our own

        def shortened(self: StableDiffusion, prompts: list[str], batch: int = 256) -> torch.Tensor:
            return encode_prompts(self, [word[:3] for word in prompts])

        patch.setattr(StableDiffusion, "encode", shortened)
        for model in (xl, small):
            with pytest.raises(InputError, match=line):
                check_sampling(model, SamplingParams())
    with pytest.MonkeyPatch.context() as patch:  # guidance away from the wrong half
        patch.setattr(StableDiffusionXL, "unconditional", lambda self: encode_prompts(self, ["x"]))
        with pytest.raises(InputError, match=line):
            check_sampling(xl, SamplingParams())
    own = small.schedule.own
    other = Schedule(type(own).from_config(own.config, timestep_spacing="trailing"))
    with pytest.raises(InputError, match=line):  # a scheduler of another config
        check_sampling(replace(small, schedule=other), SamplingParams())
    with pytest.MonkeyPatch.context() as patch:  # an autoencoder's scale
        patch.setattr(StableDiffusion, "_unscaled", lambda model, latents: latents / 2)
        with pytest.raises(InputError, match=r"differ by 0 of .* and images by"):
            check_sampling(small, SamplingParams())


def with_statistics(folder: Path, to: Path) -> Path:
    copy = shutil.copytree(folder, to)
    config("vae", latents_mean=[3.0, -2.0, 1.0, 0.5], latents_std=[2.0, 0.5, 3.0, 1.5])(copy)
    return copy


def test_the_statistics_of_latents_count_both_ways(xl_folder: Path, tmp_path: Path) -> None:
    folder = with_statistics(xl_folder, tmp_path / "copy")
    model, plain = load_model(folder, "cpu"), load_model(xl_folder, "cpu")
    check_sampling(model, SamplingParams())
    latents = denoise(
        model, model.encode(PROMPTS), model.unconditional(), initial_noise(model, KEYS), SamplingParams(steps=2)
    )
    pipeline = StableDiffusionXLPipeline.from_pretrained(folder, add_watermarker=False)
    pipeline.set_progress_bar_config(disable=True)
    made = pipeline(
        PROMPTS, num_inference_steps=2, guidance_scale=7.5, latents=initial_noise(model, KEYS), output_type="np"
    )
    found = decode(model, latents)
    assert np.abs(found / 255 - made.images).max() < 2 / 255
    assert np.abs(found.astype(int) - decode(plain, latents)).mean() > 1
    # Encoding is the other way round.
    mean, spread = (
        torch.tensor(values).view(1, 4, 1, 1)
        for values in (model.vae.config.latents_mean, model.vae.config.latents_std)
    )
    scale = model.vae.config.scaling_factor
    expected = (encode(plain, found) / scale - mean) / spread * scale
    torch.testing.assert_close(encode(model, found), expected, atol=1e-4, rtol=1e-4)


def test_an_autoencoder_that_overflows_in_half_precision_is_loaded_in_single(xl_folder: Path, tmp_path: Path) -> None:
    assert load_model(xl_folder, "cpu", "float16").vae.dtype == torch.float32
    copy = shutil.copytree(xl_folder, tmp_path / "copy")
    config("vae", force_upcast=False)(copy)
    assert load_model(copy, "cpu", "float16").vae.dtype == torch.float16
    assert load_model(xl_folder, "cpu", "bfloat16").vae.dtype == torch.bfloat16
    model = load_model(xl_folder, "cpu", "float16")
    assert decode(model, initial_noise(model, KEYS)).shape == (2, 16, 16, 3)
    assert encode(model, np.zeros((1, 16, 16, 3), np.uint8)).dtype == torch.float16


def test_a_model_is_checked_once_for_each_scheduler(v_folder: Path, tmp_path: Path, monkeypatch: Any) -> None:
    subject = Subject(store=Store.open(tmp_path / "store").url, model=str(v_folder), prompt_set="", device="cpu")
    seen: list[str] = []
    monkeypatch.setattr(
        "tasks.collect.task.collecting.check_sampling", lambda model, params: seen.append(params.scheduler)
    )
    for scheduler in ("model", "model", "ddim", "model", "ddim"):
        collecting.register_model(subject, SamplingParams(scheduler=scheduler))
    assert seen == ["model", "ddim"]
    assert len(subject.open().read("models")) == 1


def test_a_model_that_is_refused_is_not_registered(v_folder: Path, tmp_path: Path, monkeypatch: Any) -> None:
    subject = Subject(store=Store.open(tmp_path / "store").url, model=str(v_folder), prompt_set="", device="cpu")
    monkeypatch.setattr(StableDiffusion, "_unscaled", lambda model, latents: latents * 0)
    for _ in range(2):
        with pytest.raises(InputError, match="sampled otherwise by its own pipeline"):
            collecting.register_model(subject)
    assert len(subject.open().read("models")) == 0


def test_a_pipeline_that_fails_by_itself_is_told_in_a_line(v_folder: Path, monkeypatch: Any) -> None:
    def fail(model: Model, params: SamplingParams) -> Any:
        raise ZeroDivisionError("first\nsecond")

    monkeypatch.setattr(check, "_pipeline", fail)
    with pytest.raises(InputError, match=r"cannot sample by itself: first$"):
        check_sampling(load_model(v_folder, "cpu"), SamplingParams())
