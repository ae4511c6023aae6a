"""An S3 server that can be made to fail."""

from collections.abc import Iterable
from typing import Any

from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app


class Outage:
    """Stands between S3 and its clients, and may refuse every request after some number of them."""

    def __init__(self) -> None:
        self.serve = DomainDispatcherApplication(create_backend_app)
        self.left: int | None = None
        """Requests until the outage; None for no outage."""

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        if self.left == 0:
            # A refusal that clients do not try to overcome by asking again.
            start_response("403 Forbidden", [("Content-Length", "0")])
            return [b""]
        if self.left is not None:
            self.left -= 1
        answer: Iterable[bytes] = self.serve(environ, start_response)
        return answer
