"""An audit that is spread over a work pool: child runs on real workers, of which some are killed."""

from contextlib import suppress
from pathlib import Path
from typing import Any
from uuid import UUID

import psutil
import pytest
from prefect.client.schemas.objects import StateType

from flows.run.pool import check_pool, deployment_of
from flows.serve import RUNS_AT_ONCE, SQLITE_MOST, workers_of
from flows.settings import Settings
from storage import Store
from tasks.errors import InputError
from tests.flows.test_run import SETTINGS
from tests.support.served import Served, until
from tests.support.world import tiny_world

pytestmark = pytest.mark.server


def test_a_platform_has_a_worker_for_each_gpu() -> None:
    found = workers_of(2, None, 3)
    assert [(one.name, one.pool, one.at_once, one.gpu) for one in found] == [
        ("worker-cpu", "cpu", 2, None),
        ("worker-gpu-0", "gpu", 1, 0),
        ("worker-gpu-1", "gpu", 1, 1),
        ("worker-gpu-2", "gpu", 1, 2),
        ("worker-plan", "plan", RUNS_AT_ONCE["plan"], None),
    ]
    assert [one.name for one in workers_of(0, 1, 3)] == ["worker-gpu-0", "worker-plan"]


def test_what_cannot_work_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PREFECT_SERVER_DATABASE_CONNECTION_URL", raising=False)
    with pytest.raises(InputError, match="--gpus 2: this machine has 1"):
        workers_of(2, 2, 1)
    with pytest.raises(InputError, match="nothing would work: --cpu-workers 0 without a GPU"):
        workers_of(0, None, 0)
    with pytest.raises(InputError, match=f"9 runs at a time are more than the {SQLITE_MOST} that a server on SQLite"):
        workers_of(1, None, 8)
    monkeypatch.setenv("PREFECT_SERVER_DATABASE_CONNECTION_URL", "postgresql+asyncpg://engram@database/engram")
    assert len(workers_of(64, None, 0)) == 2


def test_without_a_server_there_is_no_pool(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    with pytest.raises(InputError, match="there is no Prefect server: set PREFECT_API_URL, or take --workers N"):
        check_pool("cpu")


@pytest.mark.slow
def test_an_audit_is_spread_over_two_workers(served: Served, tmp_path: Path) -> None:
    """Beside the same audit as one run; and a process that is killed in the middle of its shard loses nothing."""
    model = tiny_world(tmp_path / "world")
    settings = Settings.model_validate(SETTINGS).model_dump(mode="json")
    figures: dict[str, list[str]] = {}
    with served.client() as client:
        for name, more in (("audit", {}), ("audit-spread", {"spread": "cpu"})):
            store = tmp_path / name
            params: dict[str, Any] = {"model": str(model), "store": str(store), "device": "cpu", "settings": settings}
            deployed = client.read_deployment_by_name(f"audit/{name}")
            run = client.create_flow_run_from_deployment(deployed.id, parameters={"params": params | more})
            killed = name == "audit"

            def ended(run: Any = run) -> StateType | None:
                nonlocal killed
                if not killed:
                    killed = kill_a_shard(served)
                state = client.read_flow_run(run.id).state
                return state.type if state is not None and state.is_final() else None

            assert until(ended, 900, 1.0) is StateType.COMPLETED and killed
            (audit,) = [row for row in Store.open(str(store)).read("audits").to_pylist() if row["finished_at"]]
            metrics = Store.open(str(store)).read("metrics", audit_id=audit["audit_id"]).drop(["audit_id"])
            figures[name] = sorted(map(str, metrics.to_pylist()))
        shards = [each for each in client.read_flow_runs() if each.deployment_id == shard_deployment(client)]
        assert figures["audit"] == figures["audit-spread"]
        assert any(each.name.startswith("evaluate: generate, wanda, prompt (") for each in shards)
        assert all(each.parent_task_run_id is not None for each in shards)
        assert [each.state_type for each in shards].count(StateType.CRASHED) == 1
        assert any(each.name.endswith(", try 2") and each.state_type is StateType.COMPLETED for each in shards)
        # A run of the pool itself would wait for its own place.
        deployed = client.read_deployment_by_name("audit/audit")
        run = client.create_flow_run_from_deployment(
            deployed.id, parameters={"params": params | {"spread": "cpu", "store": str(tmp_path / "never")}}
        )
        assert until(lambda: ended(run), 120) is StateType.FAILED
        assert "would hold a place that its shards need" in str(client.read_flow_run(run.id).state)


def kill_a_shard(served: Served) -> bool:
    """Kills the process of a shard, if one is at work."""
    with served.client() as client:
        for process in served.processes():
            with suppress(psutil.Error):
                if "prefect.engine" not in process.cmdline():
                    continue
                run = client.read_flow_run(UUID(process.environ()["PREFECT__FLOW_RUN_ID"]))
                if run.deployment_id == shard_deployment(client) and run.state_type is StateType.RUNNING:
                    process.kill()
                    return True
    return False


def shard_deployment(client: Any) -> Any:
    return client.read_deployment_by_name(deployment_of("cpu")).id
