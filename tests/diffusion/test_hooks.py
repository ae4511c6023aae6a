"""Hooks see and scale layers while they are entered, and leave nothing behind."""

from typing import Any

import pytest
import torch

from tasks.diffusion.families import layers_of
from tasks.diffusion.hooks import attended, observed, scaled
from tasks.diffusion.sites import Site
from tests.support.hand_made import WIDTH, random_unet

UNET = random_unet()
LATENTS = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(0))
TEXT = torch.randn(2, 3, WIDTH, generator=torch.Generator().manual_seed(1))


def run(rows: slice = slice(None)) -> torch.Tensor:
    output: torch.Tensor = UNET(LATENTS[rows], 500, TEXT[rows], return_dict=False)[0]
    return output


def hooks() -> int:
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in UNET.modules())


@pytest.mark.parametrize("site", [Site.VALUE, Site.KEY, Site.FEED_FORWARD_HIDDEN, Site.CONVOLUTION])
def test_each_sample_is_scaled_by_its_own_factors(site: Site) -> None:
    layers = layers_of(UNET, site)
    factors = torch.rand(2, layers[1].outputs, generator=torch.Generator().manual_seed(2))
    with scaled(layers, {1: factors}):
        together = run()
    for row in range(2):
        with scaled(layers, {1: factors[row]}):
            alone = run(slice(row, row + 1))
        torch.testing.assert_close(together[row : row + 1], alone, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(together, run(), atol=1e-5)


def test_scaling_multiplies_outputs_and_ones_change_nothing() -> None:
    layers = layers_of(UNET, Site.VALUE)
    plain = run()
    with scaled(layers, {layer.index: torch.ones(layer.outputs) for layer in layers}):
        torch.testing.assert_close(run(), plain, atol=0, rtol=0)
    seen: dict[int, torch.Tensor] = {}

    def see(layer: Any, inputs: torch.Tensor, output: torch.Tensor) -> None:
        seen[layer.index] = output

    with scaled(layers, {0: torch.zeros(layers[0].outputs)}), observed(layers, see):
        run()
    assert seen[0].abs().max() == 0
    assert seen[1].abs().max() > 0


@pytest.mark.parametrize("kind", ["scaled", "observed"])
def test_nothing_is_left_behind_when_the_model_fails(kind: str) -> None:
    layers = layers_of(UNET, Site.VALUE)
    before = hooks()
    context = {
        "scaled": scaled(layers, {0: torch.zeros(layers[0].outputs)}),
        "observed": observed(layers, lambda *seen: None),
    }[kind]
    with pytest.raises(RuntimeError, match="on purpose"), context:
        assert hooks() > before
        raise RuntimeError("on purpose")
    assert hooks() == before


def test_attention_is_what_the_layer_weighs_its_values_with() -> None:
    layer = layers_of(UNET, Site.VALUE_ALL)[3]
    module: Any = UNET.get_submodule(layer.name.removesuffix(".to_v"))
    outputs: list[torch.Tensor] = []
    seen: list[torch.Tensor] = []
    plain, before = run(), hooks()
    handle = module.register_forward_hook(lambda module, inputs, output: outputs.append(output))
    with attended(UNET, layer, seen.append):
        assert run().equal(plain)
    handle.remove()
    assert hooks() == before
    (weights,) = seen
    pixels, tokens = outputs[0].shape[1], TEXT.shape[1]
    assert weights.shape == (2, module.heads, pixels, tokens)
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, module.heads, pixels))
    mixed = weights.flatten(0, 1) @ module.head_to_batch_dim(module.to_v(TEXT))
    torch.testing.assert_close(module.to_out[0](module.batch_to_head_dim(mixed)), outputs[0], atol=1e-5, rtol=1e-4)
