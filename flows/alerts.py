"""What the server does by itself: it closes runs whose process is gone. And what it is told, so that a person is."""

import time
from datetime import timedelta
from typing import Any
from urllib.parse import urlsplit
from uuid import NAMESPACE_URL, UUID, uuid5

from prefect.automations import AutomationCore, ChangeFlowRunState, EventTrigger, Posture, ResourceSpecification
from prefect.blocks.webhook import Webhook
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import StateType
from prefect.events import emit_event
from prefect.types import SecretDict
from pydantic import SecretStr

from flows.receiver import check_address

REGRESSION = "engram.audit.regression"
"""The event of a model that copies more than it did, or whose quality fell."""

LOST = timedelta(seconds=100)
"""A run that gives no sign of life for so long is lost; runs give one every 30 seconds. So another worker takes up a
shard within two minutes of its worker's end."""

OVERDUE = timedelta(hours=24)
"""A night that lasts longer is told of: it may hang, and the nights after it are cancelled meanwhile."""

BLOCK = "engram"
"""The block in which the server keeps the address that is told, encrypted."""

NIGHTLY = "nightly"
"""The flow whose runs are nights."""
ARTIFACT = "nightly"
"""The artifact that sums a night up."""
KEPT_WITHIN_S = 30.0

FORMER = ("engram: regression", "engram: nightly audit failed", "engram: nightly audit overdue")
"""Automations of earlier versions, which told the same as flows/notices.py does."""

HEARTBEAT = "prefect.flow-run.heartbeat"
ENDS = {f"prefect.flow-run.{state}" for state in ("Completed", "Failed", "Cancelled", "Crashed")}


def install(notify: str | None = None) -> list[str]:
    """Puts the automation in place at the server that `PREFECT_API_URL` names; says what there is now.

    Args:
        notify: the address that gets a POST when a model got worse or the nightly audit failed. Without it, an
            address that was given before stays.

    Raises:
        InputError: the address is none.
    """
    if notify is not None:
        check_address(notify)
    with get_client(sync_client=True) as client:
        for name in FORMER:
            for former in client.read_automations_by_name(name):
                client.delete_automation(former.id)
        automation = lost_runs()
        _put(client, automation)
    if notify is None:
        return [automation.name]
    _keep_address(notify)
    return [automation.name, f"notices go to {urlsplit(notify).hostname}"]


def lost_runs(within: timedelta = LOST) -> AutomationCore:
    """A run whose process was killed or whose machine is gone does not stand as running for ever."""
    return AutomationCore(
        name="engram: lost runs",
        description="Marks a run as crashed that gives no sign of life.",
        trigger=EventTrigger(
            after={HEARTBEAT},
            expect={HEARTBEAT} | ENDS,
            match=ResourceSpecification({"prefect.resource.id": ["prefect.flow-run.*"]}),
            for_each={"prefect.resource.id"},
            posture=Posture.Proactive,
            threshold=1,
            within=within,
        ),
        actions=[ChangeFlowRunState(state=StateType.CRASHED, message="No sign of life: its process is gone.")],
    )


def announce(event: str, resource: dict[str, str], payload: dict[str, Any], key: str) -> None:
    """Emits an event, and sees to it that the server keeps it.

    Args:
        event: its name.
        resource: what it happened to.
        payload: what is said of it.
        key: what the event is known by; of events with the same key the server keeps the first.

    Raises:
        RuntimeError: the server did not keep it.
    """
    known = uuid5(NAMESPACE_URL, f"engram:{event}:{key}")
    for _ in range(3):  # what is sent while the server restarts may be lost
        emit_event(event, resource=resource, payload=payload, id=known)
        deadline = time.monotonic() + KEPT_WITHIN_S
        while time.monotonic() < deadline:
            if kept(known):
                return
            time.sleep(0.5)
    raise RuntimeError(f"the server did not keep the event {event} of {resource['prefect.resource.id']}")


def kept(event: UUID) -> bool:
    """Whether the server has an event, so that it is still there when it starts again."""
    with get_client(sync_client=True) as client:
        wanted = {"filter": {"id": {"id": [str(event)]}}, "limit": 1}
        return bool(client.request("POST", "/events/filter", json=wanted).json()["events"])


def _keep_address(address: str) -> None:
    """In a block, which the server keeps encrypted."""
    headers = SecretDict({"Content-Type": "application/json"})
    Webhook(url=SecretStr(check_address(address)), headers=headers).save(BLOCK, overwrite=True)


def _put(client: SyncPrefectClient, automation: AutomationCore) -> None:
    there = client.read_automations_by_name(automation.name)
    if there:
        kept = automation.model_copy(update={"enabled": there[0].enabled})
        client.update_automation(there[0].id, kept)
    else:
        client.create_automation(automation)
