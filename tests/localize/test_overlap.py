"""Overlap of sets."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tasks.localize.overlap import expected_iou, iou, shared_neurons, stand_ins

SETS = st.sets(st.integers(0, 30))


@given(a=SETS, b=SETS)
def test_iou_is_that_of_sets(a: set[int], b: set[int]) -> None:
    found = iou(torch.tensor(sorted(a), dtype=torch.uint32), torch.tensor(sorted(b)))
    if a | b:
        assert found == pytest.approx(len(a & b) / len(a | b))
    else:
        assert math.isnan(found)


def test_chance_by_hand() -> None:
    assert expected_iou(10, 10, 100) == pytest.approx(1 / 19)
    assert expected_iou(100, 100, 100) == 1
    assert math.isnan(expected_iou(0, 0, 100))


def test_shared_neurons_are_counted_by_prompt() -> None:
    found = shared_neurons([{0: torch.tensor([1, 2])}, {0: torch.tensor([2]), 3: torch.tensor([1])}, {}])
    assert found == {(0, 1): 1, (0, 2): 2, (3, 1): 1}


@given(chosen=st.sets(st.tuples(st.integers(0, 2), st.integers(0, 9)), max_size=12), seed=st.integers(0, 99))
def test_stand_ins_are_others_of_the_same_layers(chosen: set[tuple[int, int]], seed: int) -> None:
    neurons, widths = sorted(chosen), [24, 24, 24]
    others = stand_ins(neurons, widths, seed)
    assert [layer for layer, _ in others] == [layer for layer, _ in neurons]
    assert len(set(others)) == len(others)
    assert not set(others) & chosen
    assert all(0 <= neuron < 24 for _, neuron in others)
    assert others == stand_ins(neurons, widths, seed)


def test_stand_ins_differ_by_seed_and_end_where_there_is_no_room() -> None:
    neurons = [(0, n) for n in range(8)]
    assert stand_ins(neurons, [100], 0) != stand_ins(neurons, [100], 1)
    assert stand_ins(neurons, [100], 0, "a") != stand_ins(neurons, [100], 0, "b")
    assert sorted(stand_ins(neurons, [15], 0)) == [(0, n) for n in range(8, 15)]
