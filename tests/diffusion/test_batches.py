"""Batches cover everything in order and halve when memory runs out."""

import weakref

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tasks.diffusion.batches import in_batches


@given(total=st.integers(0, 40), batch=st.integers(1, 50), fits=st.integers(1, 50))
def test_all_rows_are_worked_through_once_in_order(total: int, batch: int, fits: int) -> None:
    def work(rows: slice) -> list[int]:
        found = list(range(total))[rows]
        if len(found) > fits:
            raise torch.OutOfMemoryError
        return found

    blocks = list(in_batches(total, batch, work))
    assert [row for block in blocks for row in block] == list(range(total))
    assert all(blocks)


def test_the_error_comes_through_when_not_even_one_fits() -> None:
    def work(rows: slice) -> None:
        raise torch.OutOfMemoryError

    with pytest.raises(torch.OutOfMemoryError):
        list(in_batches(3, 2, work))


def test_what_failed_is_let_go_before_memory_is_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[weakref.ref[torch.Tensor]] = []
    alive: list[bool] = []

    def work(rows: slice) -> int:
        large = torch.zeros(rows.stop - rows.start)
        made.append(weakref.ref(large))
        if len(large) > 2:
            raise torch.OutOfMemoryError
        return len(large)

    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: alive.append(made[-1]() is not None))
    assert list(in_batches(4, 4, work)) == [2, 2]
    assert alive == [False]
