"""Feature norms are sums over a real trajectory that add up, the halves of guidance apart."""

import pytest
import torch
from torch.nn.functional import normalize

from tasks.collect.norms import FeatureNorms, feature_norms, norms_by_prompt
from tasks.diffusion.families import layers_of
from tasks.diffusion.hooks import observed
from tasks.diffusion.noise import initial_noise
from tasks.diffusion.sampling import SamplingParams, denoise
from tasks.diffusion.sites import Layer, Site
from tasks.errors import InputError
from tests.support.hand_made import model_of, random_unet

MODEL = model_of(random_unet())
LAYERS = layers_of(MODEL.denoiser, Site.FEED_FORWARD_HIDDEN)
PROMPTS = ["ab", "cd", "ef"]
TEXT = MODEL.encode(PROMPTS)
KEYS = [(prompt, 0) for prompt in PROMPTS]
PARAMS = SamplingParams(steps=3, guidance=7.5, scheduler="ddim", batch=2)


def same(a: FeatureNorms, b: FeatureNorms) -> None:
    assert a.timesteps == b.timesteps
    for x, y in ((a.conditional, b.conditional), (a.unconditional, b.unconditional)):
        assert x.keys() == y.keys()
        for key in x:
            torch.testing.assert_close(x[key], y[key], rtol=1e-4, atol=1e-6)


def test_they_are_the_column_norms_of_normalised_tokens() -> None:
    found = feature_norms(MODEL, LAYERS, TEXT, KEYS, PARAMS)
    kept: dict[int, list[torch.Tensor]] = {}

    def see(layer: Layer, inputs: torch.Tensor, output: torch.Tensor) -> None:
        kept.setdefault(layer.index, []).append(inputs)

    with observed(LAYERS, see):
        denoise(MODEL, TEXT, MODEL.encode([""]), initial_noise(MODEL, KEYS), PARAMS)
    assert len(found.timesteps) == 3
    assert found.conditional.keys() == {(step, layer.index) for step in range(3) for layer in LAYERS}
    for (step, index), sums in found.conditional.items():
        unconditional, conditional = normalize(kept[index][step], dim=-1).chunk(2)
        assert sums.dtype == torch.float64
        torch.testing.assert_close(sums.sqrt().float(), conditional.flatten(0, 1).norm(dim=0), rtol=1e-4, atol=1e-5)
        other = found.unconditional[step, index]
        torch.testing.assert_close(other.sqrt().float(), unconditional.flatten(0, 1).norm(dim=0), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(found.sums("both")[step, index], sums + other)
        tokens = conditional.shape[0] * conditional.shape[1]
        assert sums.sum().item() == pytest.approx(tokens, rel=1e-5)


def test_sharded_and_batched_sums_are_the_whole_ones() -> None:
    whole = feature_norms(MODEL, LAYERS, TEXT, KEYS, PARAMS.model_copy(update={"batch": 32}))
    shards = [feature_norms(MODEL, LAYERS, TEXT[i : i + 1], KEYS[i : i + 1], PARAMS) for i in range(3)]
    same(shards[0] + shards[1] + shards[2], whole)
    same(feature_norms(MODEL, LAYERS, TEXT, KEYS, PARAMS), whole)


def test_trajectories_can_be_left_after_the_first_steps() -> None:
    whole = feature_norms(MODEL, LAYERS, TEXT, KEYS, PARAMS)
    calls: list[int] = []
    handle = MODEL.denoiser.register_forward_pre_hook(lambda module, inputs: calls.append(len(inputs[0])))
    blocks = list(norms_by_prompt(MODEL, LAYERS, TEXT, KEYS, PARAMS, steps=2))
    handle.remove()
    assert len(calls) == 2 * 2  # two steps of two batches
    found = blocks[0].over_prompts() + blocks[1].over_prompts()
    assert found.timesteps == whole.timesteps[:2]
    assert found.conditional.keys() == {(step, layer.index) for step in range(2) for layer in LAYERS}
    for key, sums in found.conditional.items():
        torch.testing.assert_close(sums, whole.conditional[key], rtol=1e-4, atol=1e-6)


def test_memory_that_runs_out_halves_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    import tasks.collect.norms as norms

    done: list[int] = []
    plain = denoise

    def tight(model: object, text: torch.Tensor, *rest: object) -> torch.Tensor:
        if len(text) > 1:
            raise torch.OutOfMemoryError
        return plain(model, text, *rest)  # type: ignore[arg-type]

    whole = feature_norms(MODEL, LAYERS, TEXT, KEYS, PARAMS)
    monkeypatch.setattr(norms, "denoise", tight)
    same(feature_norms(MODEL, LAYERS, TEXT, KEYS, PARAMS, done.append), whole)
    assert done == [1, 1, 1]


def test_half_the_precision_gives_nearly_the_same() -> None:
    exact = feature_norms(MODEL, LAYERS, TEXT, KEYS, PARAMS)
    coarse = model_of(random_unet().to(torch.bfloat16))
    layers = layers_of(coarse.denoiser, Site.FEED_FORWARD_HIDDEN)
    found = feature_norms(coarse, layers, coarse.encode(PROMPTS), KEYS, PARAMS)
    for key, sums in exact.conditional.items():
        assert found.conditional[key].dtype == torch.float64
        assert (found.conditional[key].sqrt() - sums.sqrt()).abs().max() < 0.02 * sums.sqrt().max()


def test_without_guidance_there_is_one_half() -> None:
    found = feature_norms(MODEL, LAYERS, TEXT, KEYS, PARAMS.model_copy(update={"guidance": 1.0}))
    assert found.unconditional == {}
    assert found.sums("conditional") is found.conditional
    with pytest.raises(InputError, match="no unconditional half"):
        found.sums("both")


def test_what_is_not_finite_stops_with_the_name_of_the_first_such_layer() -> None:
    model = model_of(random_unet())
    layers = layers_of(model.denoiser, Site.FEED_FORWARD_HIDDEN)
    broken = layers_of(model.denoiser, Site.FEED_FORWARD_INPUT)[1].module
    broken.weight[0, 0] = float("nan")  # type: ignore[operator]
    with pytest.raises(InputError, match=f"input of {layers[1].name} is not finite at step 0"):
        feature_norms(model, layers, TEXT, KEYS, PARAMS)


def test_what_does_not_fit_together_is_refused() -> None:
    with pytest.raises(InputError, match="one key for each"):
        feature_norms(MODEL, LAYERS, TEXT, KEYS[:1], PARAMS)
    one = feature_norms(MODEL, LAYERS, TEXT[:1], KEYS[:1], PARAMS)
    with pytest.raises(InputError, match="different schedules"):
        one + feature_norms(MODEL, LAYERS, TEXT[:1], KEYS[:1], PARAMS.model_copy(update={"steps": 2}))
