"""The page of an audit, a contact sheet, and which images its estimates rest on."""

import io
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from storage import Store, content_key, iou, query
from tasks.conditions import ORDINARY, Condition
from tasks.diffusion.sampling import to_png
from tasks.methods import Localizer
from tasks.report.charts import Chart, Curve, Matrix
from tasks.report.report import Report, Strip, StripImage, render, table_text
from tasks.report.sheet import sheet
from tasks.report.standing import standings
from tasks.report.task.pages import page_file
from tasks.report.task.record import rows_of
from tasks.report.verdict import Row, effort_rates, effort_words, verdict, without_random
from tasks.subject import Prompt, Subject

STRIPS = 8
"""Training images shown with what the variants make of them."""
SHOWN = 256
"""Pixels of the longer side of an image on the page: hundreds of larger ones would make it too heavy to open."""
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
    """What the page draws of what a localizer wrote, by ids; empty where there is none."""

    localizer: Localizer
    subsets: str = ""
    """Its sets of subsets of prompts, whose overlap is drawn."""
    control: str = ""
    """The same, found when ordinary prompts are taken for memorized ones."""
    curve: str = ""
    """Its curves of what is left of memories."""


@dataclass(frozen=True)
class Written:
    """What the page says, for those who show it elsewhere."""

    table: str
    verdict: str
    overlap: list[dict[str, Any]]
    """Rows of the query `subspace`."""
    sheet: str | None
    """The file in the store that is an image (PNG) of training images beside the best copies of each variant; None
    where there are none."""
    drawings: dict[str, Chart]
    """Losses of attacks and trainings, and replication by the attack's effort, those that there are."""


Shown = Mapping[tuple[str, str, Condition], Collection[str]]
"""By name of the variant, variant in the store and condition, the ids of an audit's images."""


def write_report(
    subject: Subject,
    audit_id: str,
    variants: Mapping[str, str],
    memorized: Sequence[Prompt],
    units: Mapping[str, str],
    shown: Shown,
    facts: Sequence[tuple[str, str]],
    found: Sequence[Localized],
    scorers: Mapping[str, str],
    searches: Mapping[str, Collection[str]],
    trainings: Mapping[str, Sequence[Mapping[str, Any]]],
) -> Written:
    """Writes the page, a contact sheet beside it, and which images the audit's estimates rest on, into the store.

    Args:
        variants: by the name that estimates go by, the variant in the store.
        memorized: the memorized prompts; the first few are shown with their training images.
        units: by prompt id, what counts once.
        shown: the audit's images.
        found: by localizer, the sets whose overlap is drawn, and the curves of memorization left.
        scorers: by kind of score, "sscd" and "clip", the model that made them; see `scores.scorer`.
        searches: by what they are called, the ids of triggers whose losses are drawn.
        trainings: by the name of the variant, its training step by step.
    """
    store = subject.open()
    estimates = rows_of(store, audit_id)
    attacks = {"attacks": _losses(store, subject, searches), "effort": _effort(estimates)}
    trained = {name: training_chart(name, history) for name, history in trainings.items()}
    overlaps = {one.localizer: _subspace(store, subject, one) for one in found if one.subsets}
    scores = _scores(store, scorers["sscd"])
    strips = _strips(store, subject, [prompt for prompt in memorized if prompt.image_ids], units, shown, scores)
    report = Report(
        title=f"Memorization audit of {Path(subject.source).name}",
        subtitle=f"audit {audit_id}",
        facts=facts,
        rows=estimates,
        standings=standings(),
        strips=strips,
        attacks=[chart for chart in attacks.values() if chart is not None],
        trainings=list(trained.values()),
        matrices=[drawing for one in found if one.subsets for drawing in _overlap(store, subject, one)],
        curves=[drawing for one, rows in overlaps.items() for drawing in _overlap_curves(one, rows)],
        left=[drawing for one in found if one.curve for drawing in _left(store, subject, one, memorized)],
        more_controls=without_random(variants, standings()),
    )
    _keep_evidence(store, audit_id, shown, estimates, scorers)
    store.put_file(page_file(audit_id), render(report).encode())
    contact = page_file(audit_id, "sheet.png") if strips else None
    if contact is not None:
        store.put_file(contact, sheet(strips))
    drawings = {name: chart for name, chart in (attacks | trained).items() if chart is not None}
    shared = [row for rows in overlaps.values() for row in rows]
    return Written(table_text(estimates), verdict(estimates, standings()), shared, contact, drawings)


def training_chart(name: str, history: Sequence[Mapping[str, Any]]) -> Chart:
    """Losses of a fine-tuning, step by step; `history` as `tasks.mitigate.task.history_of` gives it."""
    kinds = {"erase": "surrogates under triggers", "ordinary": "ordinary pairs", "attack": "inner attack, last step"}
    curves = []
    for kind, words in kinds.items():
        values = [step[kind] for step in history if step[kind] is not None]
        if len(values) == len(history):
            curves.append(Curve(words, values))
        elif values:  # attacked in some epochs only
            curves.append(Curve(f"{words}, where there was one", values))
    checks = [f"{step['held_out']:.0%} at step {step['step']}" for step in history if step["held_out"] is not None]
    note = f"a held-out attack brought back {', '.join(checks)}" if checks else ""
    return Chart(f"Training: {name}", "step", "diffusion loss", curves, note, smooth=5)


