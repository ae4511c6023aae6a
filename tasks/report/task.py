"""Reporting: what an audit wrote, as one page for people and one table for the terminal."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from storage import Store, iou, query
from tasks.report.charts import Chart, Curve, Matrix
from tasks.report.report import Picture, Report, Strip, render, table_text
from tasks.report.sheet import sheet
from tasks.report.verdict import Row, verdict, without_random
from tasks.subject import Asked, Subject

STRIPS = 8
"""Training pictures shown with what the variants make of them."""

PAIRS = {
    "VM": "verbatim with verbatim",
    "TM": "template with template",
    "VM with TM": "verbatim with template",
    "mixed": "subsets of memorized prompts",
    "control": "subsets of ordinary prompts",
}
"""What pairs of subsets are called, by the query that tells them apart."""


@dataclass(frozen=True)
class Localized:
    """Ids of what localization wrote."""

    wanda: str
    control: str
    curve: str


@dataclass(frozen=True)
class Written:
    """What the page says, for those who show it elsewhere."""

    table: str
    verdict: str
    overlap: list[dict[str, Any]]
    """Rows of the query `subspace`."""


Shown = Mapping[tuple[str, str, str], Collection[str]]
"""By name of the variant, variant in the store and probe, the ids of an audit's pictures."""


def rows_of(store: Store, audit_id: str) -> list[Row]:
    """The audit's figures, in the order they were written."""
    found = store.read("metrics", audit_id=audit_id).to_pylist()
    names = ("variant", "probe", "metric", "value", "low", "high", "n")
    order = {"original": 0, "nemo": 1, "random-nemo": 2, "wanda": 3, "random-wanda": 4}
    rows = [Row(**{name: row[name] for name in names}) for row in found if row["value"] is not None]
    return sorted(
        rows, key=lambda row: (order.get(row.variant, 9), row.variant, row.probe.startswith("dori"), row.probe)
    )


