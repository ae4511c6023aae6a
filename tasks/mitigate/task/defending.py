"""Mitigations at inference, which leave the weights as they are."""

from storage import content_key
from tasks.mitigate.inference import Defence, DefenceParams
from tasks.mitigate.task.variants import VERSION, put, uncut_card, weights_in_store
from tasks.subject import Subject


def defend_id(method: Defence, params: DefenceParams) -> str:
    """What a mitigation at inference goes by in `variants.params_id`."""
    return content_key(VERSION, method, params.model_dump())


def defend(subject: Subject, method: Defence, params: DefenceParams, audit_id: str) -> dict[str, str]:
    """The model under a mitigation at inference, its weights untouched: by name the variant in the store."""
    params_id = defend_id(method, params)
    variant = f"{method}-{params_id[:8]}"
    if weights_in_store(subject, variant) is None:
        put(subject, variant, params_id, uncut_card(subject, method, params, audit_id, "inference"))
    return {method: variant}