def _subspace(store: Store, subject: Subject, found: Localized) -> list[dict[str, Any]]:
    """Overlap of what was found for subsets by kind of pair: over all, by layer and by step; see `subspace.sql`."""
    which = {"model_id": subject.model_id, "prompt_set": subject.prompt_set}
    which |= {"method": found.localizer.name, "params_id": found.subsets, "control_id": found.control}
    rows = query(store, "subspace", **which)
    out: list[dict[str, Any]] = rows.to_pylist()
    return out


def _strips(
    store: Store,
    subject: Subject,
    memorized: Sequence[Prompt],
    of: Mapping[str, str],
    shown: Shown,
    known: Mapping[tuple[str, str], float],
) -> list[Strip]:
    """Each training image beside the best copy that each variant makes of it, from its prompts and under attack.

    Prompts that share an image have one strip, with the first's image.
    """
    sharing: dict[str, list[Prompt]] = {}
    for prompt in memorized:
        sharing.setdefault(of[prompt.prompt_id], []).append(prompt)
    strips = dict(list(sharing.items())[:STRIPS])
    memorized = [prompt for prompts in strips.values() for prompt in prompts]
    firsts = [prompts[0].image_ids[0] for prompts in strips.values()]
    rows = store.read("images", columns=["image_id", "bytes"], image_id=firsts)
    trained = dict(zip(rows["image_id"].to_pylist(), rows["bytes"].to_pylist(), strict=True))
    found: dict[str, list[StripImage]] = {unit: [] for unit in strips}
    for (name, variant, condition), ids in shown.items():
        where: dict[str, Any] = {"model_id": subject.model_id, "variant": variant, "condition": condition.name}
        where["prompt_id"] = [prompt.prompt_id for prompt in memorized]
        made = store.read("generations", columns=["generation_id", "prompt_id"], **where)
        of_audit = set(ids)
        of_prompt: dict[str, list[str]] = {}
        for one, asked_for in zip(made["generation_id"].to_pylist(), made["prompt_id"].to_pylist(), strict=True):
            if one in of_audit:
                of_prompt.setdefault(asked_for, []).append(one)
        best: dict[str, tuple[float, str]] = {}
        for unit, prompts in strips.items():
            pairs = [
                pair for prompt in prompts for pair in product(of_prompt.get(prompt.prompt_id, ()), prompt.image_ids)
            ]
            scored = [(known[pair], pair[0]) for pair in pairs if pair in known]
            if scored:
                best[unit] = max(scored, key=itemgetter(0))
        if not best:
            continue
        names = [one for _, one in best.values()]
        files = store.read("generations", columns=["generation_id", "bytes"], **where, generation_id=names)
        data = dict(zip(files["generation_id"].to_pylist(), files["bytes"].to_pylist(), strict=True))
        for unit, (score, one) in best.items():
            found[unit].append(StripImage(f"{name}, {_words(condition)}", _small(data[one]), score))
    return [
        Strip(
            prompts[0].text,
            StripImage("training image", _small(trained[prompts[0].image_ids[0]])),
            found[unit],
            len(prompts),
        )
        for unit, prompts in strips.items()
    ]


def _small(data: bytes) -> bytes:
    """An image as a page shows it, PNG or JPEG and no larger than `SHOWN` pixels; small ones stay as they are."""
    with Image.open(io.BytesIO(data)) as opened:
        if max(opened.size) <= SHOWN and opened.format in ("PNG", "JPEG"):
            return data
        shown = ImageOps.exif_transpose(opened).convert("RGB")
    shown.thumbnail((SHOWN, SHOWN))
    return to_png(np.asarray(shown))


def _scores(store: Store, scorer: str) -> dict[tuple[str, str], float]:
    """Similarity of each generation to training images, by both ids."""
    rows = store.read("scores", columns=["generation_id", "reference_id", "value"], metric="sscd", scorer=scorer)
    columns = zip(*(column.to_pylist() for column in rows.columns), strict=True)
    return {(name, image): value for name, image, value in columns}


def _losses(store: Store, subject: Subject, searches: Mapping[str, Collection[str]]) -> Chart | None:
    """Mean loss of the attacks, step by step."""
    rows = store.read("triggers", columns=["trigger_id", "loss"], model_id=subject.model_id)
    losses = dict(zip(rows["trigger_id"].to_pylist(), rows["loss"].to_pylist(), strict=True))
    curves = []
    for name, ids in searches.items():
        found = [losses[one] for one in ids if losses.get(one)]
        if found:
            curves.append(Curve(name, np.mean(found, axis=0).tolist()))
    if not curves:
        return None
    return Chart("Loss of the attacks", "step", "diffusion loss", curves, "mean over attacked images", smooth=5)


