"""Mitigations at inference, which leave the weights as they are."""

from storage import content_key
from tasks.mitigate.inference import Defence, DefenceParams
from tasks.mitigate.task.variants import VERSION, put, unpruned_card
from tasks.subject import Subject


def defend_id(method: Defence, params: DefenceParams) -> str:
    """What a mitigation at inference goes by in `variants.params_id`."""
    return content_key(VERSION, method, params.model_dump())


def defend(subject: Subject, method: Defence, params: DefenceParams, audit_id: str) -> dict[str, str]:
    """The model under a mitigation at inference, its weights untouched: by name the variant in the store."""
    card = unpruned_card(subject, method, params, audit_id, "inference")
    return {method: put(subject, method, defend_id(method, params), card)}
