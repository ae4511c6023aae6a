"""Localizing: from activations to sets of neurons and weights, their controls, and what they have in common."""

from tasks.localize.task.neurons import (
    CANDIDATES,
    curve_id,
    detect,
    localize_nemo,
    memorization_left,
    nemo_id,
    nemo_threshold,
    replay_search,
    scores_of,
    search_agreement,
)
from tasks.localize.task.scores import importance_id, localize_importance
from tasks.localize.task.sets import ALL
from tasks.localize.task.weights import (
    control_id,
    localize_control,
    localize_triggers,
    localize_wanda,
    triggers_id,
    wanda_id,
)

__all__ = [
    "ALL",
    "CANDIDATES",
    "control_id",
    "curve_id",
    "detect",
    "importance_id",
    "localize_control",
    "localize_importance",
    "localize_nemo",
    "localize_triggers",
    "localize_wanda",
    "memorization_left",
    "nemo_id",
    "nemo_threshold",
    "replay_search",
    "scores_of",
    "search_agreement",
    "triggers_id",
    "wanda_id",
]
