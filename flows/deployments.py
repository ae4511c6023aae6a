"""What can be triggered in the Prefect UI: one line a deployment."""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_type_hints

import httpx
from prefect import Flow
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import DeploymentScheduleUpdate, WorkPoolCreate
from prefect.client.schemas.objects import ConcurrencyLimitConfig, ConcurrencyLimitStrategy
from prefect.client.schemas.responses import DeploymentResponse
from prefect.deployments.runner import RunnerDeployment
from prefect.exceptions import ObjectNotFound
from prefect.flows import load_flow_from_entrypoint
from prefect.runner.storage import LocalStorage
from prefect.types.entrypoint import EntrypointType
from prefect.workers.process import ProcessWorker

from storage.errors import one_line
from tasks.errors import InputError

Pool = Literal["cpu", "gpu", "plan"]

POOLS: dict[Pool, str] = {
    "cpu": "Workers on any machine",
    "gpu": "Workers on a machine with a GPU",
    "plan": "Audits whose work is spread over another pool: they plan and wait, and hold no place of that one",
}


class Line(NamedTuple):
    """One deployment."""

    entrypoint: str
    name: str
    pool: Pool
    cron: str | None = None
    """When it runs by itself, in UTC."""
    at_once: int | None = None
    """How many runs there may be at a time; a further one is cancelled, not queued."""


DEPLOYMENTS = (
    Line("flows.audit.audit", "audit", "cpu"),
    Line("flows.audit.audit", "audit-gpu", "gpu"),
    Line("flows.audit.audit", "audit-spread", "plan"),
    Line("flows.shard.shard", "shard-cpu", "cpu"),
    Line("flows.shard.shard", "shard-gpu", "gpu"),
    Line("flows.scan.scan", "scan", "cpu"),
    Line("flows.scan.scan", "scan-gpu", "gpu"),
    Line("flows.nightly.nightly", "nightly", "cpu", cron="0 2 * * *", at_once=1),
    Line("flows.nightly.nightly", "nightly-gpu", "gpu", at_once=1),
    Line("flows.stages.confirm", "confirm", "cpu"),
    Line("flows.stages.collect", "collect", "cpu"),
    Line("flows.stages.localize", "localize", "cpu"),
    Line("flows.stages.mitigate", "mitigate", "cpu"),
    Line("flows.stages.attack", "attack", "cpu"),
    Line("flows.stages.diagnose", "diagnose", "cpu"),
    Line("flows.stages.evaluate", "evaluate", "cpu"),
    Line("flows.stages.report", "report", "cpu"),
    Line("flows.reference.build", "reference-build", "cpu"),
)

# A night that is still at work when the next begins, or several nights that a server slept through, are one audit's
# worth of work: whatever is in the store already is not computed again. So what comes second is cancelled.
COLLISION = ConcurrencyLimitStrategy.CANCEL_NEW


def deploy(store: str, folder: Path, keep_images: int | None = None) -> list[str]:
    """Registers pools and deployments with the server that `PREFECT_API_URL` names; says what there is now.

    What a person set in the UI stays: schedules, parameters but for what is given here, and what is paused.

    Args:
        store: address of the store that forms are filled in with.
        folder: where runs work, so what relative paths in forms are relative to.
        keep_images: of how many nights images are kept, see `flows.nightly`; what was set before if None.

    Raises:
        InputError: no server answers, or it does not let us in.
    """
    with get_client(sync_client=True) as client:
        try:
            client.api_version()
        except httpx.HTTPError as error:
            raise InputError(f"the Prefect server at {client.api_url} cannot be used: {one_line(error)}") from error
        for pool, words in POOLS.items():
            _ensure_pool(client, pool, words)
        given = {"store": store} | ({} if keep_images is None else {"keep_images": keep_images})
        return [_deploy(client, line, given, folder) for line in DEPLOYMENTS]


def _ensure_pool(client: SyncPrefectClient, pool: Pool, words: str) -> None:
    try:
        client.read_work_pool(pool)
    except ObjectNotFound:
        template = ProcessWorker.get_default_base_job_template()
        request = WorkPoolCreate(name=pool, type="process", description=words, base_job_template=template)
        client.create_work_pool(request)


def _deploy(client: SyncPrefectClient, line: Line, values: Mapping[str, Any], folder: Path) -> str:
    flow: Flow[..., Any] = load_flow_from_entrypoint(line.entrypoint, use_placeholder_flow=False)
    made = runner_deployment(flow, line, folder)
    there = _read(client, made.full_name)
    given = {} if there is None else still_taken(flow, there.parameters)
    for name, fields in _forms(flow).items():
        given[name] = given.get(name, {}) | {field: value for field, value in values.items() if field in fields}
    made.parameters = given
    if there is not None:
        kept = {"schedule", "active", "parameters", "slug"}
        made.schedules = [DeploymentScheduleUpdate(**each.model_dump(include=kept)) for each in there.schedules]
    made.apply()
    return made.full_name


def runner_deployment(flow: Flow[..., Any], line: Line, folder: Path) -> RunnerDeployment:
    """The deployment as Prefect takes it; parameters that break the flow's schema are refused by the server."""
    limit = None if line.at_once is None else ConcurrencyLimitConfig(limit=line.at_once, collision_strategy=COLLISION)
    made = RunnerDeployment.from_flow(
        flow,
        name=line.name,
        cron=line.cron,
        concurrency_limit=limit,
        work_pool_name=line.pool,
        enforce_parameter_schema=True,
        entrypoint_type=EntrypointType.MODULE_PATH,
    )
    made.storage = LocalStorage(str(folder))
    return made


def _read(client: SyncPrefectClient, name: str) -> DeploymentResponse | None:
    try:
        return client.read_deployment_by_name(name)
    except ObjectNotFound:
        return None


def still_taken(flow: Flow[..., Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Of what an earlier version of a flow was given, by parameter, what this one has a parameter for."""
    return {name: value for name, value in given.items() if name in flow.parameters.properties}


def _forms(flow: Flow[..., Any]) -> dict[str, Collection[str]]:
    """The parameters of a flow that are forms with a store, and the fields of each."""
    fields = {name: getattr(kind, "model_fields", {}) for name, kind in get_type_hints(flow.fn).items()}
    return {name: some for name, some in fields.items() if "store" in some}
