"""Sets of neurons and weights as they lie in the store: localization writes them, mitigation reads them."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from tasks.diffusion.sites import Layer, Site
from tasks.errors import InputError

if TYPE_CHECKING:  # a subject reads the sets of its variants
    from tasks.subject import Subject

Sets = dict[tuple[str, int | None, int], torch.Tensor]
"""By scope id, step (None where there are none) and layer index, sorted members, int64."""


def found_scopes(subject: Subject, method: str, params_id: str, site: Site, layers: tuple[Layer, ...]) -> set[str]:
    """The ids of the scopes whose sets are all there."""
    partition = {"model_id": subject.model_id, "method": method, "site": site.value, "params_id": params_id}
    rows = subject.open().read("neuron_sets", columns=["scope_id", "layer"], **partition)
    return complete(rows["scope_id"].to_pylist(), rows["layer"].to_pylist(), layers)


def complete(ids: Sequence[str], names: Sequence[str], layers: Sequence[Layer]) -> set[str]:
    """The ids that have a row of every layer. Parts appear one by one, and a damaged one may have been deleted.

    Args:
        ids, names: of each row, what it is of, and the name of its layer.
    """
    of: dict[str, set[str]] = {}
    for one, name in zip(ids, names, strict=True):
        of.setdefault(one, set()).add(name)
    return {one for one, found in of.items() if found.issuperset(layer.name for layer in layers)}


def read_sets(
    subject: Subject,
    method: str,
    params_id: str,
    site: Site,
    layers: tuple[Layer, ...],
    scope_ids: Collection[str] | None = None,
) -> Sets:
    """The sets of these scopes, or of all.

    Raises:
        InputError: one of the scopes has none.
    """
    numbers = {layer.name: layer.index for layer in layers}
    rows = subject.open().read(
        "neuron_sets",
        columns=["scope_id", "step", "layer", "members"],
        model_id=subject.model_id,
        method=method,
        site=site.value,
        params_id=params_id,
    )
    found: Sets = {}
    wanted = None if scope_ids is None else set(scope_ids)
    scopes, steps, names = (rows[column].to_pylist() for column in ("scope_id", "step", "layer"))
    for scope, step, name, members in zip(scopes, steps, names, rows["members"], strict=True):
        if wanted is None or scope in wanted:
            found[scope, step, numbers[name]] = torch.from_numpy(members.values.to_numpy().astype(np.int64))
    if lost := (wanted or set()) - complete(scopes, names, layers):
        raise InputError(
            f"the store has no {method} sets of {min(lost)!r}, or not all: run the localization and the mitigation"
        )
    return found


def write_sets(
    subject: Subject, key: str, method: str, params_id: str, site: Site, scope: str, rows: list[dict[str, Any]]
) -> None:
    """Writes rows of `neuron_sets`, a part a layer.

    Args:
        scope: whose sets they are: "prompt", "subset", "trigger" or "variant".
    """
    named = [{"params_id": params_id, "scope": scope} | row for row in rows]
    subject.open().write_parts("neuron_sets", key, named, model_id=subject.model_id, method=method, site=site.value)
