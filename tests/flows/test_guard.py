"""Who is let through to the server, request by request; tests/flows/test_serve.py asks a real one."""

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flows.guard import Guard, Origin, origins
from flows.server import served_as
from tasks.errors import InputError

PORT = 4200
OWN = "http://127.0.0.1:4200"
Headers = Sequence[tuple[str, str]]


async def application(scope: Any, receive: Any, send: Any) -> None:
    """Lets everybody in, and everybody read the answer."""
    if scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.accept"})
    elif scope["type"] == "http":
        headers = [(b"Access-Control-Allow-Origin", b"*"), (b"content-type", b"application/json")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"{}"})


def answers(
    headers: Headers,
    path: str = "/api/flow_runs/filter",
    method: str = "POST",
    kind: str = "http",
    names: Sequence[str] = (),
    port: int = PORT,
    server: Any = ("127.0.0.1", PORT),
) -> list[dict[str, Any]]:
    """What is sent in answer to one request."""
    scope = {"type": kind, "path": path, "method": method, "server": server}
    scope["headers"] = [(name.encode(), value.encode("latin-1")) for name, value in headers]
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return {"type": f"{kind}.connect"}

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(Guard(application, port, origins(names, port))(scope, receive, send))  # type: ignore[arg-type]
    return sent


def passes(headers: Headers, **more: Any) -> bool:
    """Whether the application is reached; a refusal is a 403, of a WebSocket one before it is accepted."""
    (http, socket) = (answers(headers, kind=kind, **more)[0] for kind in ("http", "websocket"))
    if http["status"] == 200:
        return socket["type"] == "websocket.accept"
    assert (http["status"], socket["type"]) == (403, "websocket.close")
    return False


@pytest.mark.parametrize("host", ["127.0.0.1:4200", "localhost:4200", "LocalHost:4200", "[::1]:4200", "[0:0::1]:4200"])
def test_programs_reach_it_by_the_loopback_names(host: str) -> None:
    assert passes([("host", host)])


@pytest.mark.parametrize(
    "host",
    [
        "evil.example:4200", "evil.example", "127.0.0.1", "localhost", "127.0.0.1:4201", "127.0.0.1:80",
        "localhost.:4200", "localhost:04200", "localhost:", "localhost:4200:4200", "localhost:99999", "localhost:+4200",
        "", "user@localhost:4200", "evil.example@localhost:4200", "localhost:4200@evil.example",
        "localhost:4200 ",
        "localhost:4200,evil.example", "localhost:4200/", "localhost:4200#evil.example", "localhost:4200\\evil.example",
        "foo.localhost:4200", "localhost.evil.example:4200", "127.0.0.1.nip.io:4200", "127.1:4200", "2130706433:4200",
        "0x7f000001:4200", "0177.0.0.1:4200", "0.0.0.0:4200", "[::]:4200", "::1:4200", "[::1:4200", "[::1%25lo]:4200",
        "[::ffff:127.0.0.1]:4200", "127.0.0.2:4200", "localh%6fst:4200", "ⓛocalhost:4200".encode().decode("latin-1"),
        "192.168.1.5:4200", "http://localhost:4200",
    ],
)  # fmt: skip
def test_no_other_name(host: str) -> None:
    assert not passes([("host", host)])
    assert not passes([("host", host), ("origin", f"http://{host}")])


@given(st.text(st.characters(min_codepoint=1, max_codepoint=255), max_size=30))
def test_whatever_host_is_no_name_of_ours(host: str) -> None:
    if host.lower() not in ("127.0.0.1:4200", "localhost:4200", "[::1]:4200"):
        assert not passes([("host", host)])


def test_one_host_and_a_path() -> None:
    assert not passes([])
    assert not passes([("host", "127.0.0.1:4200"), ("host", "127.0.0.1:4200")])
    assert not passes([("host", "evil.example"), ("Host", "127.0.0.1:4200")])
    for path in ("http://evil.example/api/", "http://127.0.0.1:4200/api/", "*", "evil.example:4200", ""):
        assert not passes([("host", "127.0.0.1:4200")], path=path)


