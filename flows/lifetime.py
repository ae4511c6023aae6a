"""How a command ends: at once when it is asked to, however busy it is, and with all that it started.

A signal is noticed in a thread of its own: the main thread may be inside one operation of a large model for many
seconds, and Python runs signal handlers between operations only. The main thread is given some time to unwind. Then
what has to be said is said from here, and the process ends.
"""

import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from types import FrameType

from tasks.errors import InputError, first_line

STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""Ctrl-C, `kill`, and the end of the terminal."""
INTERRUPTED = 130
"""The exit code of a command that was asked to end."""
UNWINDING_S = 2.0
"""How long the main thread may take to end by itself."""
SAYING_S = 1.0
"""How long what is said last may take, as where a remote store does not answer."""
STARTUP_S = 180.0
"""How long a server may take until it answers: a busy machine needs longer than Prefect waits, 20 seconds."""
EVENTS_S = 5.0
"""How long Prefect may take to send its last events before a command's own server ends."""

_last_words: dict[object, Callable[[], None]] = {}
_reason = "interrupted"
_said = threading.Lock()
"""Taken by whoever says the last line; never given back."""


@contextmanager
def at_the_end(say: Callable[[], None]) -> Iterator[None]:
    """Within, `say` is called before this process ends without unwinding; it must be quick, and may be called while
    the main thread says the same."""
    key = object()
    _last_words[key] = say
    try:
        yield
    finally:
        _last_words.pop(key, None)


@contextmanager
def stoppable() -> Iterator[None]:
    """Within, Ctrl-C, SIGTERM and a hang-up raise KeyboardInterrupt once, and end the process soon in any case.

    Further signals are not heard: what is being recorded is not cut off. Who ignores hang-ups, as under nohup, goes on.
    `signal.set_wakeup_fd(-1)` leaves signals to whoever installs handlers of their own.
    """
    read, write = socket.socketpair()
    write.setblocking(False)
    heard = False

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal heard
        if not heard:
            heard = True
            raise KeyboardInterrupt

    def watch() -> None:
        while number := read.recv(1):
            if number[0] in handled:  # real-time signals have no name
                break
        else:
            return
        # Whoever waits for this process wants its end, not an orderly one.
        time.sleep(UNWINDING_S)
        end_at_once()

    handled = [each for each in STOPS if signal.getsignal(each) != signal.SIG_IGN]
    before = {each: signal.signal(each, stop) for each in handled}
    earlier = signal.set_wakeup_fd(write.fileno(), warn_on_full_buffer=False)
    threading.Thread(target=watch, name="stop", daemon=True).start()
    try:
        yield
    finally:
        if heard:  # what Prefect does at the end of a process may take longer than what it did before
            end_at_once()
        signal.set_wakeup_fd(earlier)
        for each, handler in before.items():
            signal.signal(each, handler)
        write.close()


def end_at_once() -> None:
    """Says what has to be said last, and ends this process; what it started ends with it, see `flows.server`."""

    def say() -> None:
        for each in list(_last_words.values()):
            with suppress(Exception):
                each()

    saying = threading.Thread(target=say, daemon=True)
    saying.start()
    saying.join(SAYING_S)
    say_interrupted()
    os._exit(INTERRUPTED)


def say_interrupted() -> None:
    """The one line of a command that was asked to end."""
    if not _said.acquire(blocking=False):
        return
    with suppress(OSError):  # the terminal may be gone
        start = "\n" if sys.stderr.isatty() or _bar_stands() else ""
        print(f"{start}engram: {_reason}; the same command goes on from here", file=sys.stderr, flush=True)


def _bar_stands() -> bool:
    """Whether a bar stands on the last line; some are drawn into logs, too."""
    tqdm = sys.modules.get("tqdm")  # whoever draws bars has imported it
    return tqdm is not None and bool(getattr(tqdm.tqdm, "_instances", ()))


