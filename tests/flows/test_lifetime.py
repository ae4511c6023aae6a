"""How commands end: by Ctrl-C in a real terminal, by signals, with their server, and when they are killed."""

import fcntl
import os
import pty
import select
import signal
import socket
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import psutil
import pytest
from tqdm import tqdm

from flows import lifetime
from flows.lifetime import prefect_server
from storage import Store, mark_lost, run_sql
from tasks.errors import InputError
from tests.support.served import until
from tests.support.world import tiny_world

ENGRAM = [sys.executable, "-c", "from flows.cli import main; main()"]
LONG = ("seeds=100", "sampling.steps=500", "wanda.tau=500", "wanda.sparsity=0.1", "threshold_nulls=2", "ordinary=2")
"""Settings of an audit that is at work for many minutes."""
SOON_S = 20.0
"""What is promised is 5 seconds; a machine that also runs other tests may need longer."""
STARTS_S = 400.0

BUSY = """
import hashlib, sys, time
from flows.lifetime import at_the_end, stoppable
with stoppable(), at_the_end(lambda: print("said", flush=True)):
    print("ready", flush=True)
    {work}
"""


def busy(work: str) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", BUSY.format(work=work)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    time.sleep(1)  # until it is in there
    return process


ONE_CALL = "hashlib.pbkdf2_hmac('sha256', b'word', b'salt', 300_000_000)"
"""One call that takes minutes, within which Python runs no signal handler."""
DEAF = """
    while True:
        try:
            time.sleep(60)
        except BaseException:
            pass"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("work", [ONE_CALL, DEAF], ids=["in one call", "deaf"])
def test_a_process_that_does_not_unwind_says_its_last_words_and_ends(work: str, number: signal.Signals) -> None:
    process = busy(work)
    process.send_signal(number)
    out, err = process.communicate(timeout=SOON_S)
    assert process.returncode == 130
    assert out == "said\n"
    assert err == "engram: interrupted; the same command goes on from here\n"


@pytest.mark.parametrize("terminal", [True, False])
def test_the_last_words_stand_on_a_line_of_their_own(
    terminal: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also in a file that a bar is drawn into, or that keeps all that a terminal shows."""
    words = "engram: interrupted; the same command goes on from here"
    for bars in (True, False):
        monkeypatch.setattr(lifetime, "_said", threading.Lock())
        monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal, raising=False)
        with tqdm(total=9, desc="at work", disable=not bars):
            lifetime.say_interrupted()
            assert words in capsys.readouterr().err.split("\n")
    lifetime.say_interrupted()  # once
    assert words not in capsys.readouterr().err


def test_a_process_that_unwinds_is_not_cut_off_by_further_signals() -> None:
    process = busy(
        "try:\n        time.sleep(60)\n    finally:\n        time.sleep(1)\n        print('recorded', flush=True)"
    )
    for _ in range(3):
        process.send_signal(signal.SIGINT)
        time.sleep(0.2)
    out, err = process.communicate(timeout=SOON_S)
    assert (process.returncode, out) == (130, "recorded\n")
    assert err.count("interrupted") == 1


TWO_SERVERS = """
from prefect import flow
from flows.lifetime import prefect_server

@flow
def nothing(): ...

for _ in range(2):
    with prefect_server():
        nothing()
"""


@pytest.mark.server
def test_events_of_a_second_server_are_not_sent_to_the_first() -> None:
    command, root = [sys.executable, "-c", TWO_SERVERS], Path(__file__).parents[2]
    found = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
    assert "EventsWorker" not in found.stderr


def test_a_server_that_is_named_and_does_not_answer_is_refused_in_a_line() -> None:
    from prefect.settings import PREFECT_API_URL, temporary_settings

    with socket.create_server(("127.0.0.1", 0)) as free:
        url = f"http://127.0.0.1:{free.getsockname()[1]}/api"
    with temporary_settings({PREFECT_API_URL: url}), pytest.raises(InputError) as refusal, prefect_server():
        raise AssertionError("work has begun")
    assert str(refusal.value).startswith(f"the Prefect server at {url} does not answer") and "unset" in str(
        refusal.value
    )
    assert "\n" not in str(refusal.value)


