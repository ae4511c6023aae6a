"""What ships with the reference model is what its recipe says."""

import json
from pathlib import Path

from tasks.reference.assemble import PROFILES, SETTINGS

SHIPPED = Path(__file__).parents[2] / "reference" / "model" / "engram.json"


def test_the_model_ships_with_the_settings_of_its_recipe() -> None:
    own = json.loads(SHIPPED.read_text())
    assert (own["settings"], own["profiles"]) == (SETTINGS, PROFILES)
