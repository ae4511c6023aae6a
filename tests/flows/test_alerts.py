"""What a real server tells a webhook that is really called, and what it closes by itself."""

import sqlite3
import threading
import time
from contextlib import closing
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any
from uuid import UUID, uuid4

import pytest
from prefect import flow
from prefect.automations import AutomationCore, DoNothing
from prefect.blocks.webhook import Webhook
from prefect.client.orchestration import SyncPrefectClient
from prefect.events import Event
from prefect.events.clients import get_events_client
from prefect.exceptions import PrefectHTTPStatusError
from prefect.states import Completed, Failed, Running
from prefect.utilities.asyncutils import run_coro_as_sync

from flows.alerts import BLOCK, FORMER, REGRESSION, _put, announce, install, kept, lost_runs
from flows.notices import PAUSE, Notice, _Prefect
from tasks.errors import InputError
from tests.support.hook import LATER_S, Hook
from tests.support.served import Served, until

pytestmark = [pytest.mark.slow, pytest.mark.server]

MINE = {"prefect.resource.id": "engram.model.mine", "prefect.resource.name": "mine"}


def emit(event: Event) -> None:
    async def send() -> None:
        async with get_events_client() as events:
            await events.emit(event)

    run_coro_as_sync(send())


def running(client: SyncPrefectClient, name: str) -> UUID:
    """A run that says it is running, and no process behind it."""

    @flow(name=name)
    def nothing() -> None: ...

    run = client.create_flow_run(nothing, name=f"a run of {name}")
    client.set_flow_run_state(run.id, Running())
    return run.id


def test_a_regression_is_told_once_though_announced_twice(served: Served, hook: Hook) -> None:
    payload: dict[str, Any] = {"words": f'It copies <2> "more"\nimages. {uuid4()}', "regressions": ["mr: 0 to 2"]}
    key = str(uuid4())
    with served.client():
        announce("engram.audit.completed", MINE, payload, key)
        for _ in range(2):
            announce(REGRESSION, MINE, payload, key)
    notice = hook.told_once(payload["words"])
    assert notice["type"] == "application/json" and notice["key"]
    assert notice["text"] == f"Engram: mine got worse. {payload['words']}"
    assert (notice["event"], notice["resource"], notice["payload"]) == (
        REGRESSION,
        MINE["prefect.resource.id"],
        payload,
    )


def test_a_receiver_that_fails_is_asked_again(served: Served, hook: Hook) -> None:
    words = f"1 of 2 models failed {uuid4()}"
    with served.client() as client:
        hook.failures += [500, 429]
        for name in ("audit", "nightly"):
            client.set_flow_run_state(running(client, name), Failed(message=words))
    notice = hook.told_once(words, 120 + 3 * PAUSE.total_seconds())
    assert notice["text"] == f"Engram: the nightly audit a run of nightly ended as Failed: {words}"
    assert notice["url"].startswith(served.url)
    assert [each["key"] for each in hook.refused if words in each["text"]] == [notice["key"]] * 2


def test_a_database_that_others_write_makes_no_second_notice(served: Served, hook: Hook) -> None:
    """Prefect delivers again what it could not write down ("database is locked"); its automations called again then."""
    words, over = f"while others write {uuid4()}", threading.Event()

    def write() -> None:
        with closing(sqlite3.connect(served.home / "prefect.db", isolation_level=None, timeout=60)) as database:
            database.execute("CREATE TABLE IF NOT EXISTS others (a)")
            while not over.wait(0.005):
                database.execute("BEGIN IMMEDIATE")
                database.execute("INSERT INTO others VALUES (1)")
                time.sleep(0.02)
                database.execute("COMMIT")

    def fails(run: UUID, message: str) -> bool:
        try:
            client.set_flow_run_state(run, Failed(message=message), force=True)
        except PrefectHTTPStatusError:  # 503, again and again: the client gave up
            return False
        return True

    with served.client() as client:
        runs = [running(client, "nightly") for _ in range(4)]
        writers = [threading.Thread(target=write) for _ in range(2)]
        for writer in writers:
            writer.start()
        try:
            for number, run in enumerate(runs):
                until(partial(fails, run, f"{words} {number}"), 120)
            time.sleep(LATER_S)
        finally:
            over.set()
            for writer in writers:
                writer.join()
    until(lambda: len(hook.heard(words)) >= len(runs), 120)
    time.sleep(LATER_S)
    notice = sorted(each["text"].rpartition(": ")[2] for each in hook.heard(words))
    assert notice == [f"{words} {number}" for number in range(len(runs))]