class Terminal:
    """A command in a terminal of its own, as a person has it."""

    def __init__(self, folder: Path, *words: str) -> None:
        env = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
        self.pid, self.screen = pty.fork()
        if self.pid == 0:
            os.chdir(folder)
            root = str(Path(__file__).resolve().parents[2])
            os.execve(sys.executable, [*ENGRAM, *words], env | {"TMPDIR": str(folder), "PYTHONPATH": root})
        # Bars are as wide as the terminal, which else would have no columns.
        fcntl.ioctl(self.screen, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 120, 0, 0))
        self.process = psutil.Process(self.pid)
        self.shown = b""

    def read(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if select.select([self.screen], [], [], 0.1)[0]:
                try:
                    self.shown += os.read(self.screen, 65536)
                except OSError:  # the other end is gone
                    return

    def ended(self, seconds: float) -> int:
        """The exit code."""
        deadline = time.monotonic() + seconds
        while True:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                return os.waitstatus_to_exitcode(status)
            if time.monotonic() > deadline:
                self.process.kill()
                raise AssertionError(f"it did not end: {self.shown.decode(errors='replace')[-2000:]}")
            self.read(0.2)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_world(tmp_path_factory.mktemp("world"))


def at_work(folder: Path, model: Path, *command: str) -> Iterator[Terminal]:
    """A command whose own server is up and whose work has begun."""
    sets = (word for one in LONG for word in ("--set", one))
    terminal = Terminal(folder, *command, "--model", str(model), "--store", "store", "--device", "cpu", *sets)
    try:
        deadline = time.monotonic() + STARTS_S
        while b"generating" not in terminal.shown:
            terminal.read(0.5)
            assert terminal.process.is_running() and time.monotonic() < deadline, terminal.shown.decode()
        yield terminal
    finally:
        for process in (
            (*terminal.process.children(recursive=True), terminal.process) if psutil.pid_exists(terminal.pid) else ()
        ):
            process.kill()


def _gone(process: psutil.Process) -> bool:
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


def states(folder: Path) -> list[str]:
    return [row["state"] for row in run_sql(Store.open(folder / "store"), "SELECT state FROM audits").to_pylist()]


def last_line(terminal: Terminal) -> str:
    return terminal.shown.decode().replace("\r", "\n").replace("\x1b[K", "").strip().splitlines()[-1]


@pytest.mark.slow
@pytest.mark.server
@pytest.mark.parametrize("how", ["Ctrl-C", "Ctrl-C twice", "SIGTERM", "terminal closed", "server killed"])
def test_an_audit_that_is_asked_to_end_says_so_in_a_line_and_in_the_store(
    how: str, model: Path, tmp_path: Path
) -> None:
    for terminal in at_work(tmp_path, model, "audit"):
        (server,) = terminal.process.children()
        if how.startswith("Ctrl-C"):
            for _ in range(how.count("twice") + 1):
                os.write(terminal.screen, b"\x03")
                time.sleep(0.3)
        elif how == "SIGTERM":
            terminal.process.terminate()
        elif how == "terminal closed":
            os.close(terminal.screen)
            terminal.read = lambda seconds: time.sleep(seconds)  # type: ignore[method-assign]
        else:
            server.kill()
        assert terminal.ended(SOON_S) == 130
        if how != "terminal closed":
            terminal.read(0.5)
            why = (
                "the Prefect server of this command ended by itself (SIGKILL)"
                if how.startswith("server")
                else ("interrupted")
            )
            assert last_line(terminal) == f"engram: {why}; the same command goes on from here"
            assert b"Traceback" not in terminal.shown and b"ERROR" not in terminal.shown
        assert states(tmp_path) == ["cancelled"]
        until(partial(_gone, server), SOON_S)
        assert not list(tmp_path.glob("engram-prefect-*"))


@pytest.mark.slow
@pytest.mark.server
def test_a_stage_ends_like_an_audit(model: Path, tmp_path: Path) -> None:
    for terminal in at_work(tmp_path, model, "confirm"):
        os.write(terminal.screen, b"\x03")
        assert terminal.ended(SOON_S) == 130
        terminal.read(0.5)
        assert last_line(terminal) == "engram: interrupted; the same command goes on from here"


@pytest.mark.slow
@pytest.mark.server
def test_an_audit_that_is_killed_takes_its_server_along_and_is_lost(model: Path, tmp_path: Path) -> None:
    for terminal in at_work(tmp_path, model, "audit"):
        (server,) = terminal.process.children()
        store = Store.open(tmp_path / "store")
        assert mark_lost(store) == []  # it is at work
        terminal.process.kill()
        assert terminal.ended(SOON_S) == -signal.SIGKILL
        until(partial(_gone, server), SOON_S)
        until(lambda: not list(tmp_path.glob("engram-prefect-*")), SOON_S)
        assert states(tmp_path) == ["running"]
        listed = subprocess.run(
            [*ENGRAM, "audits", "--store", str(tmp_path / "store")], capture_output=True, text=True, check=True
        )
        assert "  lost  " in listed.stdout and "is lost: its process is gone" in listed.stderr
        assert states(tmp_path) == ["lost"]
    for terminal in at_work(tmp_path, model, "audit"):  # the same command takes over
        assert sorted(states(tmp_path)) == ["lost", "running"]
        terminal.process.terminate()
        assert terminal.ended(SOON_S) == 130
    assert sorted(states(tmp_path)) == ["cancelled", "lost"]