def _effort(rows: Sequence[Row]) -> Chart | None:
    """Share of images that attacks from noise bring back, by their number of steps."""
    rates = {control: effort_rates(rows, control) for control in (False, True)}
    marks = sorted(rates[False])
    if not marks:
        return None
    curves, sizes = [], []
    for control, name in ((False, "memorized"), (True, "never memorized")):
        if rates[control].keys() >= set(marks):
            curves.append(Curve(name, [rates[control][steps].value for steps in marks]))
            sizes.append(f"{rates[control][marks[0]].n} {name}")
    note = f"attacks from noise on {' and '.join(sizes)} images; {effort_words(rows)}".strip(" ;")
    words = "attack steps", "share brought back"
    return Chart("Replication by the attack's effort", *words, curves, note, x_marks=[*map(str, marks)])


def _overlap(store: Store, subject: Subject, found: Localized) -> list[Matrix]:
    """Mean IOU, over layers and steps, of every two subsets' members."""
    localizer = found.localizer
    pairs: list[dict[str, Any]] = iou(store, subject.model_id, localizer.name, found.subsets).to_pylist()
    pairs = [pair for pair in pairs if "all" not in (pair["scope_id_1"], pair["scope_id_2"])]
    labels = sorted({pair[key] for pair in pairs for key in ("scope_id_1", "scope_id_2")})
    if len(labels) < 2:
        return []
    values = np.eye(len(labels))
    chance = []
    for row, one in enumerate(labels):
        for column, two in enumerate(labels[row + 1 :], row + 1):
            both = [p for p in pairs if {p["scope_id_1"], p["scope_id_2"]} == {one, two} and p["iou"] is not None]
            values[row, column] = values[column, row] = np.mean([p["iou"] for p in both]) if both else 0.0
            chance += [p["iou_chance"] for p in both]
    note = f"mean over layers and steps; random sets of these sizes would have {np.mean(chance):.3f}" if chance else ""
    title = f"{localizer.title}: overlap of the {localizer.members} of prompt subsets (IOU)"
    return [Matrix(title, labels, values.tolist(), note)]


def _overlap_curves(localizer: Localizer, rows: Sequence[Mapping[str, Any]]) -> list[Chart]:
    """Mean IOU over steps and over layers, by kind of pair, beside the control and chance."""
    charts = []
    for axis, other in (("step", "layer"), ("layer", "step")):
        mine = [row for row in rows if row[axis] is not None and row[other] is None and row["iou"] is not None]
        points = sorted({row[axis] for row in mine})
        curves = []
        for pair, name in PAIRS.items():
            values = {row[axis]: row["iou"] for row in mine if row["pair"] == pair}
            if values and len(values) == len(points):
                curves.append(Curve(name, [values[point] for point in points]))
        chance = [np.mean([row["iou_chance"] for row in mine if row[axis] == point]) for point in points]
        if curves:
            note = f"mean over {other}s and pairs of subsets"
            curves.append(Curve("random sets of these sizes", [float(value) for value in chance]))
            title = f"{localizer.title}: overlap of {localizer.members} by {axis}"
            charts.append(Chart(title, axis, "IOU", curves, note))
    return charts


def _left(store: Store, subject: Subject, found: Localized, memorized: Sequence[Prompt]) -> list[Chart]:
    """Similarity of noise differences left as members are ablated, best first, beside random ones."""
    # The store may know curves of more prompts, of larger audits.
    which = {"params_id": found.curve, "prompt_ids": [prompt.prompt_id for prompt in memorized]}
    rows = query(store, "memorization_left", model_id=subject.model_id, **which).to_pylist()
    searched = {row["neurons"] for row in rows if not row["control"]}
    # Every prompt's own number is in the rows, too; all of them would not fit below the axis.
    sizes = sorted(size for size in searched if size.bit_count() == 1 or size == max(searched))
    curves = []
    members, title = found.localizer.members, found.localizer.title
    for control, name in (
        (False, f"{members} that {title} found, best first"),
        (True, f"random {members} of the same layers"),
    ):
        values = {row["neurons"]: row["score"] for row in rows if row["control"] is control}
        if values:
            curves.append(Curve(name, [values[size] for size in sizes if size in values]))
    if not curves:
        return []
    note = "mean over prompts of the highest SSIM to the noise difference without ablation"
    words = f"{title}: memory left by number of ablated {members}", members, "SSIM"
    return [Chart(*words, curves, note, x_marks=[*map(str, sizes)])]


def _words(condition: Condition) -> str:
    if condition.start is not None:
        return f"attacked from {condition.start}"
    return "ordinary prompt" if condition == ORDINARY else "from its prompt"


def _keep_evidence(store: Store, audit_id: str, shown: Shown, rows: Sequence[Row], scorers: Mapping[str, str]) -> None:
    """Writes which generations, scored by which model, the audit's estimates rest on."""
    known = {(row.variant, row.condition, row.metric) for row in rows}
    for (variant, _, condition), ids in shown.items():
        for kind, metric in (("sscd", "mr"), ("clip", "clip")):
            if (variant, condition, metric) in known:
                trial = {"variant": variant, "condition": condition.name, "metric": kind}
                row = trial | {"scorer": scorers[kind], "generation_ids": list(ids)}
                store.write("evidence", content_key(audit_id, *trial.values()), [row], audit_id=audit_id)
