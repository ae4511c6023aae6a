"""Reporting: what an audit wrote, as one page for people and one table for the terminal."""

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from storage import Store, content_key, iou, query
from tasks.errors import InputError
from tasks.evaluate.sscd import COPY_THRESHOLD
from tasks.report import compare as method
from tasks.report.charts import Chart, Curve, Matrix
from tasks.report.locality import Answers, drawn_map, told
from tasks.report.report import COLUMNS, Picture, Report, Strip, render, table_text
from tasks.report.sheet import sheet
from tasks.report.verdict import Row, verdict, without_random
from tasks.subject import EFFORT, ORIGINAL, Asked, Subject

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
    sheet: Path | None
    """A picture (PNG) of training pictures beside the best copies of each variant; None where there are none."""
    drawings: dict[str, Chart]
    """Losses of attacks and trainings, and replication by the attack's effort, those that there are."""


Shown = Mapping[tuple[str, str, str], Collection[str]]
"""By name of the variant, variant in the store and probe, the ids of an audit's pictures."""


@dataclass(frozen=True)
class Comparison:
    """Two audits held against each other."""

    before: str
    """The audit that is held to be the standard."""
    after: str
    prompts: int
    """Prompts that both were asked about."""
    differences: list[method.Difference]
    """Every figure that both have."""
    regressions: list[tuple[str, float]]
    """What got worse, in words, each with its adjusted p-value; the surest first."""
    notes: list[str]
    """What a reader should know before trusting it."""
    verdict: str
    """One line."""


def record_of(store: Store, audit_id: str) -> dict[str, Any]:
    """What the store says of an audit, its library versions as a dictionary.

    Raises:
        InputError: there is no such audit.
    """
    rows = store.read("audits", audit_id=audit_id).to_pylist()
    if not rows:
        raise InputError(f"the store has no audit {audit_id!r}: `engram audits` lists them")
    record: dict[str, Any] = max(rows, key=lambda row: row["finished_at"] is not None)
    return record | {"library_versions": json.loads(record["library_versions"] or "{}")}


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
    folder = subject.beside("reports") / audit_id
    folder.mkdir(parents=True, exist_ok=True)
    words, maps = told(answers), [drawn_map(one.places) for one in found]
    (folder / "locality.md").write_text(words)
    for number, picture in enumerate(maps, 1):
        (folder / f"locality-{number}.png").write_bytes(picture)
    return words, maps


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
    searches: Mapping[str, Collection[str]],
    trainings: Mapping[str, Sequence[Mapping[str, Any]]],
) -> Written:
    """Writes the page, a contact sheet beside it, and into the store which pictures the audit's figures rest on.

    Args:
        variants: by the name that figures go by, the variant in the store.
        asked: prompts whose training pictures are shown.
        shown: the audit's pictures.
        found: the sets whose overlap is drawn, and the curves of memorization left.
        scorer: the SSCD model whose scores the pictures are shown with.
        searches: by what they are called, the ids of triggers whose losses are drawn.
        trainings: by the name of the variant, its training step by step.
    """
    store = subject.open()
    figures = rows_of(store, audit_id)
    rows = [row for row in figures if not row.probe.startswith(EFFORT)]
    attacks = {"attacks": _losses(store, subject, searches), "effort": _effort(figures)}
    trained = {name: training_chart(name, history) for name, history in trainings.items()}
    overlap = _subspace(store, subject, found)
    scores = _best_scores(store, scorer)
    strips = [_strip(store, subject, prompt, shown, scores) for prompt in asked[:STRIPS] if prompt.image_ids]
    report = Report(
        title=f"Memorization audit of {Path(subject.model).name}",
        subtitle=f"audit {audit_id}",
        facts=facts,
        rows=rows,
        strips=strips,
        attacks=[chart for chart in attacks.values() if chart is not None],
        trainings=list(trained.values()),
        matrices=_overlap(store, subject, found.wanda),
        curves=_overlap_curves(overlap),
        left=_left(store, subject, found),
        more_controls=without_random(variants),
    )
    _keep_evidence(store, audit_id, shown, rows, scorer)
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_suffix(".writing")
    aside.write_text(render(report), encoding="utf-8")
    aside.replace(path)
    picture = path.with_name("sheet.png") if strips else None
    if picture is not None:
        picture.write_bytes(sheet(strips))
    drawings = {name: chart for name, chart in (attacks | trained).items() if chart is not None}
    return Written(table_text(rows), verdict(rows), overlap, picture, drawings)


