"""Other importance scores select as many weights as asked for."""

from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tasks.diffusion.families import layers_of
from tasks.diffusion.noise import initial_noise
from tasks.diffusion.sites import Site
from tasks.errors import InputError
from tasks.localize import importance
from tasks.localize.gradient import gradient
from tasks.localize.ground import Found
from tasks.localize.importance import GradientParams, gradient_magnitudes, highest
from tasks.localize.magnitude import magnitude
from tasks.localize.random_weights import RandomParams, random
from tasks.localize.taylor import taylor
from tasks.methods import NoParams
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


def chosen(found: Iterable[Found]) -> dict[int, list[int]]:
    return {one.layer.index: one.members.tolist() for one in found}


def test_every_score_takes_as_many_of_each_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    draw = torch.Generator().manual_seed(0)
    memorized, ordinary = (
        [torch.rand(layer.outputs, layer.inputs, generator=draw) for layer in LAYERS] for _ in range(2)
    )
    counts = tuple(3 * layer.index for layer in LAYERS)
    taken: list[int] = []

    def gradients(model: Any, layers: Any, text: Any, latents: Any, keys: list[Any], *_: Any) -> list[torch.Tensor]:
        taken.append(len(keys))
        return memorized if keys[0][0] == "memorized" else ordinary

    monkeypatch.setattr(importance, "gradient_magnitudes", gradients)
    images = {name: [SimpleNamespace(image_ids=(name,))] for name in ("memorized", "ordinary")}
    ground: Any = SimpleNamespace(
        model=MODEL,
        layers=LAYERS,
        budget=counts,
        with_images=2 * images["memorized"],
        ordinary=images["ordinary"],
        embed=lambda prompts: TEXT,
        latents=lambda prompts: LATENTS,
    )
    alone, held = GradientParams(contrast=False), GradientParams()
    weights: list[Any] = [layer.module.weight for layer in LAYERS]

    def best(scores: torch.Tensor, index: int) -> list[int]:
        return sorted(scores.flatten().topk(counts[index]).indices.tolist())

    found = {
        "magnitude": chosen(magnitude(ground, NoParams())),
        "taylor": chosen(taylor(ground, alone)),
        "gradient": chosen(gradient(ground, alone)),
        "random": chosen(random(ground, RandomParams())),
    }
    assert taken == [2, 2]  # without a contrast ordinary images are not looked at
    for index, weight in enumerate(weights):
        assert found["magnitude"][index] == best(weight.abs(), index)
        assert found["taylor"][index] == best(weight.abs() * memorized[index], index)
        assert found["gradient"][index] == best(memorized[index], index)
        assert len(found["random"][index]) == counts[index]
    assert found["random"] == chosen(random(ground, RandomParams())) != chosen(random(ground, RandomParams(seed=1)))
    # What scores as high for ordinary images is not of the memorized ones alone.
    first = found["gradient"][2][0]
    ordinary[2].view(-1)[first] = 2.0
    others = torch.tensor(chosen(gradient(ground, held))[2])
    assert len(others) == counts[2] and first not in others.tolist()
    assert bool((memorized[2].flatten()[others] > ordinary[2].flatten()[others]).all())
