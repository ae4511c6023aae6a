"""Adversarial embeddings against each variant."""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

from flows.run import done
from flows.run.spec import Spec
from flows.run.trials import attack_of, has_own_weights, trials, trigger_ids
from flows.run.work import given
from flows.run.work.item import GRADIENT, Context, Item, bytes_of_trigger, sharded
from tasks.attack import task as attacking
from tasks.evaluate import task as evaluating
from tasks.subject import ORIGINAL


def items(context: Context) -> Iterator[Item]:
    spec = context.spec
    for trial in trials(spec, context.variants):
        if trial.condition.start is None:
            continue
        params = attack_of(spec, trial.condition)
        cost = GRADIENT * params.steps * params.batch * params.restarts
        for number, some in sharded(trial.prompts, cost, least=params.images_at_once):
            wanted = trigger_ids(spec, replace(trial, prompts=some))
            yield Item(
                "attack",
                "Dori",
                partial(
                    attacking.attack_images,
                    spec.subject,
                    trial.variant,
                    some,
                    spec.chosen.pool,
                    params,
                    spec.settings.seed,
                ),
                ("triggers",),
                ("variants", "images"),
                gives=given.triggers(trial),
                needs=("model", *searched_before(spec, trial)),
                variant=trial.name,
                condition=trial.condition.name,
                shard=number,
                size=len(wanted),
                unit="trigger",
                missing=partial(done.missing, spec, "triggers", "trigger_id", wanted),
                cost=cost / params.restarts,
                bytes=bytes_of_trigger,
            )


def searched_before(spec: Spec, trial: evaluating.Trial) -> Iterator[str]:
    """Attacks whose triggers another one has, too: of a mitigation at inference the original's, and of fewer steps the
    beginnings of the search of most steps."""
    if not has_own_weights(trial):
        yield given.triggers(replace(trial, name=ORIGINAL))
    if trial.condition.steps is not None and trial.condition.steps < max(spec.settings.efforts):
        yield given.triggers(replace(trial, condition=replace(trial.condition, steps=max(spec.settings.efforts))))