def training_chart(name: str, history: Sequence[Mapping[str, Any]]) -> Chart:
    """Losses of a fine-tuning, step by step; `history` as `tasks.mitigate.task.history_of` gives it."""
    kinds = {"erase": "surrogates under triggers", "ordinary": "ordinary pairs", "attack": "inner attack, last step"}
    curves = [
        Curve(words, [step[kind] for step in history])
        for kind, words in kinds.items()
        if all(step[kind] is not None for step in history)
    ]
    checks = [f"{step['held_out']:.0%} at step {step['step']}" for step in history if step["held_out"] is not None]
    note = f"a held-out attack brought back {', '.join(checks)}" if checks else ""
    return Chart(f"Training: {name}", "step", "diffusion loss", curves, note, smooth=5)


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
    return Chart("Loss of the attacks", "step", "diffusion loss", curves, "mean over attacked pictures", smooth=5)


def _effort(rows: Sequence[Row]) -> Chart | None:
    """Share of pictures that attacks from noise bring back, by their number of steps."""
    rates: dict[bool, dict[int, Row]] = {False: {}, True: {}}
    for row in rows:
        if row.metric == "mr" and row.probe.startswith(EFFORT):
            steps = int(row.probe.removeprefix(EFFORT).removesuffix("-control"))
            rates[row.probe.endswith("-control")][steps] = row
    marks = sorted(rates[False])
    if not marks:
        return None
    curves, sizes = [], []
    for control, name in ((False, "memorized"), (True, "never memorized")):
        if rates[control].keys() >= set(marks):
            curves.append(Curve(name, [rates[control][steps].value for steps in marks]))
            sizes.append(f"{rates[control][marks[0]].n} {name}")
    note = f"attacks from noise on {' and '.join(sizes)} pictures: beyond some effort anything comes back"
    words = "attack steps", "share brought back"
    return Chart("Replication by the attack's effort", *words, curves, note, x_marks=[*map(str, marks)])


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


def compare(
    store: Store,
    before: str,
    after: str,
    claims: Collection[str],
    margin: float = method.MARGIN,
    alpha: float = method.ALPHA,
) -> Comparison:
    """What changed from one audit to another, and whether the model got worse; see `tasks.report.compare`.

    Args:
        before, after: ids of completed audits, of one model or of two.
        claims: the variants that must not get worse: the original, and those that claim to have removed a memory.
        margin: the share of its CLIP score that a variant may lose.
        alpha: chance of any false alarm, at most.

    Raises:
        InputError: an audit is unknown, has not completed or does not know its pictures; the two share no prompts, or
            were scored with different models.
    """
    records = _completed(store, before), _completed(store, after)
    seen = _seen(store, before), _seen(store, after)
    for metric in ("sscd", "clip"):
        made_with = [{row["scorer"] for row in rows if row["metric"] == metric} for rows in seen]
        if all(made_with) and made_with[0] != made_with[1]:
            raise InputError(f"{before} and {after} were scored with different {metric.upper()} models: audit again")
    asked = [{row["prompt_id"] for row in rows} for rows in seen]
    shared = asked[0] & asked[1]
    if not shared:
        raise InputError(f"{before} and {after} have no prompt in common: compare audits of the same prompts")
    pairs = {metric: [pair for pair in _pairs(*seen, metric) if pair.variant in claims] for metric in ("sscd", "clip")}
    if not any(pairs.values()):
        raise InputError(f"{before} and {after} asked no variant the same: nothing can be compared")
    findings = method.copies(pairs["sscd"], COPY_THRESHOLD)
    findings += method.quality([pair for pair in pairs["clip"] if pair.probe == "ordinary"], margin)
    worse = method.regressions(findings, alpha)
    texts = {
        row["prompt_id"]: row["text"]
        for row in store.read("prompts", columns=["prompt_id", "text"]).to_pylist()
        if row["prompt_id"] in shared
    }
    notes = _settings_apart(*records)
    if asked[0] != asked[1]:
        notes.append(f"{len(shared)} prompts in common, of {len(asked[0])} and {len(asked[1])}: figures are over all")
    again = {(pair.variant, pair.probe) for pair in pairs["sscd"]}
    before_only = {(row["variant"], row["probe"]) for row in seen[0] if row["variant"] in claims} - again
    notes += [f"{variant}, {probe} was not looked at again" for variant, probe in sorted(before_only)]
    notes.append(_power(pairs["sscd"], findings, alpha))
    told = [(method.sentence(finding, texts), p) for finding, p in worse]
    verdict = f"No regression from {before} to {after}, over {len(shared)} prompts (false alarms at most {alpha:g})."
    if told:
        more = f" and {len(told) - 1} more" if len(told) > 1 else ""
        verdict = f"Regression from {before} to {after}: {told[0][0]} (p {told[0][1]:.2g}){more}."
    figures = method.differences(rows_of(store, before), rows_of(store, after))
    return Comparison(before, after, len(shared), figures, told, notes, verdict)


