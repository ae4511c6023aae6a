"""What counts as found: sets of every layer, whichever part was lost."""

from torch import nn

from tasks.diffusion.sites import Layer, Site
from tasks.sets import complete

LAYERS = [Layer(Site.VALUE, n, f"layer {n}", nn.Linear(2, 2)) for n in range(3)]


def test_what_lacks_a_layer_is_not_complete() -> None:
    rows = [("a", n) for n in (0, 1, 2)] + [("b", n) for n in (1, 2)] + [("c", n) for n in (0, 1)] + [("d", 2)] * 3
    assert complete([name for name, _ in rows], [f"layer {n}" for _, n in rows], LAYERS) == {"a"}
    assert complete([], [], LAYERS) == set()
