"""The services of docker/compose.yaml, with its commands and settings, as processes of this machine.

What differs between containers and processes is put in their place: names of hosts, ports and folders. So a setting
that is wrong in the compose file fails here.
"""

import os
import re
import secrets
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Self

import httpx
import psutil
import yaml
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, temporary_settings

from flows.serve import _Watchdog
from flows.watchdog import MARK, end_all
from tests.support.postgres import Postgres
from tests.support.served import ENGRAM, free_port, until

ROOT = Path(__file__).parents[2]
STARTUP_S = 240
PROGRAMS = {
    "python": [sys.executable],
    "engram": ENGRAM,
    "prefect": [sys.executable, "-m", "prefect"],
}


class Composed:
    """Server and deployments, within a `with`; workers are started one by one, as many as a test needs.

    with Composed(folder, database, told=hook.url) as composed:
        composed.worker("cpu")
        composed.worker("cpu")
    """

    def __init__(self, folder: Path, database: Postgres, told: str = "", auth: str = "auditor:secret") -> None:
        """Starts nothing yet.

        Args:
            folder: what lies in the containers' volumes lies below it.
            database: in place of the service `database`.
            told: the address that notices go to.
            auth: USER:PASSWORD of the server.
        """
        self.folder, self.auth = folder, auth
        self.data = folder / "data"
        """Where runs work."""
        self.store = str(self.data / "store")
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        self._services: dict[str, Any] = yaml.safe_load((ROOT / "docker" / "compose.yaml").read_text())["services"]
        self._given = {"ENGRAM_AUTH": auth, "POSTGRES_PASSWORD": database.password, "ENGRAM_NOTIFY": told}
        self._here = {
            "@database/": f"@127.0.0.1:{database.port}/",
            "server:4200": f"127.0.0.1:{port}",
            "127.0.0.1:4200": f"127.0.0.1:{port}",
            "4200": str(port),
            "0.0.0.0": "127.0.0.1",
            "/srv/engram": str(self.data),
            "/srv/prefect": str(folder / "server"),
        }
        self._mark = secrets.token_hex(8)
        self._running: list[subprocess.Popen[bytes]] = []
        self._workers = 0

    def __enter__(self) -> Self:
        self.data.mkdir(parents=True)
        self._watchdog = _Watchdog(self._mark, self.folder)
        self._watchdog.__enter__()
        try:
            server = self._start("server", self.folder / "server")
            until(lambda: self._answers(server), STARTUP_S)
            deployments = self._start("deployments", self.folder / "deployments")
            assert deployments.wait(STARTUP_S) == 0, self.log("deployments")
            self._running.remove(deployments)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *raised: object) -> None:
        end_all([process.pid for process in self._running], self._mark)
        for process in self._running:
            process.wait()
        self._watchdog.__exit__()

    def worker(self, pool: str) -> subprocess.Popen[bytes]:
        """Starts a worker of a pool; further ones of the same pool share its work."""
        self._workers += 1
        name, port = f"worker-{self._workers}", {"PREFECT_WORKER_WEBSERVER_PORT": str(free_port())}
        return self._start(f"worker-{pool}", self.folder / name, name, port)

    def kill(self, worker: subprocess.Popen[bytes]) -> None:
        """Ends a worker as the end of its machine would, with the runs that it has."""
        for each in _with_children(worker):
            with suppress(psutil.NoSuchProcess):
                each.kill()
        worker.wait()
        self._running.remove(worker)

    def freeze(self, worker: subprocess.Popen[bytes]) -> None:
        """Stops a worker and the runs that it has where they are; see `thaw`."""
        for each in _with_children(worker):
            with suppress(psutil.NoSuchProcess):
                each.suspend()

    def thaw(self, worker: subprocess.Popen[bytes]) -> None:
        for each in _with_children(worker):
            with suppress(psutil.NoSuchProcess):
                each.resume()

    def log(self, name: str) -> str:
        """What a service printed last."""
        return (self.folder / f"{name}.log").read_text()[-4000:]

    @contextmanager
    def client(self) -> Iterator[SyncPrefectClient]:
        """A client of its server; what else of Prefect is called within asks that server, too."""
        settings = {PREFECT_API_URL: f"{self.url}/api", PREFECT_API_AUTH_STRING: self.auth}
        with temporary_settings(settings), get_client(sync_client=True) as client:
            yield client

    def _start(
        self, service: str, home: Path, name: str | None = None, more: Mapping[str, str] | None = None
    ) -> subprocess.Popen[bytes]:
        """Starts a service as the compose file says, with a home of its own, as each container has one."""
        described = self._services[service]
        program, *arguments = described["command"]
        env = {each: value for each, value in os.environ.items() if not each.startswith(("PREFECT_", "ENGRAM_"))}
        env |= {each: self._said(value) for each, value in described["environment"].items()}
        env |= {"PREFECT_HOME": str(home), "PREFECT_PROFILES_PATH": str(home / "profiles.toml"), MARK: self._mark}
        env |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"} | dict(more or {})
        with open(self.folder / f"{name or service}.log", "wb") as log:
            process = subprocess.Popen(
                [*PROGRAMS[program], *(self._said(each) for each in arguments)],
                cwd=self.data,
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._running.append(process)
        self._watchdog.knows(process.pid)
        return process

    def _said(self, text: str) -> str:
        """A value of the compose file with its variables, and with the names of this machine."""

        def value(found: re.Match[str]) -> str:
            name, how, default = found.groups()
            given = self._given.get(name, "")
            assert given or how != ":?", f"{name} is not given"
            return given or (default if how == ":-" else "")

        names = "|".join(map(re.escape, self._here))
        text = re.sub(names, lambda found: self._here[found[0]], text)
        return re.sub(r"\$\{(\w+)(?:(:[-?])([^}]*))?\}", value, text)

    def _answers(self, server: subprocess.Popen[bytes]) -> bool:
        assert server.poll() is None, self.log("server")
        try:
            return httpx.get(f"{self.url}/api/health").status_code == 200
        except httpx.HTTPError:
            return False


def _with_children(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    found = psutil.Process(process.pid)
    return [found, *found.children(recursive=True)]
