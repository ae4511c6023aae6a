"""What the server does by itself: tells of regressions, and closes runs whose process is gone."""

from collections.abc import Iterator
from datetime import timedelta
from typing import Any
from urllib.parse import urlsplit
from uuid import UUID

from prefect.automations import (
    AutomationCore,
    CallWebhook,
    ChangeFlowRunState,
    EventTrigger,
    Posture,
    ResourceSpecification,
)
from prefect.blocks.webhook import Webhook
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import StateType
from prefect.types import SecretDict
from pydantic import SecretStr

from tasks.errors import InputError

REGRESSION = "engram.audit.regression"
"""The event of a model that copies more than it did, or whose quality fell."""

LOST = timedelta(minutes=3)
"""A run that gives no sign of life for so long is lost; runs give one every 30 seconds."""

OVERDUE = timedelta(hours=24)
"""A night that lasts longer is told of: it may hang, and the nights after it are cancelled meanwhile."""

BLOCK = "engram"
"""The block in which the server keeps the address that is told, encrypted."""

# `text` is what chat services show; the rest is for programs.
REGRESSED = """{
  "text": {{ ("Engram: " ~ (event.resource.name or event.resource.id) ~ " got worse. " ~ event.payload.words)
             | tojson }},
  "event": {{ event.event | tojson }},
  "resource": {{ event.resource.id | tojson }},
  "occurred": {{ event.occurred | string | tojson }},
  "payload": {{ event.payload | tojson }}
}"""
FAILED = """{
  "text": {{ ("Engram: the nightly audit " ~ flow_run.name ~ " ended as " ~ flow_run.state.name ~ ": "
              ~ flow_run.state.message) | tojson }},
  "event": {{ event.event | tojson }},
  "resource": {{ event.resource.id | tojson }},
  "occurred": {{ event.occurred | string | tojson }},
  "url": {{ (flow_run | ui_url) | tojson }}
}"""

HANGS = """{
  "text": "Engram: the nightly audit has been at work for a day; nights after it are cancelled until it ends.",
  "event": "engram.nightly.overdue"
}"""
ENDS = {f"prefect.flow-run.{state}" for state in ("Completed", "Failed", "Cancelled", "Crashed")}
_NIGHTS: dict[str, Any] = {
    "match": ResourceSpecification({"prefect.resource.id": ["prefect.flow-run.*"]}),
    "match_related": ResourceSpecification({"prefect.resource.role": ["flow"], "prefect.resource.name": ["nightly"]}),
}


def install(notify: str | None = None) -> list[str]:
    """Puts the automations in place at the server that `PREFECT_API_URL` names; says which there are now.

    Args:
        notify: the address that gets a POST when a model got worse or the nightly audit failed. Without it, an
            address that was given before stays.

    Raises:
        InputError: the address is none.
    """
    with get_client(sync_client=True) as client:
        wanted = [lost_runs(), *(told(_webhook(notify)) if notify is not None else ())]
        for automation in wanted:
            _put(client, automation)
    return [automation.name for automation in wanted]


def lost_runs(within: timedelta = LOST) -> AutomationCore:
    """A run whose process was killed or whose machine is gone does not stand as running for ever."""
    return AutomationCore(
        name="engram: lost runs",
        description="Marks a run as crashed that gives no sign of life.",
        trigger=EventTrigger(
            after={"prefect.flow-run.heartbeat"},
            expect={"prefect.flow-run.heartbeat"} | ENDS,
            match=ResourceSpecification({"prefect.resource.id": ["prefect.flow-run.*"]}),
            for_each={"prefect.resource.id"},
            posture=Posture.Proactive,
            threshold=1,
            within=within,
        ),
        actions=[ChangeFlowRunState(state=StateType.CRASHED, message="No sign of life: its process is gone.")],
    )


def told(webhook: UUID, within: timedelta = OVERDUE) -> Iterator[AutomationCore]:
    """What a person hears of."""
    yield AutomationCore(
        name="engram: regression",
        description="Tells that a model copies more than it did, or got worse.",
        trigger=EventTrigger(
            expect={REGRESSION},
            match=ResourceSpecification({"prefect.resource.id": ["engram.model.*"]}),
            posture=Posture.Reactive,
            threshold=1,
        ),
        actions=[CallWebhook(block_document_id=webhook, payload=REGRESSED)],
    )
    yield AutomationCore(
        name="engram: nightly audit failed",
        description="Tells that the nightly audit did not come to its end.",
        trigger=EventTrigger(
            expect={"prefect.flow-run.Failed", "prefect.flow-run.Crashed"},
            posture=Posture.Reactive,
            threshold=1,
            **_NIGHTS,
        ),
        actions=[CallWebhook(block_document_id=webhook, payload=FAILED)],
    )
    yield AutomationCore(
        name="engram: nightly audit overdue",
        description="Tells that the nightly audit has been at work for more than a day.",
        trigger=EventTrigger(
            after={"prefect.flow-run.Running"},
            expect=ENDS,
            for_each={"prefect.resource.id"},
            posture=Posture.Proactive,
            threshold=1,
            within=within,
            **_NIGHTS,
        ),
        actions=[CallWebhook(block_document_id=webhook, payload=HANGS)],
    )


def _webhook(address: str) -> UUID:
    if urlsplit(address).scheme not in ("http", "https") or not urlsplit(address).netloc:
        raise InputError(f"--notify {address!r} is no http:// or https:// address")
    headers = SecretDict({"Content-Type": "application/json"})
    saved: Any = Webhook(url=SecretStr(address), headers=headers).save(BLOCK, overwrite=True)
    return UUID(str(saved))


def _put(client: SyncPrefectClient, automation: AutomationCore) -> None:
    there = client.read_automations_by_name(automation.name)
    if there:
        kept = automation.model_copy(update={"enabled": there[0].enabled})
        client.update_automation(there[0].id, kept)
    else:
        client.create_automation(automation)
