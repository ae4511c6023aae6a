"""The command line.

What commands stand on takes seconds to import; it is imported where Ctrl-C is heard already.
"""

from flows.lifetime import stoppable


def main() -> None:
    """Runs the command line; a person's error is one line on stderr and exit code 2."""
    with stoppable():
        from flows.cli.commands import run

        run()
