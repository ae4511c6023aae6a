"""The diagnosis: many triggers of one image, those that bring it back, and where their searches began."""

from flows.run.spec import Spec
from flows.run.trials import scoring
from tasks.attack import task as attacking
from tasks.conditions import LOCALITY
from tasks.evaluate import task as evaluating
from tasks.evaluate.task import Trial
from tasks.methods import Localizer, localizers
from tasks.report import task as reporting
from tasks.subject import ORIGINAL, Prompt, as_prompts


def diagnosed(spec: Spec) -> list[Prompt]:
    """Memorized prompts whose triggers are asked whether memory is local."""
    return spec.chosen.attacked[: spec.settings.diagnosed]


def many(spec: Spec) -> attacking.DoriParams:
    """The attack that finds many triggers of one image, from random starts."""
    return spec.settings.dori.model_copy(update={"start": "noise", "restarts": spec.settings.triggers, "also_at": (0,)})


def searched(spec: Spec) -> dict[str, list[str]]:
    """By prompt id, what those attacks found, in order of restarts, whether or not it brings the image back."""
    of = spec.subject, ORIGINAL, diagnosed(spec), spec.chosen.pool
    return attacking.triggers_of(*of, many(spec), spec.settings.seed)


def begun(spec: Spec) -> dict[str, list[str]]:
    """By prompt id, the points that those attacks began from, in the same order."""
    of = spec.subject, ORIGINAL, diagnosed(spec), spec.chosen.pool
    return attacking.starts_of(*of, many(spec), spec.settings.seed)


def tried(spec: Spec) -> tuple[Trial, list[evaluating.Shot]]:
    """The trial by which is seen which triggers bring the image back, and its generations."""
    trial = Trial(ORIGINAL, ORIGINAL, LOCALITY, diagnosed(spec), spec.settings.seeds)
    return trial, evaluating.shots(trial.prompts, trial.seeds, searched(spec))


def succeeded(spec: Spec) -> dict[str, list[int]]:
    """By prompt id, the restarts whose triggers do bring the image back."""
    copying = evaluating.succeeded(spec.subject, *tried(spec), scoring(spec))
    return {
        name: [restart for restart, one in enumerate(found) if one in copying] for name, found in searched(spec).items()
    }


def points(spec: Spec) -> tuple[list[Prompt], list[Prompt]]:
    """The triggers that succeeded, to be asked like prompts; none of an image that has fewer than two. And where their
    searches began, as the control: what these have in common, no search found.

    A search that fails ends anywhere: what lies there says nothing of where the memory is.
    """
    kept = {name: some if len(some) > 1 else [] for name, some in succeeded(spec).items()}
    ends, starts = (
        {name: [found[name][restart] for restart in restarts] for name, restarts in kept.items()}
        for found in (searched(spec), begun(spec))
    )
    return as_prompts(ends, diagnosed(spec)), as_prompts(starts, diagnosed(spec))


def asked(spec: Spec) -> dict[Localizer, list[Prompt]]:
    """By localizer, the points that it is asked about, as its spec says; without those that are asked about none."""
    ends, starts = points(spec)
    of = {"": [], "found": ends, "found and begun": [*ends, *starts]}
    return {one: of[one.on_triggers] for one in localizers() if of[one.on_triggers]}


def searches(spec: Spec) -> list[reporting.Searches]:
    """What was searched for each image whose memory is diagnosed, and what was found."""
    (ends, starts), worked, first = points(spec), succeeded(spec), begun(spec)
    # One prompt of each image: captions of one lie together, and would make the others seem nearer than they are.
    others, units = spec.chosen.different(spec.chosen.examined), spec.chosen.units
    out = []
    for prompt in diagnosed(spec):
        name, unit = prompt.prompt_id, units[prompt.prompt_id]
        found = searched(spec)[name]
        mine = [one for one in ends if one.prompt_id in found]
        began = [one for one in starts if one.prompt_id in first[name]]
        rest = [other for other in others if units[other.prompt_id] != unit]
        out.append(reporting.Searches(prompt, len(found), len(worked[name]), mine, began, rest))
    return out
