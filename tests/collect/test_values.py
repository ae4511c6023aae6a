"""Value activations come from the text alone."""

import pytest
import torch

from tasks.collect.values import value_activations
from tasks.diffusion.families import layers_of
from tasks.diffusion.hooks import observed
from tasks.diffusion.sites import Layer, Site
from tasks.errors import InputError
from tests.support.hand_made import WIDTH, random_unet

UNET = random_unet()
LAYERS = layers_of(UNET, Site.VALUE)
TEXT = torch.randn(5, 3, WIDTH, generator=torch.Generator().manual_seed(1))


def test_they_are_those_seen_while_the_unet_runs() -> None:
    seen: dict[int, torch.Tensor] = {}

    def see(layer: Layer, inputs: torch.Tensor, output: torch.Tensor) -> None:
        seen[layer.index] = output.abs().mean(1)

    with observed(LAYERS, see):
        UNET(torch.randn(5, 4, 16, 16), 900, TEXT)
    for layer, found in zip(LAYERS, value_activations(LAYERS, TEXT), strict=True):
        assert found.shape == (5, layer.outputs)
        torch.testing.assert_close(found, seen[layer.index])


def test_by_hand() -> None:
    module = torch.nn.Linear(2, 2, bias=False)
    module.weight.data = torch.tensor([[1.0, 0.0], [1.0, -1.0]])
    text = torch.tensor([[[1.0, 2.0], [-3.0, 1.0]]])  # outputs (1, -1) and (-3, -4)
    (found,) = value_activations((Layer(Site.VALUE, 0, "hand", module),), text)
    assert found.tolist() == [[2.0, 2.5]]


@pytest.mark.parametrize("batch", [1, 2, 256])
def test_the_batch_does_not_matter(batch: int) -> None:
    for a, b in zip(value_activations(LAYERS, TEXT, batch=batch), value_activations(LAYERS, TEXT), strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-6)


def test_wrong_widths_and_what_is_not_finite_are_refused() -> None:
    with pytest.raises(InputError, match="reads tokens"):
        value_activations(LAYERS, torch.rand(1, 3, WIDTH + 1))
    with pytest.raises(InputError, match="to_v are not finite"):
        value_activations(LAYERS, torch.full((1, 3, WIDTH), float("inf")))
