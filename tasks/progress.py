"""How far long work is: a bar on the terminal or lines in a log, and whoever watches hears of it, too."""

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache
from time import monotonic

from tqdm import tqdm

from tasks.errors import printable

OnProgress = Callable[[str, int, int], None]
"""Called with what is going on, how much of it is done, and how much there is."""
_watcher: ContextVar[OnProgress | None] = ContextVar("watcher", default=None)

SECONDS_BETWEEN_LINES = 60.0
"""Where no terminal shows a bar, a line says how far work is, as often."""


@dataclass
class _Stage:
    """What a stage is at, for the lines in a log."""

    name: str
    began: float
    now: tuple[str, int, int, str] | None = None
    """What is going on, how much of it is done, how much there is, and of what."""

    def advance(self, what: str, done: int, total: int, unit: str) -> None:
        self.now = (what, done, total, unit) if done < total else None

    def line(self) -> str:
        """Where it is."""
        so_far = f"{_minutes(monotonic() - self.began)} so far"
        if self.now is None:
            return f"{self.name}: at work, {so_far}"
        what, done, total, unit = self.now
        return f"{self.name}: {what}, {done} of {total} {unit}{'s' if total != 1 else ''}, {so_far}"


_stage: _Stage | None = None
"""The stage at work: there is one at a time in a process."""


@contextmanager
def stage(name: str, did: Callable[[], str], announced: bool = True) -> Iterator[None]:
    """Where no terminal shows bars, a line when a stage begins, one a minute, and one when it ends, on standard error.

    Args:
        name: what the stage is called; a stage within another keeps the lines of the outer one.
        did: says at the end what was done.
        announced: whether it says that it begins; else it says nothing at all if it takes less than a minute.
    """
    global _stage
    if _stage is not None or sys.stderr.isatty():
        yield
        return
    _stage = at_work = _Stage(name, monotonic())
    over = threading.Event()

    def tick() -> None:
        nonlocal announced
        while not over.wait(SECONDS_BETWEEN_LINES):
            announced = True
            _say(at_work.line())

    if announced:
        _say(f"{name}: begins")
    threading.Thread(target=tick, name="progress", daemon=True).start()
    ended = "ended early"
    try:
        yield
        ended = "done"
    finally:
        over.set()
        _stage = None
        if announced:
            _say(f"{name}: {ended} after {_minutes(monotonic() - at_work.began)}: {did()}")


@contextmanager
def watching(on_progress: OnProgress) -> Iterator[None]:
    """Within, `on_progress` hears of everything that `progress` shows."""
    token = _watcher.set(on_progress)
    try:
        yield
    finally:
        _watcher.reset(token)


def tell(what: str, done: int, total: int, unit: str) -> None:
    """Lets whoever watches know how far something is.

    Args:
        unit: of what so many are done, such as "prompt".
    """
    if _stage is not None:
        _stage.advance(what, done, total, unit)
    if (on_progress := _watcher.get()) is not None:
        on_progress(what, done, total)


@contextmanager
def progress(total: int, what: str, unit: str) -> Iterator[Callable[[int], None]]:
    """A bar on the terminal: call with what was done. Nothing is shown when there is nothing to do."""
    so_far = 0
    if _stage is not None:
        _stage.advance(what, 0, total, unit)
    with tqdm(total=total, desc=what, unit=unit, disable=not sys.stderr.isatty() or not total, leave=False) as bar:

        def done(n: int) -> None:
            nonlocal so_far
            bar.update(n)
            so_far += n
            tell(what, so_far, total, unit)

        yield done


@cache
def say(line: str) -> None:
    """A note on standard error, once a process: every stage of an audit reads the files anew, every batch its size."""
    tqdm.write(f"note: {printable(line)}", file=sys.stderr)


def _minutes(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
