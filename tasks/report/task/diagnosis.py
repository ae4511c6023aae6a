"""Whether memory is local, in the store and beside the report."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from storage import content_key, query
from tasks.conditions import dori
from tasks.report.charts import Map, drawn
from tasks.report.locality import locality
from tasks.report.locality_words import Diagnosed, Overlap, Weights, render_locality
from tasks.report.task.pages import page_file
from tasks.subject import ORIGINAL, Prompt, Subject


@dataclass(frozen=True)
class Searches:
    """What was searched for one image."""

    prompt: Prompt
    searched: int
    """Searches for triggers of the image."""
    succeeded: int
    """Of those, how many bring the image back."""
    triggers: list[Prompt]
    """What these found, to be asked like prompts; none where there are fewer than two."""
    starts: list[Prompt]
    """Where these began, in the same order."""
    others: list[Prompt]
    """Memorized prompts of different images."""


def diagnose(
    subject: Subject, audit_id: str, searches: Sequence[Searches], sets: Mapping[str, str], seed: int
) -> tuple[str, list[str]]:
    """Whether memory is local: rows of `metrics` of the original under "dori-noise", and a page beside the report.

    Args:
        sets: by localizer, the id of the sets that it found from the triggers, and from where their searches began.

    Returns:
        The diagnosis in Markdown, and a map (SVG) for each image that has enough triggers.
    """
    found = [_diagnosed(subject, one, seed) for one in searches]
    points = [point.prompt_id for one in searches for point in (*one.triggers, *one.starts)]
    store = subject.open()
    rows = [
        row
        for method, params_id in sets.items()
        for row in query(
            store,
            "trigger_agreement",
            model_id=subject.model_id,
            method=method,
            params_id=params_id,
            trigger_ids=points,
        ).to_pylist()
    ]
    before = {(row["image_id"], row["method"], row["layer"]): row["iou"] for row in rows if not row["searched"]}
    weights: list[Weights] = []
    for one in found:
        mine: Weights = {}
        for row in rows:
            if row["image_id"] == one.image_id and row["searched"]:
                starts = before.get((row["image_id"], row["method"], row["layer"]))
                mine.setdefault(row["method"], {})[row["layer"]] = Overlap(row["iou"], row["iou_chance"], starts)
        weights.append(mine)
    spreads = [one.found for one in found if one.found is not None]
    estimates = {
        "locality_triggers": [one.triggers / one.searched for one in found],
        "locality_embeddings": [one.embeddings for one in spreads],
        "locality_moved": [one.moved for one in spreads],
        "locality_activations": [float(np.nanmean(list(one.activations.values()))) for one in spreads],
    }
    for method in sets:
        layers = [mine[method].values() for mine in weights if method in mine]
        estimates[f"locality_{method}"] = [float(np.mean([layer.iou for layer in some])) for some in layers]
        known = [[layer.starts for layer in some if layer.starts is not None] for some in layers]
        estimates[f"locality_{method}_starts"] = [float(np.mean(starts)) for starts in known if starts]
    trial = {"variant": ORIGINAL, "condition": dori("noise").name}
    metrics = [
        {**trial, "metric": name, "value": float(np.mean(values)), "n": len(values)}
        for name, values in estimates.items()
        if values
    ]
    store.write("metrics", content_key(audit_id, "locality"), metrics, audit_id=audit_id)
    words = render_locality(list(zip(found, weights, strict=True)))
    store.put_file(page_file(audit_id, "locality.md"), words.encode())
    maps = [drawn(Map(f"Triggers of: {one.caption}", one.found.places)) for one in found if one.found is not None]
    for number, drawing in enumerate(maps, 1):
        store.put_file(page_file(audit_id, f"locality-{number}.svg"), drawing.encode())
    return words, maps


def diagnosis_of(subject: Subject, audit_id: str) -> tuple[str, list[str]] | None:
    """What `diagnose` wrote beside the report of an audit; None where there is nothing."""
    store = subject.open()
    if not store.has_file(page_file(audit_id, "locality.md")):
        return None
    maps: list[str] = []
    while store.has_file(drawing := page_file(audit_id, f"locality-{len(maps) + 1}.svg")):
        maps.append(store.read_file(drawing).decode())
    return store.read_file(page_file(audit_id, "locality.md")).decode(), maps


def _diagnosed(subject: Subject, one: Searches, seed: int) -> Diagnosed:
    """What was searched and found for one image, with distances where there are points enough."""
    image = one.prompt.image_ids[0]
    found = None
    if one.triggers and len(one.others) > 1:
        triggers, starts, others = (subject.embed(some) for some in (one.triggers, one.starts, one.others))
        found = locality(subject.load(), triggers, starts, others, (image, seed))
    return Diagnosed(image, one.prompt.text, one.searched, one.succeeded, found)
