"""The work of a run: what is to be done, in order, item by item; a file a stage.

An item knows what it would write, how much of that is there already, and what it needs. So whoever does it, once or
twice, here or on another machine, the store ends up the same. Items that follow from results, as the diagnosis of
triggers that were found, are in the list as soon as these are there.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace

from flows.run.spec import Spec
from flows.run.work import attack, collect, confirm, diagnose, evaluate, localize, mitigate
from flows.run.work.item import STAGES, Context, Item, Stage

__all__ = ["STAGES", "Item", "Stage", "work"]

_ITEMS: Mapping[Stage, Callable[[Context], Iterator[Item]]] = {
    "confirm": confirm.items,
    "collect": collect.items,
    "localize": localize.items,
    "mitigate": mitigate.items,
    "attack": attack.items,
    "diagnose": diagnose.items,
    "evaluate": evaluate.items,
}


def work(spec: Spec, *stages: Stage, audit_id: str = "none", foreseen: bool = False) -> Iterator[Item]:
    """The items of these stages, or of all, in an order in which each finds what it needs.

    They are listed one by one: what follows from results is known when these are there. So while it is not known which
    memorized prompts are confirmed, no work on these is listed but what confirms them, and no estimates.

    Args:
        audit_id: the audit that estimates and model cards name.
        foreseen: whether variants that are not there yet count as if they were.
    """
    for stage in STAGES:
        if stages and stage not in stages:
            continue
        if stage == "confirm" or foreseen or spec.chosen.known is not None:
            yield from _ITEMS[stage](Context(spec, audit_id, foreseen))
            continue
        without = replace(spec, chosen=spec.chosen.unexamined())
        yield from (item for item in _ITEMS[stage](Context(without, audit_id, foreseen)) if not item.anew)
