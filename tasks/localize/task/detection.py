"""Detection in the store: how alike a prompt's noise differences are between seeds."""

from collections.abc import Sequence

from storage import Store, content_key
from tasks.diffusion.detection import DetectionParams, pairwise_scores, prompt_differences
from tasks.keys import detection_id
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
