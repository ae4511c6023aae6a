"""Pipelines that the tests of this folder share; each is copied before it is changed."""

from pathlib import Path

import pytest

from tests.support.pipelines import write_v, write_xl


@pytest.fixture(scope="session")
def xl_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_xl(tmp_path_factory.mktemp("xl") / "pipeline")


@pytest.fixture(scope="session")
def v_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_v(tmp_path_factory.mktemp("v") / "pipeline")
