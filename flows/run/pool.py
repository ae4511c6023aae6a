"""Workers of a Prefect work pool: each shard is a child run of the audit, on any machine that serves the pool."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from uuid import UUID

import httpx
from prefect import runtime
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterId,
    WorkerFilter,
    WorkerFilterStatus,
)
from prefect.client.schemas.objects import FlowRun, StateType, WorkerStatus
from prefect.deployments import run_deployment
from prefect.exceptions import ObjectNotFound
from prefect.settings import get_current_settings
from prefect.states import Cancelling, Crashed

from flows.alerts import HEARTBEAT, LOST
from flows.run.spec import Run
from flows.run.spread import Ended, Shard
from storage.errors import one_line
from tasks.errors import InputError

SECONDS = 300.0
"""How long a shard should take: a run on a pool is a process that imports torch and loads the model before it works,
some 15 seconds, which is 5 % of this."""
POLL_S = 2.0
OUT_OF_REACH = timedelta(minutes=10)
"""How long the server may not answer, as while it is started anew."""
AHEAD = 2
"""Shards that wait or run for each worker, so that none waits for the one who plans."""


def deployment_of(pool: str) -> str:
    """The deployment of shards on a pool."""
    return f"shard/shard-{pool}"


class Pool:
    """The workers of a pool; see `flows.run.spread.Workers`."""

    seconds = SECONDS
    least = SECONDS / 5

    def __init__(self, pool: str, run: Run, audit_id: str) -> None:
        self._pool, self._run, self._audit_id = pool, run, audit_id
        self._shards: dict[UUID, Shard] = {}
        self._alive: set[UUID] = set()
        """Runs that gave a sign of life."""
        self._answered = datetime.now(UTC)

    @property
    def many(self) -> int:
        try:
            with get_client(sync_client=True) as client:
                return max(1, _online(client, self._pool))
        except httpx.HTTPError:
            return max(1, len(self._shards) // AHEAD)

    def free(self) -> int:
        return max(0, AHEAD * self.many - len(self._shards))

    def begin(self, shard: Shard) -> None:
        run = run_deployment(
            deployment_of(self._pool),
            parameters={
                "run": self._run.model_dump(),
                "audit_id": self._audit_id,
                "stage": shard.stage,
                "items": shard.ids,
            },
            flow_run_name=shard.name if shard.tries == 1 else f"{shard.name}, try {shard.tries}",
            timeout=0,
            as_subflow=True,
            # Asked again after an answer that was lost, the server has the run already.
            idempotency_key=f"{self._audit_id}/{runtime.flow_run.id}/{shard.number}/{shard.tries}",
        )
        assert isinstance(run, FlowRun)
        self._shards[run.id] = shard

    def wait(self) -> list[Ended]:
        time.sleep(POLL_S)
        try:
            with get_client(sync_client=True) as client:
                wanted = FlowRunFilter(id=FlowRunFilterId(any_=[*self._shards]))
                runs = client.read_flow_runs(flow_run_filter=wanted) if self._shards else []
        except httpx.HTTPError as error:
            if datetime.now(UTC) - self._answered > OUT_OF_REACH:
                raise InputError(f"the Prefect server does not answer any more: {one_line(error)}") from error
            return []
        self._answered = datetime.now(UTC)
        found = {run.id: _ended(self._shards[run.id], run) for run in runs if run.state and run.state.is_final()}
        with suppress(httpx.HTTPError, ObjectNotFound), get_client(sync_client=True) as client:
            for run in runs:
                if run.id not in found and self._never_lived(client, run):
                    client.set_flow_run_state(run.id, Crashed(message="It gave no sign of life."), force=True)
                    found[run.id] = Ended(self._shards[run.id], lost="its run did not begin: its worker is gone")
        self._shards = {name: shard for name, shard in self._shards.items() if name not in found}
        return [*found.values()]

    def _never_lived(self, client: SyncPrefectClient, run: FlowRun) -> bool:
        """Whether a worker took a run long ago that gave no sign of life since. Of one that did, the server notices
        when there is none any more."""
        state = run.state
        if run.id in self._alive or state is None or self._answered - state.timestamp < LOST:
            return False
        if state.is_running() and gave_a_sign(client, run.id):
            self._alive.add(run.id)
            return False
        return state.is_running() or state.is_pending()

    def cancel(self) -> None:
        """Has the runs ended that are not over, since nobody waits for them."""
        with suppress(httpx.HTTPError), get_client(sync_client=True) as client:
            for name in self._shards:
                with suppress(ObjectNotFound):
                    client.set_flow_run_state(name, Cancelling())


@contextmanager
def pooled(pool: str, run: Run, audit_id: str) -> Iterator[Pool]:
    """Within, shards can be given to a pool; runs of it that are left afterwards are cancelled."""
    workers = Pool(pool, run, audit_id)
    try:
        yield workers
    finally:
        workers.cancel()


def check_pool(pool: str) -> None:
    """Looks whether an audit can be spread over a pool.

    Raises:
        InputError: there is no server, no such pool, or no deployment of shards on it; or the audit itself holds a
            place of this pool, where it would wait for runs that wait for its place.
    """
    if get_current_settings().api.url is None:
        raise InputError("there is no Prefect server: set PREFECT_API_URL, or take --workers N on this machine")
    try:
        with get_client(sync_client=True) as client:
            client.read_work_pool(pool)
            client.read_deployment_by_name(deployment_of(pool))
            own = runtime.flow_run.id
            held = client.read_flow_run(UUID(own)).work_pool_name if own else None
    except ObjectNotFound as error:
        raise InputError(
            f"there is no work pool {pool!r} with a deployment {deployment_of(pool)!r}: run `engram deploy`, which"
            " makes those of cpu and gpu"
        ) from error
    except httpx.HTTPError as error:
        raise InputError(f"the Prefect server cannot be used: {one_line(error)}") from error
    if held == pool:
        raise InputError(
            f"this audit is a run on the pool {pool!r} itself, and would hold a place that its shards need: run the"
            " deployment audit-spread, or another pool's"
        )


def _online(client: SyncPrefectClient, pool: str) -> int:
    """Workers of a pool that give a sign of life."""
    online = WorkerFilter(status=WorkerFilterStatus(any_=[WorkerStatus.ONLINE]))
    return len(client.read_workers_for_work_pool(pool, worker_filter=online))


def gave_a_sign(client: SyncPrefectClient, run: UUID) -> bool:
    """Whether the server has heard of a run that was at work."""
    resource = {"id": [f"prefect.flow-run.{run}"]}
    wanted = {"filter": {"event": {"name": [HEARTBEAT]}, "any_resource": resource}, "limit": 1}
    return bool(client.request("POST", "/events/filter", json=wanted).json()["events"])


def _ended(shard: Shard, run: FlowRun) -> Ended:
    """How a shard ended, by the last state of its run."""
    state = run.state
    assert state is not None
    words = " ".join((state.message or state.name or "").split())
    if state.type is StateType.COMPLETED:
        answer = json.loads(state.message or "{}")
        return Ended(shard, answer["seconds"], answer["failed"])
    if state.type is StateType.FAILED:
        return Ended(shard, error=words)
    if state.type is StateType.CANCELLED:
        return Ended(shard, error="its run was cancelled")
    return Ended(shard, lost=f"its run crashed ({words})")
