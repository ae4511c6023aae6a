"""Whether a stage finds in the store what the stages before it write: known at once, not after its own first hours."""

from collections.abc import Callable, Collection, Mapping

from flows.plan import Plan
from tasks.errors import InputError
from tasks.keys import norms_id, values_id
from tasks.subject import ORIGINAL, Prompt


def check_ready(stage: str, plan: Plan) -> None:
    """Looks only at what there is, by its names; loads nothing.

    Args:
        stage: the name of its flow; one that needs nothing is always ready.

    Raises:
        InputError: something is missing, with the stage that comes first.
    """
    if (check := _CHECKS.get(stage)) is not None:
        check(plan)


def _localize(plan: Plan) -> None:
    subject, sampling = plan.subject, plan.settings.sampling

    def known(site: str, params_id: str) -> set[str]:
        place = {"model_id": subject.model_id, "variant": ORIGINAL, "site": site, "params_id": params_id}
        rows = subject.open().read("activations", columns=["prompt_id"], **place)
        return set(rows["prompt_id"].to_pylist())

    for localizer in plan.localizers:
        params = plan.params_of(localizer)
        site, reads = localizer.site_of(params).value, localizer.reads_of(params)
        asked = [*plan.memorized, *(plan.control_prompts if any(one.ordinary for one in localizer.prunings) else [])]
        if "values" in reads:
            nulls = plan.nulls if "null values" in reads else []
            _refuse_lost([*asked, *nulls], known(site, values_id()), f"activations at {site!r}")
        for half in params.halves if "norms" in reads else ():
            contrast = plan.contrast if "contrast norms" in reads else []
            seen = known(site, f"{norms_id(sampling, params.tau)}-{half}")
            _refuse_lost([*asked, *contrast], seen, f"feature norms at {site!r}")


def _refuse_lost(asked: Collection[Prompt], known: Collection[str], what: str) -> None:
    if lost := [prompt for prompt in asked if prompt.prompt_id not in known]:
        raise InputError(f"{len(lost)} prompts have no {what}: run the collection first")


def _localized(plan: Plan) -> None:
    for pruned in plan.pruned.values():
        place = {"model_id": plan.subject.model_id, "method": pruned.method, "params_id": pruned.sets_id}
        found = plan.subject.open().read("neuron_sets", columns=["scope_id"], **place)
        if lost := set(pruned.scopes) - set(found["scope_id"].to_pylist()):
            raise InputError(f"the store has no {pruned.method} sets of {min(lost)!r}: run the localization first")


def _evaluate(plan: Plan) -> None:
    rows = plan.subject.open().read("triggers", columns=["trigger_id"], model_id=plan.subject.model_id)
    known = set(rows["trigger_id"].to_pylist())
    for trial in plan.trials(plan.variants()):
        if lost := set(plan.trigger_ids(trial)) - known:
            raise InputError(f"the store has no trigger {min(lost)} of {trial.variant}: attack first")


_CHECKS: Mapping[str, Callable[[Plan], object]] = {
    "localize": _localize,
    "mitigate": _localized,
    "attack": _localized,
    "diagnose": _localized,
    "evaluate": _evaluate,
}
