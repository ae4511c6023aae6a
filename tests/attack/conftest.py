import pytest

from tasks.diffusion.families import Model
from tests.support.denoisers import tiny_model


@pytest.fixture(scope="session")
def model() -> Model:
    return tiny_model()
