"""PixArt behind the interface of families: it samples as its own pipelines, and masks are read and never altered."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import PixArtAlphaPipeline, PixArtSigmaPipeline

from tasks.collect.values import value_activations
from tasks.diffusion.check import check_sampling
from tasks.diffusion.folder import problems_of
from tasks.diffusion.hooks import observed
from tasks.diffusion.model import load_model
from tasks.diffusion.noise import initial_noise
from tasks.diffusion.outline import outline_of
from tasks.diffusion.sampling import SamplingParams, encode, generate
from tasks.diffusion.sites import Layer, Site
from tasks.diffusion.tokens import tokenizers_of
from tasks.dori import DoriParams, attack, start_embeddings
from tasks.errors import InputError
from tasks.inference import Request
from tasks.mitigate.reweighted_attention import ReweightedAttentionParams, reweighted
from tasks.scan.entropy import attention_layer
from tests.support.pipelines import KEYS, PROMPTS, write_pixart

PIPELINES = [PixArtAlphaPipeline, PixArtSigmaPipeline]
ATTACK = DoriParams(steps=3, batch=2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pixart(tmp_path_factory.mktemp("pixart") / "pipeline")


@pytest.mark.parametrize("scheduler", ["model", "ddim", "dpm"])
@pytest.mark.parametrize("kind", PIPELINES)
def test_it_samples_as_its_own_pipeline(kind: Any, scheduler: Any, tmp_path: Path) -> None:
    model = load_model(write_pixart(tmp_path / "pipeline", kind), "cpu")
    assert model.tokens == (120 if kind is PixArtAlphaPipeline else 300)
    for guidance in (4.5, 1.0):
        check_sampling(model, SamplingParams(scheduler=scheduler, guidance=guidance))


@pytest.mark.parametrize("config", [{"out_channels": 4}, {"sample_size": 128, "num_layers": 1}])
def test_it_samples_so_without_a_spread_and_where_it_reads_the_size_of_images(
    config: dict[str, Any], tmp_path: Path
) -> None:
    model = load_model(write_pixart(tmp_path / "pipeline", **config), "cpu")
    assert model.denoiser.use_additional_conditions == ("sample_size" in config)
    check_sampling(model, SamplingParams(guidance=4.5))


def test_a_mask_that_is_left_out_is_found(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load_model(folder, "cpu")
    monkeypatch.setattr(type(model), "mask", lambda model, embeddings: torch.ones_like(embeddings[:, :, -1]))
    with pytest.raises(InputError, match="sampled otherwise by its own pipeline"):
        check_sampling(model, SamplingParams())


def test_it_goes_by_the_name_that_its_transformer_had_at_first(folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(folder, tmp_path / "copy")
    for name, change in (
        ("model_index.json", {"transformer": ["diffusers", "Transformer2DModel"]}),
        ("transformer/config.json", {"_class_name": "Transformer2DModel"}),
    ):
        path = copy / name
        path.write_text(json.dumps(json.loads(path.read_text()) | change))
    old, new = load_model(copy, "cpu"), load_model(folder, "cpu")
    assert old.family == new.family == "PixArtTransformer2DModel 16"
    embeddings, noise = new.encode(PROMPTS), initial_noise(new, KEYS)
    assert old.output(noise, 500, embeddings).equal(new.output(noise, 500, embeddings))


def test_prompts_are_counted_as_they_are_read(folder: Path) -> None:
    model, alone = load_model(folder, "cpu"), tokenizers_of(folder)
    assert alone.most == model.tokens and alone.counts([" Picture A", "picture a"]) == [4, 4]  # with end and space
    assert model.encode([" Picture A"]).equal(model.encode(["picture a"]))
    mask = model.mask(model.encode(["picture a", ""]))
    assert mask is not None and mask.sum(1).tolist() == [4, 1]
    assert alone.words() == ["picture"]


def test_values_are_means_over_the_tokens_of_the_prompt(folder: Path) -> None:
    model, text = load_model(folder, "cpu"), load_model(folder, "cpu").encode(PROMPTS)
    layers = model.layers(Site.VALUE)
    assert [layer.name for layer in layers] == [f"transformer_blocks.{n}.attn2.to_v" for n in range(3)]
    mask = model.mask(text)
    assert mask is not None
    seen: dict[int, torch.Tensor] = {}

    def see(layer: Layer, inputs: torch.Tensor, output: torch.Tensor) -> None:
        seen[layer.index] = torch.stack([row[read].abs().mean(0) for row, read in zip(output, mask, strict=True)])

    with observed(layers, see):
        model.output(initial_noise(model, KEYS), 900, text)
    found = value_activations(layers, model.text_input(Site.VALUE, text), mask)
    for layer, values in zip(layers, found, strict=True):
        torch.testing.assert_close(values, seen[layer.index])
    with pytest.raises(InputError, match="site 'ff-hidden' of PixArtAlpha depend on step and latent"):
        model.text_input(Site.FEED_FORWARD_HIDDEN, text)


def test_sites_are_those_of_its_blocks(folder: Path) -> None:
    outline = outline_of(folder)
    assert outline.latent == (8, 8) and outline.image == (32, 32)
    hidden = outline.layers(Site.FEED_FORWARD_HIDDEN)
    assert [(layer.name, layer.inputs, layer.outputs) for layer in hidden] == [
        (f"transformer_blocks.{n}.ff.net.2", 96, 24) for n in range(3)
    ]
    with pytest.raises(InputError, match="no layers at site 'conv'"):
        outline.layers(Site.CONVOLUTION)


@pytest.mark.parametrize("start", ["prompt", "noise", "other"])
def test_attacks_move_tokens_and_leave_masks(start: Any, folder: Path) -> None:
    model = load_model(folder, "cpu")
    latents = encode(model, generate(model, model.encode(PROMPTS), KEYS, SamplingParams(steps=1)))
    for trigger in attack(model, latents, PROMPTS, KEYS, ATTACK.model_copy(update={"start": start})):
        mask = trigger.start[:, -1] > 0.5
        assert trigger.embedding[:, -1].equal(trigger.start[:, -1]) and set(trigger.start[:, -1].tolist()) <= {0.0, 1.0}
        assert mask.all() == (start == "noise")
        # What is not attended to takes no gradient either.
        moved = (trigger.embedding - trigger.start).abs().sum(1) > 0
        assert moved.equal(mask)


def test_noise_is_matched_to_the_tokens_that_are_read(folder: Path) -> None:
    model = load_model(folder, "cpu")
    keys = [("a", seed) for seed in range(100)]
    found = start_embeddings(model, "noise", ["a cat"] * 100, keys, ATTACK, PROMPTS)[:, :, :-1].flatten(0, 1)
    embeddings = model.encode(PROMPTS)
    real = embeddings[model.mask(embeddings)][:, :-1]
    torch.testing.assert_close(found.mean(0), real.mean(0), atol=0.1, rtol=0.1)
    torch.testing.assert_close(found.std(0), real.std(0), atol=0.1, rtol=0.1)


def test_what_needs_a_token_that_begins_prompts_is_refused_in_a_line(folder: Path) -> None:
    model = load_model(folder, "cpu")
    line = "prompts of PixArtAlpha begin with none: leave it out of --set 'mitigations="
    with pytest.raises(InputError, match=line):
        reweighted(Request(model, PROMPTS, KEYS, SamplingParams()), ReweightedAttentionParams())
    with pytest.raises(InputError, match="prompts of PixArtAlpha begin with none: scan with norm"):
        attention_layer(type(model), model.layers(Site.VALUE_ALL))


def test_mixed_precision_is_nearly_the_same(folder: Path) -> None:
    exact, mixed = load_model(folder, "cpu"), load_model(folder, "cpu", "mixed")
    embeddings, noise = exact.encode(PROMPTS), initial_noise(exact, KEYS)
    expected, found = (model.predict(noise, 500, embeddings).noise for model in (exact, mixed))
    assert not found.equal(expected)
    torch.testing.assert_close(found, expected, atol=0.03, rtol=0.03)


@pytest.mark.parametrize(
    ("part", "values", "line"),
    [
        ("transformer", {"norm_type": "ada_norm_zero"}, "norm_type 'ada_norm_zero', PixArt has"),
        ("transformer", {"attention_type": "gated"}, "GLIGEN"),
        ("transformer", {"sample_size": 9}, "sample_size 9 and patch_size 2"),
        ("transformer", {"in_channels": 9}, "takes 9 channels and gives 8, its autoencoder has 4"),
        ("transformer", {"caption_channels": 24}, "reads 24 values a token, its text encoder gives 16"),
        ("vae", {"shift_factor": 0.1}, "shift_factor 0.1, which PixArtAlphaPipeline does not apply"),
        ("vae", {"latents_mean": [0.0] * 4, "latents_std": [1.0] * 4}, "latents_mean and latents_std, which PixArt"),
    ],
)
def test_what_is_wrong_with_a_folder_is_told_in_a_line(
    part: str, values: dict[str, Any], line: str, folder: Path, tmp_path: Path
) -> None:
    copy = shutil.copytree(folder, tmp_path / "copy")
    assert problems_of(copy) == []
    path = copy / part / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))
    with pytest.raises(InputError, match=line):
        load_model(copy, "cpu")


def test_a_sigma_that_reads_the_size_of_images_is_refused(tmp_path: Path) -> None:
    """Its pipeline gives none."""
    folder = write_pixart(tmp_path / "pipeline", PixArtSigmaPipeline, use_additional_conditions=True)
    (problem,) = problems_of(folder)
    assert "which PixArtSigmaPipeline does not give it" in problem
