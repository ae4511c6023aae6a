"""Errors a person can mend: shown as one line, with what to do, and exit code 2."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager


class InputError(ValueError):
    """Something given to Engram cannot be used: a file, a model folder, a prompt, a number.

    Its arguments are sentences, one for each thing.
    """

    @property
    def problems(self) -> tuple[str, ...]:
        """What is wrong, a sentence each, with all that no terminal should see escaped."""
        return tuple(printable(str(problem)) for problem in self.args)

    def __str__(self) -> str:
        """One problem as it stands; of several, a line that counts them, then a line each."""
        if len(self.args) < 2:
            return "".join(self.problems)
        return "\n  ".join([f"{len(self.args)} things cannot be used:", *self.problems])


class Diverged(InputError):
    """A search or a training whose loss is not finite: with these parameters it has no result."""


class TooLarge(InputError):
    """A computation that does not fit into the device's memory, not even one sample at a time."""


def refuse(problems: Sequence[str]) -> None:
    """Refuses what cannot be used, all of it at once; does nothing where there is nothing to refuse.

    Args:
        problems: one sentence each: what is wrong, where (file and line), and what to do.

    Raises:
        InputError: of all of them.
    """
    if problems:
        raise InputError(*dict.fromkeys(problems))


def gathered(*rules: Callable[[], object] | None) -> list[str]:
    """What all of these refuse, a sentence each.

    Args:
        rules: each raises InputError where something cannot be used; None is none.
    """
    found: list[str] = []
    for rule in rules:
        with noting(found):
            if rule is not None:
                rule()
    return found


@contextmanager
def noting(problems: list[str]) -> Iterator[None]:
    """Within, what is refused ends the block and is added to `problems`, a sentence each."""
    try:
        yield
    except InputError as error:
        problems += error.problems


def first_line(error: BaseException) -> str:
    """The first line of an error's message; the name of its class where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip()


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that the device's memory ended.

    By its name, since torch takes seconds to import; on Apple GPUs by its message, of a plain RuntimeError.
    """
    return type(error).__name__ == "OutOfMemoryError" or (
        isinstance(error, RuntimeError) and str(error).startswith(("MPS backend out of memory", "Invalid buffer size"))
    )


def printable(text: str) -> str:
    """A text on one line; what moves a terminal's cursor or colours it, such as ESC, is escaped.

    So are the characters that turn the direction of what follows, by which a name can look like another.
    """
    if text.isprintable():
        return text
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)
