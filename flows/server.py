"""Prefect's server as Engram starts it: of one command (`--temporary`), or of the platform.

    python -m flows.server --port 4200
    python -m flows.server --temporary        prints its port, and ends when its standard input is closed

It answers its own page and programs, and no other page of a browser (flows/guard.py). That of the platform tells of
regressions and of nights that failed (flows/notices.py).
"""

import argparse
import errno
import ipaddress
import os
import shutil
import signal
import socket
import sys
import threading
from pathlib import Path
from urllib.parse import urlsplit

import uvicorn

from flows.guard import Guard, Origin, origins
from flows.home import UMASK, private
from tasks.errors import InputError

NAMES = "ENGRAM_SERVE_NAMES"
"""The environment variable of further names that the server is reached by, separated by commas or spaces."""
HOME = "engram-prefect-"
"""How the names of folders begin that are made for one temporary server, and removed with it."""
_TCP = socket.SOCK_STREAM


def main() -> None:
    parser = argparse.ArgumentParser(description="Prefect's server and UI.")
    parser.add_argument("--host", default="127.0.0.1", help="Address to listen at.")
    parser.add_argument("--port", type=int, default=0, help="Port to listen at; a free one for 0.")
    parser.add_argument(
        "--name",
        action="append",
        default=[],
        help=f"A further name that it is reached by: NAME, NAME:PORT or https://NAME; may be repeated; also ${NAMES}.",
    )
    parser.add_argument(
        "--temporary",
        action="store_true",
        help="Without UI and services, silent; prints the port once it answers; when standard input is closed, it "
        f"removes PREFECT_HOME, if that is a folder {HOME}..., and ends.",
    )
    args = parser.parse_args()
    os.umask(UMASK)
    try:
        _serve(args)
    except InputError as error:
        parser.exit(2, f"engram: {error}\n")


def _serve(args: argparse.Namespace) -> None:
    try:
        listening = listen(args.host, args.port)
    except OSError as error:
        raise InputError(f"{args.host}:{args.port} cannot be listened at: {error.strerror}") from error
    port = listening[0].getsockname()[1]
    named = served_as(args.host, port, args.name)
    if args.temporary:
        # Its own session would not be enough: whoever kills the command may not know of this process.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        threading.Thread(target=_end_with_the_command, daemon=True).start()
    else:
        os.environ.setdefault("PREFECT_API_URL", f"{address_of(args.host, port)}/api")

    # These take seconds; the thread above must be there before.
    from prefect.server.api.server import create_app
    from prefect.settings import get_current_settings

    settings = get_current_settings()
    if not args.temporary:
        private(settings.home)
    app = create_app(ephemeral=args.temporary, final=True)
    if not args.temporary:
        private(settings.home)  # Prefect copies the UI's files with modes of its own
    api = settings.server.api
    config = uvicorn.Config(
        Guard(app, port, named, api.base_path or "/api"),
        http="h11",  # which shows the guard what was asked for as it was written
        lifespan="on",
        log_level="error" if args.temporary else settings.server.logging_level.lower(),
        timeout_keep_alive=api.keepalive_timeout,
        ws_ping_interval=api.websocket_ping_interval,
        ws_ping_timeout=api.websocket_ping_timeout,
        timeout_graceful_shutdown=1,
    )
    server = _Announcing(config, args.temporary)
    if not args.temporary:
        from flows.notices import Notices

        threading.Thread(target=Notices.of_this_server(settings.home).run, daemon=True).start()
    server.run(sockets=listening)


def listen(host: str, port: int) -> list[socket.socket]:
    """A socket for each address of a host; the first free port, the same for all, for 0.

    Raises:
        OSError: there is no such address, or the port is taken at one of them.
    """
    found = dict.fromkeys((family, each[0]) for family, *_, each in socket.getaddrinfo(host, port, type=_TCP))
    sockets: list[socket.socket] = []
    for number, (family, address) in enumerate(found, 1):
        try:
            sockets.append(socket.create_server((address, port), family=family))
        except OSError as error:
            lacking = error.errno in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)  # a machine without IPv6
            if not lacking or (number == len(found) and not sockets):
                raise
        port = sockets[0].getsockname()[1] if sockets else port
    return sockets


def served_as(host: str, port: int, names: list[str]) -> frozenset[Origin]:
    """The origins that the server has beside the address at which it is reached.

    Those are what was named by option or environment, the address in `PREFECT_UI_URL`, and where others can reach it
    this machine's own name.

    Raises:
        InputError: a name is none.
    """
    origins_named = [*names, *os.environ.get(NAMES, "").replace(",", " ").split()]
    if not is_address(host):
        origins_named.append(f"http://{host}:{port}")
    elif not ipaddress.ip_address(host).is_loopback:
        origins_named.append(f"http://{socket.gethostname()}:{port}")
    if ui := urlsplit(os.environ.get("PREFECT_UI_URL", "")).netloc:
        origins_named.append(f"{urlsplit(os.environ['PREFECT_UI_URL']).scheme}://{ui}")
    try:
        return origins(origins_named, port)
    except ValueError as error:
        raise InputError(str(error)) from error


def address_of(host: str, port: int) -> str:
    """The address at which this machine reaches what listens at a host and port."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def is_address(host: str) -> bool:
    """Whether it is an IP address rather than a name."""
    try:
        return bool(ipaddress.ip_address(host))
    except ValueError:
        return False


class _Announcing(uvicorn.Server):
    """Says its port on standard output once it answers."""

    def __init__(self, config: uvicorn.Config, announce: bool) -> None:
        super().__init__(config)
        self._announce = announce

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started and self._announce and sockets:
            print(sockets[0].getsockname()[1], flush=True)


def _end_with_the_command() -> None:
    """Ends this process when the other end of its standard input is gone, however the command ended."""
    while sys.stdin.buffer.read(4096):
        pass
    home = Path(os.environ.get("PREFECT_HOME", ""))
    if home.name.startswith(HOME):
        shutil.rmtree(home, ignore_errors=True)
    os._exit(0)


if __name__ == "__main__":
    main()
