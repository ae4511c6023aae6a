"""What detects memories, and the searches for the neurons and weights that hold them."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from flows.run import done, ids
from flows.run.spec import Spec
from flows.run.work import given
from flows.run.work.item import Context, Item, Stage, sharded
from tasks.keys import detection_id, norms_id
from tasks.localize import task as localizing
from tasks.methods import Localizer
from tasks.scan import task as scanning
from tasks.subject import Prompt


def items(context: Context) -> Iterator[Item]:
    spec = context.spec
    subject, chosen, seed = spec.subject, spec.chosen, spec.settings.seed
    for params, prompts in ids.detections(spec):
        yield from differences(spec, "localize", params, prompts)
    for detector in spec.settings.judged():
        params = spec.settings.of(detector)
        for number, some in sharded([*chosen.memorized, *chosen.ordinary], detector.cost_of(params)):
            yield Item(
                "localize",
                f"scores by {detector.title}",
                partial(scanning.score_prompts, subject, some, detector, params),
                ("detections",),
                ("prompts",),
                gives=given.SCORED,
                needs=("model",),
                key=detector.id(params),
                shard=number,
                size=len(some),
                missing=partial(done.detections, spec, some, detector.name, detector.id(params)),
                cost=detector.cost_of(params),
            )
    chosen.check_images()
    for localizer in chosen.localizers():
        params = ids.params_of(spec, localizer)
        yield from searches(spec, "localize", localizer, params, ids.groups(spec, localizer))
        if (published := ids.published(spec, localizer)) is not None:
            yield from searches(spec, "localize", localizer, published, ids.groups(spec, localizer), "as published")
        if localizer.curve is not None:
            key, cost = ids.curve(spec, localizer), localizer.cost_of(params) / 10
            for number, some in sharded(chosen.examined, cost):
                yield Item(
                    "localize",
                    f"memorization left by {localizer.title}",
                    partial(
                        localizing.draw_curves,
                        subject,
                        localizer,
                        params,
                        some,
                        ids.given(spec),
                        seed,
                        ids.sets(spec, localizer),
                    ),
                    ("nemo_traces",),
                    ("neuron_sets",),
                    gives="curves",
                    needs=(given.sets(ids.sets(spec, localizer)), *needs_of(spec, localizer, params)),
                    key=key,
                    shard=number,
                    size=len(some),
                    missing=partial(done.curves, spec, some, localizer, ids.sets(spec, localizer), key),
                    cost=cost,
                )
        if localizer.controlled:
            control = ids.groups(spec, localizer, ordinary=True)
            yield from searches(spec, "localize", localizer, params, control, "on ordinary prompts")


def searches(
    spec: Spec, stage: Stage, localizer: Localizer, params: Any, groups: localizing.Groups, how: str = ""
) -> Iterator[Item]:
    """A localizer's search for the sets of groups: each prompt by itself in shards, groups of several all at once."""
    settled = ids.given(spec)
    key = localizing.sets_id(localizer, params, groups, settled)
    alone = groups.scope != "subset"
    # Of one prompt by itself, or of as many as the groups have.
    cost = localizer.cost_of(params) * sum(map(len, groups.prompts.values())) / len(groups.prompts)
    for number, names in sharded(list(groups.prompts), cost) if alone else [(0, list(groups.prompts))]:
        some = replace(groups, prompts={name: groups.prompts[name] for name in names})
        yield Item(
            stage,
            f"{localizer.title} {how}".strip(),
            partial(localizing.localize, spec.subject, localizer, params, some, settled, key),
            ("neuron_sets", "nemo_traces") if localizer.traces else ("neuron_sets",),
            ("activations", "images"),
            gives=given.sets(key),
            needs=("model", *needs_of(spec, localizer, params)),
            key=key,
            shard=number,
            size=len(names),
            unit=groups.scope,
            missing=partial(done.sets, spec, names, localizer.sets_name(groups.ordinary), key),
            cost=cost,
        )


def needs_of(spec: Spec, localizer: Localizer, params: Any) -> Iterator[str]:
    """What must be there before a localizer searches."""
    site, reads = localizer.site_of(params), localizer.reads_of(params)
    if "values" in reads:
        yield given.values(site)
    if "norms" in reads:
        yield given.norms(site, norms_id(spec.settings.sampling, params.tau))
    if "null scores" in reads:
        yield given.detected(params)
    if localizer.budget:
        yield given.sets(ids.given(spec).budgets[localizer.budget].sets_id)


def differences(spec: Spec, stage: Stage, params: Any, prompts: Sequence[Prompt]) -> Iterator[Item]:
    """The noise differences of prompts, which detection goes by."""
    for number, some in sharded(prompts, params.seeds):
        yield Item(
            stage,
            "noise differences",
            partial(localizing.detect, spec.subject, some, params),
            ("nemo_traces",),
            ("prompts",),
            gives=given.detected(params),
            needs=("model",),
            key=detection_id(params),
            shard=number,
            size=len(some),
            missing=partial(done.traces, spec, some, detection_id(params)),
            cost=params.seeds,
        )
