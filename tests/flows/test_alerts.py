"""Automations on a real server, and a webhook that is really called."""

from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
from prefect import flow
from prefect.blocks.webhook import Webhook
from prefect.client.orchestration import SyncPrefectClient
from prefect.events import Event
from prefect.events.clients import get_events_client
from prefect.states import Completed, Failed, Running
from prefect.utilities.asyncutils import run_coro_as_sync

from flows.alerts import BLOCK, REGRESSION, _put, install, lost_runs, told
from tasks.errors import InputError
from tests.flows.conftest import Hook
from tests.flows.served import Served, until


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


def test_a_regression_is_told(served: Served, hook: Hook) -> None:
    resource = {"prefect.resource.id": "engram.model.mine", "prefect.resource.name": "mine"}
    before = len(hook.received)
    payload: dict[str, Any] = {
        "name": "mine",
        "words": 'It copies <2> "more"\npictures.',
        "regressions": ["mr: 0 to 2"],
    }
    with served.client():
        emit(Event(event="engram.audit.completed", resource=resource, payload=payload))
        emit(Event(event=REGRESSION, resource=resource, payload=payload))
    until(lambda: len(hook.received) > before, 60)
    (told,) = hook.received[before:]
    assert told["type"] == "application/json"
    assert told["text"] == f"Engram: mine got worse. {payload['words']}"
    assert (told["event"], told["resource"], told["payload"]) == (REGRESSION, "engram.model.mine", payload)


def test_a_nightly_audit_that_failed_is_told(served: Served, hook: Hook) -> None:
    before = len(hook.received)
    with served.client() as client:
        for name in ("audit", "nightly"):
            client.set_flow_run_state(running(client, name), Failed(message="1 of 2 models failed"))
    until(lambda: len(hook.received) > before, 60)
    (told,) = hook.received[before:]
    assert told["text"] == "Engram: the nightly audit a run of nightly ended as Failed: 1 of 2 models failed"
    assert told["url"].startswith(served.url)


def test_a_night_that_does_not_end_is_told(served: Served, hook: Hook) -> None:
    before = len(hook.received)
    with served.client() as client:
        webhook = UUID(str(Webhook.load(BLOCK)._block_document_id))
        (overdue,) = [each for each in told(webhook, timedelta(seconds=10)) if each.name.endswith("overdue")]
        _put(client, overdue)
        runs = [running(client, name) for name in ("audit", "nightly")]

        def heard() -> list[dict[str, Any]]:
            # What other runs of this platform end in may be told now, too.
            return [it for it in hook.received[before:] if it["event"] == "engram.nightly.overdue"]

        until(heard, 90, every=1)
        (one,) = heard()
        assert "at work for a day" in one["text"]
        install(hook.url)
        for run in runs:
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


def test_automations_are_put_in_place_once(served: Served, hook: Hook) -> None:
    with served.client() as client:
        before = {each.name: each.id for each in client.read_automations()}
        (regression,) = client.read_automations_by_name("engram: regression")
        client.pause_automation(regression.id)
        assert install(hook.url) == [
            "engram: lost runs",
            "engram: regression",
            "engram: nightly audit failed",
            "engram: nightly audit overdue",
        ]
        after = {each.name: each.id for each in client.read_automations()}
        assert after == before
        assert len(client.read_automations()) == 4
        (regression,) = client.read_automations_by_name("engram: regression")
        assert not regression.enabled  # what a person paused stays paused
        client.resume_automation(regression.id)


def test_an_address_that_is_none_is_refused(served: Served) -> None:
    with served.client(), pytest.raises(InputError, match="no http"):
        install("hooks.example.com/services")
