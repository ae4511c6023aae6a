"""Trials: what is asked of each variant."""

from collections.abc import Iterator, Mapping
from typing import Any

from flows.run import ids
from flows.run.spec import Spec
from tasks.attack import task as attacking
from tasks.conditions import EXTRACTION, ORDINARY, PROMPT, Condition, Start, dori, effort
from tasks.evaluate import task as evaluating
from tasks.evaluate.task import Trial
from tasks.methods import metrics
from tasks.pruned import per_prompt
from tasks.report.task import standings
from tasks.subject import ORIGINAL


def trials(spec: Spec, variants: Mapping[str, str]) -> Iterator[Trial]:
    """Everything that these variants are put to.

    Args:
        variants: by name, the variant in the store.
    """
    settings, chosen, seeds = spec.settings, spec.chosen, spec.settings.seeds
    for name, stored in variants.items():
        yield Trial(name, stored, PROMPT, chosen.memorized, seeds)
        if name not in per_prompt():  # nothing is pruned for ordinary prompts
            yield Trial(name, stored, ORDINARY, chosen.ordinary, seeds)
    if many := settings.extracted:
        both = [*chosen.examined[:many], *chosen.ordinary[:many]]
        for name, stored in variants.items():
            if _claims(name):
                yield Trial(name, stored, EXTRACTION, both, settings.extraction.generations)
    for start in settings.starts if chosen.attacked else ():
        for name, stored in variants.items():
            if start in _starts(spec, name):
                yield Trial(name, stored, dori(start), chosen.attacked, seeds)
        for condition, others in ((dori(start, "control"), chosen.controls), (dori(start, "unseen"), chosen.unseen)):
            if others:
                yield Trial(ORIGINAL, ORIGINAL, condition, others, seeds)
    few = settings.effort_images
    # The largest first: the others are its beginnings, and then there already.
    for steps in sorted(set(settings.efforts), reverse=True) if chosen.attacked else ():
        for condition, some in ((effort(steps), chosen.attacked), (effort(steps, "control"), chosen.controls)):
            if some:
                yield Trial(ORIGINAL, ORIGINAL, condition, some[:few], seeds)


def attack_of(spec: Spec, condition: Condition) -> attacking.DoriParams:
    """The attack of a condition that attacks."""
    own: dict[str, Any] = {"start": condition.start, "also_at": ()}
    if condition.steps is not None:
        own |= {"steps": condition.steps, "also_at": spec.settings.efforts}
    return spec.settings.dori.model_copy(update=own)


def triggers_of(spec: Spec, trial: Trial) -> dict[str, list[str]] | None:
    """The ids of a trial's triggers by prompt id; None where prompts are asked."""
    if trial.condition.start is None:
        return None
    attack, seed = attack_of(spec, trial.condition), spec.settings.seed
    weights = trial.variant if has_own_weights(trial) else ORIGINAL
    return attacking.triggers_of(spec.subject, weights, trial.prompts, spec.chosen.pool, attack, seed)


def trigger_ids(spec: Spec, trial: Trial) -> list[str]:
    """All of those ids, in order."""
    return [name for names in (triggers_of(spec, trial) or {}).values() for name in names]


def shots_of(spec: Spec, trial: Trial) -> list[evaluating.Shot]:
    """The generations that a trial asks for."""
    return evaluating.shots(trial.prompts, trial.seeds, triggers_of(spec, trial))


def generations_of(spec: Spec, trial: Trial) -> list[str]:
    """The ids of those generations."""
    of = spec.subject, trial.variant, trial.condition
    return evaluating.generation_ids(*of, shots_of(spec, trial), spec.settings.sampling)


def scoring(spec: Spec) -> evaluating.Scoring:
    """What generations are made and looked at with."""
    settings, chosen = spec.settings, spec.chosen
    own = {one.name: settings.of(one) for one in metrics() if one.params.model_fields}
    return evaluating.Scoring(
        settings.sampling,
        settings.sscd,
        spec.clip,
        own,
        ids.detection(spec),
        [*chosen.examined, *chosen.ordinary],
        [(one, settings.of(one)) for one in settings.judged()],
        chosen.confirmed,
        chosen.units,
    )


def has_own_weights(trial: Trial) -> bool:
    """Whether a trial's variant has weights of its own; else it acts at inference alone, and its triggers are those of
    the original."""
    return trial.name == ORIGINAL or standings()[trial.name].kind != "inference"


def _claims(name: str) -> bool:
    """Whether a variant claims to have removed a memory, or is the model itself."""
    return name == ORIGINAL or standings()[name].claims


def _starts(spec: Spec, name: str) -> tuple[Start, ...]:
    """Where attacks on a variant begin. What claims something, and the model itself, is attacked from every start,
    random controls and baselines from those that the settings name; other controls and scores are only prompted."""
    settings, standing = spec.settings, standings().get(name)
    if _claims(name) or standing is None:
        return settings.starts
    if standing.kind == "random" and standing.always and name not in per_prompt():
        return settings.random_starts
    return settings.baseline_starts if standing.kind in ("trained", "inference") else ()
