"""The audit: every stage in the way of the data, from prompts to the report."""

import json
import secrets
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from datetime import UTC, datetime
from importlib.metadata import version

from prefect import flow, get_run_logger

from flows.check import check
from flows.lifetime import at_the_end
from flows.params import AuditParams
from flows.run.pool import check_pool, pooled
from flows.run.processes import Processes, check_many
from flows.run.spec import Spec, resolve, spec_of
from flows.run.spread import Workers, spread
from flows.show import show_audit, shown_progress
from flows.stages import (
    Audited,
    attack,
    collect,
    confirm,
    diagnose,
    evaluate,
    localize,
    mitigate,
    report,
    show_confirmed,
    show_locality,
    show_trainings,
)
from storage import begun_here, mark_lost, record_holdings
from storage.processes import BEGUN, ENDED
from tasks.collect import task as collecting
from tasks.diffusion.model import device_of
from tasks.diffusion.precision import arithmetic
from tasks.errors import InputError
from tasks.progress import stage

LIBRARIES = ("torch", "diffusers", "transformers", "open_clip_torch", "onnxruntime", "duckdb", "pyarrow", "prefect")


@flow(name="audit", flow_run_name="audit {params.named}")
def audit(params: AuditParams) -> Audited:
    """Audits a model: what it memorized, where, whether it can be pruned away, and whether it is then gone.

    Whatever the store holds already is not computed again, so an interrupted audit goes on where it stopped.

    Raises:
        InputError: the model, the prompts or the images cannot be used.
    """
    check(params)
    by_others = shared(params)
    spec = resolve(params)
    for notice in spec.notices:
        get_run_logger().info(notice)
    with recorded(spec, by_others) as audit_id:
        if by_others:
            share(spec, audit_id)
        else:
            confirm(spec.run)
            collect(spec.run)
            localize(spec.run)
            mitigate(spec.run, audit_id)
            attack(spec.run)
            diagnose(spec.run, audit_id)
            evaluate(spec.run, audit_id)
        done = report(spec.run, audit_id)
        show_audit(spec.subject.open(), audit_id, done.report, done.written)
        return done


def shared(params: AuditParams) -> bool:
    """Whether others do the work of an audit, and its own process only plans and waits.

    Raises:
        InputError: it cannot be spread so, see `check_pool` and `check_many`.
    """
    if params.spread is not None:
        if params.workers > 1:
            raise InputError("--workers and --spread exclude each other: leave one out")
        check_pool(params.spread)
    check_many(params.workers, params.device)
    return params.spread is not None or params.workers > 1


def share(spec: Spec, audit_id: str) -> None:
    """Has the work of a run done by processes of this machine, or by the workers of a pool.

    Raises:
        InputError: an item of it cannot be done.
    """
    items = 0

    def did() -> str:
        return f"{items} items by {_device(spec)}" if items else "all was in the store already"

    with shown_progress("work", did), _workers(spec, audit_id) as workers:
        for _ in spread(spec, audit_id, workers, get_run_logger().warning):
            items += 1
    spec = spec_of(spec.run)  # by now it is known which prompts are confirmed
    show_confirmed(spec)
    show_trainings(spec)
    show_locality(spec, audit_id)


def _workers(spec: Spec, audit_id: str) -> AbstractContextManager[Workers]:
    params = spec.params
    if params.spread is not None:
        return pooled(params.spread, spec.run, audit_id)
    return Processes(params.workers, spec.run, audit_id)


@contextmanager
def recorded(spec: Spec, by_others: bool = False) -> Iterator[str]:
    """Within, an audit of this id is running; afterwards the store says how it ended: completed, failed by an error, or
    cancelled by whoever asked the process to end.

    Args:
        by_others: whether others do its work: then the model need not even fit into this process.

    Raises:
        InputError: the model cannot be loaded, or samples other images than its own pipeline.
    """
    started = datetime.now(UTC)
    audit_id = f"{started:%Y%m%d-%H%M%S}-{secrets.token_hex(3)}"
    store = spec.subject.open()
    depends_on = {name: version(name) for name in LIBRARIES}
    if not by_others:
        with stage("check", lambda: "our sampling beside the pipeline's own", announced=False):
            collecting.register_model(spec.subject, spec.settings.sampling)
        depends_on |= arithmetic(spec.subject.load().device)
    record = {
        "audit_id": audit_id,
        "model_id": spec.subject.model_id,
        "run_id": spec.run_id,
        "prompt_set": spec.subject.prompt_set,
        "params": spec.params.model_dump_json(),
        "code_version": version("engram-audit"),
        "library_versions": json.dumps(depends_on),
        "seed": spec.settings.seed,
        "device": _device(spec) if by_others else str(spec.subject.load().device),
        "started_at": started,
    }

    def end(state: str) -> None:
        ended = record | {"state": state, "finished_at": datetime.now(UTC)}
        store.write("audits", f"{audit_id}{ENDED}", [ended])

    mark_lost(store)
    begun_here(store, audit_id)
    store.write("audits", f"{audit_id}{BEGUN}", [record | {"state": "running"}])
    with at_the_end(lambda: end("cancelled")):
        try:
            yield audit_id
        except Exception:
            end("failed")
            raise
        except BaseException:  # Ctrl-C, or a signal as Prefect raises it
            end("cancelled")
            raise
        end("completed")
    # Only a completed audit has estimates that are relied on; another one is run again, which may replace its parts.
    record_holdings(store, audit_id)


def _device(spec: Spec) -> str:
    """What computes, where others do the work."""
    if spec.params.spread is not None:
        return f"workers of the pool {spec.params.spread}"
    return f"{spec.params.workers} processes on {device_of(spec.params.device)}"


__all__ = ["AuditParams", "Audited", "audit", "recorded"]
