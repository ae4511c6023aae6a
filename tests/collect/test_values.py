"""Value activations come from the text alone, and their statistics add up."""

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.collect.values import Moments, load_statistics, value_activations
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


@settings(deadline=None, max_examples=50)
@given(rows=st.integers(2, 30), split=st.integers(0, 30), seed=st.integers(0, 1000), scale=st.floats(1e-3, 1e3))
def test_sharded_statistics_are_the_unsharded_ones(rows: int, split: int, seed: int, scale: float) -> None:
    values = [scale * torch.randn(rows, 4, generator=torch.Generator().manual_seed(seed)).abs()]
    cut = min(split, rows)
    whole = Moments.of(values)
    sharded = Moments.of([values[0][:cut]]) + Moments.of([values[0][cut:]])
    assert sharded.count == whole.count == rows
    torch.testing.assert_close(sharded.sums[0], whole.sums[0], rtol=1e-12, atol=0)
    torch.testing.assert_close(sharded.squares[0], whole.squares[0], rtol=1e-12, atol=0)
    found = sharded.statistics()
    torch.testing.assert_close(found.means[0], values[0].mean(0))
    torch.testing.assert_close(found.stds[0], values[0].std(0), rtol=1e-4, atol=1e-6 * scale)


def test_a_neuron_that_never_changes_has_no_deviation() -> None:
    assert Moments.of([torch.full((1000, 1), 0.1)]).statistics().stds[0].item() == 0


def test_published_statistics_are_read(tmp_path: Path) -> None:
    means = [torch.rand(layer.outputs) for layer in LAYERS]
    stds = [torch.rand(layer.outputs) for layer in LAYERS]
    torch.save((means, stds), tmp_path / "statistics.pt")
    found = load_statistics(tmp_path / "statistics.pt", LAYERS)
    assert all(torch.equal(a, b) for a, b in zip(found.means + found.stds, means + stds, strict=True))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([torch.rand(3)], r"does not hold \(means, stds\)"),
        (([torch.rand(3)], [torch.rand(3)]), "widths"),
        (([torch.rand(8)] * 3, [torch.rand(8)] * 2), "widths"),
        (([1.0] * 3, [1.0] * 3), "not a list of tensors"),
        (([torch.rand(8)] * 3, [torch.full((8,), float("nan"))] * 3), "not finite"),
        (([torch.rand(8)] * 3, [-torch.ones(8)] * 3), "negative"),
        (Path("code"), "no torch file of tensors alone"),
    ],
)
def test_other_files_are_refused_in_a_line(tmp_path: Path, content: object, message: str) -> None:
    torch.save(content, tmp_path / "statistics.pt")
    with pytest.raises(InputError, match=message):
        load_statistics(tmp_path / "statistics.pt", LAYERS)


@pytest.mark.parametrize(
    "content", [b"", b"root:x:0:0:root:/root:/bin/bash\n", b"q\n", b"(t.", b"PK\x03\x04", b"\x93NUMPY\x01\x00", b"{}"]
)
def test_a_file_of_any_other_kind_is_refused_in_a_line(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "statistics.pt").write_bytes(content)
    with pytest.raises(InputError, match="no torch file of tensors alone"):
        load_statistics(tmp_path / "statistics.pt", LAYERS)


def test_a_missing_file_and_one_prompt_and_wrong_widths_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot read"):
        load_statistics(tmp_path / "none.pt", LAYERS)
    with pytest.raises(InputError, match="at least two"):
        Moments.of([torch.rand(1, 3)]).statistics()
    with pytest.raises(InputError, match="reads tokens"):
        value_activations(LAYERS, torch.rand(1, 3, WIDTH + 1))
    with pytest.raises(InputError, match="to_v are not finite"):
        value_activations(LAYERS, torch.full((1, 3, WIDTH), float("inf")))