@contextmanager
def prefect_server() -> Iterator[None]:
    """Within, Prefect has a server: the one that PREFECT_API_URL or the profile in use names, else one of this command.

    A command's own server keeps its database in a folder that is removed with it, so that commands do not meet in one
    file. It ends with this process, however that ends; if it ends before, so does the command.

    Raises:
        InputError: it does not come up, or the one that is named does not answer.
    """
    from prefect.context import refresh_global_settings_context
    from prefect.settings import (
        PREFECT_API_URL,
        PREFECT_LOGGING_TO_API_ENABLED,
        get_current_settings,
        temporary_settings,
    )

    from flows.server import HOME

    if (named := get_current_settings().api.url) is not None:
        _reach(named)
        yield
        return
    home = Path(tempfile.mkdtemp(prefix=HOME))
    server, closing = _begin(home), threading.Event()
    try:
        url = f"http://127.0.0.1:{_port(server, home)}/api"
        threading.Thread(target=_end_with, args=(server, closing), daemon=True).start()
        # Logs are for who looks at the server later; nobody can look at this one.
        own: dict[str, str] = {"PREFECT_API_URL": url, "PREFECT_LOGGING_TO_API_ENABLED": "false"}
        before = {name: os.environ.get(name) for name in own}
        os.environ |= own
        refresh_global_settings_context()  # threads of Prefect's look there
        # A server that ends with this process removes its folder itself; one that was killed cannot.
        remove = partial(shutil.rmtree, home, ignore_errors=True)
        try:
            with at_the_end(remove), temporary_settings({PREFECT_API_URL: url, PREFECT_LOGGING_TO_API_ENABLED: False}):
                yield
            _send_events()
        except Exception as error:
            if server.poll() is not None:  # what failed is a call to it
                raise KeyboardInterrupt from error
            _send_events()
            raise
        finally:
            for name, value in before.items():
                os.environ.pop(name)
                if value is not None:
                    os.environ[name] = value
            refresh_global_settings_context()
    finally:
        closing.set()
        if server.stdin is not None:
            server.stdin.close()
        try:
            server.wait(timeout=2)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()
        shutil.rmtree(home, ignore_errors=True)


def _send_events() -> None:
    """What sends events to this server is done with it: it would go on with the events of the next server, in vain."""
    from prefect.events.worker import EventsWorker

    EventsWorker.drain_all(timeout=EVENTS_S, at_exit=False)


def _reach(url: str) -> None:
    from prefect.client.orchestration import get_client

    try:
        with get_client(sync_client=True) as client:
            client.api_version()
    except Exception as error:  # no answer, no right, no server of Prefect's
        raise InputError(
            f"the Prefect server at {url} does not answer as one ({first_line(error)}): start it, or unset"
            " PREFECT_API_URL, in the environment or by `prefect config unset PREFECT_API_URL`, and the"
            " command brings up its own"
        ) from error


def _begin(home: Path) -> subprocess.Popen[bytes]:
    own = {
        "PREFECT_HOME": str(home),
        "PREFECT_PROFILES_PATH": str(home / "profiles.toml"),
        "PREFECT_API_DATABASE_CONNECTION_URL": f"sqlite+aiosqlite:///{home}/prefect.db",
        "PREFECT_SERVER_DATABASE_CONNECTION_URL": f"sqlite+aiosqlite:///{home}/prefect.db",
    }
    with (home / "server.log").open("wb") as log:
        # A session of its own: Ctrl-C reaches this process alone, and the server is there while it says how it ended.
        return subprocess.Popen(
            [sys.executable, "-m", "flows.server", "--temporary"],
            env=os.environ | own,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            start_new_session=True,
        )


def _port(server: subprocess.Popen[bytes], home: Path) -> int:
    """The port that the server says it listens at, once it answers."""
    assert server.stdout is not None
    deadline, said = time.monotonic() + STARTUP_S, b""
    while not said.endswith(b"\n") and time.monotonic() < deadline:
        ready, _, _ = select.select([server.stdout], [], [], max(0.0, deadline - time.monotonic()))
        more = os.read(server.stdout.fileno(), 64) if ready else b""
        if not more:
            break
        said += more
    if not said.strip().isdigit():
        server.kill()
        lines = (home / "server.log").read_text(errors="replace").strip().splitlines()
        why = lines[-1].strip() if lines else f"it did not answer within {STARTUP_S:.0f} seconds"
        raise InputError(f"the Prefect server of this command did not start: {why}")
    return int(said)


def _end_with(server: subprocess.Popen[bytes], closing: threading.Event) -> None:
    """Ends this process when its server has ended by itself: every call to it would be tried again for minutes."""
    global _reason
    code = server.wait()
    if closing.is_set():
        return
    _reason = f"the Prefect server of this command ended by itself ({_how(code)})"
    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)


def _how(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"
