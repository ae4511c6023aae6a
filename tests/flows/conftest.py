"""One platform for all tests that only look at it or run something on it: starting one takes a while."""

from collections.abc import Iterator

import pytest
from prefect.testing.utilities import prefect_test_harness

from tests.support.hook import Hook
from tests.support.s3 import outage, s3_endpoint, s3_url
from tests.support.served import Served

__all__ = ["outage", "s3_endpoint", "s3_url"]


@pytest.fixture(scope="session")
def hook() -> Iterator[Hook]:
    hook = Hook()
    yield hook
    hook.server.shutdown()


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory, hook: Hook) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("served")
    (folder / "hook").write_text(f"{hook.url}\n")
    with Served(folder, "--notify-file", "hook") as platform:
        yield platform


@pytest.fixture(scope="module")
def prefect() -> Iterator[None]:
    """A server and a database for the flows that a module's tests call: without one, such a test fails at once."""
    with prefect_test_harness(server_startup_timeout=120):
        yield