def differences_table(found: Comparison) -> pa.Table:
    """The differences of the figures that people are shown, for the terminal."""
    rows = [
        {
            "variant": one.variant,
            "probe": one.probe,
            "metric": one.metric,
            "before": round(one.before, 4),
            "after": round(one.after, 4),
            "change": round(one.change, 4),
            "low": None if one.low is None else round(one.low, 4),
            "high": None if one.high is None else round(one.high, 4),
        }
        for one in found.differences
        if one.metric in COLUMNS
    ]
    names, figures = ("variant", "probe", "metric"), ("before", "after", "change", "low", "high")
    schema = pa.schema([(name, pa.string()) for name in names] + [(name, pa.float64()) for name in figures])
    return pa.Table.from_pylist(rows, schema)


def standard_of(store: Store, audit_id: str) -> str | None:
    """The audit that this one is held against: the earlier one of the same model and prompts that was accepted last,
    else the one before it; None where it is the first."""
    rows = query(store, "standards", audit_id=audit_id).to_pylist()
    return str(rows[0]["audit_id"]) if rows else None


def audits_named(store: Store, before: str, after: str) -> tuple[str, str]:
    """Ids of two audits of which either may be a word: 'latest', 'previous' or 'accepted'.

    'latest' is the completed audit that began last; 'previous' and 'accepted' are seen from the other one: the audit of
    the same model and prompts before it, or the one that was accepted last.

    Raises:
        InputError: there is none.
    """
    told = [_latest(store) if name == "latest" else name for name in (before, after)]
    if all(name in ("previous", "accepted") for name in told):
        raise InputError(f"{before} of what? Name one audit by its id, or as 'latest'")
    for place, name in enumerate(told):
        if name not in ("previous", "accepted"):
            continue
        other = told[1 - place]
        _completed(store, other)
        rows = query(store, "standards", audit_id=other).to_pylist()
        if name == "accepted":
            rows = [row for row in rows if row["accepted_at"] is not None]
        else:
            rows.sort(key=lambda row: row["started_at"], reverse=True)
        if not rows:
            what = "accepted audit" if name == "accepted" else "audit"
            raise InputError(f"there is no {what} of the same model and prompts before {other}")
        told[place] = str(rows[0]["audit_id"])
    return told[0], told[1]


def accept(store: Store, audit_id: str) -> str:
    """Makes an audit, or the 'latest', the standard of later ones of the same model and prompts; returns its id.

    Raises:
        InputError: it is unknown or has not completed.
    """
    audit_id = _latest(store) if audit_id == "latest" else audit_id
    _completed(store, audit_id)
    now = datetime.now(UTC)
    row = {"audit_id": audit_id, "accepted_at": now}
    # A key for each time: an audit may be accepted again, after another one was.
    store.write("accepted", f"{audit_id}-{now:%Y%m%d%H%M%S%f}", [row])
    return audit_id


def _latest(store: Store) -> str:
    rows = store.read("audits", columns=["audit_id", "started_at"], state="completed").to_pylist()
    if not rows:
        raise InputError("the store has no completed audit: run `engram audit`")
    return str(max(rows, key=lambda row: (row["started_at"], row["audit_id"]))["audit_id"])


