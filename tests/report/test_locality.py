"""Locality: distances by hand, and activations that are what the layers give."""

import sys

import pytest
import torch

from tasks.diffusion.families import Model, layers_of
from tasks.diffusion.sites import Site
from tasks.errors import InputError
from tasks.report.locality import locality, neuron_activations, pairwise_distances, spread, tsne_map
from tests.support.denoisers import TOKENS, WIDTH, tiny_model

CORNERS = torch.tensor([[0.0, 0.0], [3.0, 0.0], [3.0, 4.0]])  # distances 3, 4, 5


def test_distances_by_hand() -> None:
    assert pairwise_distances(CORNERS).tolist() == [[0, 3, 5], [3, 0, 4], [5, 4, 0]]
    found = spread(CORNERS[:, None])
    assert (found.mean, found.std, found.n) == pytest.approx((4, (2 / 3) ** 0.5, 3))
    with pytest.raises(InputError, match="two points"):
        spread(CORNERS[:1])


@pytest.fixture(scope="module")
def model() -> Model:
    return tiny_model()


def test_triggers_that_lie_together_are_a_small_share_apart(model: Model) -> None:
    starts, mine = torch.randn(2, 20, TOKENS, WIDTH, generator=torch.Generator().manual_seed(0))
    near = locality(model, 0.01 * mine, starts, starts, ("x", 0))
    assert near.embeddings == near.beside_prompts < 0.05
    assert all(apart < 0.1 for apart in near.activations.values() if apart == apart)
    found = locality(model, mine, starts, 2 * starts, ("x", 0))
    assert found.embeddings == pytest.approx(1, abs=0.05) and found.beside_prompts == found.embeddings / 2
    # Independent points lie as far from each other as those of either group.
    assert found.moved == pytest.approx(1, abs=0.05)
    assert {name: len(places) for name, places in found.places.items()} == {"triggers": 20, "starts": 20, "prompts": 20}


def test_groups_that_are_the_same_are_as_far_apart(model: Model) -> None:
    points = torch.randn(3, TOKENS, WIDTH)
    found = locality(model, points, points, points, ("x", 0))
    names = [layer.name for layer in model.layers(Site.FEED_FORWARD_HIDDEN)]
    assert list(found.activations) == list(found.starts) == names
    assert set(found.activations.values()) == {1.0} and found.moved == 0


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
    # The first residual block comes before the text is looked at.
    assert sum(spread(values).mean > 0 for values in found.values()) >= len(wanted) - 2


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
