"""The command line.

What commands stand on takes seconds to import; it is imported where Ctrl-C is heard already.
"""

import os
import sys

from flows.lifetime import stoppable


def main() -> None:
    """Runs the command line; a person's error is one line on stderr and exit code 2."""
    open_streams()
    with stoppable():
        from flows.cli.commands import run

        run()


def open_streams() -> None:
    """Leads standard streams that are closed, as by `>&-`, to nowhere: the next file that is opened would take the
    place of one, and errors would be printed into what another program reads."""
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free, which is this one
            setattr(sys, name, open(number, mode))  # noqa: SIM115 (for as long as the process lives)
