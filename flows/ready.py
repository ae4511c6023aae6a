"""Whether a stage finds in the store what the stages before it write: known at once, not after its own first hours."""

from collections.abc import Callable, Collection, Mapping

from flows.plan import Plan
from tasks.errors import InputError
from tasks.keys import norms_id, values_id
from tasks.localize import task as localizing
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
    settings, subject = plan.settings, plan.subject
    nulls = plan.nulls if settings.nemo.statistics is None else []

    def known(site: str, params_id: str) -> set[str]:
        place = {"model_id": subject.model_id, "variant": ORIGINAL, "site": site, "params_id": params_id}
        rows = subject.open().read("activations", columns=["prompt_id"], **place)
        return set(rows["prompt_id"].to_pylist())

    site = str(settings.nemo.site.value)
    _refuse_lost([*plan.memorized, *nulls], known(site, values_id()), f"activations at {site!r}")
    halves = {"conditional": ["cond"], "unconditional": ["uncond"], "both": ["cond", "uncond"]}[settings.wanda.half]
    for half in halves:
        seen = known("ff-hidden", f"{norms_id(settings.sampling, plan.wanda.tau)}-{half}")
        _refuse_lost([*plan.memorized, *plan.contrast, *plan.control_prompts], seen, "feature norms at 'ff-hidden'")


def _refuse_lost(asked: Collection[Prompt], known: Collection[str], what: str) -> None:
    if lost := [prompt for prompt in asked if prompt.prompt_id not in known]:
        raise InputError(f"{len(lost)} prompts have no {what}: run the collection first")


def _mitigate(plan: Plan) -> None:
    wanted = {
        ("nemo", plan.nemo_id): [prompt.prompt_id for prompt in plan.memorized],
        ("wanda", plan.wanda_id): [localizing.ALL],
        ("wanda-control", plan.control_id): [localizing.ALL],
    }
    for (method, params_id), scopes in wanted.items():
        place = {"model_id": plan.subject.model_id, "method": method, "params_id": params_id}
        found = plan.subject.open().read("neuron_sets", columns=["scope_id"], **place)
        if lost := set(scopes) - set(found["scope_id"].to_pylist()):
            raise InputError(f"the store has no {method} sets of {min(lost)!r}: run the localization first")


def _evaluate(plan: Plan) -> None:
    rows = plan.subject.open().read("triggers", columns=["trigger_id"], model_id=plan.subject.model_id)
    known = set(rows["trigger_id"].to_pylist())
    for trial in plan.trials(plan.variants()):
        if lost := set(plan.trigger_ids(trial)) - known:
            raise InputError(f"the store has no trigger {min(lost)} of {trial.variant}: attack first")


_CHECKS: Mapping[str, Callable[[Plan], object]] = {
    "localize": _localize,
    "mitigate": _mitigate,
    "attack": Plan.variants,
    "diagnose": Plan.variants,
    "evaluate": _evaluate,
    "report": Plan.variants,
}
