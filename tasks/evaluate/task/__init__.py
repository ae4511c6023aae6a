"""Evaluating: pictures of every variant under every condition, their scores, and the figures of the audit."""

from tasks.evaluate.task.figures import (
    alignment_figures,
    change_figure,
    copy_figures,
    extraction_figures,
    quality_figures,
    seed_similarity_figure,
    structure_figures,
    triggers_that_copy,
    write_figures,
)
from tasks.evaluate.task.pictures import Shot, generate_pictures, generation_ids, pictures_of, shots
from tasks.evaluate.task.scores import score_alignment, score_change, score_copies, score_structure

__all__ = [
    "Shot",
    "alignment_figures",
    "change_figure",
    "copy_figures",
    "extraction_figures",
    "generate_pictures",
    "generation_ids",
    "pictures_of",
    "quality_figures",
    "score_alignment",
    "score_change",
    "score_copies",
    "score_structure",
    "seed_similarity_figure",
    "shots",
    "structure_figures",
    "triggers_that_copy",
    "write_figures",
]
