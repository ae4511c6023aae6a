"""The command line."""

import sys

# Each brings its commands; help lists them in this order.
from flows.cli import audits, platform, scans, store, world  # noqa: F401
from flows.cli.shared import app, quiet, settings_of
from storage import StoreError
from tasks.errors import InputError

INTERRUPTED = 130
"""The exit code after Ctrl-C."""


def main() -> None:
    """Runs the command line; a person's error is one line on stderr and exit code 2."""
    try:
        app()
    except (InputError, StoreError) as error:
        print(f"engram: {error}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:  # a full disk, missing rights
        print(f"engram: {error.filename or 'the disk'}: {error.strerror or error}", file=sys.stderr)
        sys.exit(2)
    except RuntimeError as error:
        if type(error).__name__ != "OutOfMemoryError":  # torch's, which takes seconds to import
            raise
        print(
            "engram: not one picture fits into the device's memory: free it, or take --set precision=bfloat16",
            file=sys.stderr,
        )
        sys.exit(2)
    except SystemExit as end:
        if end.code == INTERRUPTED:
            print("engram: interrupted; the same command goes on from here", file=sys.stderr)
        raise


__all__ = ["app", "main", "quiet", "settings_of"]
