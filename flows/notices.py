"""Tells a person, by a POST to an address of theirs: a model got worse, or a night failed, crashed or does not end.

A run that crashed cannot tell so itself, and Prefect's automations call a webhook again when their own database was
locked, and never again when the receiver failed. So Engram's server looks for what is to be told in what Prefect keeps
(states of runs, events), writes it into an outbox in its home, and tries each notice until it is taken: after 15
seconds, then after ever longer pauses, for an hour. The outbox outlives the server; a notice is known by its key, so it
is told once, however often it is found.

Beside a server that is not Engram's own this runs by itself: `python -m flows.notices`, with `PREFECT_API_URL`.
"""

import argparse
import asyncio
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

import httpx
from pydantic import BaseModel, ValidationError

from flows.alerts import ARTIFACT, BLOCK, NIGHTLY, OVERDUE, REGRESSION
from flows.home import UMASK, private
from storage.errors import one_line

FILE = "notices.json"
EVERY_S = 10.0
"""How often the server is asked."""
ANSWERS_WITHIN_S = 10.0
"""How long a receiver may take to answer."""

PAUSE, LONGEST, GIVE_UP = timedelta(seconds=15), timedelta(minutes=15), timedelta(hours=1)
"""After the first try, at most between two, and from the first try to the last."""

OVERLAP = timedelta(hours=1)
"""How much is read again each time: an event may arrive long after it happened."""
REMEMBERED = timedelta(days=7)


class Notice(BaseModel):
    """One thing that a person is told."""

    key: str
    """What it is known by, here and to the receiver."""
    body: dict[str, Any]
    run_id: str | None
    """The flow run of the night that it speaks of."""


class Waiting(BaseModel):
    """A notice that is not taken yet."""

    notice: Notice
    begun: datetime
    tries: int = 0
    due: datetime
    lost: str | None = None
    """Why it was given up; it waits to be said in the night's artifact."""


class Kept(BaseModel):
    """What the outbox keeps between two starts."""

    born: datetime
    """Nothing is told of what happened before."""
    read_until: datetime
    seen: dict[str, datetime] = {}
    """By key, what was taken up, and when."""
    waiting: dict[str, Waiting] = {}


