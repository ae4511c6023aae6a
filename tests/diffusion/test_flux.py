"""Flux.1 behind the interface of families: it samples as its own pipeline, in one pass a step."""

import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FluxPipeline
from safetensors.torch import save_file

from tasks.diffusion.check import check_sampling
from tasks.diffusion.families.flux import Flux, FluxSchedule
from tasks.diffusion.families.pieces.assembly import Pieces, assembled
from tasks.diffusion.folder import problems_of, signals_of
from tasks.diffusion.hooks import observed
from tasks.diffusion.model import load_model, sha256_of
from tasks.diffusion.noise import initial_noise
from tasks.diffusion.outline import outline_of
from tasks.diffusion.sampling import SamplingParams, denoise, guided, trajectories
from tasks.diffusion.sites import Site
from tasks.diffusion.tokens import tokenizers_of
from tasks.errors import InputError
from tests.support.folders import config, index
from tests.support.pipelines import KEYS, PROMPTS, WORDS, write_flux

POOLED = 16
"""Values of the pooled vector in the small model; 32 are read."""


@pytest.fixture(scope="module")
def dev(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_flux(tmp_path_factory.mktemp("dev") / "pipeline")


@pytest.fixture(scope="module")
def schnell(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_flux(tmp_path_factory.mktemp("schnell") / "pipeline", guidance=False)


@pytest.mark.parametrize(("which", "tokens"), [("dev", 512), ("schnell", 256)])
def test_it_samples_and_reads_prompts_as_its_own_pipeline(
    which: str, tokens: int, request: pytest.FixtureRequest
) -> None:
    folder = request.getfixturevalue(which)
    model, pipeline = load_model(folder, "cpu"), FluxPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    text = model.encode(PROMPTS)
    words, pooled, _ = pipeline.encode_prompt(PROMPTS, max_sequence_length=tokens)
    torch.testing.assert_close(text[:, :-1], words, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(text[:, -1, :POOLED], pooled, atol=1e-5, rtol=1e-5)
    assert text.shape == (2, tokens + 1, 32) and not text[:, -1, POOLED:].any()
    start = initial_noise(model, KEYS)
    passes: list[int] = []
    model.denoiser.register_forward_pre_hook(lambda *given: passes.append(1))
    for guidance in (3.5, 1.0, 0.0):
        params = SamplingParams(steps=5, guidance=guidance)
        passes.clear()
        found = denoise(model, text, model.unconditional(), start, params)
        assert len(passes) == 5 and not guided(model, params) and trajectories(model, params) == params.batch
        expected = pipeline(
            PROMPTS,
            height=32,
            width=32,
            num_inference_steps=5,
            guidance_scale=guidance,
            max_sequence_length=tokens,
            latents=model.packed(start),
            output_type="latent",
        ).images
        torch.testing.assert_close(model.packed(found), expected, atol=1e-4, rtol=1e-4)
        check_sampling(model, params)


def test_latents_are_packed_as_by_its_pipeline_and_come_back(dev: Path) -> None:
    model = load_model(dev, "cpu")
    assert isinstance(model, Flux)
    latents = torch.arange(2 * 4 * 8 * 8.0).view(2, *model.latent_shape)
    packed = model.packed(latents)
    assert packed.equal(FluxPipeline._pack_latents(latents, 2, 4, 8, 8)) and packed.shape == (2, 16, 16)
    assert model.unpacked(packed).equal(latents)
    assert model.places(latents).equal(FluxPipeline._prepare_latent_image_ids(1, 4, 4, "cpu", torch.float32))


def test_guidance_is_a_number_that_dev_reads_and_schnell_does_not(dev: Path, schnell: Path) -> None:
    for folder, reads in ((dev, True), (schnell, False)):
        model = load_model(folder, "cpu")
        text, noise = model.encode(PROMPTS), initial_noise(model, KEYS)
        plain = model.output(noise, 500.0, text)
        assert model.with_guidance(1.0).output(noise, 500.0, text).equal(plain)  # whatever is not sampled
        assert model.with_guidance(3.5).output(noise, 500.0, text).equal(plain) != reads
        (note,) = type(model).sampling_notes(model.denoiser.config, 7.5)
        assert ("its pipeline's own is 3.5: --set sampling.guidance=3.5" in note) == reads
        assert [*type(model).sampling_notes(model.denoiser.config, 3.5)] == ([] if reads else [note])
        assert "guidance is distilled into the model, so where a prompt is compared" in str(signals_of(folder))
    # Nor is the pooled vector's filling read, which the vector is.
    for values, reads in ((slice(0, POOLED), True), (slice(POOLED, None), False)):
        changed = text.clone()
        changed[:, -1, values] += 1
        assert model.output(noise, 500.0, changed).equal(plain) != reads


@pytest.mark.parametrize(("tokens", "shift"), [(256, 0.5), (4096, 1.15)])
def test_steps_are_shifted_by_the_size_of_images(tokens: int, shift: float, dev: Path) -> None:
    own = load_model(dev, "cpu").schedule.own
    schedule = FluxSchedule(own, image_tokens=tokens)
    for number in range(4):
        plain = 1 - number / 4
        expected = 1000 * math.exp(shift) / (math.exp(shift) + 1 / plain - 1)
        assert schedule.timestep(4, number) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    "changes",
    [
        [config("vae", sample_size=48), config("scheduler", base_image_seq_len=16, max_image_seq_len=64)],
        [config("scheduler", use_flow_sigmas=True)],
        [config("scheduler", use_dynamic_shifting=False)],
        [config("scheduler", shift_terminal=0.1, time_shift_type="linear")],
    ],
)
def test_it_samples_so_whatever_the_scheduler_says(changes: list[Any], dev: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(dev, tmp_path / "copy")
    for change in changes:
        change(folder)
    model = load_model(folder, "cpu")
    assert model.schedule.timestep(50, 1) != load_model(dev, "cpu").schedule.timestep(50, 1)
    check_sampling(model, SamplingParams(guidance=3.5))


def test_sites_are_those_of_its_blocks_and_none_follows_from_the_text_alone(dev: Path) -> None:
    outline, model = outline_of(dev), load_model(dev, "cpu")
    assert outline.latent == (8, 8) and outline.image == (32, 32) and model.latent_shape == (4, 8, 8)
    double = [f"transformer_blocks.{number}" for number in range(2)]
    single = [f"single_transformer_blocks.{number}" for number in range(2)]
    values = [f"{block}.attn.add_v_proj" for block in double]
    first = [f"{block}.{part}.net.0.proj" for block in double for part in ("ff", "ff_context")]
    hidden = [f"{block}.{part}.net.2" for block in double for part in ("ff", "ff_context")]
    order: list[int] = []
    for site, names in (
        (Site.VALUE, values),
        (Site.VALUE_ALL, [*values, *(f"{block}.attn.to_v" for block in single)]),
        (Site.KEY, [f"{block}.attn.add_k_proj" for block in double]),
        (Site.FEED_FORWARD_HIDDEN, hidden),
        (Site.FEED_FORWARD_INPUT, [*first, *(f"{block}.proj_mlp" for block in single)]),
    ):
        assert [layer.name for layer in outline.layers(site)] == names
        order.clear()
        with observed(model.layers(site), lambda layer, inputs, output: order.append(layer.index)):
            model.output(initial_noise(model, KEYS), 500.0, model.encode(PROMPTS))
        assert order == [*range(len(names))]
    assert {(layer.inputs, layer.outputs) for layer in outline.layers(Site.FEED_FORWARD_HIDDEN)} == {(96, 24)}
    with pytest.raises(InputError, match="no layers at site 'conv'"):
        outline.layers(Site.CONVOLUTION)
    with pytest.raises(InputError, match=r"site 'value' of Flux depend on step and latent.*do not: none"):
        model.text_input(Site.VALUE, model.encode(PROMPTS))


def test_prompts_are_counted_and_told_apart_by_t5(dev: Path, schnell: Path) -> None:
    for folder, most in ((dev, 512), (schnell, 256)):
        model, alone = load_model(folder, "cpu"), tokenizers_of(folder)
        assert alone.most == model.tokens == most
        long = "x" * (WORDS.model_max_length + 5)  # more than CLIP reads
        counts = alone.counts(["ab", long, "x" * most])
        assert counts == model.tokenizers.counts(["ab", long, "x" * most]) and counts[1] < most < counts[2]
        one, two, *cut = alone.kept([f"{long}a", f"{long}b", "x" * most + "a", "x" * most + "b"])
        assert one != two and cut[0] == cut[1]
        first, second = model.encode([f"{long}a", f"{long}b"])
        assert not first[:-1].equal(second[:-1]) and first[-1].equal(second[-1])


BAD = {
    "scheduler": (index(scheduler=["diffusers", "DDIMScheduler"]), "has a DDIMScheduler, and the model is trained by"),
    "backwards": (config("scheduler", invert_sigmas=True), "invert_sigmas: such a scheduler runs from images to noise"),
    "size": (config("vae", sample_size=None), "sample_size None: write how large images are, in pixels, a multiple of"),
    "half a token": (config("vae", sample_size=36), "sample_size 36: .* a multiple of 8; 1024 in published models"),
    "patches": (config("transformer", patch_size=2), "patch_size 2: Flux has 1"),
    "channels": (config("transformer", in_channels=32), "takes 32 channels and gives 32, its autoencoder has 4, so 4"),
    "given": (config("transformer", out_channels=8), "takes 16 channels and gives 8, its autoencoder has 4"),
    "pooled": (config("transformer", pooled_projection_dim=20), "reads 20 values beside the tokens, CLIP gives 16"),
    "large": (config("transformer", pooled_projection_dim=40), "reads 40 values beside .* than the 32 of a token"),
    "t5": (config("text_encoder_2", d_model=24), "reads 32 values a token, T5 gives 24"),
    "shift": (config("vae", shift_factor=None), "has no shift_factor, which FluxPipeline adds"),
    "statistics": (config("vae", latents_mean=[0.0] * 4, latents_std=[1.0] * 4), "latents_mean and latents_std, which"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_wrong_with_a_folder_is_told_in_a_line(case: str, dev: Path, tmp_path: Path) -> None:
    change, line = BAD[case]
    copy = shutil.copytree(dev, tmp_path / "copy")
    assert problems_of(copy) == []
    change(copy)
    with pytest.raises(InputError, match=line) as refused:
        load_model(copy, "cpu")
    assert "\n" not in refused.value.problems[0]


def test_adapters_are_refused_in_a_line(dev: Path, tmp_path: Path) -> None:
    lora = tmp_path / "some.safetensors"
    save_file({f"transformer.x.lora_{part}.weight": torch.zeros(2, 2) for part in "AB"}, lora)
    with pytest.raises(InputError, match="is a FluxPipeline: pieces can be put into Stable Diffusion and XL alone"):
        assembled(dev, Pieces(lora=(str(lora),)), tmp_path, sha256_of, {})
