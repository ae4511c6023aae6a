"""Mitigations at inference, which leave the weights as they are."""

from tasks.methods import Mitigation, Params
from tasks.mitigate.task.variants import put, unpruned_card
from tasks.subject import Subject


def defend_id(mitigation: Mitigation, params: Params) -> str:
    """What a mitigation at inference goes by in `variants.params_id`."""
    return mitigation.id(mitigation.changed(params))


def defend(subject: Subject, mitigation: Mitigation, params: Params, audit_id: str) -> dict[str, str]:
    """The model under a mitigation at inference, its weights untouched: by name the variant in the store.

    Args:
        params: those of the mitigation's group of settings.
    """
    own = mitigation.changed(params)
    card = unpruned_card(subject, mitigation.name, own, audit_id, "inference", mitigation.done)
    return {mitigation.name: put(subject, mitigation.name, defend_id(mitigation, params), card)}
