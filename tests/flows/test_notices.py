"""The outbox: each notice once, tried for an hour, through restarts; with a clock and a server made for it."""

import json
import socket
import stat
import threading
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flows.alerts import announce
from flows.notices import GIVE_UP, LONGEST, Notice, Notices, Receiver, _failed, _overdue, _post, _regression
from flows.receiver import read_address
from tasks.errors import InputError

START = datetime(2026, 1, 1, tzinfo=UTC)
HOOK = Receiver(url="https://hooks.example.com/services/secret")


def notice(key: str) -> Notice:
    return Notice(key=key, body={"text": f"Engram: {key}"}, run_id=f"run of {key}")


class World:
    """A server, a receiver, and the time."""

    def __init__(self, folder: Path) -> None:
        self.now, self.file = START, folder / "notices.json"
        self.found_there: list[Notice] = []
        self.address: Receiver | None = HOOK
        self.answers: list[str | None] = []
        """What comes of the next tries; then what is posted is taken."""
        self.tried: list[tuple[timedelta, str]] = []
        self.taken: list[str] = []
        self.noted: list[tuple[str, str]] = []
        self.asked_since: list[datetime] = []
        self.notices = self.started()

    def started(self) -> Notices:
        self.notices = Notices(self, self.file, self.post, lambda: self.now)
        return self.notices

    def found(self, since: datetime, now: datetime) -> Iterator[Notice]:
        self.asked_since.append(since)
        yield from self.found_there

    def receiver(self) -> Receiver | None:
        return self.address

    def note(self, notice: Notice, words: str) -> None:
        self.noted.append((notice.key, words))

    def post(self, receiver: Receiver, notice: Notice) -> str | None:
        self.tried.append((self.now - START, notice.key))
        answer = self.answers.pop(0) if self.answers else None
        if answer is None:
            self.taken.append(notice.key)
        return answer

    def passes(self, time: timedelta) -> None:
        end = self.now + time
        while self.now < end:
            self.notices.step()
            self.now += timedelta(seconds=10)


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def test_a_notice_is_told_once_however_often_it_is_found(world: World) -> None:
    world.found_there = [notice("a"), notice("a"), notice("b")]
    world.passes(timedelta(hours=3))
    assert world.taken == ["a", "b"]
    assert world.noted == []


def test_a_receiver_that_fails_is_asked_again_after_growing_pauses(world: World) -> None:
    world.found_there = [notice("a")]
    world.answers = ["it answered 500"] * 6
    world.passes(timedelta(hours=3))
    assert world.taken == ["a"]
    at = [when for when, _ in world.tried]
    pauses = [later - earlier for earlier, later in pairwise(at)]
    assert len(at) == 7 and pauses == sorted(pauses)
    assert pauses[0] <= timedelta(seconds=20) and pauses[-1] <= LONGEST
    assert world.noted == []


def test_after_an_hour_it_is_given_up_and_the_night_says_so(world: World) -> None:
    world.found_there = [notice("a"), notice("b")]
    world.answers = ["it answered 500", None, *["no answer"] * 1000]
    world.passes(timedelta(hours=3))
    assert world.taken == ["b"]
    last = max(when for when, key in world.tried if key == "a")
    assert GIVE_UP <= last < GIVE_UP + timedelta(minutes=1)
    assert world.noted == [("a", "hooks.example.com did not take it for an hour: no answer")]
    assert "secret" not in world.noted[0][1]


def test_one_that_fails_does_not_hold_up_another(world: World) -> None:
    world.found_there = [notice("a")]
    world.answers = ["no answer"] * 2
    world.passes(timedelta(seconds=20))
    world.found_there += [notice("b")]
    world.answers = ["no answer"]
    world.passes(timedelta(minutes=5))
    assert sorted(world.taken) == ["a", "b"]