class Outbox:
    """What is to be told, in a file that is whole at any time."""

    def __init__(self, file: Path, now: datetime) -> None:
        self._file, self._saved = file, now
        try:
            self.kept = Kept.model_validate_json(file.read_bytes())
        except FileNotFoundError:
            self.kept = Kept(born=now, read_until=now)
            self._save()
        except ValidationError as error:
            aside = file.with_suffix(".damaged")
            file.replace(aside)
            _say(f"{file} cannot be read and is now {aside}; what it held is not told: {one_line(error)}")
            self.kept = Kept(born=now, read_until=now)

    @property
    def since(self) -> datetime:
        """From when on to look for what happened."""
        return max(self.kept.born, self.kept.read_until - OVERLAP)

    def take(self, found: Iterable[Notice], now: datetime, wanted: bool) -> None:
        """Takes up what is new; if nobody wants to be told, it counts as seen and is not told later."""
        changed = now - self._saved > OVERLAP / 4  # not each time: what is read again is known
        for notice in found:
            if notice.key not in self.kept.seen:
                changed = True
                self.kept.seen[notice.key] = now
                if wanted:
                    self.kept.waiting[notice.key] = Waiting(notice=notice, begun=now, due=now)
        self.kept.seen = {key: when for key, when in self.kept.seen.items() if now - when < REMEMBERED}
        self.kept.read_until = now
        if changed:
            self._save()

    def due(self, now: datetime) -> list[Waiting]:
        """What is to be tried now."""
        return [each for each in self.kept.waiting.values() if each.lost is None and each.due <= now]

    def lost(self) -> list[Waiting]:
        """What was given up and is not said in an artifact yet."""
        return [each for each in self.kept.waiting.values() if each.lost is not None]

    def failed(self, waiting: Waiting, words: str, now: datetime) -> None:
        """The receiver did not take it: it is tried again later, or given up after an hour."""
        end = waiting.begun + GIVE_UP
        if now >= end:
            waiting.lost = words
        else:
            waiting.due = min(now + min(PAUSE * 2**waiting.tries, LONGEST), end)
            waiting.tries += 1
        self._save()

    def done(self, waiting: Waiting) -> None:
        """It was taken, or it is said that it was not."""
        del self.kept.waiting[waiting.notice.key]
        self._save()

    def _save(self) -> None:
        whole = self._file.with_suffix(".new")
        with open(os.open(whole, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
            file.write(self.kept.model_dump_json(indent=1).encode())
            file.flush()
            os.fsync(file.fileno())
        whole.replace(self._file)
        self._saved = self.kept.read_until


class Receiver(BaseModel):
    """Who is told."""

    url: str
    headers: dict[str, str] = {}

    @property
    def host(self) -> str:
        """What may be said of the address, whose path is a secret."""
        return urlsplit(self.url).hostname or "the receiver"


class Server(Protocol):
    """Prefect's server, as far as it is asked."""

    def found(self, since: datetime, now: datetime) -> Iterator[Notice]: ...

    def receiver(self) -> Receiver | None: ...

    def note(self, notice: Notice, words: str) -> None: ...


class Notices:
    """Looks for what is to be told, and tells it."""

    def __init__(
        self,
        server: Server,
        file: Path,
        post: Callable[[Receiver, Notice], str | None] | None = None,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """Begins with what the outbox holds.

        Args:
            server: where it is looked for.
            file: the outbox.
            post: sends a notice; returns why it was not taken.
            now: the clock.
        """
        self._server, self._post, self._now = server, post or _post, now
        self._outbox = Outbox(file, now())

    @classmethod
    def of_this_server(cls, home: Path) -> "Notices":
        """Of the server that `PREFECT_API_URL` names, with the outbox in this folder."""
        return cls(_Prefect(), home / FILE)

    def step(self) -> None:
        """One look, and one try of all that is due."""
        begun = self._now()
        found = list(self._server.found(self._outbox.since, begun))
        receiver = self._server.receiver()
        self._outbox.take(found, begun, receiver is not None)
        for waiting in self._outbox.due(begun):
            words = "no address is set" if receiver is None else self._post(receiver, waiting.notice)
            if words is None:
                self._outbox.done(waiting)
            else:
                host = "nobody" if receiver is None else receiver.host
                _say(f"{host} did not take the notice {waiting.notice.key} ({words})")
                self._outbox.failed(waiting, f"{host} did not take it for an hour: {words}", self._now())
        for waiting in self._outbox.lost():
            self._server.note(waiting.notice, str(waiting.lost))
            self._outbox.done(waiting)

    def run(self) -> None:
        """Steps for ever. What goes wrong is said once, and tried again."""
        said = ""
        while True:
            time.sleep(EVERY_S)
            try:
                self.step()
                said = ""
            except Exception as error:  # the server or the disk: either may be back in a while
                if said != (said := f"{type(error).__name__}: {one_line(error)}"):
                    _say(f"notices: {said}")


class _Prefect:
    """The server that `PREFECT_API_URL` names."""

    def found(self, since: datetime, now: datetime) -> Iterator[Notice]:
        yield from self._regressions(since)
        nights = {"name": {"any_": [NIGHTLY]}}
        failed = {"state": {"type": {"any_": ["FAILED", "CRASHED"]}}, "end_time": {"after_": since.isoformat()}}
        for run in self._ask("/flow_runs/filter", {"flows": nights, "flow_runs": failed, "sort": "END_TIME_DESC"}):
            yield _failed(run)
        begun = {"before_": (now - OVERDUE).isoformat()}
        hangs = {"state": {"type": {"any_": ["RUNNING"]}}, "start_time": begun}
        for run in self._ask("/flow_runs/filter", {"flows": nights, "flow_runs": hangs}):
            yield _overdue(run)

    def _regressions(self, since: datetime) -> Iterator[Notice]:
        wanted = {"event": {"name": [REGRESSION]}, "occurred": {"since": since.isoformat()}}
        page = self._ask("/events/filter", {"filter": wanted, "limit": 50})
        while True:
            yield from (_regression(event) for event in page["events"])
            if not page.get("next_page"):
                return
            page = self._ask(f"/events/filter/next?{urlsplit(page['next_page']).query}")

    def receiver(self) -> Receiver | None:
        from prefect.exceptions import PrefectHTTPStatusError

        try:
            block = self._ask(f"/block_types/slug/webhook/block_documents/name/{BLOCK}?include_secrets=true")
        except PrefectHTTPStatusError as error:
            if error.response.status_code == 404:
                return None
            raise
        return Receiver(url=block["data"]["url"], headers=block["data"].get("headers") or {})

    def note(self, notice: Notice, words: str) -> None:
        line = f"- **not told**: {notice.body['text']} ({words})\n"
        if notice.run_id is None:
            return
        of_run = {"artifacts": {"flow_run_id": {"any_": [notice.run_id]}, "key": {"any_": [ARTIFACT]}}}
        for artifact in self._ask("/artifacts/filter", {**of_run, "sort": "CREATED_DESC"})[:1]:
            self._ask(f"/artifacts/{artifact['id']}", {"data": f"{artifact['data']}\n{line}"}, "PATCH")
            return
        made = {"key": ARTIFACT, "type": "markdown", "data": f"# This night\n\n{line}", "flow_run_id": notice.run_id}
        self._ask("/artifacts/", made)

    def _ask(self, path: str, body: dict[str, Any] | None = None, method: str = "") -> Any:
        from prefect.client.orchestration import get_client

        with get_client(sync_client=True) as client:
            answer = client.request(method or ("GET" if body is None else "POST"), path, json=body)  # type: ignore[arg-type]
            return answer.json() if answer.content else None


def _regression(event: dict[str, Any]) -> Notice:
    resource, payload = event["resource"], event["payload"]
    model = resource.get("prefect.resource.name") or resource["prefect.resource.id"]
    runs = (each for each in event["related"] if each.get("prefect.resource.role") == "flow-run")
    return Notice(
        key=f"event-{event['id']}",
        body={
            "text": f"Engram: {model} got worse. {payload.get('words', '')}",
            "event": event["event"],
            "resource": resource["prefect.resource.id"],
            "occurred": event["occurred"],
            "payload": payload,
        },
        run_id=next((run["prefect.resource.id"].rpartition(".")[2] for run in runs), None),
    )


def _failed(run: dict[str, Any]) -> Notice:
    from prefect.utilities.urls import url_for

    state = run["state"]
    return Notice(
        key=f"state-{state['id']}",
        body={
            "text": f"Engram: the nightly audit {run['name']} ended as {state['name']}: {state['message'] or ''}",
            "event": f"prefect.flow-run.{state['name']}",
            "resource": f"prefect.flow-run.{run['id']}",
            "occurred": state["timestamp"],
            "url": url_for("flow-run", obj_id=run["id"]),
        },
        run_id=run["id"],
    )


def _overdue(run: dict[str, Any]) -> Notice:
    text = "Engram: the nightly audit has been at work for a day; nights after it are cancelled until it ends."
    return Notice(
        key=f"overdue-{run['id']}-{run['run_count']}",
        body={"text": text, "event": "engram.nightly.overdue", "resource": f"prefect.flow-run.{run['id']}"},
        run_id=run["id"],
    )


def _post(receiver: Receiver, notice: Notice) -> str | None:
    """Why it was not taken; nothing if it was."""
    headers = {**receiver.headers, "Idempotency-Key": notice.key}

    async def ask() -> httpx.Response:
        # httpx limits the time between two bytes only, and a receiver may send them one by one for ever.
        async with (
            asyncio.timeout(ANSWERS_WITHIN_S),
            httpx.AsyncClient(timeout=ANSWERS_WITHIN_S) as client,
            client.stream("POST", receiver.url, json=notice.body, headers=headers) as answer,
        ):
            return answer  # what it says beside the status is not read

    try:
        answer = asyncio.run(ask())
    except (httpx.TimeoutException, TimeoutError):
        return f"no answer within {ANSWERS_WITHIN_S:.0f} seconds"
    except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
        return one_line(error).replace(receiver.url, receiver.host) or type(error).__name__
    return None if answer.is_success else f"it answered {answer.status_code} {answer.reason_phrase}"


def _say(words: str) -> None:
    print(f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} engram: {words}", file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m flows.notices", description="Tells of what the server at PREFECT_API_URL holds, until Ctrl-C."
    )
    parser.add_argument("--home", type=Path, default=Path(".engram/notices"), help="Folder of the outbox.")
    args = parser.parse_args()
    if not os.environ.get("PREFECT_API_URL"):
        parser.error("which server? set PREFECT_API_URL; Engram's own server tells by itself")
    os.umask(UMASK)
    try:
        Notices.of_this_server(private(args.home)).run()
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
