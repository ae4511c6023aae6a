"""Makes the store that the tests of the next version's migration begin with.

    python -m tests.storage.make_fixture /tmp/engram-fixture tests/storage/fixtures/v5.tar.xz

Run it before the version is raised, at a release: what it packs is what that release wrote. It audits the tiny world in
two nights, accepts the first, and scans a few prompts, so that every table has rows and every kind of variant is there.
The folder is part of what is kept (names of models are their paths), so take one that exists on no machine.
"""

from __future__ import annotations

import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest
from prefect.testing.utilities import prefect_test_harness
from typer.testing import CliRunner

import storage.processes
from flows.audit import AuditParams
from flows.cli.commands import app
from flows.nightly import NightlyParams, nightly, register
from flows.settings import Settings
from storage import Store, examine
from storage.tables import TABLES, VERSION
from tasks.report.task import accept
from tests.support.world import tiny_world

SETTINGS: dict[str, Any] = {
    "examined": "all",
    "memorized": 2,
    "threshold_nulls": 2,
    "ordinary": 2,
    "seeds": 2,
    "attacked": 1,
    "starts": ("noise",),
    "sampling": {"steps": 2},
    "nemo": {"seeds": 2, "threshold": 0.0, "theta": 1.5, "theta_min": 1.0},
    "wanda": {"sparsity": 0.1, "tau": 1},
    "dori": {"steps": 1, "batch": 1},
    "mitigations": ("nemo", "nemo-union", "wanda", "adversarial-finetune", "random-tokens"),
    "finetune": {"epochs": 1, "images_per_step": 1, "noises": 1, "ordinary_batch": 1, "attack_steps": 1,
                 "attack_batch": 1, "check_every": 1},
}  # fmt: skip
MACHINE = {"host": "some machine", "boot": "some start", "space": ""}
PROMPTS = "prompt\na red cup\na blue cup\n"
NULLS = "one\ntwo\nthree\nfour\n"


def make(folder: Path, packed: Path) -> None:
    """Audits the tiny world below `folder`, and packs the store."""
    model, store = tiny_world(folder / "world"), Store.open(folder / "store")
    (folder / "prompts.csv").write_text(PROMPTS)
    (folder / "nulls.txt").write_text(NULLS)
    params = AuditParams(model=str(model), device="cpu", settings=Settings.model_validate(SETTINGS))
    with pytest.MonkeyPatch.context() as patch, prefect_test_harness(server_startup_timeout=120):
        patch.setattr(storage.processes, "_machine", lambda: MACHINE)  # nobody's
        patch.setattr("flows.alerts.kept", lambda event: True)  # events do not reach the server of the harness
        register(store, "tiny", params)
        nightly(NightlyParams(store=store.url))
        accept(store, store.read("nights")["audit_id"][0].as_py())
        nightly(NightlyParams(store=store.url))
        given = {"model": model, "store": store.url, "prompts": folder / "prompts.csv", "nulls": folder / "nulls.txt"}
        options = [word for name, value in given.items() for word in (f"--{name}", str(value))]
        scanned = CliRunner().invoke(
            app, ["scan", *options, "--device", "cpu", "--alpha", "0.8"], catch_exceptions=False
        )
        assert scanned.exit_code == 0, scanned.output
    found = examine(store)
    assert not found.damages and not found.notes
    assert [name for name in TABLES if not store.read(name).num_rows] == [], "a table without rows tests nothing"
    packed.parent.mkdir(parents=True, exist_ok=True)
    # Weights of variants are nearly equal, which xz sees across files.
    with tarfile.open(packed, "w:xz") as archive:
        for path in sorted((folder / "store").rglob("*")):
            name = path.relative_to(folder / "store")
            if path.is_file() and name.parts[0] != ".aside":
                archive.add(path, str(name), filter=_anonymous)
    print(f"version {VERSION}, {packed.stat().st_size} bytes: {packed}")


def _anonymous(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    entry.uid = entry.gid = entry.mtime = 0
    entry.uname = entry.gname = ""
    return entry


if __name__ == "__main__":
    make(Path(sys.argv[1]), Path(sys.argv[2]))