def test_a_night_that_does_not_end_is_told_once(served: Served, hook: Hook) -> None:
    with served.client() as client:
        runs = [running(client, name) for name in ("audit", "nightly")]
        with closing(sqlite3.connect(served.home / "prefect.db", timeout=30)) as database, database:
            begun = f"{datetime.now(UTC) - timedelta(hours=25):%Y-%m-%d %H:%M:%S.%f}"
            database.executemany("UPDATE flow_run SET start_time = ? WHERE id = ?", [(begun, str(run)) for run in runs])
        assert hook.told_once("at work for a day")["event"] == "engram.nightly.overdue"
        for run in runs:
            client.set_flow_run_state(run, Completed(), force=True)


def test_what_could_not_be_told_stands_in_the_artifact(served: Served) -> None:
    with served.client() as client:
        run = running(client, "other")
        notice = Notice(key="k", body={"text": "Engram: mine got worse."}, run_id=str(run))

        def artifacts() -> list[str]:
            found = client.request("POST", "/artifacts/filter", json={}).json()
            return [each["data"] for each in found if each["flow_run_id"] == str(run)]

        line = "- **not told**: Engram: mine got worse. ({})\n"
        _Prefect().note(notice, "no answer")  # of a run that crashed before it could sum up
        assert artifacts() == [f"# This night\n\n{line.format('no answer')}"]
        _Prefect().note(notice, "500")
        assert artifacts() == [f"# This night\n\n{line.format('no answer')}\n{line.format('500')}"]
        client.set_flow_run_state(run, Completed(), force=True)


def test_a_run_whose_process_is_gone_is_marked(served: Served) -> None:
    with served.client() as client:
        _put(client, lost_runs(timedelta(seconds=10)))
        lost = running(client, "lost")
        resource = {"prefect.resource.id": f"prefect.flow-run.{lost}", "prefect.resource.name": "lost"}
        emit(Event(event="prefect.flow-run.heartbeat", resource=resource, id=uuid4()))

        def crashed() -> bool:
            state = client.read_flow_run(lost).state
            return state is not None and state.is_crashed()

        until(crashed, 90, every=1)
        install()


def test_the_automation_is_put_in_place_once_and_former_ones_go(served: Served, hook: Hook) -> None:
    with served.client() as client:
        (lost,) = client.read_automations()
        client.pause_automation(lost.id)
        former = [AutomationCore(name=name, trigger=lost.trigger, actions=[DoNothing()]) for name in FORMER]
        for automation in former:
            _put(client, automation)
        assert len(client.read_automations()) == 4
        assert install(hook.url) == ["engram: lost runs", "notices go to 127.0.0.1"]
        (after,) = client.read_automations()
        assert after.id == lost.id
        assert not after.enabled  # what a person paused stays paused
        client.resume_automation(lost.id)
        webhook = Webhook.load(BLOCK)
        assert isinstance(webhook, Webhook) and webhook.url.get_secret_value() == hook.url


def test_what_is_announced_is_kept(served: Served) -> None:
    with served.client():
        assert not kept(uuid4())


def test_an_address_that_is_none_is_refused(served: Served) -> None:
    with served.client(), pytest.raises(InputError, match="no http"):
        install("hooks.example.com/services")
