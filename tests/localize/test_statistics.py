"""Statistics of activations add up over shards, and published ones are read."""

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.diffusion.families import layers_of
from tasks.diffusion.sites import Site
from tasks.errors import InputError
from tasks.localize.statistics import Moments, load_statistics
from tests.support.hand_made import random_unet

LAYERS = layers_of(random_unet(), Site.VALUE)


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


def test_a_missing_file_and_one_prompt_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot read"):
        load_statistics(tmp_path / "none.pt", LAYERS)
    with pytest.raises(InputError, match="at least two"):
        Moments.of([torch.rand(1, 3)]).statistics()
