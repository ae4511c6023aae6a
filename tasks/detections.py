"""Detection scores in the store, which localization takes its threshold from and evaluation judges detection by."""

from collections.abc import Sequence

import numpy as np

from tasks.errors import InputError
from tasks.subject import ORIGINAL, Prompt, Subject


def detection_scores(subject: Subject, asked: Sequence[Prompt], params_id: str) -> dict[str, np.ndarray]:
    """By prompt id, how alike the noise differences of every two seeds are, (pairs,).

    Args:
        params_id: see `tasks.keys.detection_id`.

    Raises:
        InputError: a prompt has none.
    """
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
    if lost := [prompt.text for prompt in asked if prompt.prompt_id not in found]:
        raise InputError(
            f"{len(lost)} prompts have no detection scores, such as {lost[0][:60]!r}: run the detection first"
        )
    return {
        prompt.prompt_id: np.array([found[prompt.prompt_id][n] for n in sorted(found[prompt.prompt_id])])
        for prompt in asked
    }
