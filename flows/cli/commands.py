"""All commands, and what a person reads where one fails."""

import os
import sys

# Each brings its commands; help lists them in this order.
from flows.cli import audits, platform, prompts, scans, store, world  # noqa: F401
from flows.cli.shared import app, quiet, settings_of
from flows.lifetime import INTERRUPTED, say_interrupted
from storage import StoreError, visible_lines
from tasks.errors import InputError, out_of_memory

OUT_OF_MEMORY = "not one image fits into the device's memory: free it, or take --set precision=bfloat16"


def run() -> None:
    """Runs the command that was typed; a person's error is one line on stderr and exit code 2."""
    reach_this_machine()
    try:
        app()
    except (InputError, StoreError) as error:
        print(f"engram: {visible_lines(str(error))}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:  # a full disk, missing rights
        said = f"{error.filename or 'the disk'}: {error.strerror or error}"
        print(f"engram: {visible_lines(said)}", file=sys.stderr)
        sys.exit(2)
    except RuntimeError as error:
        if not out_of_memory(error):
            raise
        print(f"engram: {OUT_OF_MEMORY}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        say_interrupted()
        sys.exit(INTERRUPTED)
    except SystemExit as end:
        if end.code == INTERRUPTED:
            say_interrupted()
        raise


def reach_this_machine() -> None:
    """Keeps requests to this machine away from an HTTP proxy, which would look for Prefect's server on its own."""
    named = {name.lower() for name in os.environ}
    known = os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or ""
    if named & {"http_proxy", "https_proxy", "all_proxy"} and known != "*":
        hosts = ",".join(filter(None, (known, "127.0.0.1", "localhost", "::1")))
        os.environ |= {"no_proxy": hosts, "NO_PROXY": hosts}


__all__ = ["app", "quiet", "reach_this_machine", "run", "settings_of"]
