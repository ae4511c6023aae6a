"""Who may speak to the server through a browser: its own page, under a name that it is served by, and nobody else.

A browser sends what any web page asks for to any address, this machine's loopback included. Two things give such a
page away. *Host* is the name under which the server was asked: after DNS rebinding that is still the page's own, though
the address is ours. *Origin* is where the page came from. So a request is let through where Host is a name of ours and
where Origin, if there is one, is ours, too. Programs send no Origin: workers, runs and commands are not affected.

Everything here looks at one request at a time; it asks no name server and keeps no state.
"""

import ipaddress
import re
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any, NamedTuple
from urllib.parse import urlsplit

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

PORTS = {"http": 80, "https": 443}
LOOPBACK = ("127.0.0.1", "localhost", "::1")

# A host as RFC 3986 has it, without what no browser sends: user names, escapes, empty or padded ports.
_AUTHORITY = re.compile(r"(\[[0-9a-f:.]+\]|[a-z0-9._-]+)(?::([1-9][0-9]{0,4}))?")
_ORIGIN = re.compile(r"(https?)://([^/]+)")


class Origin(NamedTuple):
    """Where a page comes from; browsers keep pages of different origins apart."""

    scheme: str
    host: str
    """In lower case; an IPv6 address without brackets."""
    port: int


def origins(names: Iterable[str], port: int) -> frozenset[Origin]:
    """The origins that a person named.

    Args:
        names: each an address as a browser shows it, `https://audits.example.com` or `http://box:8080`; or a bare
            NAME, which stands for `http://NAME:PORT`, the server itself, and `https://NAME`, a proxy with TLS; or
            NAME:PORT, of either scheme.
        port: the port that the server listens at.

    Raises:
        ValueError: one of them is none of these; says which.
    """
    found: set[Origin] = set()
    for name in names:
        if "://" in name:
            parts = urlsplit(name)
            if parts.path.strip("/") or parts.query or parts.fragment:
                raise ValueError(f"{name!r} is more than a name: leave out what follows the host and its port")
            authority, schemes = _split(_ascii(parts.netloc)), [parts.scheme]
        else:
            authority, schemes = _split(_ascii(_bracketed(name))), ["http", "https"]
        if authority is None or not set(schemes) <= PORTS.keys():
            raise ValueError(f"{name!r} is no name to be served by: write NAME, NAME:PORT or https://NAME")
        host, own = authority
        if own is not None:
            found |= {Origin(scheme, host, own) for scheme in schemes}
        elif "://" in name:
            found.add(Origin(schemes[0], host, PORTS[schemes[0]]))
        else:
            found |= {Origin("http", host, port), Origin("https", host, PORTS["https"])}
    return frozenset(found)