def test_its_own_page_may() -> None:
    for host in ("127.0.0.1:4200", "localhost:4200", "[::1]:4200"):
        own = [("host", host), ("origin", f"http://{host}"), ("sec-fetch-site", "same-origin")]
        assert passes(own) and passes(own, method="GET")
    assert passes([("host", "127.0.0.1"), ("origin", "http://127.0.0.1")], port=80, server=("127.0.0.1", 80))
    assert passes([("host", "127.0.0.1:80"), ("origin", "http://127.0.0.1")], port=80, server=("127.0.0.1", 80))


@pytest.mark.parametrize(
    "origin",
    [
        "http://evil.example:4200", "http://evil.example", "null", "", "http://127.0.0.1", "http://127.0.0.1:4201",
        "https://127.0.0.1:4200", "http://localhost:4200", "http://[::1]:4200", "http://127.0.0.1:4200/", "file://",
        "http://127.0.0.1:4200.evil.example", "http://127.0.0.1:4200@evil.example", "http://evil.example#127.0.0.1:4200",
        "http://127.0.0.1:4200 http://evil.example", "chrome-extension://abcdef", "ws://127.0.0.1:4200",
        "HTTP://127.0.0.1:4200", "//127.0.0.1:4200", "127.0.0.1:4200", "*",
    ],
)  # fmt: skip
def test_no_other_page(origin: str) -> None:
    for method in ("GET", "POST", "DELETE", "OPTIONS"):
        for path in ("/api/csrf-token", "/", "/ui-settings"):
            assert not passes([("host", "127.0.0.1:4200"), ("origin", origin)], method=method, path=path)


def test_of_two_origins_both_must_be_its_own() -> None:
    for first, second in ((OWN, "http://evil.example"), ("http://evil.example", OWN)):
        assert not passes([("host", "127.0.0.1:4200"), ("origin", first), ("Origin", second)])


@pytest.mark.parametrize("site", ["cross-site", "same-site", "Same-Origin", "something-new", ""])
def test_what_another_page_asks_for_without_an_origin(site: str) -> None:
    """Images, scripts, frames and forms of a page send none; links to pages of the UI are let through."""

    def asks(mode: str, dest: str, method: str = "GET", path: str = "/runs/flow-run/1") -> bool:
        headers = [("host", "127.0.0.1:4200"), ("sec-fetch-site", site), ("sec-fetch-mode", mode)]
        status = answers([*headers, ("sec-fetch-dest", dest)], method=method, path=path)[0]["status"]
        return bool(status == 200)

    for mode, dest in (("no-cors", "image"), ("no-cors", "script"), ("cors", "empty"), ("navigate", "iframe")):
        assert not asks(mode, dest) and not asks(mode, dest, path="/api/health")
    assert asks("navigate", "document") and asks("navigate", "document", "HEAD")
    assert not asks("navigate", "document", "POST")
    for path in ("/api", "/api/", "/api/csrf-token"):
        assert not asks("navigate", "document", path=path)
    headers = [("host", "127.0.0.1:4200"), ("sec-fetch-site", site), ("sec-fetch-mode", "navigate")]
    assert answers([*headers, ("sec-fetch-dest", "document")], kind="websocket")[0]["type"] == "websocket.close"


def test_what_a_person_types_is_let_through() -> None:
    assert passes(
        [("host", "127.0.0.1:4200"), ("sec-fetch-site", "none"), ("sec-fetch-mode", "navigate")], method="GET"
    )


def test_answers_name_no_origin_and_are_not_framed() -> None:
    (start, _) = answers([("host", "127.0.0.1:4200"), ("origin", OWN)])
    names = {name.lower(): value for name, value in start["headers"]}
    assert not [name for name in names if name.startswith(b"access-control-")]
    assert names[b"content-security-policy"] == b"frame-ancestors 'self'"
    assert names[b"content-type"] == b"application/json"
    (start, body) = answers([("host", "evil.example:4200")])
    assert not [name for name, _ in start["headers"] if name.startswith(b"access-control-")]
    assert b"--name" in body["body"]


