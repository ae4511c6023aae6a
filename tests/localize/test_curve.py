"""Neurons that stand in for others in the control of a curve."""

from hypothesis import given
from hypothesis import strategies as st

from tasks.localize.curve import stand_ins


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
