"""Ends the processes of a platform: in order, and also where the process that started them was killed.

    python -m flows.watchdog MARK < the process numbers of the services, one a line, in the order they were started in

When its standard input is closed, whatever bears the mark is ended. It imports nothing large: it waits all day.
"""

import os
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress

import psutil

MARK = "ENGRAM_SERVE"
"""The environment variable that marks a process of the platform."""
GRACE_S = 15.0
"""How long a process may take to end, each time that it is asked."""


def end_all(services: Sequence[int], mark: str) -> None:
    """Ends runs, then workers, then the server: so a run can still say how it ended, and a worker where it stands.

    Args:
        services: process numbers of the services, in the order they were started in. The rest are runs.
        mark: what the processes have in their environment.
    """
    _end([process for process in _marked(mark) if process.pid not in services])
    for service in reversed(services):
        _end([process for process in _marked(mark) if process.pid == service])
    _end(_marked(mark))


def _end(processes: list[psutil.Process]) -> None:
    """SIGTERM, and SIGKILL for what does not heed it."""
    # Asked twice: Python loses a signal whose handler raises where exceptions are ignored, as in a destructor. Not
    # oftener: the second one cuts off a run that is saying how it ended.
    for ask in (psutil.Process.terminate, psutil.Process.terminate, psutil.Process.kill):
        for process in processes:
            with suppress(psutil.NoSuchProcess):
                ask(process)
        _, processes = psutil.wait_procs(processes, timeout=GRACE_S)


def _marked(mark: str) -> list[psutil.Process]:
    """Every process that has the mark in its environment."""
    return [
        process for process in psutil.process_iter(["environ"]) if (process.info["environ"] or {}).get(MARK) == mark
    ]


def main() -> None:
    for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(each, signal.SIG_IGN)
    os.environ.pop(MARK, None)
    services = [int(line) for line in sys.stdin]
    end_all(services, sys.argv[1])


if __name__ == "__main__":
    main()
