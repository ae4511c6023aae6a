"""Detection in the store: how alike a prompt's noise differences are between seeds."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from storage import Store, content_key
from tasks.diffusion.detection import DetectionParams, pairwise_scores, prompt_differences
from tasks.errors import InputError
from tasks.evaluate.figures import Estimate, auc, tpr_at_1fpr
from tasks.keys import detection_id
from tasks.progress import progress
from tasks.subject import ORIGINAL, Prompt, Subject, units_of

SEEN = 100
"""Units of prompts that are not memorized, of which one is 1 %."""


def detect(subject: Subject, asked: Sequence[Prompt], params: DetectionParams) -> None:
    """Scores of every two seeds' noise differences, a row of `nemo_traces` each, phase 'detect'."""
    model, store = subject.load(), subject.open()
    params_id = detection_id(params)
    known = traced(store, subject, params_id)
    todo = [prompt for prompt in asked if prompt.prompt_id not in known]
    with progress(len(todo), "noise differences", "prompt") as done:
        for prompt in todo:
            _, differences = prompt_differences(model, subject.embed([prompt])[0], prompt.noise, params)
            rows = [
                {
                    "prompt_id": prompt.prompt_id,
                    "params_id": params_id,
                    "phase": "detect",
                    "step_number": n,
                    "score": score,
                }
                for n, score in enumerate(pairwise_scores(differences).tolist())
            ]
            key = content_key(subject.model_id, params_id, prompt.prompt_id)
            store.write("nemo_traces", key, rows, model_id=subject.model_id, variant=ORIGINAL)
            done(1)


def scores_of(subject: Subject, asked: Sequence[Prompt], params: DetectionParams) -> dict[str, np.ndarray]:
    """What `detect` found, by prompt id: scores of every two seeds."""
    rows = subject.open().read(
        "nemo_traces",
        columns=["prompt_id", "step_number", "score"],
        model_id=subject.model_id,
        variant=ORIGINAL,
        params_id=detection_id(params),
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


def detection_figures(
    subject: Subject, memorized: Sequence[Prompt], others: Sequence[Prompt], params: DetectionParams
) -> list[Estimate]:
    """How well a prompt's mean score tells memorized prompts from others: AUC, and TPR at 1 % FPR.

    Prompts of one image count as one, by the mean over all of them. Prompts among the others that share an image with a
    memorized one are left out: they are no examples of what is not memorized. So there may be no others, and no figure.
    TPR is given only where there are others enough to see a rate of 1 %.
    """
    of = units_of(subject, [*memorized, *others])
    remembered = {of[prompt.prompt_id] for prompt in memorized}
    others = [prompt for prompt in others if of[prompt.prompt_id] not in remembered]
    if not others:
        return []

    def means(group: Sequence[Prompt]) -> np.ndarray:
        by_unit: dict[str, list[np.ndarray]] = {}
        for name, pairs in scores_of(subject, group, params).items():
            by_unit.setdefault(of[name], []).append(pairs)
        return np.array([np.concatenate(pairs).mean() for pairs in by_unit.values()])

    own, rest = means(memorized), means(others)
    found = [replace(auc(own, rest), prompts=len(memorized) + len(others))]
    return [*found, *([replace(tpr_at_1fpr(own, rest), prompts=len(memorized))] if len(rest) >= SEEN else [])]


def traced(store: Store, subject: Subject, params_id: str) -> set[str]:
    """Ids of the prompts that `nemo_traces` has rows of these parameters for."""
    rows = store.read(
        "nemo_traces", columns=["prompt_id"], model_id=subject.model_id, variant=ORIGINAL, params_id=params_id
    )
    return set(rows["prompt_id"].to_pylist())
