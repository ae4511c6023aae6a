"""A server on loopback that keeps what is posted to it."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


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
