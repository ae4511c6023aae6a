"""Mitigating: variants of the model with what was localized set to zero, each beside as much at random; the model
trained until its memories are gone, and the baselines of both."""

from tasks.mitigate.finetune import FineTuneParams
from tasks.mitigate.task.defending import defend, defend_id
from tasks.mitigate.task.erasing import erase, erase_id, history_of, not_erased
from tasks.mitigate.task.memory import gigabytes, memory_needed, too_large
from tasks.mitigate.task.pruning import prune
from tasks.mitigate.task.variants import (
    export_variant,
    known,
    prune_id,
    shared_members,
    shared_with_found,
    shares_pruned,
    subject_of,
    variant_of,
)

__all__ = [
    "FineTuneParams",
    "defend",
    "defend_id",
    "erase",
    "erase_id",
    "export_variant",
    "gigabytes",
    "history_of",
    "known",
    "memory_needed",
    "not_erased",
    "prune",
    "prune_id",
    "shared_members",
    "shared_with_found",
    "shares_pruned",
    "subject_of",
    "too_large",
    "variant_of",
]
