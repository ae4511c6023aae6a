"""The platform in one command: Prefect's server and UI, its workers, deployments and automations; and down again.

Everything is a child process with one mark in its environment, which the runs that workers start inherit. So stopping
finds every one of them, whoever its parent is by then. A watchdog does so where this process itself was killed.
"""

import errno
import ipaddress
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import psutil

from flows.home import lock, private
from flows.server import address_of, listen, served_as
from flows.watchdog import MARK, end_all
from tasks.errors import InputError

AUTH = "PREFECT_SERVER_API_AUTH_STRING"

RUNS_AT_ONCE = {"cpu": 2, "gpu": 1, "plan": 8}
"""Runs that a worker has at a time, by its pool. A GPU works on one; what plans only waits."""
DATABASE = "PREFECT_SERVER_DATABASE_CONNECTION_URL"
SQLITE_MOST = 8
"""Runs at a time that may report to a server on SQLite, which lets one write at a time."""

STARTUP_S = 180.0
STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
Process = subprocess.Popen[bytes]


class _Stop(BaseException):
    """Somebody asked for the end."""


def serve(
    host: str,
    port: int,
    store: str,
    home: Path,
    notify: str | None,
    names: Sequence[str] = (),
    cpu_runs: int = RUNS_AT_ONCE["cpu"],
    gpus: int | None = None,
    keep_images: int | None = None,
) -> None:
    """Runs until Ctrl-C or SIGTERM; then nothing of it is left running. Nor is anything if it is killed.

    Args:
        host: the address that server and UI listen at. One that others can reach needs authentication.
        store: address of the store that forms are filled in with.
        home: folder of the server's database and of the logs; it and what lies in it are closed to others.
        notify: the address that is told of regressions.
        names: further names that the server is reached by, as `flows.guard.origins` takes them.
        cpu_runs: runs of the pool cpu at a time; no worker of it for 0.
        gpus: GPUs that work, each with a worker of its own; all that there are if None.
        keep_images: of how many nights images are kept; what was set before if None.

    Raises:
        InputError: the address cannot be listened at, others could reach it without authentication, the home is
            another's or in use, or more is to work than there is.
        SystemExit: something did not come up, or ended by itself.
    """
    _check_reach(host, port)
    served_as(host, port, [*names])
    workers = workers_of(cpu_runs, gpus, gpu_count() if gpus != 0 else 0)
    home = private(home)
    with lock(home):
        _end_leftovers(home)
        _check_free(host, port)
        _run(host, port, store, home, notify, names, workers, keep_images)


@dataclass(frozen=True)
class Worker:
    """A worker of a pool."""

    name: str
    pool: str
    at_once: int
    """Runs at a time."""
    gpu: int | None = None
    """The only GPU that its runs see; None for whatever there is."""

    @property
    def command(self) -> list[str]:
        """What starts it."""
        limit = str(self.at_once)
        return ["-m", "prefect", "worker", "start", "--pool", self.pool, "--limit", limit, "--name", self.name]


def workers_of(cpu_runs: int, gpus: int | None, there: int) -> list[Worker]:
    """The workers of a platform on this machine: one of the pool cpu, one for each GPU, and one that plans.

    Args:
        there: GPUs that this machine has.

    Raises:
        InputError: more GPUs than there are, nothing that works, or more runs at a time than the database bears.
    """
    if gpus is not None and gpus > there:
        raise InputError(f"--gpus {gpus}: this machine has {there}")
    gpus = there if gpus is None else gpus
    if cpu_runs + gpus == 0:
        raise InputError("nothing would work: --cpu-workers 0 without a GPU")
    at_once = cpu_runs + gpus
    if at_once > SQLITE_MOST and not os.environ.get(DATABASE, "").startswith("postgresql"):
        raise InputError(
            f"{at_once} runs at a time are more than the {SQLITE_MOST} that a server on SQLite bears: set {DATABASE} to"
            " a PostgreSQL database, as docker/ does, or start fewer with --cpu-workers and --gpus"
        )
    cpu = [Worker("worker-cpu", "cpu", cpu_runs)] if cpu_runs else []
    gpu = [Worker(f"worker-gpu-{number}", "gpu", RUNS_AT_ONCE["gpu"], number) for number in range(gpus)]
    return [*cpu, *gpu, Worker("worker-plan", "plan", RUNS_AT_ONCE["plan"])]


