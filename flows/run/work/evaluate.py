"""Generations of each variant under each condition, and the estimates that are made of them."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from flows.run import done, ids
from flows.run.spec import Spec
from flows.run.trials import generations_of, scoring, shots_of, trials
from flows.run.work import given
from flows.run.work.attack import searched_before
from flows.run.work.item import Context, Item, bytes_of_image, sharded, steps_of_image
from tasks.conditions import PROMPT
from tasks.evaluate import task as evaluating
from tasks.methods import method
from tasks.mitigate import task as mitigating
from tasks.pruned import random_controls
from tasks.subject import ORIGINAL


def items(context: Context) -> Iterator[Item]:
    spec = context.spec
    for trial in trials(spec, context.variants):
        named: dict[str, Any] = {"variant": trial.name, "condition": trial.condition.name}
        shots, where = shots_of(spec, trial), (spec.subject, trial.variant, trial.condition)
        wanted = generations_of(spec, trial)
        attacked = () if trial.condition.start is None else (given.triggers(trial), *searched_before(spec, trial))
        made = list(zip(wanted, shots, strict=True))
        if (trial.name, trial.condition) == (ORIGINAL, PROMPT):  # the confirmation asked the others
            made = [(name, shot) for name, shot in made if not shot.prompt.image_ids]
        for number, some in sharded(made, steps_of_image(spec)):
            names, own = [name for name, _ in some], [shot for _, shot in some]
            yield Item(
                "evaluate",
                "generate",
                partial(evaluating.generate_images, *where, own, spec.settings.sampling),
                ("generations",),
                ("variants", "triggers", "prompts"),
                gives=given.made(trial),
                needs=("model", *attacked),
                **named,
                shard=number,
                size=len(names),
                unit="image",
                missing=partial(done.missing, spec, "generations", "generation_id", names, variant=trial.variant),
                cost=steps_of_image(spec),
                bytes=bytes_of_image,
            )
        yield Item(
            "evaluate",
            "measure",
            partial(_measure, spec, context.audit_id, trial, shots),
            ("scores", "metrics"),
            ("generations", "images"),
            gives=given.measured(trial),
            needs=(given.made(trial), *_compared_with(spec, trial)),
            **named,
            unit="audit",
            anew=True,
        )


def _measure(spec: Spec, audit_id: str, trial: evaluating.Trial, shots: Sequence[evaluating.Shot]) -> None:
    """The scores and estimates of a trial."""
    random = trial.name in random_controls()
    shared = mitigating.shared_members(spec.subject, trial.variant) if random else None
    evaluating.measure(spec.subject, audit_id, trial, shots, scoring(spec), shared)


def _compared_with(spec: Spec, trial: evaluating.Trial) -> Iterator[str]:
    """What the metrics of a trial look at beside its own generations: what is made of the original's is found first,
    with their scores, so that nobody else has to."""
    yield from (given.SCORED, given.detected(ids.params_of(spec, method("localizer", "nemo"))))
    if trial.name != ORIGINAL:
        original = replace(trial, name=ORIGINAL)
        yield from (given.made(original), given.measured(original))
