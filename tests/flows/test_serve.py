"""`engram serve`: what it refuses, that it comes up, and that it leaves nothing behind."""

import signal
import socket
import sqlite3
import subprocess
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from prefect.client.orchestration import SyncPrefectClient
from prefect.states import Scheduled

from flows.serve import AUTH, _check, environment
from storage import Store, run_sql
from tasks.errors import InputError
from tests.flows.served import ENGRAM, Served, free_port, until
from tests.flows.world import tiny_world

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

        def states() -> list[str] | None:
            found = [client.read_flow_run(run).state for run in first.seen["due"]]
            return sorted(state.name for state in found) if all(state.is_final() for state in found) else None

        life.seen["missed"] = until(states, 180)
        params = {"model": str(model), "store": str(folder / "store"), "device": "cpu", "settings": LONG}
        run = client.create_flow_run_from_deployment(life.ids["audit"], parameters={"params": params})

        def at_work() -> bool:
            audits = client.read_flow_runs()
            return any(each.parent_task_run_id and each.state.is_running() for each in audits)

        until(at_work, 180)
        ended(life, served, signal.SIGINT)
    with sqlite3.connect(served.home / "prefect.db") as database:
        told = "SELECT state_type, state_name FROM flow_run WHERE id = ?"
        life.seen["interrupted"] = database.execute(told, [str(run.id)]).fetchone()
    life.seen["audits"] = run_sql(Store.open(str(folder / "store")), "SELECT state FROM audits").to_pylist()
    return life


@pytest.mark.parametrize("number", [1, 2])
def test_nothing_is_left_behind(first: Life, second: Life, number: int) -> None:
    life = (first, second)[number - 1]
    assert life.ended == 0
    assert life.left == []


def test_it_says_where_it_is(first: Life) -> None:
    assert first.greeting.startswith("Engram is at http://127.0.0.1:")
    assert "workers for cpu" in first.greeting


def test_a_second_start_goes_on_with_the_same_database(first: Life, second: Life) -> None:
    assert first.ids == second.ids


def test_who_has_no_password_is_not_let_in(first: Life) -> None:
    assert (first.seen["without"], first.seen["wrong"], first.seen["right"]) == (401, 401, 200)


def test_another_web_page_cannot_start_runs(second: Life) -> None:
    """A browser sends such a page's request, but without the token that only the UI's own page can read."""
    assert second.seen["csrf"] == 403


def test_the_ui_is_served_and_asks_where_it_came_from(second: Life) -> None:
    assert second.seen["ui"] == ("/api", 200)


def test_nights_that_were_missed_are_made_up_for_once(second: Life) -> None:
    assert second.seen["missed"] == ["Cancelled", "Completed"]


def test_a_run_that_is_stopped_with_it_says_so(second: Life) -> None:
    assert second.seen["interrupted"] == ("CRASHED", "Crashed")
    assert second.seen["audits"] == [{"state": "cancelled"}]


def test_others_are_let_in_only_with_a_password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(AUTH, raising=False)
    for host in ("0.0.0.0", "::"):
        with pytest.raises(InputError, match=AUTH):
            _check(host, free_port())
    _check("127.0.0.1", free_port())
    _check("localhost", free_port())
    monkeypatch.setenv(AUTH, "auditor:secret")
    _check("0.0.0.0", free_port())
    assert environment("http://127.0.0.1:4200", Path("home"))["PREFECT_API_AUTH_STRING"] == "auditor:secret"


def test_an_address_that_cannot_be_had_is_told_in_a_line(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        command = [*ENGRAM, "serve", "--port", str(taken.getsockname()[1])]
        found = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert found.returncode == 2
    assert found.stderr.startswith("engram: 127.0.0.1:")
    assert len(found.stderr.splitlines()) == 1
    with pytest.raises(InputError, match="no address"):
        _check("no.such.host.invalid", 4200)
