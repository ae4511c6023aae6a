"""Every metric that applies to a trial, into the store."""

import math
from collections.abc import Collection, Sequence
from typing import Any

from storage import content_key
from tasks.conditions import PROMPT, Condition
from tasks.diffusion.sampling import SamplingParams
from tasks.evaluate.copying import similarities, triggers_that_copy
from tasks.evaluate.estimates import Estimate
from tasks.evaluate.task.generations import Shot, Trial, generate_images, generation_ids
from tasks.evaluate.task.generations import shots as shots_of
from tasks.evaluate.task.seen import Scoring, StoredSeen, scores_known
from tasks.methods import metrics
from tasks.scorers.sscd import SscdParams, scorer_of
from tasks.subject import ORIGINAL, Prompt, Subject
from tasks.units import PROMPTS


def measure(
    subject: Subject,
    audit_id: str,
    trial: Trial,
    shots: Sequence[Shot],
    scoring: Scoring,
    shared: tuple[float, int] | None = None,
) -> None:
    """Makes the generations of a trial, scores them, and writes the estimates of every metric that applies.

    Args:
        shots: the generations that the trial asks for.
        shared: of a variant that was pruned at random, the share of its members that were localized, and how many
            members it has.

    Raises:
        InputError: a variant, a trigger or an image is not in the store.
    """
    write_estimates(subject, audit_id, trial.name, trial.condition, estimates(subject, trial, shots, scoring, shared))


def estimates(
    subject: Subject,
    trial: Trial,
    shots: Sequence[Shot],
    scoring: Scoring,
    shared: tuple[float, int] | None = None,
    only: Collection[str] | None = None,
) -> list[Estimate]:
    """What `measure` writes.

    Args:
        only: names of metrics; all that apply if left out.
    """
    generate_images(subject, trial.variant, trial.condition, shots, scoring.sampling)
    seen = StoredSeen(subject, trial, shots, scoring, shared)
    found: list[Estimate] = []
    for one in metrics():
        if (only is None or one.name in only) and one.applies(trial.condition, trial.name):
            found += one.measure(seen, scoring.params.get(one.name, one.params()))
    return found


def compare_with_images(subject: Subject, trial: Trial, shots: Sequence[Shot], scoring: Scoring) -> None:
    """Makes the generations of a trial and scores how near they are to training images, and nothing else: what
    `nearest` and `succeeded` look at."""
    generate_images(subject, trial.variant, trial.condition, shots, scoring.sampling)
    similarities(StoredSeen(subject, trial, shots, scoring))


def nearest(
    subject: Subject, prompts: Sequence[Prompt], seeds: int, sampling: SamplingParams, params: SscdParams
) -> dict[str, float]:
    """How near the original's generations of prompts come to their training images, the nearest of all seeds (SSCD).

    Returns:
        By prompt id; without prompts that have no image, or of which the store lacks a score.
    """
    wanted = shots_of(prompts, seeds)
    ids = generation_ids(subject, ORIGINAL, PROMPT, wanted, sampling)
    known = scores_known(subject.open(), "sscd", scorer_of(params), ids)
    found: dict[str, list[float | None]] = {}
    for name, shot in zip(ids, wanted, strict=True):
        found.setdefault(shot.prompt.prompt_id, []).extend(known.get((name, image)) for image in shot.prompt.image_ids)
    whole = {name: [value for value in values if value is not None] for name, values in found.items()}
    return {name: max(values) for name, values in whole.items() if values and len(values) == len(found[name])}


def succeeded(subject: Subject, trial: Trial, shots: Sequence[Shot], scoring: Scoring) -> set[str]:
    """The triggers of which any generation is a copy of a training image of the prompt, once they were tried."""
    return triggers_that_copy(similarities(StoredSeen(subject, trial, shots, scoring)))


def write_estimates(
    subject: Subject, audit_id: str, variant: str, condition: Condition, found: Sequence[Estimate]
) -> None:
    """Rows of `metrics`; a variant goes by its name, so that audits compare.

    A metric of more prompts than images is followed by one that says how many: of `mr` it is `mr_prompts`. One that is
    not a number has no value.
    """
    partition = {"variant": variant, "condition": condition.name}
    rows: list[dict[str, Any]] = []
    for one in found:
        value = None if math.isnan(one.value) else one.value
        rows.append(partition | {"metric": one.metric, "value": value, "low": one.low, "high": one.high, "n": one.n})
        if one.prompts not in (None, one.n):
            rows.append(partition | {"metric": f"{one.metric}{PROMPTS}", "value": float(one.prompts), "n": one.n})
    subject.open().write("metrics", content_key(audit_id, variant, condition.name), rows, audit_id=audit_id)
