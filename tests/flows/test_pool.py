"""Which pools an audit can be spread over. That it is, with a worker that is killed: `test_postgres`."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest
from prefect.client.schemas.objects import FlowRun, State, StateType

from flows.run.pool import Pool, check_pool
from flows.run.spec import Run
from flows.run.spread import Shard
from flows.run.work import Item
from flows.serve import RUNS_AT_ONCE, SQLITE_MOST, workers_of
from flows.settings import Settings
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


class Server:
    """A server that has one run, in some state."""

    def __init__(self, run: FlowRun, heard: bool) -> None:
        self.run, self.heard, self.states = run, heard, list[StateType]()

    def __enter__(self) -> "Server":
        return self

    def __exit__(self, *raised: object) -> None: ...

    def read_flow_runs(self, flow_run_filter: object) -> list[FlowRun]:
        return [self.run]

    def request(self, method: str, path: str, json: Any) -> httpx.Response:
        assert str(self.run.id) in str(json) and path == "/events/filter"
        return httpx.Response(200, json={"events": [{}] if self.heard else []})

    def set_flow_run_state(self, run_id: object, state: State[Any], force: bool) -> None:
        self.states.append(state.type)


@pytest.mark.parametrize(
    ("kind", "minutes", "heard", "lost"),
    [
        (StateType.SCHEDULED, 60, False, False),  # it waits for a worker
        (StateType.PENDING, 1, False, False),
        (StateType.PENDING, 2, False, True),
        (StateType.RUNNING, 1, False, False),
        (StateType.RUNNING, 2, False, True),
        (StateType.RUNNING, 60, True, False),
    ],
)
def test_a_run_that_gave_no_sign_of_life_is_lost(
    kind: StateType, minutes: int, heard: bool, lost: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worker was killed once it had taken the run: no automation misses signs of life that there never were."""
    state = State[Any](type=kind, timestamp=datetime.now(UTC) - timedelta(minutes=minutes))
    run = FlowRun.model_validate({"flow_id": uuid4(), "state": state})
    server = Server(run, heard)
    monkeypatch.setattr("flows.run.pool.POLL_S", 0)
    monkeypatch.setattr("flows.run.pool.get_client", lambda **options: server)
    workers = Pool("cpu", Run(store="s", run_id="r"), "audit")
    shard = Shard((Item("collect", "anything", lambda: None, ()),), 1)
    workers._shards[run.id] = shard
    ended = workers.wait()
    assert [(one.shard, bool(one.lost)) for one in ended] == [(shard, True)] * lost
    assert server.states == [StateType.CRASHED] * lost and workers.wait() == []


@pytest.mark.slow
def test_an_audit_in_the_pool_of_its_own_shards_is_refused(served: Served, tmp_path: Path) -> None:
    """It would wait for runs that wait for its place."""
    params: dict[str, Any] = {"model": str(tiny_world(tmp_path / "world")), "store": str(tmp_path / "never")}
    params |= {"spread": "cpu", "device": "cpu", "settings": Settings.model_validate(SETTINGS).model_dump(mode="json")}
    with served.client() as client:
        deployed = client.read_deployment_by_name("audit/audit")
        run = client.create_flow_run_from_deployment(deployed.id, parameters={"params": params})

        def ended() -> State[Any] | None:
            state = client.read_flow_run(run.id).state
            return state if state is not None and state.is_final() else None

        end = until(ended, 120)
    assert end.is_failed() and "would hold a place that its shards need" in str(end)
    assert not (tmp_path / "never").exists()
