"""Small tables for the tests."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from storage import Store

SET: dict[str, Any] = {"model_id": "m", "method": "wanda", "site": "ff", "layer": "down.0/ff net"}


def neuron_set(scope_id: str, members: Iterable[int], step: int | None = 0, universe: int = 1000) -> dict[str, Any]:
    """A row of `neuron_sets`, but for the partition columns."""
    return {
        "params_id": "p",
        "scope": "subset",
        "scope_id": scope_id,
        "step": step,
        "members": sorted(members),
        "universe": universe,
    }


def put_sets(store: Store, sets: Mapping[str, Iterable[int]], step: int | None = 0, **partition: Any) -> None:
    """Write each set as a part of its own, as different workers would."""
    for name, members in sets.items():
        store.write("neuron_sets", f"{name}-{step}", [neuron_set(name, members, step)], **(SET | partition))


def activation(
    prompt_id: str, mean_abs: list[float] | None = None, sum_sq: list[float] | None = None
) -> dict[str, Any]:
    """A row of `activations`, but for the partition columns."""
    return {"prompt_id": prompt_id, "mean_abs": mean_abs, "sum_sq": sum_sq, "tokens": 77}


def prompt(prompt_id: str, kind: str, subset: str | None = None) -> dict[str, Any]:
    """A row of `prompts`, but for its set."""
    return {"prompt_id": prompt_id, "text": f"text of {prompt_id}", "kind": kind, "subset": subset}
