"""Detection in the store: how alike a prompt's noise differences are between seeds."""

from collections.abc import Sequence

import torch

from storage import Store, content_key
from tasks.detections import scores_known
from tasks.diffusion.detection import DetectionParams, estimate_threshold, pairwise_scores, prompt_differences
from tasks.keys import detection_id
from tasks.localize.nemo import NemoParams
from tasks.progress import progress
from tasks.subject import ORIGINAL, Prompt, Subject


def detect(subject: Subject, prompts: Sequence[Prompt], params: DetectionParams) -> None:
    """Scores of every two seeds' noise differences, a row of `nemo_traces` each, phase 'detect'."""
    model, store = subject.load(), subject.open()
    params_id = detection_id(params)
    known = traced(store, subject, params_id)
    todo = [prompt for prompt in prompts if prompt.prompt_id not in known]
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


def traced(store: Store, subject: Subject, params_id: str) -> set[str]:
    """Ids of the prompts that `nemo_traces` has rows of these parameters for."""
    rows = store.read(
        "nemo_traces", columns=["prompt_id"], model_id=subject.model_id, variant=ORIGINAL, params_id=params_id
    )
    return set(rows["prompt_id"].to_pylist())


def flagged(
    subject: Subject, prompts: Sequence[Prompt], nulls: Sequence[Prompt], params: NemoParams
) -> frozenset[str] | None:
    """The ids of the prompts that NeMo's gate lets through: of two seeds at least, the noise differences are alike.

    Args:
        nulls: prompts from which the threshold is estimated where none is set.

    Returns:
        None while the store lacks scores, see `detect`.
    """
    if not prompts:
        return frozenset()
    judges = nulls if params.threshold is None else []
    known = scores_known(subject, detection_id(params))
    if any(prompt.prompt_id not in known for prompt in (*prompts, *judges)):
        return None
    limit = params.threshold
    if limit is None:
        limit = estimate_threshold([torch.from_numpy(known[prompt.prompt_id]) for prompt in judges], params)
    return frozenset(prompt.prompt_id for prompt in prompts if known[prompt.prompt_id].max() > limit)