@given(st.lists(st.tuples(st.sampled_from(["step", "restart", "new", "fail"]), st.integers(1, 400)), max_size=40))
def test_through_restarts_each_is_told_once_or_given_up(tmp_path_factory: Any, course: list[tuple[str, int]]) -> None:
    world = World(tmp_path_factory.mktemp("world"))
    for what, seconds in course:
        world.now += timedelta(seconds=seconds)
        if what == "restart":
            world.started()
        elif what == "new":
            world.found_there.append(notice(str(len(world.found_there))))
        elif what == "fail":
            world.answers.append("it answered 503")
        else:
            world.notices.step()
    world.started()
    world.passes(timedelta(hours=2))
    given_up = [key for key, _ in world.noted]
    assert sorted(world.taken + given_up) == sorted(each.key for each in world.found_there)


def test_what_is_not_told_yet_lies_in_a_file_of_ones_own(world: World) -> None:
    world.found_there, world.answers = [notice("a")], ["no answer"]
    world.notices.step()
    assert json.loads(world.file.read_text())["waiting"]["a"]["notice"]["body"] == {"text": "Engram: a"}
    assert stat.S_IMODE(world.file.stat().st_mode) == 0o600
    assert [path.name for path in world.file.parent.iterdir()] == ["notices.json"]


