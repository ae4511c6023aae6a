"""Other importance scores select as many weights as asked for."""

import pytest
import torch

from tasks.diffusion.families import layers_of
from tasks.diffusion.noise import initial_noise
from tasks.diffusion.sites import Site
from tasks.errors import InputError
from tasks.localize.importance import (
    ImportanceParams,
    gradient_magnitudes,
    highest,
    important_weights,
    weight_scores,
)
from tests.support.hand_made import model_of, random_unet

MODEL = model_of(random_unet())
LAYERS = layers_of(MODEL.denoiser, Site.FEED_FORWARD_HIDDEN)
TEXT = MODEL.encode(["ab", "cd"])
LATENTS = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(0))
KEYS = [("ab", 0), ("cd", 0)]


def test_gradients_are_those_of_the_diffusion_loss() -> None:
    found = gradient_magnitudes(MODEL, LAYERS, TEXT[:1], LATENTS[:1], KEYS[:1], timesteps=1)
    noise = initial_noise(MODEL, [("ab@500", 0)])
    noisy = MODEL.schedule.own.add_noise(LATENTS[:1], noise, torch.tensor([500]))

    def loss() -> float:
        return float((MODEL.denoiser(noisy, 500, TEXT[:1]).sample - noise).double().square().mean())

    weight: torch.Tensor = LAYERS[1].module.weight  # type: ignore[assignment]
    row, column = divmod(int(found[1].argmax()), weight.shape[1])
    before = weight[row, column].item()
    weight[row, column] = before + 1e-2
    up = loss()
    weight[row, column] = before - 1e-2
    down = loss()
    weight[row, column] = before
    assert abs(up - down) / 2e-2 == pytest.approx(found[1][row, column].item(), rel=0.02)
    assert not any(parameter.requires_grad for parameter in MODEL.denoiser.parameters())


def test_gradients_are_means_over_samples() -> None:
    both = gradient_magnitudes(MODEL, LAYERS, TEXT, LATENTS, KEYS, timesteps=2)
    alone = [
        gradient_magnitudes(MODEL, LAYERS, TEXT[i : i + 1], LATENTS[i : i + 1], KEYS[i : i + 1], 2) for i in (0, 1)
    ]
    for together, first, second in zip(both, *alone, strict=True):
        torch.testing.assert_close(together, (first + second) / 2)


def test_scores_by_name() -> None:
    layer = LAYERS[0]
    weight: torch.Tensor = layer.module.weight  # type: ignore[assignment]
    gradient = torch.rand(weight.shape)
    assert torch.equal(weight_scores(layer, ImportanceParams(score="magnitude")), weight.abs())
    assert torch.equal(weight_scores(layer, ImportanceParams(score="gradient"), gradient), gradient)
    assert torch.equal(weight_scores(layer, ImportanceParams(score="taylor"), gradient), weight.abs() * gradient)
    random = weight_scores(layer, ImportanceParams(score="random"))
    assert torch.equal(random, weight_scores(layer, ImportanceParams(score="random")))
    assert not torch.equal(random, weight_scores(layer, ImportanceParams(score="random", seed=1)))
    with pytest.raises(InputError, match="taylor score needs gradients"):
        weight_scores(layer, ImportanceParams(score="taylor"))


def test_the_highest_by_hand() -> None:
    scores = torch.tensor([[5.0, 1.0, 4.0], [3.0, 2.0, 6.0]])
    assert highest(scores, 3).tolist() == [0, 2, 5]
    assert highest(scores, 0).tolist() == []
    above = torch.tensor([[9.0, 0.0, 0.0], [0.0, 9.0, 6.0]])
    assert highest(scores, 2, above).tolist() == [2, 3]
    with pytest.raises(InputError, match="fewer qualify"):
        highest(scores, 4, above)
    with pytest.raises(InputError, match="fewer qualify"):
        highest(scores, 7)


def test_every_score_takes_as_many_of_each_layer() -> None:
    counts = [3 * layer.index for layer in LAYERS]
    draw = torch.Generator().manual_seed(0)
    memorized, ordinary = (
        [torch.rand(layer.outputs, layer.inputs, generator=draw) for layer in LAYERS] for _ in range(2)
    )
    chosen = {}
    for score in ("magnitude", "taylor", "gradient", "random"):
        params = ImportanceParams.model_validate({"score": score})
        found = dict(important_weights(LAYERS, counts, params, memorized))
        assert {index: len(members) for index, members in found.items()} == dict(enumerate(counts))
        chosen[score] = found[2].tolist()
    assert len({tuple(members) for members in chosen.values()}) == 4
    best = chosen["gradient"][0]
    ordinary[2].view(-1)[best] = 2.0
    held = dict(important_weights(LAYERS, counts, ImportanceParams(score="gradient"), memorized, ordinary))[2].long()
    assert len(held) == counts[2] and best not in held.tolist()
    assert bool((memorized[2].flatten()[held] > ordinary[2].flatten()[held]).all())
