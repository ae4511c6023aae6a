"""Stable Diffusion 3 behind the interface of families: it samples as its own pipeline, and its text sees the image."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusion3Pipeline

from tasks.diffusion.check import check_sampling
from tasks.diffusion.detection import detection_timestep
from tasks.diffusion.folder import problems_of
from tasks.diffusion.hooks import observed
from tasks.diffusion.model import load_model
from tasks.diffusion.noise import initial_noise
from tasks.diffusion.outline import outline_of
from tasks.diffusion.sampling import SamplingParams, denoise
from tasks.diffusion.sites import Site
from tasks.diffusion.tokens import tokenizers_of
from tasks.errors import InputError
from tasks.mitigate.prune import Card, save_pipeline
from tests.support.folders import config, index
from tests.support.pipelines import KEYS, PROMPTS, WORDS, write_sd3

POOLED, CLIP = 18, 28
"""Values of the pooled vectors, and of a token of both CLIPs, in the small model; 32 are read."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sd3(tmp_path_factory.mktemp("sd3") / "pipeline")


@pytest.fixture(scope="module")
def without_t5(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sd3(tmp_path_factory.mktemp("sd3") / "pipeline", t5=False)


def pipeline_of(folder: Path) -> Any:
    lacking = {} if (folder / "text_encoder_3").is_dir() else {"text_encoder_3": None, "tokenizer_3": None}
    pipeline = StableDiffusion3Pipeline.from_pretrained(folder, **lacking)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.mark.parametrize("which", ["folder", "without_t5"])
def test_it_samples_and_reads_prompts_as_its_own_pipeline(which: str, request: pytest.FixtureRequest) -> None:
    where = request.getfixturevalue(which)
    model, pipeline = load_model(where, "cpu"), pipeline_of(where)
    tokens, empty, pooled, empty_pooled = pipeline.encode_prompt(PROMPTS, PROMPTS, PROMPTS)
    for ours, theirs, beside in (
        (model.encode(PROMPTS), tokens, pooled),
        (model.unconditional().expand(2, -1, -1), empty, empty_pooled),
    ):
        torch.testing.assert_close(ours[:, :-1], theirs, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(ours[:, -1, :POOLED], beside, atol=1e-5, rtol=1e-5)
    assert model.encode(PROMPTS)[:, -257:-1].any() == (which == "folder")
    assert not model.encode(PROMPTS)[:, : model.tokens, CLIP:].any()
    assert [rows.stop - rows.start for rows in model.row_groups] == [model.tokens, 256, 1]
    assert detection_timestep(model, 50) == pytest.approx(993.124, abs=1e-3)
    for guidance in (7.0, 1.0):
        params, start = SamplingParams(steps=5, guidance=guidance), initial_noise(model, KEYS)
        found = denoise(model, model.encode(PROMPTS), model.unconditional(), start, params)
        expected = pipeline(
            PROMPTS, num_inference_steps=5, guidance_scale=guidance, latents=start, output_type="latent"
        ).images
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
        check_sampling(model, params)


@pytest.mark.parametrize(
    "config", [{"dual_attention_layers": (), "qk_norm": None}, {"dual_attention_layers": (0, 1, 2), "num_layers": 4}]
)
def test_it_samples_so_in_the_shapes_of_three_and_of_medium(config: dict[str, Any], tmp_path: Path) -> None:
    check_sampling(load_model(write_sd3(tmp_path / "pipeline", **config), "cpu"), SamplingParams(guidance=7.0))


def test_pooled_vectors_are_read_and_their_filling_is_not(folder: Path) -> None:
    model = load_model(folder, "cpu")
    text, noise = model.encode(PROMPTS), initial_noise(model, KEYS)
    plain = model.output(noise, 500.0, text)
    for values, read in ((slice(0, POOLED), True), (slice(POOLED, None), False)):
        changed = text.clone()
        changed[:, -1, values] += 1
        assert model.output(noise, 500.0, changed).equal(plain) != read
    with pytest.MonkeyPatch.context() as patch:
        other = type(model).unconditional
        patch.setattr(type(model), "unconditional", lambda one: other(one) * 0)
        with pytest.raises(InputError, match="sampled otherwise by its own pipeline"):
            check_sampling(model, SamplingParams())


def test_sites_are_those_of_its_blocks_and_none_follows_from_the_text_alone(folder: Path) -> None:
    outline, model = outline_of(folder), load_model(folder, "cpu")
    assert outline.latent == (8, 8) and outline.image == (32, 32)
    for site, name in ((Site.VALUE, "add_v_proj"), (Site.VALUE_ALL, "add_v_proj"), (Site.KEY, "add_k_proj")):
        names = [layer.name for layer in outline.layers(site)]
        assert names == [f"transformer_blocks.{number}.attn.{name}" for number in range(3)]
    parts = [(n, part) for n in range(3) for part in ("ff", "ff_context")][:-1]  # the last block's text goes nowhere
    hidden = outline.layers(Site.FEED_FORWARD_HIDDEN)
    assert [(layer.name, layer.inputs, layer.outputs) for layer in hidden] == [
        (f"transformer_blocks.{n}.{part}.net.2", 96, 24) for n, part in parts
    ]
    order: list[int] = []
    with observed(model.layers(Site.FEED_FORWARD_HIDDEN), lambda layer, inputs, output: order.append(layer.index)):
        model.output(initial_noise(model, KEYS), 500.0, model.encode(PROMPTS))
    assert order == [0, 1, 2, 3, 4]
    with pytest.raises(InputError, match="no layers at site 'conv'"):
        outline.layers(Site.CONVOLUTION)
    with pytest.raises(InputError, match=r"site 'value' of StableDiffusion3 depend on step and latent.*do not: none"):
        model.text_input(Site.VALUE, model.encode(PROMPTS))


def test_prompts_are_counted_by_clip_and_told_apart_by_t5(folder: Path, without_t5: Path) -> None:
    long = "x" * (WORDS.model_max_length + 5)
    for where in (folder, without_t5):
        model, alone = load_model(where, "cpu"), tokenizers_of(where)
        assert alone.most == model.tokens == WORDS.model_max_length
        assert alone.counts(["ab", long]) == model.tokenizers.counts(["ab", long]) == [4, len(long) + 2]
        one, two = alone.kept([f"{long}a", f"{long}b"])
        assert (one == two) == (where == without_t5)
        first, second = model.encode([f"{long}a", f"{long}b"])
        assert first.equal(second) == (where == without_t5)


@pytest.mark.parametrize("listed", [True, False])
def test_a_pipeline_without_t5_is_exported_without(listed: bool, without_t5: Path, tmp_path: Path) -> None:
    base = shutil.copytree(without_t5, tmp_path / "base")
    path = base / "model_index.json"
    words = {key: value for key, value in json.loads(path.read_text()).items() if listed or value != [None, None]}
    path.write_text(json.dumps(words))
    assert ("text_encoder_3" in words) == listed
    model = load_model(base, "cpu")
    card = Card(title="x", base=str(base), base_id="0", method="m", audit_id="a", site="s", pruned=0, total=1)
    save_pipeline(base, model.denoiser, tmp_path / "whole", card)
    check_sampling(load_model(tmp_path / "whole", "cpu"), SamplingParams())


BAD = {
    "t5 by half": (index(text_encoder_3=[None, None]), "has no text_encoder_3, and what belongs to it: give both"),
    "scheduler": (index(scheduler=["diffusers", "DDIMScheduler"]), "has a DDIMScheduler, and the model is trained by"),
    "patches": (config("transformer", sample_size=9), "sample_size 9 and patch_size 2"),
    "places": (config("transformer", sample_size=32), "sample_size 32, and places for 8 x 8 patches alone"),
    "channels": (config("transformer", in_channels=33), "takes 33 channels and gives 4, its autoencoder has 4"),
    "pooled": (config("transformer", pooled_projection_dim=20), "reads 20 values beside the tokens, CLIP's .* give 18"),
    "clip": (config("text_encoder", hidden_size=48), "reads 32 values a token, CLIP's encoders give 60"),
    "t5": (config("text_encoder_3", d_model=24), "reads 32 values a token, T5 gives 24"),
    "shift": (config("vae", shift_factor=None), "has no shift_factor, which StableDiffusion3Pipeline adds"),
    "statistics": (config("vae", latents_mean=[0.0] * 4, latents_std=[1.0] * 4), "latents_mean and latents_std, which"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_wrong_with_a_folder_is_told_in_a_line(case: str, folder: Path, tmp_path: Path) -> None:
    change, line = BAD[case]
    copy = shutil.copytree(folder, tmp_path / "copy")
    assert problems_of(copy) == []
    change(copy)
    with pytest.raises(InputError, match=line) as refused:
        load_model(copy, "cpu")
    assert "\n" not in refused.value.problems[0]
