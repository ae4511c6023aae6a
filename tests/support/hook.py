"""A server on loopback that keeps what is posted to it."""

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from flows.notices import EVERY_S
from tests.support.served import until

LATER_S = 3 * EVERY_S + 5
"""After the first notice, the time in which a second one would come."""


class Hook:
    """A server that keeps what is posted to it, every time that it is posted."""

    def __init__(self) -> None:
        self.received: list[dict[str, Any]] = []
        """What was taken."""
        self.failures: list[int] = []
        """What it answers next, in place of taking it."""
        self.refused: list[dict[str, Any]] = []
        hook = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                notice = {"type": self.headers["Content-Type"], "key": self.headers["Idempotency-Key"], **body}
                answer = hook.failures.pop(0) if hook.failures else 204
                (hook.refused if answer >= 300 else hook.received).append(notice)
                self.send_response(answer)
                self.end_headers()

            def log_message(self, *arguments: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/told"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def heard(self, words: str) -> list[dict[str, Any]]:
        """What was taken with these words in its text."""
        return [notice for notice in self.received if words in notice["text"]]

    def told_once(self, words: str, seconds: float = 60) -> dict[str, Any]:
        """The one notice with these words, after the time in which another one would have come."""
        until(lambda: self.heard(words), seconds)
        time.sleep(LATER_S)
        (notice,) = self.heard(words)
        return notice
