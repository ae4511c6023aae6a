"""The platform in one command: Prefect's server and UI, its workers, deployments and automations; and down again.

Everything is a child process with one mark in its environment, which the runs that workers start inherit. So stopping
finds every one of them, whoever its parent is by then.
"""

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
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

import psutil

from tasks.errors import InputError

MARK = "ENGRAM_SERVE"
"""The environment variable that marks a process of the platform."""
AUTH = "PREFECT_SERVER_API_AUTH_STRING"

RUNS_AT_ONCE = {"cpu": 2, "gpu": 1}
"""Runs that a worker has at a time, by its pool."""

STARTUP_S = 180.0
STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
GRACE_S = 15.0
"""How long a process may take to end, each time that it is asked."""

Process = subprocess.Popen[bytes]


class _Stop(BaseException):
    """Somebody asked for the end."""


def serve(host: str, port: int, store: str, home: Path, notify: str | None) -> None:
    """Runs until Ctrl-C or SIGTERM; then nothing of it is left running.

    Args:
        host: the address that server and UI listen at. One that others can reach needs authentication.
        store: address of the store that forms are filled in with.
        home: folder of the server's database and of the logs.
        notify: the address that is told of regressions.

    Raises:
        InputError: the address cannot be listened at, or others could reach it without authentication.
        SystemExit: something did not come up, or ended by itself.
    """
    _check(host, port)
    logs = home / "logs"
    try:
        logs.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot write into {home}: {error.strerror}; choose another folder with --home") from error
    url = f"http://{_in_url({'0.0.0.0': '127.0.0.1', '::': '::1'}.get(host, host))}:{port}"
    mark = secrets.token_hex(8)
    env = os.environ | environment(url, home) | {MARK: mark}
    services: list[Process] = []

    def start(name: str, *command: str) -> Process:
        with (logs / f"{name}.log").open("ab") as log:
            # A session of its own: Ctrl-C reaches this process alone, which ends the others in order.
            process = subprocess.Popen(
                [sys.executable, *command], env=env, stdout=log, stderr=log, stdin=subprocess.DEVNULL,
                start_new_session=True,
            )  # fmt: skip
        services.append(process)
        return process

    with _stoppable():
        try:
            server = start("server", "-m", "prefect", "server", "start", "--host", host, "--port", str(port))
            pools = ["cpu", "gpu"] if _has_gpu() else ["cpu"]
            _wait_for(server, url, logs)
            if notify is not None:  # by the environment: others could read it in the list of processes
                env["ENGRAM_NOTIFY"] = notify
            deploying = start("deploy", "-c", "from flows.cli import main; main()", "deploy", "--store", store)
            if deploying.wait() != 0:
                raise SystemExit(f"engram: nothing was deployed. {_end_of(logs / 'deploy.log')}")
            services.remove(deploying)
            env.pop("ENGRAM_NOTIFY", None)
            for pool in pools:
                limit = str(RUNS_AT_ONCE[pool])
                start(f"worker-{pool}", "-m", "prefect", "worker", "start", "--pool", pool, "--limit", limit)
            print(f"Engram is at {url}, with workers for {' and '.join(pools)}. Logs are in {logs}. Ctrl-C stops it.")
            sys.stdout.flush()
            _watch(services, logs)
        except _Stop:
            print("engram: stopping", file=sys.stderr)
        finally:
            _stop(services, mark)


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
        # Without these, any web page that is open in a browser on this machine could start runs.
        "PREFECT_SERVER_CORS_ALLOWED_ORIGINS": url,
        "PREFECT_SERVER_CSRF_PROTECTION_ENABLED": "true",
        # In memory, as is the default, the place of a run that a power cut ended would never be free again.
        "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
        "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30",
        "PREFECT_WORKER_QUERY_SECONDS": "5",
        "PREFECT_SERVER_LOGGING_LEVEL": "WARNING",
    }


def _check(host: str, port: int) -> None:
    """Raises InputError where the address cannot, or must not, be listened at."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, OverflowError) as error:
        raise InputError(f"no address {host}:{port}: {error}") from error
    open_to_others = [address for *_, address in found if not ipaddress.ip_address(address[0]).is_loopback]
    if open_to_others and not os.environ.get(AUTH):
        raise InputError(f"others can reach {host}: set {AUTH}=USER:PASSWORD first, or leave out --host")
    family, kind, protocol, _, address = found[0]
    with socket.socket(family, kind, protocol) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(address)
        except OSError as error:
            raise InputError(f"{host}:{port} cannot be had ({error.strerror}): choose another --port") from error


def _in_url(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _has_gpu() -> bool:
    # Asked of another process: this one stays small, and off the GPU.
    asked = "import sys, torch; sys.exit(not torch.cuda.is_available())"
    return subprocess.run([sys.executable, "-c", asked], check=False, stderr=subprocess.DEVNULL).returncode == 0


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


def _stop(services: list[Process], mark: str) -> None:
    """Ends runs, then workers, then the server: so a run can still say how it ended, and a worker where it stands."""
    for each in STOPS:
        signal.signal(each, signal.SIG_IGN)
    ours = {process.pid for process in services}
    _end([process for process in _marked(mark) if process.pid not in ours])
    for service in reversed(services):
        _end([process for process in _marked(mark) if process.pid == service.pid])
        service.wait()
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
