"""Which memorized prompts the model at hand brings an image back from, before anything else is done."""

from collections.abc import Iterator
from functools import partial

from flows.run import done, ids
from flows.run.confirmed import by_images
from flows.run.spec import Spec
from flows.run.trials import scoring, shots_of
from flows.run.work import given, item
from flows.run.work.item import Context, Item, bytes_of_image, sharded, steps_of_image
from flows.run.work.localize import differences
from tasks.collect import task as collecting
from tasks.conditions import PROMPT
from tasks.evaluate import task as evaluating
from tasks.methods import method
from tasks.subject import ORIGINAL


def items(context: Context) -> Iterator[Item]:
    spec = context.spec
    subject, chosen = spec.subject, spec.chosen
    yield Item(
        "confirm",
        "register model",
        partial(collecting.register_model, subject, spec.settings.sampling),
        ("models", "variants"),
        gives="model",
        unit="model",
        anew=True,
    )
    with_images, without = by_images(chosen)
    cost = spec.settings.seeds * steps_of_image(spec)
    for number, some in sharded(with_images, cost, most=max(1, item.UNITS // spec.settings.seeds)):
        part = evaluating.Trial(ORIGINAL, ORIGINAL, PROMPT, some, spec.settings.seeds)
        yield Item(
            "confirm",
            "ask the model",
            partial(_ask, spec, part),
            ("generations", "scores"),
            ("prompts", "images"),
            gives=given.made(part),
            needs=("model",),
            variant=ORIGINAL,
            condition=PROMPT.name,
            shard=number,
            size=len(some),
            missing=partial(done.compared, spec, part),
            cost=cost,
            bytes=lambda model: spec.settings.seeds * bytes_of_image(model),
        )
    yield Item(
        "confirm",
        "near-duplicates",
        partial(collecting.cluster_prompts, subject, chosen.compared, spec.settings.sscd, lambda: spec.clip),
        ("clusters",),
        ("prompts", "images"),
        gives="clusters",
        size=len(chosen.compared),
        missing=partial(done.clusters, spec),
    )
    if without:
        params = ids.params_of(spec, method("localizer", "nemo"))
        judges = chosen.threshold_nulls if params.threshold is None else []
        yield from differences(spec, "confirm", params, [*without, *judges])


def _ask(spec: Spec, trial: evaluating.Trial) -> None:
    """Makes a trial's generations, and scores them beside training images."""
    evaluating.compare_with_images(spec.subject, trial, shots_of(spec, trial), scoring(spec))
