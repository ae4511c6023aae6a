"""What processes are there, asked so that one which ends meanwhile is no error."""

from contextlib import suppress

import psutil


def descendants(pid: int) -> dict[psutil.Process, str]:
    """The living processes that descend from one, with their command lines; none where that one has ended."""
    found = {}
    with suppress(psutil.NoSuchProcess):
        for child in psutil.Process(pid).children(recursive=True):
            # A zombie has no command line any more, and is as good as gone.
            with suppress(psutil.NoSuchProcess):
                found[child] = " ".join(child.cmdline())
    return found
