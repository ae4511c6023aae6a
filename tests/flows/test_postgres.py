"""Server, deployments and a worker as docker/compose.yaml starts them, with PostgreSQL as the database."""

import asyncio
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import asyncpg
import httpx
import pytest
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.objects import FlowRun

from flows.audit import AuditParams
from flows.nightly import register
from flows.settings import Settings
from storage import Store, verify
from tasks.report.task import accept, page_here
from tests.support.composed import Composed
from tests.support.hook import Hook
from tests.support.nights import PLANTED, SETTINGS, before_training, plant
from tests.support.postgres import Postgres, needed
from tests.support.served import until
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
        started.worker("cpu")
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


def test_a_worker_audits(database: Postgres, composed: Composed, model: Path) -> None:
    with composed.client() as client:
        own = {"model": str(model), "store": composed.store, "device": "cpu", "settings": SETTINGS}
        run = ran(composed, client, "audit/audit", **own)
        found = client.request("POST", "/artifacts/filter", json={}).json()
    (row,) = asked(database.address(), "SELECT state_type::text, parameters::text FROM flow_run WHERE id = $1", run.id)
    assert row[0] == "COMPLETED" and str(model) in row[1]
    assert {"audit", "subspace"} <= {each["key"] for each in found if each["flow_run_id"] == str(run.id)}
    store = Store.open(composed.store)
    ended = store.read("audits", state="completed").to_pylist()
    assert len(ended) == 1
    assert "Memorization audit" in page_here(store, ended[0]["audit_id"]).read_text()
    assert store.read("metrics", audit_id=ended[0]["audit_id"]).num_rows > 0
    assert verify(store) == []


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
