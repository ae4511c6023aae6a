"""`engram serve`: what it refuses, that it comes up, and that it leaves nothing behind."""

import os
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from prefect.client.orchestration import SyncPrefectClient
from prefect.states import Scheduled
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from flows.home import lock, private
from flows.serve import AUTH, _check_free, _check_reach, _end_leftovers, environment
from flows.watchdog import MARK
from storage import Store, run_sql
from tasks.errors import InputError
from tests.support.hook import Hook
from tests.support.served import ENGRAM, Served, free_port, until
from tests.support.world import tiny_world

LONG = {"seeds": 100, "sampling": {"steps": 500}, "wanda": {"tau": 500, "sparsity": 0.1}}
"""Settings of an audit that is still at work when it is stopped."""


@dataclass
class Life:
    """One start of the platform, and its end."""

    greeting: str
    ids: dict[str, Any]
    """Of its deployments."""
    ended: int = -1
    left: list[str] = field(default_factory=list)
    """Processes that were still there after the end."""
    seen: dict[str, Any] = field(default_factory=dict)


def ended(life: Life, served: Served, number: signal.Signals) -> None:
    assert len(served.processes()) >= 2  # the server and a worker, at least
    life.ended = served.stop(number)
    life.left = [str(process) for process in served.processes()]


def deployments(client: SyncPrefectClient) -> dict[str, Any]:
    return {each.name: each.id for each in client.read_deployments()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("lives")


@pytest.fixture(scope="module")
def first(folder: Path) -> Life:
    """With authentication; stopped by SIGTERM while two nightly audits are due soon."""
    with Served(folder, auth="auditor:secret") as served, served.client() as client:
        life = Life(served.greeting, deployments(client))
        life.seen["without"] = httpx.get(f"{served.url}/api/admin/version").status_code
        life.seen["wrong"] = httpx.get(f"{served.url}/api/admin/version", auth=("auditor", "guess")).status_code
        life.seen["right"] = httpx.get(f"{served.url}/api/admin/version", auth=("auditor", "secret")).status_code
        due = datetime.now(UTC) + timedelta(seconds=25)
        life.seen["due"] = [
            client.create_flow_run_from_deployment(life.ids["nightly"], state=Scheduled(scheduled_time=due)).id
            for _ in range(2)
        ]
        ended(life, served, signal.SIGTERM)
    time.sleep(max(0.0, (due - datetime.now(UTC)).total_seconds()))
    return life


@pytest.fixture(scope="module")
def second(first: Life, folder: Path) -> Life:
    """In the same folder; stopped by Ctrl-C while an audit is at work."""
    model = tiny_world(folder / "world")
    with Served(folder) as served, served.client() as client:
        life = Life(served.greeting, deployments(client))
        life.seen["csrf"] = httpx.post(f"{served.url}/api/deployments/filter", json={}).status_code
        settings = httpx.get(f"{served.url}/ui-settings").json()
        life.seen["ui"] = (settings["api_url"], httpx.get(served.url, follow_redirects=True).status_code)

        def states() -> list[str | None] | None:
            found = [client.read_flow_run(run).state for run in first.seen["due"]]
            final = [state.name for state in found if state is not None and state.is_final()]
            return sorted(final, key=str) if len(final) == len(found) else None

        life.seen["missed"] = until(states, 180)
        params = {"model": str(model), "store": str(folder / "store"), "device": "cpu", "settings": LONG}
        run = client.create_flow_run_from_deployment(life.ids["audit"], parameters={"params": params})

        def at_work() -> bool:
            runs = client.read_flow_runs()
            return any(run.parent_task_run_id and run.state is not None and run.state.is_running() for run in runs)

        until(at_work, 180)
        ended(life, served, signal.SIGINT)
    with sqlite3.connect(served.home / "prefect.db") as database:
        statement = "SELECT state_type, state_name FROM flow_run WHERE id = ?"
        life.seen["interrupted"] = database.execute(statement, [str(run.id)]).fetchone()
    life.seen["audits"] = run_sql(Store.open(str(folder / "store")), "SELECT state FROM audits").to_pylist()
    return life


@pytest.mark.slow
@pytest.mark.server
@pytest.mark.parametrize("number", [1, 2])
def test_nothing_is_left_behind(first: Life, second: Life, number: int) -> None:
    life = (first, second)[number - 1]
    assert life.ended == 0
    assert life.left == []


@pytest.mark.slow
@pytest.mark.server
def test_it_says_where_it_is(first: Life) -> None:
    assert first.greeting.startswith("Engram is at http://127.0.0.1:")
    assert "worker-cpu (2 at a time)" in first.greeting


@pytest.mark.slow
@pytest.mark.server
def test_a_second_start_goes_on_with_the_same_database(first: Life, second: Life) -> None:
    assert first.ids == second.ids


@pytest.mark.slow
@pytest.mark.server
def test_who_has_no_password_is_not_let_in(first: Life) -> None:
    assert (first.seen["without"], first.seen["wrong"], first.seen["right"]) == (401, 401, 200)


@pytest.mark.slow
@pytest.mark.server
def test_a_program_without_the_token_cannot_start_runs(second: Life) -> None:
    """A second lock on the door that flows/guard.py keeps shut."""
    assert second.seen["csrf"] == 403


@pytest.mark.slow
@pytest.mark.server
def test_the_ui_is_served_and_asks_where_it_came_from(second: Life) -> None:
    assert second.seen["ui"] == ("/api", 200)


@pytest.mark.slow
@pytest.mark.server
def test_nights_that_were_missed_are_made_up_for_once(second: Life) -> None:
    assert second.seen["missed"] == ["Cancelled", "Completed"]


@pytest.mark.slow
@pytest.mark.server
def test_a_run_that_is_stopped_with_it_says_so(second: Life) -> None:
    assert second.seen["interrupted"] == ("CRASHED", "Crashed")
    assert second.seen["audits"] == [{"state": "cancelled"}]


def test_others_are_let_in_only_with_a_password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(AUTH, raising=False)
    for host in ("0.0.0.0", "::"):
        with pytest.raises(InputError, match=AUTH):
            _check_reach(host, free_port())
    _check_reach("127.0.0.1", free_port())
    _check_reach("localhost", free_port())
    monkeypatch.setenv(AUTH, "auditor:secret")
    _check_reach("0.0.0.0", free_port())
    assert environment("http://127.0.0.1:4200", Path("home"))["PREFECT_API_AUTH_STRING"] == "auditor:secret"


def refused(folder: Path, *arguments: str, **more: str) -> str:
    """The one line in which it refuses to start."""
    command = [*ENGRAM, "serve", *arguments]
    env = {**os.environ, **more}
    found = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, env=env)
    assert found.returncode == 2
    assert len(found.stderr.splitlines()) == 1
    return found.stderr