def test_a_file_that_cannot_be_read_is_put_aside(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    world.file.write_text("{")
    world.started()
    assert "notices.damaged" in capsys.readouterr().err
    world.found_there = [notice("a")]
    world.notices.step()
    assert world.taken == ["a"]


def test_without_an_address_nobody_is_told_later_either(world: World) -> None:
    world.found_there, world.address = [notice("a")], None
    world.passes(timedelta(minutes=1))
    world.address = HOOK
    world.found_there += [notice("b")]
    world.passes(timedelta(hours=2))
    assert world.taken == ["b"]
    assert world.noted == []


def test_what_happened_while_it_was_down_is_found_but_nothing_from_before(world: World) -> None:
    world.passes(timedelta(hours=2))
    assert min(world.asked_since) == START
    world.now += timedelta(days=3)
    world.started()
    world.notices.step()
    assert START < world.asked_since[-1] <= START + timedelta(hours=2)


def test_a_server_that_is_away_is_asked_again(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr("flows.notices._say", said.append)
    steps = 0

    def sleep(seconds: float) -> None:
        nonlocal steps
        steps += 1
        if steps > 5:
            raise KeyboardInterrupt

    def away(since: datetime, now: datetime) -> Iterator[Notice]:
        raise httpx.ConnectError("no server")

    monkeypatch.setattr("time.sleep", sleep)
    monkeypatch.setattr(world, "found", away)
    with pytest.raises(KeyboardInterrupt):
        world.notices.run()
    assert said == ["notices: ConnectError: no server"]


def test_bodies() -> None:
    related = [{"prefect.resource.id": "prefect.flow-run.123", "prefect.resource.role": "flow-run"}]
    resource = {"prefect.resource.id": "engram.model.m", "prefect.resource.name": "m"}
    event = {"id": "e", "event": "engram.audit.regression", "occurred": "2026-01-01", "resource": resource}
    notice = _regression({**event, "related": related, "payload": {"words": "It copies."}})
    assert (notice.key, notice.run_id, notice.body["text"]) == ("event-e", "123", "Engram: m got worse. It copies.")
    state = {"id": "s", "name": "Crashed", "message": None, "timestamp": "2026-01-01"}
    notice = _failed({"id": "r", "name": "nightly", "state": state})
    assert (notice.key, notice.run_id) == ("state-s", "r")
    assert notice.body["text"] == "Engram: the nightly audit nightly ended as Crashed: "
    assert _overdue({"id": "r", "run_count": 1}).key != _overdue({"id": "r", "run_count": 2}).key


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (httpx.Response(204), None),
        (httpx.Response(302, headers={"location": "https://elsewhere.example"}), "it answered 302 Found"),
        (httpx.Response(500), "it answered 500 Internal Server Error"),
        (httpx.ReadTimeout("slow"), "no answer within 10 seconds"),
        (
            httpx.ConnectError("cannot reach https://hooks.example.com/services/secret"),
            "cannot reach hooks.example.com",
        ),
    ],
)
def test_what_a_receiver_says(monkeypatch: pytest.MonkeyPatch, answer: Any, words: str | None) -> None:
    seen: list[httpx.Request] = []

    def post(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr("httpx.AsyncClient", partial(httpx.AsyncClient, transport=httpx.MockTransport(post)))
    assert _post(HOOK, notice("a")) == words
    (request,) = seen
    assert (request.method, str(request.url), json.loads(request.content)) == ("POST", HOOK.url, {"text": "Engram: a"})
    assert request.headers["Idempotency-Key"] == "a"


@pytest.mark.parametrize(
    ("begins", "words"),
    [(b"HTTP/1.1 200 OK\r\nx: ", "no answer within 1 seconds"), (b"HTTP/1.1 200 OK\r\n\r\n", None)],
)
def test_a_receiver_that_never_ends_holds_nothing_up(
    monkeypatch: pytest.MonkeyPatch, begins: bytes, words: str | None
) -> None:
    """It sends a byte now and then, within the header or after it."""
    monkeypatch.setattr("flows.notices.ANSWERS_WITHIN_S", 1.0)
    ended = threading.Event()

    def drip() -> None:
        connection, _ = listening.accept()
        with connection, suppress(OSError):
            connection.sendall(begins)
            while not ended.wait(0.1):
                connection.sendall(b"a")

    with socket.create_server(("127.0.0.1", 0)) as listening:
        threading.Thread(target=drip, daemon=True).start()
        said: list[str | None] = []
        hook = Receiver(url=f"http://127.0.0.1:{listening.getsockname()[1]}/secret")
        posting = threading.Thread(target=lambda: said.append(_post(hook, notice("a"))), daemon=True)
        posting.start()
        posting.join(20)
        ended.set()
    assert said == [words]


def test_the_address_comes_from_wherever_it_was_given(tmp_path: Path) -> None:
    file = tmp_path / "hook"
    file.write_text("https://hooks.example.com/secret\n")
    address = "https://hooks.example.com/secret"
    assert read_address(None, None) is None
    assert read_address(address, None) == read_address(f"@{file}", None) == read_address(None, file) == address
    with pytest.raises(InputError, match="exclude each other"):
        read_address(address, file)
    with pytest.raises(InputError, match=r"cannot be read from .*: No such file"):
        read_address("@/no/such/file", None)
    for text in ("", "hooks.example.com/secret", f"{address}\n{address}", "ftp://hooks.example.com", "https://"):
        file.write_text(text)
        with pytest.raises(InputError, match="must hold one http:// or https:// address") as refused:
            read_address(None, file)
        assert "secret" not in str(refused.value).replace(str(file), "")
    for text in ("", "hooks.example.com", "https://", "https://[::1", "https://a:port"):
        with pytest.raises(InputError, match="no http"):
            read_address(text, None)


def test_what_is_announced_is_kept_or_the_run_hears_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    emitted: list[Any] = []
    answers: list[bool] = []
    monkeypatch.setattr("flows.alerts.emit_event", lambda event, resource, payload, id: emitted.append(id))
    monkeypatch.setattr("flows.alerts.kept", lambda event: bool(answers) and answers.pop(0))
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    monkeypatch.setattr("flows.alerts.KEPT_WITHIN_S", 0.05)
    resource = {"prefect.resource.id": "engram.model.m"}
    answers[:] = [False, True]
    announce("engram.audit.regression", resource, {}, "a")
    assert len(emitted) == 1
    with pytest.raises(RuntimeError, match=r"did not keep the event engram\.audit\.regression of engram\.model\.m"):
        announce("engram.audit.regression", resource, {}, "a")
    assert len(emitted) == 4 and len(set(emitted)) == 1  # one event, which the server takes once
    answers[:] = [True]
    announce("engram.audit.regression", resource, {}, "b")
    assert len(set(emitted)) == 2
