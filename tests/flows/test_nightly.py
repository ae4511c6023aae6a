"""Nights on a model of random weights that comes to copy an image from one night to the next, and on a broken one."""

import hashlib
import shutil
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from prefect import runtime
from prefect.events import Event
from prefect.events.clients import AssertingEventsClient
from prefect.events.worker import EventsWorker
from prefect.testing.fixtures import asserting_events_worker
from typer.testing import CliRunner

from flows.audit import AuditParams
from flows.cli.commands import app
from flows.nightly import NightFailed, NightlyParams, nightly, register, registered, remove
from flows.params import full_name
from flows.settings import Settings
from storage import Store, StoreError, verify
from tasks.errors import InputError
from tasks.report.task import accept
from tasks.scorers.sscd import SscdParams
from tests.support.artifacts import artifact
from tests.support.nights import PLANTED, SETTINGS, before_training, plant
from tests.support.world import tiny_world

pytestmark = [pytest.mark.server, pytest.mark.usefixtures("prefect"), pytest.mark.filterwarnings("ignore")]

__all__ = ["asserting_events_worker"]


def events_heard(worker: EventsWorker) -> list[Event]:
    worker.wait_until_empty()
    assert AssertingEventsClient.last is not None
    return [event for event in AssertingEventsClient.last.events if event.event.startswith("engram.")]


class Copies(torch.nn.Module):
    """What has the shape of SSCD."""

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return pixels.mean((2, 3)).repeat(1, 171)[:, :512]


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning")
def test_what_is_registered_may_lead_elsewhere_tomorrow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_world(tmp_path / "world")
    (tmp_path / "current").symlink_to(model.parent)
    monkeypatch.chdir(tmp_path)
    store = Store.open(tmp_path / "store")
    settings = Settings.model_validate(SETTINGS)
    register(store, "tiny", AuditParams(model="current/model", device="cpu", settings=settings))
    assert AuditParams.model_validate_json(registered(store)["tiny"]).model == str(tmp_path / "current" / "model")
    (tmp_path / "elsewhere").mkdir()
    assert full_name(f"{tmp_path}/elsewhere/../current/model/") == str(tmp_path / "current" / "model")
    torch.jit.trace(Copies(), torch.zeros(1, 3, 8, 8)).save(str(tmp_path / "sscd.pt"))
    own = settings.model_copy(update={"sscd": SscdParams(weights="sscd.pt", sha256="0" * 64)})
    with pytest.raises(InputError, match=r"sscd\.pt"):
        register(store, "other", AuditParams(model="current/model", device="cpu", settings=own))
    pinned = SscdParams(weights="sscd.pt", sha256=hashlib.sha256((tmp_path / "sscd.pt").read_bytes()).hexdigest())
    own = settings.model_copy(update={"sscd": pinned})
    register(store, "other", AuditParams(model="current/model", device="cpu", settings=own))
    kept = AuditParams.model_validate_json(registered(store)["other"]).settings
    assert kept is not None and kept.sscd.weights == str(tmp_path / "sscd.pt")


def broken_store(*args: Any, **more: Any) -> None:
    raise StoreError("a part is damaged")


