"""Every scheduler that diffusers has either samples as the pipeline itself does, or is refused in a line."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from diffusers import DDIMScheduler, PNDMScheduler, StableDiffusionPipeline

from tasks.diffusion.families import Model
from tasks.diffusion.families.schedule import Choice, Schedule, read_schedule
from tasks.diffusion.folder import problems_of
from tasks.diffusion.model import load_model
from tasks.diffusion.noise import initial_noise
from tasks.diffusion.sampling import SamplingParams, denoise
from tasks.errors import InputError
from tests.support.pipelines import KEYS, PROMPTS, ZERO_SNR

NAMES = sorted(
    name
    for name in dir(diffusers)
    if name.endswith("Scheduler") and not name.startswith("Flax") and isinstance(getattr(diffusers, name), type)
)
TRAINED = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
SAMPLE = """DDIM DDIMParallel DEISMultistep DPMSolverMultistep DPMSolverSinglestep EulerDiscrete HeunDiscrete
KDPM2Discrete LMSDiscrete PNDM TCD UniPCMultistep"""
"""Schedulers of latent diffusion that draw no noise."""


@pytest.fixture(scope="module")
def model(v_folder: Path) -> Model:
    return load_model(v_folder, "cpu")


def parts_of(model: Model) -> dict[str, Any]:
    return {name: getattr(model, name) for name in ("vae", "text_encoder", "tokenizer")} | {
        "unet": model.denoiser,
        "safety_checker": None,
        "feature_extractor": None,
        "requires_safety_checker": False,
    }


def as_loaded(model: Model, folder: Path, name: str) -> Model:
    """The model as it is loaded with this scheduler: its pipeline mends old configs."""
    schedule = read_schedule(folder, name)
    mended = StableDiffusionPipeline(**parts_of(model), scheduler=schedule.own).scheduler
    return replace(model, schedule=replace(schedule, own=mended))


def expected_of(model: Model, scheduler: Any, steps: int) -> torch.Tensor:
    pipeline = StableDiffusionPipeline(**parts_of(model), scheduler=scheduler)
    pipeline.set_progress_bar_config(disable=True)
    start = initial_noise(model, KEYS)
    latents: torch.Tensor = pipeline(PROMPTS, num_inference_steps=steps, latents=start, output_type="latent").images
    return latents


def found_of(model: Model, choice: Choice, steps: int) -> torch.Tensor:
    params = SamplingParams(steps=steps, scheduler=choice)
    return denoise(model, model.encode(PROMPTS), model.unconditional(), initial_noise(model, KEYS), params)


def write(folder: Path, **config: Any) -> Path:
    (folder / "scheduler_config.json").write_text(json.dumps(config))
    return folder


def default(name: str) -> dict[str, Any]:
    """The config that such a scheduler saves."""
    try:
        return dict(json.loads(getattr(diffusers, name)().to_json_string()))
    except Exception:  # it needs arguments, or a package
        return {}


@pytest.mark.parametrize("predicts", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("name", NAMES)
def test_every_scheduler_samples_as_its_pipeline_or_is_refused(
    name: str, predicts: str, model: Model, tmp_path: Path
) -> None:
    config = default(name)
    if "beta_start" in config:
        config |= TRAINED | {"prediction_type": predicts}
    write(tmp_path, **config)
    samples = name.removesuffix("Scheduler") in SAMPLE.split()
    if not samples:
        with pytest.raises(InputError) as refused:
            found_of(as_loaded(model, tmp_path, name), "model", 5)
        assert "\n" not in str(refused.value)
        return
    found = found_of(as_loaded(model, tmp_path, name), "model", 5)
    expected = expected_of(model, getattr(diffusers, name).from_pretrained(tmp_path), 5)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("spacing", ["trailing", "leading"])
@pytest.mark.parametrize("name", NAMES)
def test_every_scheduler_goes_down_to_zero_terminal_snr_as_its_pipeline_or_leaves_it_to_ddim(
    name: str, spacing: str, model: Model, tmp_path: Path
) -> None:
    shared = TRAINED | ZERO_SNR | {"timestep_spacing": spacing, "steps_offset": 1, "use_flow_sigmas": False}
    write(tmp_path, **default(name) | shared)
    loaded = as_loaded(model, tmp_path, name)
    assert loaded.schedule.ends_in_noise
    samples = {"DDIM", "DDIMParallel", "DPMSolverMultistep", "EulerDiscrete", "TCD", "UniPCMultistep"}
    if name.removesuffix("Scheduler") not in samples:
        with pytest.raises(InputError, match=r"sample with --set sampling.scheduler=ddim|sampling.scheduler=ddim or"):
            found_of(loaded, "model", 5)
    else:
        found = found_of(loaded, "model", 5)
        expected = expected_of(model, getattr(diffusers, name).from_pretrained(tmp_path), 5)
        assert found.isfinite().all()
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    # Whatever the model's own is, DDIM samples as the pipeline does with DDIM of that schedule.
    by_ddim = DDIMScheduler.from_config(default(name) | shared, clip_sample=False, set_alpha_to_one=False)
    torch.testing.assert_close(found_of(loaded, "ddim", 5), expected_of(model, by_ddim, 5), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", sorted(set(NAMES) - {"UnCLIPScheduler"}))  # its betas are always the same
def test_another_scheduler_counts_before_the_models_own_is_judged(name: str, tmp_path: Path) -> None:
    """Where the training noise is known, DDIM and DPM-Solver++ sample whatever the model's own scheduler is."""
    kept = {key: value for key, value in default(name).items() if key.startswith("_")}
    schedule = read_schedule(write(tmp_path, **kept, **TRAINED, prediction_type="v_prediction"), name)
    for choice in ("ddim", "dpm"):
        made = schedule.sampler(choice, 3)
        assert torch.allclose(made.alphas_cumprod, DDIMScheduler(**TRAINED).alphas_cumprod)
        assert made.config.prediction_type == "v_prediction"