def _run(
    host: str,
    port: int,
    store: str,
    home: Path,
    notify: str | None,
    names: Sequence[str],
    workers: Sequence[Worker],
    keep_images: int | None,
) -> None:
    logs = home / "logs"
    logs.mkdir(mode=0o700, exist_ok=True)
    url = address_of(host, port)
    mark = secrets.token_hex(8)
    env = {name: value for name, value in os.environ.items() if name != "ENGRAM_NOTIFY"}
    env |= environment(url, home) | {MARK: mark}
    services: list[Process] = []

    def start(name: str, *command: str, **more: str) -> Process:
        log = os.open(logs / f"{name}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            # A session of its own: Ctrl-C reaches this process alone, which ends the others in order.
            process = subprocess.Popen(
                [sys.executable, *command], env=env | more, stdout=log, stderr=log, stdin=subprocess.DEVNULL,
                start_new_session=True,
            )  # fmt: skip
        finally:
            os.close(log)
        services.append(process)
        watchdog.knows(process.pid)
        return process

    with _stoppable(), _Watchdog(mark, logs) as watchdog:
        try:
            named = [f"--name={name}" for name in names]
            server = start("server", "-m", "flows.server", "--host", host, "--port", str(port), *named)
            _wait_for(server, url, logs)
            # As an argument, others could read it in the list of processes.
            secret = {} if notify is None else {"ENGRAM_NOTIFY": notify}
            kept = [] if keep_images is None else ["--keep-images", str(keep_images)]
            deploying = start(
                "deploy", "-c", "from flows.cli import main; main()", "deploy", "--store", store, *kept, **secret
            )
            if deploying.wait() != 0:
                raise SystemExit(f"engram: nothing was deployed. {_end_of(logs / 'deploy.log')}")
            services.remove(deploying)
            for worker in workers:
                own = {} if worker.gpu is None else {"CUDA_VISIBLE_DEVICES": str(worker.gpu)}
                start(worker.name, *worker.command, **own)
            by = ", ".join(f"{worker.name} ({worker.at_once} at a time)" for worker in workers)
            print(f"Engram is at {url}, with {by}. Logs are in {logs}. Ctrl-C stops it.")
            sys.stdout.flush()
            _watch(services, logs)
        except _Stop:
            print("engram: stopping", file=sys.stderr)
        finally:
            for each in STOPS:
                signal.signal(each, signal.SIG_IGN)
            end_all([process.pid for process in services], mark)
            for process in services:
                process.wait()


class _Watchdog:
    """A process that ends the others when this one is gone, however that came about."""

    def __init__(self, mark: str, logs: Path) -> None:
        self._mark, self._log = mark, logs / "watchdog.log"

    def __enter__(self) -> "_Watchdog":
        log = os.open(self._log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "flows.watchdog", self._mark], stdin=subprocess.PIPE, stdout=log, stderr=log,
                start_new_session=True,
            )  # fmt: skip
        finally:
            os.close(log)
        return self

    def knows(self, service: int) -> None:
        """Tells it of a service; it ends them in the opposite order."""
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):
            self._process.stdin.write(f"{service}\n".encode())
            self._process.stdin.flush()

    def __exit__(self, *raised: object) -> None:
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.wait()