def write_report(
    subject: Subject,
    audit_id: str,
    path: Path,
    variants: Mapping[str, str],
    asked: Sequence[Asked],
    shown: Shown,
    facts: Sequence[tuple[str, str]],
    found: Localized,
    scorer: str,
) -> Written:
    """Writes the page, and a contact sheet beside it.

    Args:
        variants: by the name that figures go by, the variant in the store.
        asked: prompts whose training pictures are shown.
        shown: the audit's pictures.
        found: the sets whose overlap is drawn, and the curves of memorization left.
        scorer: the SSCD model whose scores the pictures are shown with.
    """
    store = subject.open()
    rows = rows_of(store, audit_id)
    losses = _losses(store, subject, variants)
    overlap = _subspace(store, subject, found)
    scores = _best_scores(store, scorer)
    strips = [_strip(store, subject, prompt, shown, scores) for prompt in asked[:STRIPS] if prompt.image_ids]
    report = Report(
        title=f"Memorization audit of {Path(subject.model).name}",
        subtitle=f"audit {audit_id}",
        facts=facts,
        rows=rows,
        strips=strips,
        losses=[losses] if losses is not None else [],
        matrices=_overlap(store, subject, found.wanda),
        curves=_overlap_curves(overlap),
        left=_left(store, subject, found),
        more_controls=without_random(variants),
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_suffix(".writing")
    aside.write_text(render(report), encoding="utf-8")
    aside.replace(path)
    if strips:
        path.with_name("sheet.png").write_bytes(sheet(strips))
    return Written(table_text(rows), verdict(rows), overlap)


def _subspace(store: Store, subject: Subject, found: Localized) -> list[dict[str, Any]]:
    """Overlap of the weights of subsets by kind of pair: over all, and by layer and by step; see `subspace.sql`."""
    rows = query(store, "subspace", model_id=subject.model_id, params_id=found.wanda, control_id=found.control)
    out: list[dict[str, Any]] = rows.to_pylist()
    return out


def _strip(store: Store, subject: Subject, prompt: Asked, shown: Shown, scores: Mapping[str, float]) -> Strip:
    """The training picture beside the best copy that each variant makes of it, from its prompt and under attack."""
    image = store.read("images", columns=["bytes"], image_id=prompt.image_ids[0])["bytes"][0].as_py()
    found = []
    for (name, variant, probe), ids in shown.items():
        rows = store.read(
            "generations",
            columns=["generation_id", "bytes"],
            model_id=subject.model_id,
            variant=variant,
            probe=probe,
            prompt_id=prompt.prompt_id,
        ).to_pylist()
        of_audit = {row["generation_id"]: row["bytes"] for row in rows if row["generation_id"] in ids}
        best = max(of_audit.keys() & scores.keys(), key=scores.__getitem__, default=None)
        if best is not None:
            found.append(Picture(f"{name}, {_words(probe)}", of_audit[best], scores[best]))
    return Strip(prompt.text, Picture("training picture", image), found)


def _best_scores(store: Store, scorer: str) -> dict[str, float]:
    """Similarity of each generation to the nearest of its training pictures."""
    rows = store.read("scores", columns=["generation_id", "value"], metric="sscd", scorer=scorer)
    out: dict[str, float] = {}
    for name, value in zip(rows["generation_id"].to_pylist(), rows["value"].to_pylist(), strict=True):
        out[name] = max(value, out.get(name, -1.0))
    return out


def _losses(store: Store, subject: Subject, variants: Mapping[str, str]) -> Chart | None:
    """Mean loss of the attacks on each variant, step by step."""
    curves = []
    for name, variant in variants.items():
        rows = store.read("triggers", columns=["start", "loss"], model_id=subject.model_id, variant=variant).to_pylist()
        for start in sorted({row["start"] for row in rows}):
            losses = [row["loss"] for row in rows if row["start"] == start and row["loss"]]
            length = min(map(len, losses), default=0)
            if length:
                mean = np.mean([loss[:length] for loss in losses], axis=0)
                curves.append(Curve(f"{name}, from {start}", mean.tolist()))
    if not curves:
        return None
    return Chart("Loss of the attacks", "step", "diffusion loss", curves, "mean over attacked pictures", smooth=5)


def _overlap(store: Store, subject: Subject, wanda_id: str) -> list[Matrix]:
    """Mean IOU, over layers and steps, of every two subsets' weights."""
    pairs: list[dict[str, Any]] = iou(store, subject.model_id, "wanda", wanda_id).to_pylist()
    pairs = [pair for pair in pairs if "all" not in (pair["scope_id_1"], pair["scope_id_2"])]
    labels = sorted({pair[key] for pair in pairs for key in ("scope_id_1", "scope_id_2")})
    if len(labels) < 2:
        return []
    values = np.eye(len(labels))
    chance = []
    for row, one in enumerate(labels):
        for column, two in enumerate(labels[row + 1 :], row + 1):
            found = [p for p in pairs if {p["scope_id_1"], p["scope_id_2"]} == {one, two} and p["iou"] is not None]
            values[row, column] = values[column, row] = np.mean([p["iou"] for p in found]) if found else 0.0
            chance += [p["iou_chance"] for p in found]
    note = f"mean over layers and steps; random sets of these sizes would have {np.mean(chance):.3f}" if chance else ""
    return [Matrix("Overlap of the weights of prompt subsets (IOU)", labels, values.tolist(), note)]


def _overlap_curves(rows: Sequence[Mapping[str, Any]]) -> list[Chart]:
    """Mean IOU over steps and over layers, by kind of pair, beside the control and chance."""
    charts = []
    for axis, other in (("step", "layer"), ("layer", "step")):
        mine = [row for row in rows if row[axis] is not None and row[other] is None and row["iou"] is not None]
        points = sorted({row[axis] for row in mine})
        curves = []
        for pair, name in PAIRS.items():
            values = {row[axis]: row["iou"] for row in mine if row["pair"] == pair}
            if len(values) == len(points):
                curves.append(Curve(name, [values[point] for point in points]))
        chance = [np.mean([row["iou_chance"] for row in mine if row[axis] == point]) for point in points]
        if curves:
            note = f"mean over {other}s and pairs of subsets"
            curves.append(Curve("random sets of these sizes", [float(value) for value in chance]))
            charts.append(Chart(f"Overlap of weights by {axis}", axis, "IOU", curves, note))
    return charts


def _left(store: Store, subject: Subject, found: Localized) -> list[Chart]:
    """Similarity of noise differences left as neurons are silenced, best first, beside random ones."""
    rows = query(store, "memorization_left", model_id=subject.model_id, params_id=found.curve).to_pylist()
    sizes = sorted({row["neurons"] for row in rows if not row["control"]})
    curves = []
    for control, name in ((False, "neurons that NeMo found, best first"), (True, "random neurons of the same layers")):
        values = {row["neurons"]: row["score"] for row in rows if row["control"] is control}
        if values:
            curves.append(Curve(name, [values[size] for size in sizes if size in values]))
    if not curves:
        return []
    note = "mean over prompts of the highest SSIM to the unsilenced noise difference"
    return [
        Chart("Memory left by number of silenced neurons", "neurons", "SSIM", curves, note, x_marks=[*map(str, sizes)])
    ]


def _words(probe: str) -> str:
    return {"prompt": "from its prompt", "ordinary": "ordinary prompt"}.get(
        probe.removesuffix("-control"), f"attacked from {probe.removeprefix('dori-').removesuffix('-control')}"
    )
