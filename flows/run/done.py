"""How much of some work is there: looked up in the store by what results go by, nothing loaded."""

from collections.abc import Collection, Sequence
from typing import Any

from flows.run.spec import Spec
from tasks.collect import task as collecting
from tasks.evaluate import task as evaluating
from tasks.evaluate.task import Trial
from tasks.methods import Localizer
from tasks.subject import ORIGINAL, Prompt


def missing(spec: Spec, table: str, column: str, wanted: Collection[str], **where: Any) -> int:
    """How many of these values no row of a table has."""
    rows = spec.subject.open().read(table, columns=[column], model_id=spec.subject.model_id, **where)
    return len(set(wanted) - set(rows[column].to_pylist()))


def activations(spec: Spec, prompts: Sequence[Prompt], site: str, *params_ids: str) -> int:
    """How many prompts lack activations of any of these collections."""
    wanted = {prompt.prompt_id for prompt in prompts}
    where = {"variant": ORIGINAL, "site": site}
    return max(missing(spec, "activations", "prompt_id", wanted, params_id=one, **where) for one in params_ids)


def compared(spec: Spec, trial: Trial) -> int:
    """How many prompts of a trial of the original lack a generation, or its score beside a training image."""
    settings = spec.settings
    return len(trial.prompts) - len(
        evaluating.nearest(spec.subject, trial.prompts, trial.seeds, settings.sampling, settings.sscd)
    )


def clusters(spec: Spec) -> int:
    """How many prompts were not compared with the others."""
    compared = spec.chosen.compared
    known = collecting.clusters_known(spec.subject, compared, spec.settings.sscd, lambda: spec.clip)
    return len(compared) if known is None else 0


def traces(spec: Spec, prompts: Sequence[Prompt], params_id: str) -> int:
    """How many prompts lack traces of a search."""
    wanted = {prompt.prompt_id for prompt in prompts}
    return missing(spec, "nemo_traces", "prompt_id", wanted, variant=ORIGINAL, params_id=params_id)


def detections(spec: Spec, prompts: Sequence[Prompt], detector: str, params_id: str) -> int:
    """How many prompts lack a detector's score."""
    wanted = {prompt.prompt_id for prompt in prompts}
    return missing(spec, "detections", "prompt_id", wanted, variant=ORIGINAL, detector=detector, params_id=params_id)


def sets(spec: Spec, scopes: Collection[str], method: str, params_id: str) -> int:
    """How many scopes lack sets."""
    return missing(spec, "neuron_sets", "scope_id", scopes, method=method, params_id=params_id)


def variant(spec: Spec, method: str, params_id: str) -> int:
    """1 where a variant is not there, else 0."""
    return missing(spec, "variants", "params_id", [params_id], method=method)


def curves(spec: Spec, prompts: Sequence[Prompt], localizer: Localizer, sets_id: str, curve_id: str) -> int:
    """How many prompts lack a curve. Those that were searched in vain have none."""
    partition = {"model_id": spec.subject.model_id, "method": localizer.name, "params_id": sets_id}
    rows = spec.subject.open().read("neuron_sets", columns=["scope_id", "members"], **partition)
    searched = set(rows["scope_id"].to_pylist())
    found = {
        scope for scope, members in zip(rows["scope_id"].to_pylist(), rows["members"], strict=True) if len(members)
    }
    wanted = [prompt for prompt in prompts if prompt.prompt_id in found or prompt.prompt_id not in searched]
    return traces(spec, wanted, curve_id)
