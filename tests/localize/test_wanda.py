"""Wanda finds exactly the planted weights."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.collect.norms import feature_norms
from tasks.diffusion.families import layers_of
from tasks.diffusion.sampling import SamplingParams
from tasks.diffusion.sites import Site
from tasks.errors import InputError
from tasks.localize.wanda import WandaParams, candidates_of, memorized_sets, memorized_weights, over_steps
from tests.support.hand_made import MEMORIZED, model_of, planted_unet


def test_by_hand() -> None:
    weight = torch.tensor([[1.0, -2.0, 3.0, 0.5], [4.0, 0.1, -0.1, 0.1]])
    memorized = torch.tensor([1.0, 25.0, 4.0, 70.0])  # norms 1, 5, 2, sqrt(70): of 100 in all
    null = torch.tensor([16.0, 4.0, 10.0, 70.0])
    # Scores of row 0: 1, 10, 6, 4.18 -> columns 1, 2; of row 1: 4, 0.5, 0.2, 0.84 -> columns 0, 3.
    # Against null prompts column 1 is higher, 2 and 0 are lower, 3 is the same.
    assert memorized_weights(weight, memorized, null, 0.5).tolist() == [1]
    assert memorized_weights(weight, memorized, null / 2, 0.5).tolist() == [1]  # fewer null prompts change nothing


@pytest.mark.parametrize("columns", [*range(1, 200), 320, 640, 1280, 2560, 5120, 10_240, 20_480])
def test_the_sparsity_that_is_advised_is_taken(columns: int) -> None:
    with pytest.raises(InputError) as refusal:
        candidates_of(columns, 1e-9)
    advised = float(str(refusal.value).partition("wanda.sparsity=")[2].split()[0])
    assert candidates_of(columns, advised) >= 1


def test_the_share_of_a_row_is_rounded_down_and_must_not_be_empty() -> None:
    weight, sums = torch.rand(3, 10), torch.rand(10)
    assert len(memorized_weights(weight, sums, torch.tensor([1.0] + [0.0] * 9), 0.39)) <= 3 * 3
    with pytest.raises(InputError, match="selects no weight in rows of 10"):
        memorized_weights(weight, sums, sums, 0.09)
    with pytest.raises(InputError, match="do not fit"):
        memorized_weights(weight, sums[:9], sums, 0.5)
    with pytest.raises(InputError, match="all zero"):
        memorized_weights(weight, torch.zeros(10), sums, 0.5)
    with pytest.raises(InputError, match="not finite"):
        memorized_weights(weight, torch.full((10,), float("nan")), sums, 0.5)
    with pytest.raises(InputError, match="not finite"):
        memorized_weights(torch.full((3, 10), float("inf")), sums, sums, 0.5)


@settings(max_examples=50)
@given(rows=st.integers(1, 6), columns=st.integers(2, 30), sparsity=st.floats(0.5, 1), seed=st.integers(0, 999))
def test_it_is_what_full_sorting_gives(rows: int, columns: int, sparsity: float, seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, columns, generator=draw)
    memorized, null = torch.rand(2, columns, generator=draw, dtype=torch.float64)
    memorized, null = memorized / memorized.sum(), null / null.sum()
    scores, null_scores = (weight.abs() * sums.sqrt() for sums in (memorized, null))
    chosen = torch.zeros(rows, columns, dtype=torch.bool)
    chosen.scatter_(1, scores.argsort(1, descending=True)[:, : int(sparsity * columns)], True)
    expected = (chosen & (scores > null_scores)).flatten().nonzero().flatten().tolist()
    found = memorized_weights(weight, memorized, null, sparsity)
    assert found.dtype == torch.uint32
    assert found.tolist() == expected


def test_it_finds_exactly_the_planted_weights() -> None:
    """Feature 6 of feed-forward layer 2 rises with the memorized prompt; weights of rows 1 and 4 read it."""
    unet = planted_unet()
    layers = layers_of(unet, Site.FEED_FORWARD_HIDDEN)
    hidden = layers[0].inputs
    with torch.no_grad():
        for first in layers_of(unet, Site.FEED_FORWARD_INPUT):
            first.module.bias.fill_(1.0)  # type: ignore[operator]
        layers_of(unet, Site.FEED_FORWARD_INPUT)[2].module.weight[6, 0] = 3.0  # type: ignore[operator]
        weight: torch.Tensor = layers[2].module.weight  # type: ignore[assignment]
        weight.copy_(1e-6 * torch.rand(weight.shape, generator=torch.Generator().manual_seed(0)))
        weight[:, 9] = 1e-5  # the highest of rows in which nothing is planted
        weight[[1, 4], 6] = 1e-3
    model = model_of(unet)
    params = SamplingParams(steps=3, guidance=7.5, scheduler="ddim")
    sums = {}
    for kind, prompts in (("memorized", [MEMORIZED, "bz"]), ("null", ["", ""])):
        keys = [(str(i), 0) for i in range(2)]
        sums[kind] = feature_norms(model, layers, model.encode(prompts), keys, params).sums("both")
    wanda = WandaParams(sparsity=1.01 / hidden, tau=2)
    sets = {
        (step, layer): found for step, layer, found in memorized_sets(layers, sums["memorized"], sums["null"], wanda)
    }
    planted = [1 * hidden + 6, 4 * hidden + 6]
    assert {key: found.tolist() for key, found in sets.items() if len(found)} == {(s, 2): planted for s in range(3)}
    universes = {layer.index: layer.inputs * layer.outputs for layer in layers}
    cut = over_steps(sets, universes, wanda)
    assert {index: found.tolist() for index, found in cut.items() if len(found)} == {2: planted}


def test_sets_are_united_over_the_first_steps() -> None:
    members = {(0, 0): [1, 2], (1, 0): [2, 3], (2, 0): [2, 9], (3, 0): [7]}
    sets = {key: torch.tensor(value, dtype=torch.uint32) for key, value in members.items()}

    def cut(**params: float) -> list[int]:
        found: list[int] = over_steps(sets, {0: 10}, WandaParams.model_validate(params))[0].tolist()
        return found

    assert cut(tau=3) == [1, 2, 3, 9]
    assert cut(tau=1) == [1, 2]
    assert cut(tau=3, share=0.5) == [2]
    assert cut(tau=4, share=0.75) == []  # more than the share, not as much
    with pytest.raises(InputError, match="at least 5 steps"):
        cut(tau=5)


def test_other_steps_or_layers_are_refused() -> None:
    sums = {(0, 0): torch.rand(4)}
    with pytest.raises(InputError, match="not seen at the same"):
        list(memorized_sets((), sums, {(1, 0): torch.rand(4)}, WandaParams()))
