"""Mitigating: variants of the model with what was localized set to zero, each beside a random cut of the same size;
the model trained until its memories are gone, and the rivals of both."""

from tasks.mitigate.task.cuts import RANDOM_CONTROLS, cut_neurons, cut_scored, cut_weights
from tasks.mitigate.task.defending import defend, defend_id
from tasks.mitigate.task.erasing import erase, erase_id, history_of, not_erased
from tasks.mitigate.task.own_cuts import cut_own, own_cut_id
from tasks.mitigate.task.variants import (
    cut_id,
    export_variant,
    known,
    shared_members,
    shared_with_found,
    shares_cut,
    subject_of,
)

__all__ = [
    "RANDOM_CONTROLS",
    "cut_id",
    "cut_neurons",
    "cut_own",
    "cut_scored",
    "cut_weights",
    "defend",
    "defend_id",
    "erase",
    "erase_id",
    "export_variant",
    "history_of",
    "known",
    "not_erased",
    "own_cut_id",
    "shared_members",
    "shared_with_found",
    "shares_cut",
    "subject_of",
]
