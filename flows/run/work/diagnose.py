"""Whether memory is local: many triggers of one image, and what is found from each of them."""

from collections.abc import Iterator
from functools import partial

from flows.run import done, ids, triggers
from flows.run.spec import Spec
from flows.run.trials import scoring
from flows.run.work import given
from flows.run.work.collect import readings
from flows.run.work.item import GRADIENT, Context, Item, bytes_of_image, bytes_of_trigger, steps_of_image
from flows.run.work.localize import searches
from tasks.attack import task as attacking
from tasks.evaluate import task as evaluating
from tasks.localize import task as localizing
from tasks.report import task as reporting
from tasks.subject import ORIGINAL


def items(context: Context) -> Iterator[Item]:
    spec = context.spec
    subject, few = spec.subject, triggers.diagnosed(spec)
    if not few:
        return
    params = triggers.many(spec)
    of_each = triggers.searched(spec)
    for number, some in enumerate([one] for one in few):
        names = [name for prompt in some for name in of_each[prompt.prompt_id]]
        yield Item(
            "diagnose",
            "Dori, many triggers",
            partial(attacking.attack_images, subject, ORIGINAL, some, spec.chosen.pool, params, spec.settings.seed),
            ("triggers",),
            ("variants", "images"),
            gives=given.MANY,
            needs=("model",),
            variant=ORIGINAL,
            shard=number,
            size=len(names),
            unit="trigger",
            missing=partial(done.missing, spec, "triggers", "trigger_id", names),
            cost=GRADIENT * params.steps * params.batch,
            bytes=bytes_of_trigger,
        )
    trial, shots = triggers.tried(spec)
    made = evaluating.generation_ids(subject, trial.variant, trial.condition, shots, spec.settings.sampling)
    untried = partial(done.missing, spec, "generations", "generation_id", made)
    yield Item(
        "diagnose",
        "try triggers",
        partial(evaluating.compare_with_images, subject, trial, shots, scoring(spec)),
        ("generations", "scores"),
        ("triggers",),
        gives=given.TRIED,
        needs=(given.MANY,),
        variant=ORIGINAL,
        condition=trial.condition.name,
        size=len(made),
        unit="image",
        missing=untried,
        cost=steps_of_image(spec),
        bytes=bytes_of_image,
    )
    if untried():  # which triggers succeed is not known yet
        return
    asked = triggers.asked(spec)
    yield from readings(spec, "diagnose", asked)
    needs = [given.TRIED]
    for localizer, points in asked.items():
        params, alone = ids.params_of(spec, localizer), localizing.one_by_one(points)
        yield from searches(spec, "diagnose", localizer, params, alone, "on triggers")
        needs.append(given.sets(ids.sets(spec, localizer, alone)))
    yield Item(
        "diagnose",
        "locality",
        partial(_locality, spec, context.audit_id),
        ("metrics",),
        ("triggers", "neuron_sets"),
        needs=tuple(needs),
        unit="audit",
        anew=True,
    )


def _locality(spec: Spec, audit_id: str) -> tuple[str, list[str]]:
    """The estimates of the diagnosis, its words, and a map (SVG) of each image with enough triggers."""
    asked = triggers.asked(spec).items()
    found = {one.name: ids.sets(spec, one, localizing.one_by_one(points)) for one, points in asked}
    return reporting.diagnose(spec.subject, audit_id, triggers.searches(spec), found, spec.settings.seed)
