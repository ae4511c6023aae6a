"""A shard of an audit: some items of its work, done by a worker of the pool that the audit is spread over."""

import json
import time
from typing import Any

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.settings import get_current_settings
from prefect.states import Completed

from flows.check import check_run
from flows.lineage import task
from flows.run.execution import doing, execute_items
from flows.run.spec import Run, spec_of
from flows.run.work import Item, Stage
from flows.show import shown_progress
from tasks.errors import InputError
from tasks.report import task as reporting


@flow(name="shard")
def shard(run: Run, audit_id: str, stage: Stage, items: list[str]) -> State[Any]:
    """Does some items of an audit's work; an audit that is spread over a pool starts it. What the store has already is
    not done again.

    Args:
        run: the run that the items belong to.
        audit_id: the audit that estimates and model cards name. If it has ended, nothing is done.
        stage: that the items are of.
        items: their ids.

    Raises:
        InputError: an item cannot be done, or is none as the store now stands; the worker's runs give no signs of life.
    """
    if get_current_settings().flows.heartbeat_frequency is None:
        raise InputError(
            "start the workers with PREFECT_FLOWS_HEARTBEAT_FREQUENCY=30: else nobody notices when one is killed"
        )
    spec = spec_of(run)
    check_run(spec.params)
    if reporting.record_of(spec.subject.open(), audit_id)["state"] != "running":
        return Completed(message=json.dumps({"seconds": 0.0, "failed": {}}))
    spec.subject.load()
    begun = time.monotonic()

    def do(item: Item) -> None:
        task(doing(item), item.name, *item.writes, reads=item.reads)()

    with shown_progress("shard"):
        failed = execute_items(spec, audit_id, stage, items, do)
    return Completed(message=json.dumps({"seconds": time.monotonic() - begun, "failed": failed}))
