"""Localizing: from activations to sets of neurons and weights, their controls, and what they have in common."""

from tasks.localize.task.detection import detect, nemo_threshold
from tasks.localize.task.names import ALL
from tasks.localize.task.neurons import (
    CANDIDATES,
    curve_id,
    localize_nemo,
    memorization_left,
    nemo_id,
    search_agreement,
)
from tasks.localize.task.scores import importance_id, localize_importance
from tasks.localize.task.weights import Groups, by_control, by_subset, by_trigger, localize_wanda, wanda_id

__all__ = [
    "ALL",
    "CANDIDATES",
    "Groups",
    "by_control",
    "by_subset",
    "by_trigger",
    "curve_id",
    "detect",
    "importance_id",
    "localize_importance",
    "localize_nemo",
    "localize_wanda",
    "memorization_left",
    "nemo_id",
    "nemo_threshold",
    "search_agreement",
    "wanda_id",
]
