"""What all kinds of sets share: how they lie in the store."""

from typing import Any

from storage import Store
from tasks.diffusion.sites import Layer, Site
from tasks.subject import Subject

VERSION = "localize/1"
ALL = "all"
"""Scope of the sets found for all memorized prompts together."""


def scopes(
    store: Store, subject: Subject, method: str, params_id: str, site: Site, layers: tuple[Layer, ...]
) -> set[str]:
    # Parts are written in order of layers: the last layer's says that all are there.
    rows = store.read(
        "neuron_sets",
        columns=["scope_id"],
        model_id=subject.model_id,
        method=method,
        site=site.value,
        layer=layers[-1].name,
        params_id=params_id,
    )
    return set(rows["scope_id"].to_pylist())


def write_sets(
    store: Store,
    subject: Subject,
    key: str,
    method: str,
    params_id: str,
    site: Site,
    scope: str,
    rows: list[dict[str, Any]],
) -> None:
    named = [{"params_id": params_id, "scope": scope} | row for row in rows]
    store.write_parts("neuron_sets", key, named, model_id=subject.model_id, method=method, site=site.value)
