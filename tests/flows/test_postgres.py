"""Server, deployments and a worker as docker/compose.yaml starts them, with PostgreSQL as the database."""

import asyncio
import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import asyncpg
import httpx
import psutil
import pytest
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import FlowFilter, FlowFilterName
from prefect.client.schemas.objects import FlowRun, StateType

from flows.alerts import lost_runs
from flows.audit import AuditParams
from flows.nightly import register
from flows.run.pool import gave_a_sign
from flows.settings import Settings
from storage import Store, verify
from tasks.report.task import accept, page_here
from tests.support.composed import Composed
from tests.support.hook import Hook
from tests.support.nights import PLANTED, SETTINGS, before_training, plant
from tests.support.postgres import Postgres, needed
from tests.support.served import ENGRAM, until
from tests.support.world import tiny_world

pytestmark = [pytest.mark.slow, pytest.mark.server]

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def database() -> Iterator[Postgres]:
    needed()
    with Postgres() as started:
        yield started


@pytest.fixture(scope="module")
def composed(database: Postgres, hook: Hook, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Composed]:
    with Composed(tmp_path_factory.mktemp("composed"), database, told=hook.url) as started:
        yield started


@pytest.fixture(scope="module")
def model(composed: Composed) -> Path:
    """As it was before it came to copy an image; the model that does lies in `trained` beside its world."""
    made = tiny_world(composed.data / "world")
    plant(made)
    shutil.copytree(made, composed.data / "trained")
    before_training(made)
    return made


def asked(address: str, sql: str, *values: Any) -> list[Any]:
    """What a database itself answers."""

    async def ask() -> list[Any]:
        connection = await asyncpg.connect(address)
        try:
            return list(await connection.fetch(sql, *values))
        finally:
            await connection.close()

    return asyncio.run(ask())


def ran(composed: Composed, client: SyncPrefectClient, name: str, **params: Any) -> FlowRun:
    """A run of a deployment, once it has ended well."""
    deployment = client.read_deployment_by_name(name)
    run = client.create_flow_run_from_deployment(deployment.id, parameters={"params": params})

    def ended() -> FlowRun | None:
        found = client.read_flow_run(run.id)
        return found if found.state is not None and found.state.is_final() else None

    found = until(ended, 400)
    assert found.state is not None and found.state.is_completed(), f"{found.state}\n{composed.log('worker-1')}"
    return found


def test_who_has_no_password_is_let_in_nowhere(database: Postgres, composed: Composed) -> None:
    wrong = database.address().replace(database.password, "guess")
    with pytest.raises(asyncpg.InvalidPasswordError):
        asyncio.run(asyncpg.connect(wrong))
    api = f"{composed.url}/api"
    assert httpx.get(f"{api}/admin/version").status_code == 401
    assert httpx.get(f"{api}/admin/version", auth=("auditor", "guess")).status_code == 401
    known = ("auditor", "secret")
    assert httpx.get(f"{api}/admin/version", auth=known).status_code == 200
    assert httpx.post(f"{api}/deployments/filter", json={}, auth=known).status_code == 403  # without the token
    evil = {"Host": f"evil.example:{httpx.URL(api).port}"}
    assert httpx.get(f"{api}/admin/version", auth=known, headers=evil).status_code == 403


def run_of(worker: subprocess.Popen[bytes]) -> UUID | None:
    """The run that a worker has now."""
    with suppress(psutil.Error):
        for process in psutil.Process(worker.pid).children(recursive=True):
            if "prefect.engine" in process.cmdline():
                return UUID(process.environ()["PREFECT__FLOW_RUN_ID"])
    return None


def at_work(client: SyncPrefectClient, run: UUID) -> bool:
    """Whether a run has begun, has given a sign of life, and has not ended."""
    return client.read_flow_run(run).state_type is StateType.RUNNING and gave_a_sign(client, run)