def _completed(store: Store, audit_id: str) -> dict[str, Any]:
    record = record_of(store, audit_id)
    if record["state"] != "completed":
        raise InputError(f"the audit {audit_id} is {record['state']}: only completed ones can be compared or accepted")
    return record


def _seen(store: Store, audit_id: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = query(store, "audit_scores", audit_id=audit_id).to_pylist()
    if not rows:
        raise InputError(
            f"the audit {audit_id} does not say which pictures its figures rest on: audit the model again; what the "
            "store holds already is not computed again"
        )
    return rows


def _pairs(before: list[dict[str, Any]], after: list[dict[str, Any]], metric: str) -> list[method.Pair]:
    """What both audits saw, prompt by prompt, pictures in the order of triggers and seeds."""
    found: list[dict[tuple[str, str, str], dict[str, float]]] = []
    for rows in (before, after):
        known: dict[tuple[str, str, str], dict[str, float]] = {}
        mine = [row for row in rows if row["metric"] == metric and row["prompt_id"] is not None]
        for row in sorted(mine, key=lambda row: (row["trigger_id"] or "", row["seed"])):
            place = row["variant"], row["probe"], row["prompt_id"]
            known.setdefault(place, {})[row["generation_id"]] = row["value"]
        found.append(known)
    old, new = found
    return [
        method.Pair(*place, tuple(old[place].values()), tuple(pictures.values()), bool(old[place].keys() & pictures))
        for place, pictures in new.items()
        if place in old
    ]


def _power(pairs: Sequence[method.Pair], findings: Sequence[method.Finding], alpha: float) -> str:
    """What the least is that would have been noticed, with the pictures at hand."""
    mine = [pair for pair in pairs if pair.variant == "original" and not pair.probe.startswith("dori")]
    if not mine:
        return "the original model was not asked with prompts in both audits"
    before, after = min(len(pair.before) for pair in mine), min(len(pair.after) for pair in mine)
    least = method.least_noticed(findings, before, after, alpha)
    if least is not None:
        return f"a prompt that the original never copied would be noticed from {least} copies in {after} pictures on"
    needed = method.seeds_needed(findings, alpha)
    return (
        f"{before} and {after} pictures a prompt are too few to notice a single prompt that is now always copied: "
        f"{needed} seeds always suffice"
    )


def _settings_apart(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """Settings, and versions of the program, that the two audits did not share."""
    old, new = (dict(_flat(json.loads(record["params"]).get("settings", {}))) for record in (before, after))
    apart = [
        f"{name} was {old.get(name)}, is {new.get(name)}"
        for name in sorted(old.keys() | new.keys())
        if old.get(name) != new.get(name)
    ]
    if before["code_version"] != after["code_version"]:
        apart.append(f"engram was {before['code_version']}, is {after['code_version']}")
    return apart


def _flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in settings.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def _keep_evidence(store: Store, audit_id: str, shown: Shown, rows: Sequence[Row], scorer: str) -> None:
    """Writes which pictures, scored by which model, the audit's figures rest on."""
    aligned: dict[str, dict[str, float]] = {}
    scores = store.read("scores", columns=["scorer", "generation_id", "value"], metric="clip")
    for made_with, name, value in zip(*(column.to_pylist() for column in scores.columns), strict=True):
        aligned.setdefault(made_with, {})[name] = value
    figures = {(row.variant, row.probe, row.metric): row.value for row in rows}
    for (variant, _, probe), ids in shown.items():
        made = {"sscd": scorer} if (variant, probe, "mr") in figures else {}
        clip = figures.get((variant, probe, "clip"))
        if clip is not None:
            # The store may have scores by several CLIP models; the audit's are those that give its figure.
            means = {
                one: float(np.mean([known[name] for name in ids]))
                for one, known in aligned.items()
                if known.keys() >= set(ids)
            }
            made["clip"] = min(means, key=lambda one: abs(means[one] - clip))
        for metric, by in made.items():
            row = {"variant": variant, "probe": probe, "metric": metric, "scorer": by, "generation_ids": list(ids)}
            store.write("evidence", content_key(audit_id, variant, probe, metric), [row], audit_id=audit_id)
