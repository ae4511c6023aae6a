"""Errors a person can mend: shown as one line, with what to do, and exit code 2."""

from collections.abc import Sequence


class InputError(ValueError):
    """Something given to Engram cannot be used: a file, a model folder, a prompt, a number."""


class Diverged(InputError):
    """A search or a training whose loss is not finite: with these parameters it has no result."""


class TooLarge(InputError):
    """A computation that does not fit into the device's memory, not even one sample at a time."""


def refuse(problems: Sequence[str]) -> None:
    """Refuses what cannot be used, all of it at once; does nothing where there is nothing to refuse.

    Args:
        problems: one sentence each: what is wrong, where (file and line), and what to do.

    Raises:
        InputError: one problem as it stands; of several, a line that counts them, then a line each.
    """
    if len(problems) == 1:
        raise InputError(problems[0])
    if problems:
        raise InputError("\n  ".join([f"{len(problems)} things cannot be used:", *problems]))
