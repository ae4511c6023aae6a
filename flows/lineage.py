"""Functions of the stages as Prefect tasks that say what they read and write."""

from collections.abc import Callable
from typing import Any

from prefect.assets import materialize
from prefect.cache_policies import NO_CACHE

from storage import out_of_reach


def task(function: Callable[..., Any], name: str, *writes: str, reads: tuple[str, ...] = (), run: str = "") -> Any:
    """A Prefect task that writes these tables and reads those, so that lineage shows.

    The store knows what is done: Prefect keeps no results and hashes no arguments.
    """
    return materialize(
        *(f"engram://{table}" for table in writes),
        by="engram",
        name=name,
        task_run_name=run or None,
        asset_deps=[f"engram://{table}" for table in reads],
        cache_policy=NO_CACHE,
        persist_result=False,
        retries=2,
        retry_delay_seconds=10,
        retry_condition_fn=_transient,
    )(function)


def _transient(task: Any, run: Any, state: Any) -> bool:
    """Whether to try again: when a remote store was out of reach, not when the input is wrong or memory is full."""
    try:
        state.result()
    except Exception as error:
        return out_of_reach(error)
    return False