class Guard:
    """ASGI middleware that answers 403, or refuses the handshake of a WebSocket, to pages that are not the server's.

    Served without being named are the loopback addresses and the very address at which a connection arrived, each with
    the port that is listened at: neither can be another page's name.
    """

    def __init__(self, app: App, port: int, named: Iterable[Origin] = (), api: str = "/api") -> None:
        """Guards an application.

        Args:
            app: what is guarded, such as Prefect's server with its UI.
            port: the port that is listened at.
            named: further origins at which the server is reached, as `origins` makes them.
            api: the path below which a link from another page leads nowhere; the UI's pages may be linked to.
        """
        self._app, self._port, self._api = app, port, api.rstrip("/")
        self._named = frozenset(named)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        elif (wrong := self.objection(scope)) is None:
            await self._app(scope, receive, _alone(send))
        elif scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.close", "code": 1008, "reason": wrong})  # before it was accepted: a 403
        else:
            await _forbid(send, wrong)

    def objection(self, scope: Scope) -> str | None:
        """Why a request or a handshake is refused; nothing where it is not."""
        headers: dict[bytes, list[str]] = {}
        for name, value in scope["headers"]:
            headers.setdefault(bytes(name).lower(), []).append(bytes(value).decode("latin-1"))
        if not scope["path"].startswith("/"):
            return "the request names a whole address in place of a path"
        hosts = headers.get(b"host", [])
        if len(hosts) != 1:
            return "the request must have one Host"
        authority = _split(hosts[0])
        if authority is None or not (own := self._reached_by(*authority, scope)):
            return f"not served as {hosts[0]!r}: use one of the names it is served by, or add this one with --name"
        for origin in headers.get(b"origin", []):
            if _origin(origin) not in own | self._named:
                return f"pages from {origin!r} are not this server's"
        for site in headers.get(b"sec-fetch-site", []):
            if site not in ("same-origin", "none") and not self._links(scope, headers):
                return "another page may link to the pages of this server, and to nothing else of it"
        return None

    def _reached_by(self, host: str, port: int | None, scope: Scope) -> frozenset[Origin]:
        """The origins that pages have which this server was asked for by this Host; none if it has no such name."""
        named = frozenset(each for each in self._named if each[1:] == (host, port or PORTS[each.scheme]))
        here = scope.get("server")
        automatic = {*LOOPBACK, *([_canonical(here[0])] if here else [])} - {"0.0.0.0", "::"}
        if host in automatic and (port or PORTS["http"]) == self._port:
            return named | {Origin("http", host, self._port)}
        return named

    def _links(self, scope: Scope, headers: dict[bytes, list[str]]) -> bool:
        """Whether somebody followed a link to a page of the UI, which then stands alone in its tab."""
        api = scope["path"] == self._api or scope["path"].startswith(f"{self._api}/")
        kind = (headers.get(b"sec-fetch-mode"), headers.get(b"sec-fetch-dest"))
        asks = scope["type"] == "http" and scope["method"] in ("GET", "HEAD")
        return asks and not api and kind == (["navigate"], ["document"])


def _split(authority: str) -> tuple[str, int | None] | None:
    """Host and port of a Host header, the port None if it is left out; None for what is none."""
    found = _AUTHORITY.fullmatch(authority.lower())
    if found is None or int(found[2] or 1) > 65535:
        return None
    host = found[1]
    if host.startswith("["):
        try:
            return str(ipaddress.IPv6Address(host[1:-1])), int(found[2]) if found[2] else None
        except ValueError:
            return None
    return host, int(found[2]) if found[2] else None


def _origin(text: str) -> Origin | None:
    found = _ORIGIN.fullmatch(text)
    authority = _split(found[2]) if found else None
    if found is None or authority is None:
        return None
    return Origin(found[1], authority[0], authority[1] or PORTS[found[1]])


def _bracketed(name: str) -> str:
    """An IPv6 address that stands alone, as it stands in an address."""
    try:
        return f"[{ipaddress.IPv6Address(name)}]"
    except ValueError:
        return name


def _ascii(authority: str) -> str:
    """A name of other letters as browsers send it."""
    try:
        return authority if authority.isascii() else authority.encode("idna").decode()
    except UnicodeError:
        return ""


def _canonical(host: str) -> str:
    try:
        return str(ipaddress.ip_address(host.split("%")[0]))
    except ValueError:
        return host.lower()


def _alone(send: Send) -> Send:
    """Answers let no other origin read them, and no other page frame them, whatever the application says."""

    async def sent(message: Message) -> None:
        if message["type"] == "http.response.start":
            kept = [each for each in message.get("headers", ()) if not each[0].lower().startswith(b"access-control-")]
            own = [
                (b"content-security-policy", b"frame-ancestors 'self'"),
                (b"cross-origin-resource-policy", b"same-origin"),
            ]
            message = {**message, "headers": [*kept, *own]}
        await send(message)

    return sent


async def _forbid(send: Send, wrong: str) -> None:
    body = f"403: {wrong}\n".encode()
    headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 403, "headers": headers})
    await send({"type": "http.response.body", "body": body})