@pytest.mark.parametrize("changed", [{"timestep_spacing": "odd"}, {"num_train_timesteps": 5}])
def test_ddim_is_not_advised_where_it_was_tried(changed: dict[str, Any], tmp_path: Path) -> None:
    schedule = read_schedule(write(tmp_path, **TRAINED | changed), "DDIMScheduler")
    with pytest.raises(InputError, match=r"mend the model's scheduler_config.json") as refusal:
        schedule.sampler("ddim", 20)
    assert "sampling.scheduler=ddim" not in str(refusal.value)


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 7, 25])
@pytest.mark.parametrize("skip", [True, False])
def test_pndm_samples_velocity_as_its_pipeline_does_at_any_number_of_steps(
    skip: bool, steps: int, model: Model, tmp_path: Path
) -> None:
    scheduler = PNDMScheduler(**TRAINED, prediction_type="v_prediction", skip_prk_steps=skip, steps_offset=1)
    scheduler.save_pretrained(tmp_path)
    loaded = as_loaded(model, tmp_path, "PNDMScheduler")
    if not skip and steps < 4:
        with pytest.raises(
            InputError, match=r"cannot take . steps \(.*skip_prk_steps\): sample with --set sampling.steps=4"
        ):
            found_of(loaded, "model", steps)
        with pytest.raises(InputError, match=r"cannot take \d steps"):
            loaded.schedule.timestep(steps, 1)
        return
    torch.testing.assert_close(
        found_of(loaded, "model", steps), expected_of(model, scheduler, steps), atol=1e-4, rtol=1e-4
    )


@pytest.mark.parametrize(
    ("name", "config", "line"),
    [
        ("IPNDMScheduler", {"trained_betas": None}, r"does not say .* \(no beta_start, beta_end, beta_schedule\)"),
        ("FlowMatchEulerDiscreteScheduler", TRAINED, r"no prediction_type\).* flow matching, EDM .* cannot be audited"),
        ("DPMSolverSDEScheduler", {}, r"needs torchsde, which is not installed, and .* does not say"),
        ("MyScheduler", {}, "diffusers .* has no scheduler MyScheduler"),
        ("DDIMScheduler", {"prediction_type": "sample"}, "the model predicts 'sample'"),
        ("DDIMScheduler", {"rescale_betas_zero_snr": True}, "zero terminal SNR.*write v_prediction for its"),
        ("PNDMScheduler", TRAINED | {"rescale_betas_zero_snr": True}, r"does not say .*\(no prediction_type\)"),
        ("PNDMScheduler", TRAINED | ZERO_SNR | {"prediction_type": "epsilon"}, "no image follows from predicted noise"),
        ("EulerDiscreteScheduler", {"timestep_type": "continuous"}, "continuous timesteps"),
        ("UniPCMultistepScheduler", {"prediction_type": "flow_prediction", "use_flow_sigmas": True}, "predicts 'flow_"),
        ("DDIMScheduler", {"beta_schedule": "mine"}, "cannot be made of its config"),
    ],
)
def test_a_training_noise_that_is_unknown_or_cannot_be_followed_is_refused(
    name: str, config: dict[str, Any], line: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=line):
        read_schedule(write(tmp_path, **config), name)


def test_the_scheduler_that_is_asked_for_is_trained_as_the_models_own(tmp_path: Path) -> None:
    """A config may leave out what is its scheduler's default: it is not another's default then."""
    schedule = read_schedule(write(tmp_path), "HeunDiscreteScheduler")
    assert schedule.unsampled is None
    for choice in ("ddim", "dpm"):
        assert torch.allclose(schedule.sampler(choice, 3).alphas_cumprod, schedule.own.alphas_cumprod)


def test_what_samples_is_judged_only_where_it_is_asked_for(v_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(v_folder, tmp_path / "copy")
    index = json.loads((folder / "model_index.json").read_text())
    index["scheduler"] = ["diffusers", "IPNDMScheduler"]
    (folder / "model_index.json").write_text(json.dumps(index))
    assert problems_of(folder, "ddim") == problems_of(folder, "dpm", 3) == []
    (problem,) = problems_of(folder)
    assert "IPNDMScheduler" in problem and "--set sampling.scheduler=ddim" in problem
    loaded = load_model(folder, "cpu")
    assert found_of(loaded, "ddim", 2).isfinite().all()
    with pytest.raises(InputError, match="IPNDMScheduler"):
        found_of(loaded, "model", 2)


@pytest.mark.parametrize("predicts", ["epsilon", "v_prediction"])
def test_noise_and_clean_latents_follow_from_what_is_predicted(predicts: str) -> None:
    own: Any = DDIMScheduler(**TRAINED, prediction_type=predicts)
    schedule, times = Schedule(own), torch.tensor([0, 500, 999])
    clean, noise = torch.randn(2, 3, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    noisy = schedule.add_noise(clean, noise, times)
    torch.testing.assert_close(noisy, own.add_noise(clean, noise, times))
    torch.testing.assert_close(schedule.add_noise(clean, noise, 500)[1], noisy[1])
    output = noise if predicts == "epsilon" else own.get_velocity(clean, noise, times)
    found = schedule.prediction(output, noisy, times)
    torch.testing.assert_close(found.noise, noise, atol=1e-5, rtol=1e-4)
    # Little is left of the image at the end: rounding grows by as much.
    torch.testing.assert_close(found.clean, clean, atol=1e-4, rtol=1e-3)
