"""What localizers read of prompts: activations at their sites."""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from flows.run import done, ids
from flows.run.spec import Spec
from flows.run.work import given
from flows.run.work.item import Context, Item, Stage, bytes_of_norms, bytes_of_values, sharded
from tasks.collect import task as collecting
from tasks.diffusion.sampling import guided
from tasks.diffusion.sites import Site
from tasks.keys import norms_id, values_id
from tasks.methods import Localizer
from tasks.subject import Prompt


def items(context: Context) -> Iterator[Item]:
    spec = context.spec
    chosen = spec.chosen
    yield from readings(
        spec,
        "collect",
        {one: [*chosen.examined, *(chosen.control_prompts if one.controlled else ())] for one in chosen.localizers()},
    )


def readings(spec: Spec, stage: Stage, asked: Mapping[Localizer, Sequence[Prompt]]) -> Iterator[Item]:
    """What localizers read of these prompts, and of those that they compare them with: once where several read it."""
    subject, sampling = spec.subject, spec.settings.sampling
    values: dict[Site, dict[Prompt, None]] = {}
    norms: dict[tuple[Site, int], dict[Prompt, None]] = {}
    for localizer, prompts in asked.items():
        params = ids.params_of(spec, localizer)
        site, reads = localizer.site_of(params), localizer.reads_of(params)
        if "values" in reads:
            nulls = spec.chosen.nulls if "null values" in reads else []
            values.setdefault(site, {}).update(dict.fromkeys([*prompts, *nulls]))
        if "norms" in reads:
            contrast = spec.contrast if "contrast norms" in reads else []
            norms.setdefault((site, params.tau), {}).update(dict.fromkeys([*prompts, *contrast]))
    common: dict[str, Any] = {"writes": ("activations",), "reads": ("prompts", "triggers"), "needs": ("model",)}
    for site, every in values.items():
        for number, some in sharded([*every]):
            yield Item(
                stage,
                f"value activations at {site.value}",
                partial(collecting.collect_values, subject, some, site),
                **common,
                gives=given.values(site),
                key=values_id(),
                shard=number,
                size=len(some),
                missing=partial(done.activations, spec, some, site.value, values_id()),
                cost=collecting.cost_of_values(subject, site),
                bytes=partial(bytes_of_values, site),
            )
    halves = ("cond", "uncond") if guided(subject.family, sampling) else ("cond",)
    for (site, tau), every in norms.items():
        key, cost = norms_id(sampling, tau), tau * len(halves)
        for number, some in sharded([*every], cost):
            yield Item(
                stage,
                f"feature norms at {site.value}",
                partial(collecting.collect_norms, subject, some, sampling, tau, site),
                **common,
                gives=given.norms(site, key),
                key=key,
                shard=number,
                size=len(some),
                missing=partial(done.activations, spec, some, site.value, *(f"{key}-{half}" for half in halves)),
                cost=cost,
                bytes=partial(bytes_of_norms, site, cost),
            )
