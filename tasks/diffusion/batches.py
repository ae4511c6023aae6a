"""Working through samples in batches that halve when the device runs out of memory."""

from collections.abc import Callable, Iterator
from typing import TypeVar

import torch

T = TypeVar("T")


def in_batches(total: int, batch: int, work: Callable[[slice], T]) -> Iterator[T]:
    """Yields `work(rows)` for slices that cover `range(total)` in order.

    When `work` runs out of device memory it is called again with half as many rows, and the smaller size stays. So
    `work` must leave nothing behind when it fails.

    Raises:
        torch.OutOfMemoryError: not even one row fits.
    """
    start = 0
    while start < total:
        full = False
        try:
            result = work(slice(start, min(start + batch, total)))
        except torch.OutOfMemoryError:
            if batch == 1:
                raise
            full = True
        if full:  # out here, since the error holds on to all that the failed work had made
            batch = (min(batch, total - start) + 1) // 2
            torch.cuda.empty_cache()
            continue
        start += batch
        yield result
