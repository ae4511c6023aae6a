"""A whole audit over a store on S3: killed in the middle, taken over by another machine, and its page."""

import json
import os
import re
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from storage import Store, verify
from tasks.report.task import page_here
from tests.support.served import ENGRAM, until
from tests.support.world import tiny_world

pytestmark = [pytest.mark.slow, pytest.mark.server]

ROOT = Path(__file__).parents[2]
STEPS = 30
"""Of four images, two a step."""
SETTINGS = {
    "examined": "all",
    "memorized": 4,
    "threshold_nulls": 2,
    "ordinary": 2,
    "seeds": 2,
    "attacked": 2,
    "controls": 1,
    "unseen": 1,
    "starts": "noise",
    "sampling.steps": 2,
    "nemo.seeds": 3,
    "nemo.threshold": 0,
    "nemo.theta": 1.5,
    "nemo.theta_min": 1,
    "wanda.sparsity": 0.1,
    "wanda.tau": 2,
    "mitigations": "wanda,adversarial-finetune",
    "dori.steps": 2,
    "dori.batch": 2,
    "finetune.epochs": STEPS // 2,
    "finetune.images_per_step": 2,
    "finetune.noises": 1,
    "finetune.ordinary_batch": 2,
    "finetune.attack_steps": 1,
    "finetune.attack_batch": 1,
    "finetune.save_every": 1,
    "sscd.side": 96,
}


class Machine:
    """A folder with a copy of the model, a home and a cache of its own; it shares nothing but the store."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.model = folder, tiny_world(folder / "world")

    def audit(self, store: str) -> subprocess.Popen[str]:
        """Begins an audit."""
        command = [*ENGRAM, "audit", "--model", str(self.model), "--store", store, "--device", "cpu", "--json"]
        command += [part for name, value in SETTINGS.items() for part in ("--set", f"{name}={value}")]
        env = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "ENGRAM_"))}
        env |= {"HOME": str(self.folder), "ENGRAM_CACHE": str(self.folder / "cache"), "PYTHONPATH": str(ROOT)}
        env |= {"PREFECT_HOME": str(self.folder / "prefect"), "OMP_NUM_THREADS": "1"}
        return subprocess.Popen(
            command,
            cwd=self.folder,
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )


def done(audit: subprocess.Popen[str]) -> tuple[dict[str, Any], list[int]]:
    """What an audit found, and which steps of its training it took."""
    out, err = audit.communicate(timeout=600)
    assert audit.returncode == 0, err[-4000:]
    return json.loads(out), [int(step) for step in re.findall(r"^adversarial-finetune, step (\d+):", err, re.MULTILINE)]


def test_another_machine_takes_over_where_the_first_was(tmp_path: Path, s3_url: str) -> None:
    first, second = (Machine(tmp_path / name) for name in ("first", "second"))
    store = Store.open(s3_url)

    audit = first.audit(s3_url)

    def trains() -> bool:
        assert audit.poll() is None, audit.communicate()[1][-4000:]
        return bool(list(store.home.files("checkpoints")))

    until(trains, 300, every=0.05)
    os.killpg(audit.pid, signal.SIGKILL)
    audit.communicate()
    assert store.read("variants", method="adversarial-finetune").num_rows == 0
    assert store.read("audits", state="running").num_rows == 1

    found, steps = done(second.audit(s3_url))
    assert steps and steps[0] > 1 and steps == list(range(steps[0], STEPS + 1))
    states = sorted(row["state"] for row in store.read("audits").to_pylist() if row["state"] != "running")
    assert states == ["completed", "lost"]
    assert list(store.home.files("checkpoints")) == [] and verify(store) == []

    # Where the page is, whoever has the store can say; no machine keeps it for itself.
    name = f"reports/{found['audit_id']}"
    assert found["report"] == f"{s3_url}/{name}/report.html"
    assert {entry.path for entry in store.home.files(name)} == {f"{name}/report.html", f"{name}/sheet.png"}
    assert not list(tmp_path.rglob("report.html"))
    page = page_here(store, found["audit_id"])
    assert "Memorization audit of model" in page.read_text() and (page.parent / "sheet.png").is_file()