def test_the_address_that_a_connection_arrived_at_is_a_name() -> None:
    there = ("192.168.1.5", PORT)
    assert passes([("host", "192.168.1.5:4200"), ("origin", "http://192.168.1.5:4200")], server=there)
    assert not passes([("host", "192.168.1.5:4200"), ("origin", "http://localhost:4200")], server=there)
    assert not passes([("host", "192.168.1.6:4200")], server=there)
    assert passes([("host", "[fd00::5]:4200")], server=("fd00::5", PORT))
    assert passes([("host", "localhost:4200")], server=None)
    assert not passes([("host", "box.lan:4200")], server=there)


def test_a_name_that_was_given() -> None:
    for name in ("box.lan", "BOX.lan", "http://box.lan:4200", "box.lan:4200"):
        assert passes([("host", "box.lan:4200"), ("origin", "http://box.lan:4200")], names=[name])
    assert not passes([("host", "box.lan:4201")], names=["box.lan"])
    assert not passes([("host", "box.lan"), ("origin", "http://box.lan")], names=["box.lan"])
    assert not passes([("host", "a.box.lan:4200")], names=["box.lan"])
    assert passes([("host", "xn--bcher-kva.example:4200")], names=["bücher.example"])
    assert passes([("host", "[fd00::5]:4200")], names=["fd00::5"])


def test_behind_a_proxy_with_tls() -> None:
    for name in ("https://audits.example.com", "audits.example.com", "https://audits.example.com/"):
        for host in ("audits.example.com", "audits.example.com:443", "127.0.0.1:4200"):  # some proxies send their own
            assert passes([("host", host), ("origin", "https://audits.example.com")], names=[name])
            for origin in ("http://audits.example.com", "https://audits.example.com:8443", "https://evil.example.com"):
                assert not passes([("host", host), ("origin", origin)], names=[name])
    named = ["https://audits.example.com:8443"]
    assert passes([("host", "audits.example.com:8443"), ("origin", "https://audits.example.com:8443")], names=named)
    assert not passes([("host", "audits.example.com")], names=named)
    assert not passes([("host", "audits.example.com:4200")], names=["https://audits.example.com"])


@pytest.mark.parametrize(
    "name",
    ["", "https://", "https://a.example/path", "ftp://a.example", "a.example:port", "me@a.example", "a b", "*", "a:0",
     "https://a.example?x", "[::1", "*.example.com"],
)  # fmt: skip
def test_what_is_no_name_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        origins([name], PORT)
    if name:
        with pytest.raises(InputError):
            served_as("127.0.0.1", PORT, [name])


def test_names_come_from_options_environment_and_host(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PREFECT_UI_URL", raising=False)
    monkeypatch.setattr("socket.gethostname", lambda: "box")
    assert served_as("127.0.0.1", PORT, []) == served_as("::1", PORT, []) == frozenset()
    assert served_as("0.0.0.0", PORT, []) == {Origin("http", "box", PORT)}
    assert served_as("audits.lan", PORT, []) == {Origin("http", "audits.lan", PORT)}
    monkeypatch.setenv("ENGRAM_SERVE_NAMES", "http://server:4200, https://a.example")
    monkeypatch.setenv("PREFECT_UI_URL", "https://b.example/prefect")
    names = {Origin("http", "server", 4200), Origin("https", "a.example", 443), Origin("https", "b.example", 443)}
    assert served_as("127.0.0.1", PORT, ["c.example:1"]) == names | {
        Origin("http", "c.example", 1),
        Origin("https", "c.example", 1),
    }


def test_the_start_and_the_end_of_the_server_are_not_requests() -> None:
    reached: list[str] = []

    async def nothing(*_: Any) -> Any: ...

    async def app(scope: Any, receive: Any, send: Any) -> None:
        reached.append(scope["type"])

    asyncio.run(Guard(app, PORT)({"type": "lifespan"}, nothing, nothing))  # type: ignore[arg-type]
    assert reached == ["lifespan"]