def test_an_address_that_cannot_be_had_is_told_in_a_line(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        line = refused(tmp_path, "--port", str(taken.getsockname()[1]))
    assert line.startswith("engram: 127.0.0.1:") and f"process {os.getpid()}, " in line
    with pytest.raises(InputError, match="no address"):
        _check_reach("no.such.host.invalid", 4200)
    _check_free("localhost", free_port())


def test_what_is_wrong_is_said_before_anything_starts(tmp_path: Path) -> None:
    assert "'a/b' is no name" in refused(tmp_path, "--name", "a/b")
    assert "cannot be read from" in refused(tmp_path, "--notify-file", "no-such-file")
    assert "is no http://" in refused(tmp_path, ENGRAM_NOTIFY="hooks.example.com")
    assert not (tmp_path / ".engram" / "prefect").exists()
    (tmp_path / "things").mkdir()
    (tmp_path / "things" / "program").touch()
    assert "holds other things" in refused(tmp_path, "--home", "things")


def test_a_second_one_in_the_same_home_is_refused(tmp_path: Path) -> None:
    with lock(private(tmp_path / "home")):
        line = refused(tmp_path, "--home", "home", "--port", str(free_port()))
    assert line.startswith(f"engram: {tmp_path / 'home'} is in use by another `engram serve`, process {os.getpid()}:")


def test_what_an_earlier_start_left_is_ended(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sleep = [sys.executable, "-c", "import time; print(flush=True); time.sleep(600)"]
    homes = [private(tmp_path / name) for name in ("home", "other")]
    envs = [os.environ | {MARK: f"of {home}", "PREFECT_HOME": str(home)} for home in homes]
    left, others = (subprocess.Popen(sleep, env=env, stdout=subprocess.PIPE) for env in envs)
    try:
        for process in (left, others):
            assert process.stdout is not None
            process.stdout.readline()
        _end_leftovers(homes[0])
        left.wait(10)
        assert others.poll() is None
        assert "ending 1 processes that an earlier start left" in capsys.readouterr().err
        _end_leftovers(homes[0])
        assert capsys.readouterr().err == ""
    finally:
        others.kill()
        others.wait()


@pytest.mark.slow
@pytest.mark.server
def test_nothing_is_left_when_it_is_killed(tmp_path: Path) -> None:
    with Served(tmp_path) as served:
        assert len(served.processes()) >= 2
        served.process.kill()
        until(lambda: not served.processes(), 60)
        until(lambda: not watchdogs(served.home), 30)
        port = int(served.url.rpartition(":")[2])
        _check_free("127.0.0.1", port)


def watchdogs(home: Path) -> list[int]:
    """Processes whose log lies in this home."""
    log = str(home / "logs" / "watchdog.log")
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            if process.pid != os.getpid() and os.readlink(f"/proc/{process.pid}/fd/2") == log:
                found.append(process.pid)
    return found


@pytest.mark.slow
@pytest.mark.server
def test_the_home_is_closed_to_others(served: Served) -> None:
    with served.client() as client:
        deployment = client.read_deployment_by_name("nightly/nightly")
        run = client.create_flow_run_from_deployment(deployment.id)

        def ended() -> bool:
            state = client.read_flow_run(run.id).state
            return state is not None and state.is_final()

        until(ended, 180)
    everything = [served.home, *served.home.rglob("*")]
    assert {"prefect.db", "notices.json", "server.log", "index.html"} <= {path.name for path in everything}
    opened = {str(path): oct(path.stat().st_mode) for path in everything if path.stat().st_mode & 0o077}
    assert opened == {}
    assert {path.stat().st_mode & 0o777 for path in everything if path.is_file()} == {0o600}


@pytest.mark.slow
@pytest.mark.server
def test_the_address_that_is_told_is_in_no_list_of_processes(served: Served, hook: Hook) -> None:
    for process in served.processes():
        assert hook.url not in " ".join(process.cmdline())
        assert hook.url not in process.environ().values()


def spoken(served: Served, request: str) -> int:
    """The status of the answer to a request that is written out."""
    host, _, port = served.url.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port)), timeout=30) as connection:
        connection.sendall(request.replace("\n", "\r\n").encode() + b"\r\n\r\n")
        return int(connection.makefile("rb").readline().split()[1])


