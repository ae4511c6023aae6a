"""Errors a person can mend: shown as one line, with what to do, and exit code 2."""


class InputError(ValueError):
    """Something given to Engram cannot be used: a file, a model folder, a prompt, a number."""


class Diverged(InputError):
    """A search or a training whose loss is not finite: with these parameters it has no result."""


class TooLarge(InputError):
    """A computation that does not fit into the device's memory, not even one sample at a time."""
