"""How often the reference world shows what."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tasks.reference.world import frequencies


@given(n=st.integers(1, 3000))
def test_shares_fall_and_leave_nothing_out(n: int) -> None:
    found = frequencies(n)
    assert np.isclose(found.sum(), 1) and (np.diff(found) <= 0).all()
    assert found[-1] >= 0.1 / n


def test_fifty_of_1600_are_most_of_what_is_seen() -> None:
    assert 0.58 < frequencies(1600)[:50].sum() < 0.60
