"""A bucket of a real S3 server on loopback; conftest files name the fixtures that their tests ask for."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from threading import Thread
from uuid import uuid4

import boto3
import pytest
from werkzeug.serving import make_server

from tests.support.outage import Outage


@pytest.fixture(scope="session")
def outage() -> Outage:
    return Outage()


@pytest.fixture(scope="session")
def s3_endpoint(outage: Outage) -> Iterator[str]:
    server = make_server("127.0.0.1", 0, outage, threaded=True)
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


@pytest.fixture
def s3_url(s3_endpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The address of a store in a new bucket; the environment has all else that reaches it, for other processes too."""
    settings = {
        "AWS_ENDPOINT_URL": s3_endpoint,
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "ENGRAM_CACHE": str(tmp_path / "cache"),
    }
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    bucket = f"engram-{uuid4().hex}"
    boto3.client("s3").create_bucket(Bucket=bucket)
    return f"s3://{bucket}/some/prefix"
