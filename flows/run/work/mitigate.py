"""Variants: pruned, changed at inference, and trained."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from flows.run import done, ids
from flows.run.work import given
from flows.run.work.item import Context, Item, bytes_of_weights
from tasks.mitigate import task as mitigating


def items(context: Context) -> Iterator[Item]:
    spec = context.spec
    subject, settings = spec.subject, spec.settings
    keys = ids.variants(spec)

    def made(kind: str, name: str, do: Callable[[], Any], **more: Any) -> Item:
        there = partial(done.variant, spec, name, keys[name])
        more = {"gives": given.variant(name)} | more
        return Item("mitigate", kind, do, key=keys[name], variant=name, unit="variant", missing=there, **more)

    for name, pruned in ids.pruned(spec).items():
        # The control of what was not made would be a control of nothing.
        if (of := pruned.pruning.control_of) and of not in context.variants:
            continue
        do = partial(mitigating.prune, subject, pruned, context.audit_id, settings.seed)
        needs = ("model", given.sets(pruned.sets_id))
        yield made("prune", name, do, writes=("neuron_sets", "variants"), reads=("neuron_sets",), needs=needs)
    for one in settings.chosen("inference"):
        do = partial(mitigating.defend, subject, one, settings.of(one), context.audit_id)
        yield made("defend", one.name, do, writes=("variants",), needs=("model",))
    if not spec.chosen.erasable:
        return
    pruned_of_all = context.variants.get(ids.surrogates_by(spec) or "")
    pair = spec.chosen.erasable, spec.chosen.kept
    images = sum(len(prompt.image_ids) for prompt in spec.chosen.erasable)
    # Which of them makes the surrogates is known once each is made, or cannot be.
    able = tuple(given.variant(pruning.name) for _, pruning in settings.prunings() if pruning.stands_in)
    for one in settings.chosen("training"):
        by = None
        if one.reads_surrogates(settings.of(one)) and (by := pruned_of_all) is None:
            continue
        own = settings.of(one), settings.sampling, settings.sscd, context.audit_id
        do = partial(mitigating.erase, subject, one, *pair, by, *own)  # type: ignore[arg-type]
        cost = one.cost_of(one.changed(settings.of(one))) * images
        yield made(
            "train",
            one.name,
            do,
            writes=("variants",),
            reads=("images",),
            needs=("model", *able) if by else ("model",),
            cost=cost,
            bytes=bytes_of_weights,
            may_fail=True,
        )
