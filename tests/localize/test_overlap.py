"""Overlap of sets."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tasks.localize.overlap import expected_iou, iou, shared_neurons

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
