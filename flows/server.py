"""Prefect's server as Engram starts it: of one command (`--temporary`), or of the platform.

python -m flows.server --port 4200
python -m flows.server --temporary        prints its port, and ends when its standard input is closed
"""

import argparse
import os
import shutil
import signal
import socket
import sys
import threading

import uvicorn


def main() -> None:
    parser = argparse.ArgumentParser(description="Prefect's server and UI.")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at")
    parser.add_argument("--port", type=int, default=0, help="port to listen at; a free one for 0")
    parser.add_argument(
        "--temporary",
        action="store_true",
        help="without UI and services, silent; prints the port once it answers; when standard input is closed, it "
        "removes PREFECT_HOME and ends",
    )
    asked = parser.parse_args()
    family = socket.AF_INET6 if ":" in asked.host else socket.AF_INET
    listening = socket.create_server((asked.host, asked.port), family=family)
    if asked.temporary:
        # Its own session would not be enough: whoever kills the command may not know of this process.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        threading.Thread(target=_end_with_the_command, daemon=True).start()

    from prefect.server.api.server import create_app  # takes seconds; the thread above must be there before

    app = create_app(ephemeral=asked.temporary, final=True)
    config = uvicorn.Config(app, log_level="error", lifespan="on", timeout_graceful_shutdown=1)
    server = _Announcing(config, asked.temporary)
    server.run(sockets=[listening])


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
    shutil.rmtree(os.environ["PREFECT_HOME"], ignore_errors=True)  # made for this process alone
    os._exit(0)


if __name__ == "__main__":
    main()
