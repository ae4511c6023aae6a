"""Whether memory is local, in the store and beside the report."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from storage import content_key, query
from tasks.errors import InputError
from tasks.report.locality import Answers, drawn_map, told
from tasks.report.task.page import page_path
from tasks.subject import ORIGINAL, Subject


@dataclass(frozen=True)
class Spread:
    """What the triggers of one image showed; see `tasks.attack.task.Diagnosis`."""

    image_id: str
    caption: str
    triggers: int
    embeddings: float
    activations: Mapping[str, float]
    """By layer."""
    places: Mapping[str, np.ndarray]
    """Points (n, 2) of each group on the map."""


def write_locality(
    subject: Subject, audit_id: str, found: Sequence[Spread], nemo_id: str, wanda_id: str
) -> tuple[str, list[bytes]]:
    """Whether memory is local: rows of `metrics` of the original under "dori-noise", and a page beside the report.

    Args:
        nemo_id, wanda_id: of the sets that were found from the triggers.

    Returns:
        The diagnosis in Markdown, and a map (PNG) for each image.

    Raises:
        InputError: no sets were found from triggers.
    """
    store = subject.open()
    rows = query(store, "trigger_agreement", model_id=subject.model_id, nemo_id=nemo_id, wanda_id=wanda_id).to_pylist()
    answers = []
    for one in found:
        weights: dict[str, dict[str, tuple[float, float]]] = {}
        for row in rows:
            if row["image_id"] == one.image_id:
                weights.setdefault(row["method"], {})[row["layer"]] = row["iou"], row["iou_chance"]
        if not weights:
            raise InputError("the store has no sets found from triggers: run the localization of triggers first")
        answers.append(Answers(one.caption, one.embeddings, one.activations, weights, one.triggers))
    figures = [("locality_embeddings", [one.embeddings for one in answers])]
    figures.append(("locality_activations", [float(np.nanmean(list(one.activations.values()))) for one in answers]))
    for kind in ("nemo", "wanda"):
        shares = [
            float(np.mean([iou for iou, _ in one.weights[kind].values()])) for one in answers if kind in one.weights
        ]
        figures.append((f"locality_{kind}", shares))
    metrics = [
        {"variant": ORIGINAL, "probe": "dori-noise", "metric": name, "value": float(np.mean(values)), "n": len(values)}
        for name, values in figures
        if values
    ]
    store.write("metrics", content_key(audit_id, "locality"), metrics, audit_id=audit_id)
    folder = page_path(subject, audit_id).parent
    folder.mkdir(parents=True, exist_ok=True)
    words, maps = told(answers), [drawn_map(one.places) for one in found]
    (folder / "locality.md").write_text(words)
    for number, picture in enumerate(maps, 1):
        (folder / f"locality-{number}.png").write_bytes(picture)
    return words, maps
