"""Evaluating: generations of every variant under every condition, their scores, and the estimates of every metric."""

from tasks.evaluate.extraction import ExtractionParams, check_clique, check_tiles
from tasks.evaluate.task.generations import Shot, Trial, generate_images, generation_ids, images_of, shots
from tasks.evaluate.task.measuring import (
    compare_with_images,
    estimates,
    measure,
    nearest,
    succeeded,
    write_estimates,
)
from tasks.evaluate.task.seen import Scoring, StoredSeen

__all__ = [
    "ExtractionParams",
    "Scoring",
    "Shot",
    "StoredSeen",
    "Trial",
    "check_clique",
    "check_tiles",
    "compare_with_images",
    "estimates",
    "generate_images",
    "generation_ids",
    "images_of",
    "measure",
    "nearest",
    "shots",
    "succeeded",
    "write_estimates",
]
