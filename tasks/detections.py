"""Scores of detection in the store, which several stages read: localization takes its threshold from those of noise
differences, and evaluation judges detection, also by other detectors, by them."""

from collections.abc import Sequence

import numpy as np

from tasks.errors import InputError
from tasks.methods import Detector, Params
from tasks.subject import ORIGINAL, Prompt, Subject


def detection_scores(subject: Subject, prompts: Sequence[Prompt], params_id: str) -> dict[str, np.ndarray]:
    """By prompt id, how alike the noise differences of every two seeds are, (pairs,).

    Args:
        params_id: see `tasks.keys.detection_id`.

    Raises:
        InputError: a prompt has none.
    """
    found = scores_known(subject, params_id)
    if lost := [prompt.text for prompt in prompts if prompt.prompt_id not in found]:
        raise InputError(
            f"{len(lost)} prompts have no detection scores, such as {lost[0][:60]!r}: run the detection first"
        )
    return {prompt.prompt_id: found[prompt.prompt_id] for prompt in prompts}


def scores_known(subject: Subject, params_id: str) -> dict[str, np.ndarray]:
    """The same of all prompts of which the store has them."""
    rows = subject.open().read(
        "nemo_traces",
        columns=["prompt_id", "step_number", "score"],
        model_id=subject.model_id,
        variant=ORIGINAL,
        params_id=params_id,
        phase="detect",
    )
    found: dict[str, dict[int, float]] = {}
    for name, number, score in zip(*(column.to_pylist() for column in rows.columns), strict=True):
        found.setdefault(name, {})[number] = score
    return {name: np.array([scores[n] for n in sorted(scores)]) for name, scores in found.items()}


def detector_scores(subject: Subject, detector: Detector, params: Params) -> dict[str, float]:
    """By prompt id, the scores by a detector that the store has."""
    rows = subject.open().read(
        "detections",
        columns=["prompt_id", "score"],
        model_id=subject.model_id,
        variant=ORIGINAL,
        detector=detector.name,
        params_id=detector.id(params),
    )
    return dict(zip(*(column.to_pylist() for column in rows.columns), strict=True))
