"""A GPU gives what the processor gives, up to rounding."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from flows.audit import AuditParams, audit
from flows.settings import Settings
from storage import Store
from tasks.diffusion.sampling import from_bytes
from tests.support.world import tiny_world

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.server,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU"),
    pytest.mark.filterwarnings("ignore"),
]

SETTINGS: dict[str, Any] = {
    "examined": "all",
    "memorized": 2,
    "threshold_nulls": 2,
    "ordinary": 2,
    "seeds": 2,
    "attacked": 1,
    "controls": 1,
    "starts": ("noise",),
    "sampling": {"steps": 4},
    "nemo": {"seeds": 2, "threshold": 0.0, "theta": 1.5, "theta_min": 1.0},
    "wanda": {"sparsity": 0.1, "tau": 2},
    "dori": {"steps": 2, "batch": 2},
}


def generated(store: Store) -> dict[tuple[str, int], np.ndarray]:
    """By prompt and seed, what the original model gives."""
    rows = store.read("generations", variant="original", condition="prompt").to_pylist()
    return {(row["prompt_id"], row["seed"]): from_bytes(row["bytes"]).astype(float) for row in rows}


@pytest.mark.usefixtures("prefect")
def test_an_audit_on_a_gpu_sees_what_one_on_the_processor_sees(tmp_path: Path) -> None:
    model, stores = tiny_world(tmp_path), {}
    for device in ("cpu", "cuda"):
        stores[device] = Store.open(tmp_path / device)
        given = {"model": str(model), "store": stores[device].url, "device": device}
        audit(AuditParams(**given, settings=Settings.model_validate(SETTINGS)))
    images = {device: generated(store) for device, store in stores.items()}
    assert images["cpu"].keys() == images["cuda"].keys() != set()
    # Of 255 levels: noise is drawn on the processor for both, so what differs is rounding.
    assert max(np.abs(image - images["cuda"][key]).mean() for key, image in images["cpu"].items()) < 1
    sets = {device: store.read("neuron_sets", method="wanda").num_rows for device, store in stores.items()}
    assert sets["cpu"] == sets["cuda"] > 0
