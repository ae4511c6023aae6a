"""Localizing: from activations to sets of neurons and weights, their controls, and what they have in common."""

from tasks.localize.ground import NormsParams
from tasks.localize.statistics import enough_prompts
from tasks.localize.task.detection import detect, flagged
from tasks.localize.task.given import Given, Groups, control_of, groups_of, one_by_one, sets_id
from tasks.localize.task.localizing import agreement, curve_id, draw_curves, localize

__all__ = [
    "Given",
    "Groups",
    "NormsParams",
    "agreement",
    "control_of",
    "curve_id",
    "detect",
    "draw_curves",
    "enough_prompts",
    "flagged",
    "groups_of",
    "localize",
    "one_by_one",
    "sets_id",
]