@pytest.mark.slow
@pytest.mark.server
def test_what_is_asked_under_another_name_gets_403(served: Served) -> None:
    """What a page gets that reaches this server by a name of its own, or from another port."""
    here = served.url.removeprefix("http://")
    port = here.partition(":")[2]
    evil = f"evil.example:{port}"
    assert spoken(served, f"GET /api/csrf-token?client=x HTTP/1.1\nHost: {here}") == 200
    assert spoken(served, f"GET /api/csrf-token?client=x HTTP/1.1\nHost: {here}\nOrigin: {served.url}") == 200
    assert spoken(served, f"GET / HTTP/1.1\nHost: localhost:{port}") == 200
    for path in ("/", "/ui-settings", "/api/health", "/api/csrf-token?client=x", "/docs", "/api/docs"):
        for header in (f"Host: {evil}", f"Host: {here}\nOrigin: http://{evil}", f"Host: {here}\nOrigin: null"):
            assert spoken(served, f"GET {path} HTTP/1.1\n{header}") == 403, (path, header)
    assert spoken(served, f"GET http://{evil}/api/health HTTP/1.1\nHost: {here}") == 403
    assert spoken(served, f"GET http://{here}/api/health HTTP/1.1\nHost: {here}") == 403
    assert spoken(served, "GET /api/health HTTP/1.0") == 403
    # HTTP itself calls these malformed.
    assert spoken(served, "GET /api/health HTTP/1.1") == 400
    assert spoken(served, f"GET /api/health HTTP/1.1\nHost: {evil}\nHost: {here}") == 400
    asks = f"Access-Control-Request-Method: POST\nOrigin: http://{evil}"
    assert spoken(served, f"OPTIONS /api/deployments/filter HTTP/1.1\nHost: {here}\n{asks}") == 403


@pytest.mark.slow
@pytest.mark.server
def test_no_run_is_started_under_another_name(served: Served) -> None:
    with served.client() as client:
        deployment = client.read_deployment_by_name("nightly/nightly")
        before = {run.id for run in client.read_flow_runs(limit=200)}
    body = {"state": {"type": "SCHEDULED"}, "job_variables": {"command": "touch stolen"}}
    with httpx.Client(base_url=served.url) as own:
        token = own.get("/api/csrf-token", params={"client": "me"}).json()["token"]
        known = {"Prefect-Csrf-Token": token, "Prefect-Csrf-Client": "me"}
        for headers in ({"Host": f"evil.example:{httpx.URL(served.url).port}"}, {"Origin": "http://evil.example"}):
            path = f"/api/deployments/{deployment.id}/create_flow_run"
            answer = own.post(path, json=body, headers=known | headers)
            assert answer.status_code == 403
            assert not [name for name in answer.headers if name.startswith("access-control-")]
    with served.client() as client:
        assert {run.id for run in client.read_flow_runs(limit=200)} == before


@pytest.mark.slow
@pytest.mark.server
@pytest.mark.parametrize("path", ["events/in", "events/out", "logs/out"])
def test_sockets_open_to_programs_and_its_own_page_alone(served: Served, path: str) -> None:
    address, port = f"{served.url}/api/{path}".replace("http", "ws", 1), httpx.URL(served.url).port

    def answer(origin: str | None, url: str = address) -> int:
        try:
            here = socket.create_connection(("127.0.0.1", int(str(port))), timeout=30)
            with connect(url, sock=here, origin=origin, subprotocols=["prefect"]):  # type: ignore[arg-type, list-item]
                return 101
        except InvalidStatus as refused:
            return refused.response.status_code

    assert (answer(None), answer(served.url)) == (101, 101)
    for origin in ("http://evil.example", f"http://evil.example:{port}", "null", "http://127.0.0.1:1", "https://x"):
        assert answer(origin) == 403
    evil = address.replace("127.0.0.1", "evil.example")
    assert (answer(None, evil), answer(f"http://evil.example:{port}", evil)) == (403, 403)
