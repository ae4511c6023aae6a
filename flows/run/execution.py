"""The doing of work: here, item by item, each as a Prefect task whose lineage shows."""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from prefect import get_run_logger

from flows.lineage import task
from flows.run.spec import Spec
from flows.run.work import Item, Stage, work
from flows.show import shown_progress
from tasks.errors import Diverged, InputError, TooLarge

FIRST = "run the confirmation first"
BEFORE: dict[str, tuple[Stage, str]] = {
    "collect": ("confirm", FIRST),
    "localize": ("collect", "run the collection first"),
    "mitigate": ("localize", "run the localization first"),
    "attack": ("localize", "run the localization first"),
    "diagnose": ("localize", "run the localization first"),
    "evaluate": ("attack", "attack first"),
}
"""Whose work a stage needs, and what to do where it is not there."""
SLEEP = "ENGRAM_SLEEP_PER_EVALUATION"
"""The environment variable by which `engram bench scale` has a device that sleeps: for each evaluation of the denoiser
so many seconds, beside what is computed."""


def execute(spec: Spec, stage: Stage, audit_id: str = "none") -> Iterator[tuple[Item, Any]]:
    """Does what a stage has to do and the store does not have, and yields each item with what it returned.

    A training that diverges, or that does not fit into memory, is a result, too: the others go on without its variant,
    and the page says so.

    Args:
        audit_id: the audit that estimates and model cards name.

    Raises:
        InputError: something that an item needs is not there, or cannot be used.
    """
    check_ready(spec, stage)
    with shown_progress(stage):
        for item in work(spec, stage, audit_id=audit_id):
            if not item.anew and not item.missing():
                continue
            try:
                done = task(doing(item), item.name, *item.writes, reads=item.reads)()
            except (Diverged, TooLarge) as error:
                if not item.may_fail:
                    raise
                get_run_logger().warning("%s has no result: %s", item.name, error)
                continue
            yield item, done


def execute_items(
    spec: Spec,
    audit_id: str,
    stage: Stage,
    ids: Sequence[str],
    do: Callable[[Item], Any] = lambda item: doing(item)(),
) -> dict[str, str]:
    """Does those of a stage's items that go by these ids, in their order, where the store does not have them.

    Args:
        do: does one item.

    Returns:
        By id, why an item whose failure is a result, too, has none.

    Raises:
        InputError: one is not to be done as the store now stands, or it cannot be done.
    """
    listed = {item.id: item for item in work(spec, stage, audit_id=audit_id)}
    if lost := [name for name in ids if name not in listed]:
        raise InputError(f"{len(lost)} items of the work are none as the store now stands: run the audit again")
    failed = {}
    for name in ids:
        item = listed[name]
        if item.anew or item.missing():
            try:
                do(item)
            except (Diverged, TooLarge) as error:
                if not item.may_fail:
                    raise
                failed[name] = str(error)
    return failed


def doing(item: Item) -> Callable[[], Any]:
    """What does an item."""
    per_evaluation = float(os.environ.get(SLEEP, 0))

    def do() -> Any:
        time.sleep(per_evaluation * item.cost * (item.size if item.anew else item.missing()))
        return item.do()

    return do if per_evaluation else item.do


def check_ready(spec: Spec, stage: str) -> None:
    """Looks whether a stage finds in the store what the one before it writes: at once, not after its own first hours.

    Raises:
        InputError: something is missing, with what is to be done first.
    """
    if stage not in BEFORE:
        return
    if spec.chosen.known is None:
        raise InputError(f"it is not known yet which memorized prompts the model brings back: {FIRST}")
    before, advice = BEFORE[stage]
    for item in work(spec, before):
        if not item.anew and (lacking := item.missing()):
            units = item.unit if item.size == 1 else f"{item.unit}s"
            raise InputError(f"the store lacks {lacking} of {item.size} {units} of {item.name}: {advice}")
