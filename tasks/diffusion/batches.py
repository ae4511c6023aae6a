"""Working through samples in batches that halve when the device runs out of memory."""

from collections.abc import Callable, Iterator
from typing import TypeVar

import torch

from tasks.errors import out_of_memory

T = TypeVar("T")


def in_batches(total: int, batch: int, work: Callable[[slice], T]) -> Iterator[T]:
    """Yields `work(rows)` for slices that cover `range(total)` in order.

    When `work` runs out of device memory it is called again with half as many rows, and the smaller size stays. So
    `work` must leave nothing behind when it fails.

    Raises:
        RuntimeError: not even one row fits; see `tasks.errors.out_of_memory`.
    """
    start = 0
    while start < total:
        full = False
        try:
            result = work(slice(start, min(start + batch, total)))
        except RuntimeError as error:
            if batch == 1 or not out_of_memory(error):
                raise
            full = True
        if full:  # out here, since the error holds on to all that the failed work had made
            batch = (min(batch, total - start) + 1) // 2
            give_back()
            continue
        start += batch
        yield result


def give_back() -> None:
    """Memory that torch keeps of the GPUs for later goes back to them."""
    torch.cuda.empty_cache()
    if torch.backends.mps.is_available():
        torch.mps.empty_cache()
