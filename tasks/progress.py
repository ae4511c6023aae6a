"""How far long work is: a bar on the terminal or lines in a log, and whoever watches hears of it, too."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from time import monotonic

from tqdm import tqdm

Told = Callable[[str, int, int], None]
"""Is told what is going on, how much of it is done, and how much there is."""
_watcher: ContextVar[Told | None] = ContextVar("watcher", default=None)

SECONDS_BETWEEN_LINES = 60
"""Where no terminal shows a bar, a line says how far work is, not more often than this."""


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
    so_far, logged = 0, not sys.stderr.isatty()
    began = last = monotonic()
    with tqdm(total=total, desc=what, unit=unit, disable=logged or not total, leave=False) as bar:

        def done(n: int) -> None:
            nonlocal so_far, last
            bar.update(n)
            so_far += n
            if logged and (now := monotonic()) - last >= SECONDS_BETWEEN_LINES:
                last = now
                print(f"{what}: {so_far} of {total}, {(now - began) / 60:.0f} min", file=sys.stderr, flush=True)
            tell(what, so_far, total)

        yield done
