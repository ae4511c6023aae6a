"""How far long work is: a bar on the terminal, and whoever watches hears of it, too."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from tqdm import tqdm

Told = Callable[[str, int, int], None]
"""Is told what is going on, how much of it is done, and how much there is."""
_watcher: ContextVar[Told | None] = ContextVar("watcher", default=None)


@contextmanager
def watching(told: Told) -> Iterator[None]:
    """Within, `told` hears of everything that `progress` shows."""
    token = _watcher.set(told)
    try:
        yield
    finally:
        _watcher.reset(token)


def tell(what: str, done: int, total: int) -> None:
    """Lets whoever watches know how far something is."""
    if (told := _watcher.get()) is not None:
        told(what, done, total)


@contextmanager
def progress(total: int, what: str, unit: str) -> Iterator[Callable[[int], None]]:
    """A bar on the terminal: call with what was done. Nothing is shown when there is nothing to do."""
    so_far = 0
    with tqdm(total=total, desc=what, unit=unit, disable=None if total else True, leave=False) as bar:

        def done(n: int) -> None:
            nonlocal so_far
            bar.update(n)
            so_far += n
            tell(what, so_far, total)

        yield done
