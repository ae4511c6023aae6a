"""`engram serve` as a person starts it, in a folder and at a port of its own."""

import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self, TypeVar

import psutil
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, temporary_settings

ENGRAM = [sys.executable, "-c", "from flows.cli import main; main()"]
STARTUP_S = 240
T = TypeVar("T")


def free_port() -> int:
    with socket.socket() as condition:
        condition.bind(("127.0.0.1", 0))
        return int(condition.getsockname()[1])


class Served:
    """One platform. Its folder is the working directory, so the store and the database lie in it."""

    def __init__(self, folder: Path, *arguments: str, auth: str | None = None) -> None:
        self.folder, self.auth = folder, auth
        self.home = folder.resolve() / ".engram" / "prefect"
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        env = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "ENGRAM_"))}
        if auth is not None:
            env["PREFECT_SERVER_API_AUTH_STRING"] = auth
        self.process = subprocess.Popen(
            [*ENGRAM, "serve", "--port", str(port), *arguments],
            cwd=folder,
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self.greeting = self._first_line()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        if self.process.poll() is None:
            self.stop(signal.SIGTERM)

    def _first_line(self) -> str:
        assert self.process.stdout is not None and self.process.stderr is not None
        ready, _, _ = select.select([self.process.stdout], [], [], STARTUP_S)
        line = self.process.stdout.readline() if ready else ""
        if not line:
            self.stop(signal.SIGTERM)
            logs = "\n".join(path.read_text()[-2000:] for path in (self.home / "logs").glob("*.log"))
            raise AssertionError(f"engram serve did not come up: {self.process.stderr.read()}\n{logs}")
        return line

    def stop(self, number: signal.Signals) -> int:
        """As a terminal does it: the signal goes to every process of the group."""
        os.killpg(self.process.pid, number)
        return self.process.wait(timeout=180)

    def processes(self) -> list[psutil.Process]:
        """Every process that belongs to it, whoever its parent is."""
        everything = psutil.process_iter(["environ"])
        return [each for each in everything if (each.info["environ"] or {}).get("PREFECT_HOME") == str(self.home)]

    @contextmanager
    def client(self) -> Iterator[SyncPrefectClient]:
        """A client of its server; what else of Prefect is called within asks that server, too."""
        settings = {PREFECT_API_URL: f"{self.url}/api", PREFECT_API_AUTH_STRING: self.auth}
        with temporary_settings(settings), get_client(sync_client=True) as client:
            yield client


def until(condition: Callable[[], T | None], seconds: float = 120, every: float = 0.5) -> T:
    """What `condition` returns once it is true."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, "it did not come true"
        time.sleep(every)
    return found
