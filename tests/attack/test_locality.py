"""Locality: distances by hand, and activations that are what the layers give."""

import sys

import pytest
import torch

from tasks.attack.locality import (
    activation_locality,
    embedding_locality,
    neuron_activations,
    pairwise_distances,
    spread,
    tsne_map,
)
from tasks.diffusion.families import Model, layers_of
from tasks.diffusion.sites import Site
from tasks.errors import InputError
from tests.support.denoisers import TOKENS, WIDTH

CORNERS = torch.tensor([[0.0, 0.0], [3.0, 0.0], [3.0, 4.0]])  # distances 3, 4, 5


def test_distances_by_hand() -> None:
    assert pairwise_distances(CORNERS).tolist() == [[0, 3, 5], [3, 0, 4], [5, 4, 0]]
    found = spread(CORNERS[:, None])
    assert (found.mean, found.std, found.n) == pytest.approx((4, (2 / 3) ** 0.5, 3))
    with pytest.raises(InputError, match="two points"):
        spread(CORNERS[:1])


def test_triggers_that_lie_together_have_a_small_ratio() -> None:
    beside, mine = torch.randn(2, 20, TOKENS, WIDTH, generator=torch.Generator().manual_seed(0))
    assert embedding_locality(0.01 * mine, beside).ratio < 0.05
    assert embedding_locality(mine, beside).ratio == pytest.approx(1, abs=0.05)


def test_value_activations_are_those_of_the_layer_alone(model: Model) -> None:
    embeddings = torch.randn(5, TOKENS, WIDTH)
    found = neuron_activations(model, embeddings, Site.VALUE, ("x", 0), batch=2)
    for layer in layers_of(model.denoiser, Site.VALUE):
        assert torch.allclose(found[layer.index], layer.module(embeddings).abs().mean(1), atol=1e-6)


@pytest.mark.parametrize("site", list(Site))
def test_every_site_gives_one_figure_a_neuron(model: Model, site: Site) -> None:
    found = neuron_activations(model, torch.randn(3, TOKENS, WIDTH), site, ("x", 0))
    layers = layers_of(model.denoiser, site)
    read_at_input = site in (Site.FEED_FORWARD_HIDDEN, Site.FEED_FORWARD_INPUT)
    wanted = {layer.index: (3, layer.inputs if read_at_input else layer.outputs) for layer in layers}
    assert {index: tuple(values.shape) for index, values in found.items()} == wanted
    assert [it.layer for it in activation_locality(found, found)] == list(wanted)
    # The first residual block comes before the text is looked at.
    reached = [it for it in activation_locality(found, found) if it.beside.mean > 0]
    assert all(it.ratio == 1 for it in reached)
    assert len(reached) >= len(wanted) - 2


def test_a_map_keeps_two_clusters_apart() -> None:
    pytest.importorskip("sklearn")
    points = torch.cat([torch.randn(10, 4, 4), 50 + torch.randn(10, 4, 4)])
    flat = torch.from_numpy(tsne_map(points))
    assert flat.shape == (20, 2)
    gap = (flat[:10].mean(0) - flat[10:].mean(0)).norm()
    assert gap > spread(flat[:10]).mean


def test_a_map_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.manifold", None)
    with pytest.raises(InputError, match="pip install scikit-learn"):
        tsne_map(torch.randn(9, 3))
