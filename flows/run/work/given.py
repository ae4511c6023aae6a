"""What items give and need, by name: all shards of one piece of work give the same."""

from typing import Any

from tasks.diffusion.sites import Site
from tasks.evaluate import task as evaluating
from tasks.keys import detection_id

MANY, TRIED, SCORED = "many triggers", "tried triggers", "detectors' scores"
"""Names of what items give. Those below name it by what it is of."""


def values(site: Site) -> str:
    return f"values at {site.value}"


def norms(site: Site, key: str) -> str:
    return f"norms at {site.value} {key}"


def detected(params: Any) -> str:
    return f"noise differences {detection_id(params)}"


def sets(sets_id: str) -> str:
    return f"sets {sets_id}"


def variant(name: str) -> str:
    return f"variant {name}"


def triggers(trial: evaluating.Trial) -> str:
    return f"triggers of {trial.name}, {trial.condition.name}"


def made(trial: evaluating.Trial) -> str:
    return f"generations of {trial.name}, {trial.condition.name}"


def measured(trial: evaluating.Trial) -> str:
    return f"estimates of {trial.name}, {trial.condition.name}"
