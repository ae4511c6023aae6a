import pytest

from tasks.diffusion.model import Model
from tests.attack.tiny import tiny_model


@pytest.fixture(scope="session")
def model() -> Model:
    return tiny_model()