def test_two_workers_share_an_audit_of_which_one_is_lost(
    database: Postgres, composed: Composed, model: Path, s3_url: str
) -> None:
    """The store lies on S3; the machine of one worker ends in the middle of a shard, which the other one does."""
    own = {"model": str(model), "store": s3_url, "device": "cpu", "settings": SETTINGS}
    composed.worker("plan")
    workers = [composed.worker("cpu"), composed.worker("cpu")]
    with composed.client() as client:
        (lost,) = client.read_automations_by_name("engram: lost runs")
        client.delete_automation(lost.id)
        client.create_automation(lost_runs(timedelta(seconds=40)))
        deployment = client.read_deployment_by_name("audit/audit-spread")
        run = client.create_flow_run_from_deployment(deployment.id, parameters={"params": own | {"spread": "cpu"}})

        def ended() -> FlowRun | None:
            for worker in workers if len(workers) == 2 else []:
                if (at := run_of(worker)) is None or not at_work(client, at):
                    continue
                # Frozen, it stays in the middle of its shard, unless it ended that before.
                composed.freeze(worker)
                time.sleep(1)
                if at_work(client, at):
                    composed.kill(worker)
                    workers.remove(worker)
                    break
                composed.thaw(worker)
            found = client.read_flow_run(run.id)
            return found if found.state is not None and found.state.is_final() else None

        found = until(ended, 900)
        assert found.state is not None and found.state.is_completed(), found.state
        shards = client.read_flow_runs(flow_filter=FlowFilter(name=FlowFilterName(any_=["shard"])))
        artifacts = client.request("POST", "/artifacts/filter", json={}).json()
    (row,) = asked(database.address(), "SELECT state_type::text, parameters::text FROM flow_run WHERE id = $1", run.id)
    assert row[0] == "COMPLETED" and str(model) in row[1]
    assert len(workers) == 1 and [each.state_type for each in shards].count(StateType.CRASHED) == 1
    assert all(re.fullmatch(r"[a-z]+: .+ \(\d+\)(, try 2)?", each.name) for each in shards)
    assert any(each.name.startswith("confirm: ask the model, original, prompt") for each in shards)
    assert all(each.parent_task_run_id is not None for each in shards)
    assert any(each.name.endswith(", try 2") and each.state_type is StateType.COMPLETED for each in shards)
    assert {"audit", "subspace"} <= {each["key"] for each in artifacts if each["flow_run_id"] == str(run.id)}
    store = Store.open(s3_url)
    ends = store.read("audits", state="completed").to_pylist()
    assert len(ends) == 1
    assert "Memorization audit" in page_here(store, ends[0]["audit_id"]).read_text()
    assert store.read("metrics", audit_id=ends[0]["audit_id"]).num_rows > 0
    assert verify(store) == []
    # The figures are those of one process, to the last digit.
    alone = composed.data / "alone"
    command = [*ENGRAM, "audit", "--model", str(model), "--store", str(alone), "--device", "cpu"]
    command += [word for name, value in SETTINGS.items() for word in ("--set", f"{name}={json.dumps(value)}")]
    subprocess.run(command, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, cwd=ROOT)
    assert estimates(store) == estimates(Store.open(alone))


def estimates(store: Store) -> list[str]:
    """Those of the only audit that was completed."""
    (audit,) = store.read("audits", state="completed")["audit_id"].to_pylist()
    return sorted(map(str, store.read("metrics", audit_id=audit).drop(["audit_id"]).to_pylist()))


def test_a_night_is_told_of_once(composed: Composed, model: Path, hook: Hook) -> None:
    store = Store.open(composed.store)
    settings = Settings.model_validate(SETTINGS)
    register(store, "tiny", AuditParams(model=str(model), device="cpu", settings=settings))
    with composed.client() as client:
        first = ran(composed, client, "nightly/nightly", store=composed.store)
        assert first.name.startswith("nightly")
        (told,) = store.read("nights").to_pylist()
        accept(store, told["audit_id"])
        shutil.copytree(composed.data / "trained", model, dirs_exist_ok=True)
        ran(composed, client, "nightly/nightly", store=composed.store)
    planted = f"original, ordinary: {PLANTED!r}: 4 of 4 images are copies, before 0 of 4"
    notice = hook.told_once(planted)
    assert (notice["event"], notice["resource"]) == ("engram.audit.regression", "engram.model.tiny")
    assert notice["payload"]["baseline"] == told["audit_id"] and notice["key"]
    assert Path(notice["payload"]["report"]) == page_here(store, notice["payload"]["audit_id"])
    assert [each["event"] for each in hook.received if each["resource"] == "engram.model.tiny"] == [notice["event"]]
    assert verify(store) == []


def test_the_database_is_backed_up_and_put_back_as_the_page_says(database: Postgres, composed: Composed) -> None:
    page = (ROOT / "docker" / "README.md").read_text()
    (dump,) = re.findall(r"database pg_dump --username engram (.*) engram > engram\.dump", page)
    (back,) = re.findall(r"database pg_restore --username engram --dbname engram (.*) < engram\.dump", page)
    saved = database.run("pg_dump", *dump.split(), "engram")
    runs = "SELECT id, name, state_type::text FROM flow_run ORDER BY id"
    before = asked(database.address(), runs)
    assert before
    database.run("createdb", "another")
    for _ in range(2):  # into an empty database, and into one that has it all
        database.run("pg_restore", "--dbname=another", *back.split(), given=saved)
        assert asked(database.address("another"), runs) == before