@pytest.mark.slow
def test_nights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asserting_events_worker: EventsWorker) -> None:
    monkeypatch.setattr("flows.alerts.kept", lambda event: True)  # events do not reach the server here
    model = tiny_world(tmp_path / "world")
    plant(model)
    trained = tmp_path / "trained"
    shutil.copytree(model, trained)
    before_training(model)
    broken = tmp_path / "broken"
    shutil.copytree(model.parent, broken)
    store = Store.open(tmp_path / "store")
    settings = Settings.model_validate(SETTINGS)
    for name, folder in (("broken", broken / "model"), ("tiny", model)):
        register(store, name, AuditParams(model=str(folder), device="cpu", settings=settings))
    shutil.rmtree(broken / "model" / "unet")
    params = NightlyParams(store=store.url)

    # A model that fails is told of, and does not stop the others.
    with pytest.raises(NightFailed, match="1 of 2 models failed"):
        nightly(params)
    (event,) = events_heard(asserting_events_worker)
    assert (event.event, event.resource.id) == ("engram.audit.completed", "engram.model.tiny")
    assert event.payload["outcome"] == "first"
    remove(store, "broken")
    first = event.payload["audit_id"]
    (row,) = store.read("nights").to_pylist()
    assert (row["name"], row["audit_id"], row["baseline"], row["outcome"]) == ("tiny", first, None, "first")

    # The planted image is a regression from what was told last, though the night that found it died before telling.
    shutil.copytree(trained, model, dirs_exist_ok=True)
    with monkeypatch.context() as patched:
        patched.setattr("flows.alerts.kept", lambda event: False)
        patched.setattr("flows.alerts.KEPT_WITHIN_S", 0)
        with pytest.raises(NightFailed, match=r"1 of 1 models failed.*the server did not keep the event"):
            nightly(params)
    assert store.read("nights").num_rows == 1
    tries = [event for event in events_heard(asserting_events_worker) if event.event == "engram.audit.regression"]
    assert len({event.id for event in tries}) == 1  # however often it was tried
    (night,) = nightly(params)
    assert (night.outcome, night.baseline) == ("regression", first)
    planted = f"original, ordinary: {PLANTED!r}: 4 of 4 images are copies, before 0 of 4"
    assert night.regressions[0] == planted
    event = events_heard(asserting_events_worker)[-1]
    assert (event.event, event.resource.id) == ("engram.audit.regression", "engram.model.tiny")
    assert planted in event.payload["words"] and planted in event.payload["regressions"]
    assert f"- {planted}" in artifact("nightly") and "| tiny | **regression** |" in artifact("nightly")
    compared = CliRunner().invoke(app, ["compare", first, "latest", "--store", store.url])
    assert compared.exit_code == 1 and planted in compared.output.splitlines()[-1]

    heard = events_heard(asserting_events_worker)

    # A run that is late finds that its model was audited after it was due; one that is due now audits.
    accept(store, first)
    started = max(row["started_at"] for row in store.read("audits", state="completed").to_pylist())
    with monkeypatch.context() as patched:
        patched.setattr(runtime.flow_run, "scheduled_start_time", started - timedelta(days=1), raising=False)
        (late,) = nightly(params)
    assert (late.reused, late.outcome, late.audit_id) == (True, "regression", night.audit_id)
    assert len(events_heard(asserting_events_worker)) == len(heard)  # the run that audited told it

    # Tried again, it tells what it may not have come to tell.
    with monkeypatch.context() as patched:
        patched.setattr(runtime.flow_run, "scheduled_start_time", started - timedelta(days=1), raising=False)
        patched.setattr(runtime.flow_run, "run_count", 2, raising=False)
        nightly(params)
    assert [event.event for event in events_heard(asserting_events_worker)[len(heard) :]] == ["engram.audit.regression"]

    # A store in which a comparison fails is one model's matter, too.
    with monkeypatch.context() as patched:
        patched.setattr("flows.nightly.reporting.baseline_of", broken_store)
        patched.setattr(runtime.flow_run, "scheduled_start_time", started - timedelta(days=1), raising=False)
        with pytest.raises(NightFailed, match="tiny: a part is damaged"):
            nightly(params)
    assert "a part is damaged" in artifact("nightly")
    assert isinstance(runtime.flow_run.scheduled_start_time, datetime)
    with pytest.raises(InputError, match="no model 'gone' is registered"):
        nightly(params.model_copy(update={"models": ("gone",)}))
    assert verify(store) == []

    # By a rule only the last night keeps its images and page, beside the accepted audit.
    before_training(model)
    (last,) = nightly(params.model_copy(update={"keep_images": 1}))
    pages = {entry.path.split("/")[1] for entry in store.home.files("reports")}
    assert {first, last.audit_id} <= pages and night.audit_id not in pages
    assert store.read("metrics", audit_id=str(night.audit_id)).num_rows and verify(store) == []
    with monkeypatch.context() as patched:
        patched.setattr("flows.nightly.forget_images", broken_store)
        patched.setattr(runtime.flow_run, "scheduled_start_time", started - timedelta(days=1), raising=False)
        with pytest.raises(NightFailed, match="Images of earlier nights could not be removed: a part is damaged"):
            nightly(params.model_copy(update={"keep_images": 1}))


def test_a_night_without_models(tmp_path: Path) -> None:
    assert nightly(NightlyParams(store=str(tmp_path / "store"))) == []
    assert "No model is registered" in artifact("nightly")
