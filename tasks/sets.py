"""Sets of neurons and weights as they lie in the store: localization writes them, mitigation reads them."""

from collections.abc import Collection
from typing import Any

import numpy as np
import torch

from tasks.diffusion.sites import Layer, Site
from tasks.errors import InputError
from tasks.subject import Subject

Sets = dict[tuple[str, int | None, int], torch.Tensor]
"""By scope id, step (None where there are none) and layer index, sorted members, int64."""


def found_scopes(subject: Subject, method: str, params_id: str, site: Site, layers: tuple[Layer, ...]) -> set[str]:
    """The ids of the scopes whose sets are all there."""
    # Parts are written in order of layers: the last layer's says that all are there.
    rows = subject.open().read(
        "neuron_sets",
        columns=["scope_id"],
        model_id=subject.model_id,
        method=method,
        site=site.value,
        layer=layers[-1].name,
        params_id=params_id,
    )
    return set(rows["scope_id"].to_pylist())


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
    if lost := (wanted or set()) - {scope for scope, _, _ in found}:
        raise InputError(f"the store has no {method} sets of {min(lost)!r}: run the localization first")
    return found


def write_sets(
    subject: Subject, key: str, method: str, params_id: str, site: Site, scope: str, rows: list[dict[str, Any]]
) -> None:
    """Writes rows of `neuron_sets`, a part a layer.

    Args:
        scope: whose sets they are: "prompt", "subset" or "trigger".
    """
    named = [{"params_id": params_id, "scope": scope} | row for row in rows]
    subject.open().write_parts("neuron_sets", key, named, model_id=subject.model_id, method=method, site=site.value)