def environment(url: str, home: Path) -> dict[str, str]:
    """Settings of server, workers and runs: local, silent, nothing sent anywhere."""
    auth = os.environ.get(AUTH)
    return {
        "PREFECT_HOME": str(home.resolve()),
        "PREFECT_PROFILES_PATH": str(home.resolve() / "profiles.toml"),
        "PREFECT_API_URL": f"{url}/api",
        **({"PREFECT_API_AUTH_STRING": auth} if auth else {}),
        # The browser asks whatever address it has the page from.
        "PREFECT_SERVER_UI_API_URL": "/api",
        "PREFECT_SERVER_UI_STATIC_DIRECTORY": str(home.resolve() / "ui"),
        "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
        # Beside flows/guard.py: a second lock on the same door.
        "PREFECT_SERVER_CORS_ALLOWED_ORIGINS": url,
        "PREFECT_SERVER_CSRF_PROTECTION_ENABLED": "true",
        # In memory, as is the default, the place of a run that a power cut ended would never be free again.
        "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
        # What a run announces is kept before the run goes on.
        "PREFECT_SERVER_SERVICES_EVENT_PERSISTER_FLUSH_INTERVAL": "1",
        "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30",
        "PREFECT_WORKER_QUERY_SECONDS": "5",
        "PREFECT_SERVER_LOGGING_LEVEL": "WARNING",
    }


def _check_reach(host: str, port: int) -> None:
    """Raises InputError where there is no such address, or others could reach it who give no password."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, OverflowError) as error:
        raise InputError(f"no address {host}:{port}: {error}") from error
    open_to_others = [address for *_, address in found if not ipaddress.ip_address(address[0]).is_loopback]
    if open_to_others and not os.environ.get(AUTH):
        raise InputError(f"others can reach {host}: set {AUTH}=USER:PASSWORD first, or leave out --host")


def _check_free(host: str, port: int) -> None:
    """Raises InputError where something listens already; says what."""
    try:
        for socket in listen(host, port):
            socket.close()
    except OSError as error:
        held = f"{_holder(port)} has it" if error.errno == errno.EADDRINUSE else error.strerror
        raise InputError(f"{host}:{port} cannot be had ({held}): choose another --port") from error


def _holder(port: int) -> str:
    """The process that listens at a port, as far as we may know it."""
    with suppress(psutil.Error, OSError):
        for each in psutil.net_connections("tcp"):
            if each.status == psutil.CONN_LISTEN and each.laddr and each.laddr.port == port and each.pid:
                return f"process {each.pid}, {' '.join(psutil.Process(each.pid).cmdline())[:80]},"
    return "a process of another user"


def _end_leftovers(home: Path) -> None:
    """Ends what an earlier start in this home left, which only its watchdog's death together with its own can do."""
    left = [
        process
        for process in psutil.process_iter(["environ"])
        if MARK in (environ := process.info["environ"] or {}) and environ.get("PREFECT_HOME") == str(home)
    ]
    if left:
        print(f"engram: ending {len(left)} processes that an earlier start left in {home}", file=sys.stderr)
        for mark in {process.info["environ"][MARK] for process in left}:
            end_all([], mark)


def gpu_count() -> int:
    """GPUs of this machine that torch can use."""
    # Asked of another process: this one stays small, and off the GPU.
    code = "from tasks.diffusion.model import gpus_here; print(gpus_here())"
    asked = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    return int(asked.stdout or 0)


def _wait_for(server: Process, url: str, logs: Path) -> None:
    deadline = time.monotonic() + STARTUP_S
    while time.monotonic() < deadline and server.poll() is None:
        try:
            with urllib.request.urlopen(f"{url}/api/health", timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.3)
    raise SystemExit(f"engram: the server did not come up. {_end_of(logs / 'server.log')}")


def _end_of(log: Path) -> str:
    lines = log.read_text(errors="replace").split("\n")
    return f"{log} ends with: {next((line for line in reversed(lines) if line.strip()), '')}"


def _watch(services: list[Process], logs: Path) -> None:
    while all(process.poll() is None for process in services):
        time.sleep(0.5)
    raise SystemExit(f"engram: the server or a worker ended by itself; see {logs}")


@contextmanager
def _stoppable() -> Iterator[None]:
    """Within, the first Ctrl-C, SIGTERM or hang-up raises _Stop; further ones are not heard while things end."""

    def stop(number: int, frame: FrameType | None) -> None:
        for each in STOPS:
            signal.signal(each, signal.SIG_IGN)
        raise _Stop

    # Who ignores hang-ups, as under nohup, goes on.
    heard = [each for each in STOPS if each != signal.SIGHUP or signal.getsignal(each) != signal.SIG_IGN]
    before = {each: signal.signal(each, stop) for each in heard}
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
