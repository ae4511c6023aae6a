"""Stores to test with: a folder, and a bucket of a real S3 server on loopback."""

from __future__ import annotations

from pathlib import Path

import pytest

from storage import Store
from tests.support.s3 import outage, s3_endpoint, s3_url

__all__ = ["outage", "s3_endpoint", "s3_url"]


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is remembered of parts that were checked stays out of the home of who runs the tests."""
    monkeypatch.setenv("ENGRAM_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture
def local(tmp_path: Path) -> Store:
    return Store.open(tmp_path / "store")


@pytest.fixture
def s3(s3_url: str) -> Store:
    return Store.open(s3_url)


@pytest.fixture(params=["local", "s3"])
def store(request: pytest.FixtureRequest) -> Store:
    """Both kinds of store in turn."""
    found: Store = request.getfixturevalue(request.param)
    return found
