"""Two audits compared, and which audit is the baseline of later ones."""

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa

from storage import Store, query
from tasks.conditions import ORDINARY, PROMPT, Condition
from tasks.errors import InputError
from tasks.methods import columns
from tasks.report import compare as method
from tasks.report.task.record import record_of, rows_of
from tasks.scorers.sscd import COPY_THRESHOLD
from tasks.units import Link, count, counted, units


@dataclass(frozen=True)
class Comparison:
    """Two audits compared."""

    before: str
    """The audit that is held to be the baseline."""
    after: str
    prompts: int
    """Prompts that both were asked about."""
    images: int
    """What those prompts count for: prompts that share an image or have near-duplicates are one; see `tasks.units`."""
    differences: list[method.Difference]
    """Every estimate that both have."""
    regressions: list[tuple[str, float]]
    """What got worse, in words, each with its adjusted p-value; the surest first."""
    notes: list[str]
    """What a reader should know before trusting it."""
    verdict: str
    """One line."""


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
        InputError: an audit is unknown, has not completed or does not know its images; the two share no prompts, or
            were scored with different models.
    """
    records = _completed(store, before), _completed(store, after)
    seen = _seen(store, before), _seen(store, after)
    for metric in ("sscd", "clip"):
        made_with = [{row["scorer"] for row in rows if row["metric"] == metric} for rows in seen]
        if all(made_with) and made_with[0] != made_with[1]:
            raise InputError(
                f"{before} and {after} were scored with different {metric.upper()} models: accept a later one"
            )
    prompt_ids = [{row["prompt_id"] for row in rows} for rows in seen]
    shared = prompt_ids[0] & prompt_ids[1]
    if not shared:
        raise InputError(f"{before} and {after} have no prompt in common: compare audits of the same prompts")
    of = _units(store, records, prompt_ids[0] | prompt_ids[1])
    pairs = {
        metric: [pair for pair in _pairs(*seen, metric, of) if pair.variant in claims] for metric in ("sscd", "clip")
    }
    if not any(pairs.values()):
        raise InputError(f"{before} and {after} asked no variant the same: nothing can be compared")
    findings = method.copies(pairs["sscd"], COPY_THRESHOLD)
    findings += method.quality([pair for pair in pairs["clip"] if pair.condition == ORDINARY], margin)
    worse = method.regressions(findings, alpha)
    texts = {
        row["prompt_id"]: row["text"]
        for row in store.read("prompts", columns=["prompt_id", "text"]).to_pylist()
        if row["prompt_id"] in shared
    }
    notes = _settings_apart(*records)
    if prompt_ids[0] != prompt_ids[1]:
        notes.append(
            f"{len(shared)} prompts in common, of {len(prompt_ids[0])} and {len(prompt_ids[1])}: estimates are over all"
        )
    again = {(pair.variant, pair.condition.name) for some in pairs.values() for pair in some}
    before_only = {(row["variant"], row["condition"]) for row in seen[0] if row["variant"] in claims} - again
    notes += [f"{variant}, {condition} was not looked at again" for variant, condition in sorted(before_only)]
    notes.append(_power(pairs["sscd"], findings, alpha))
    regressions = [(method.sentence(finding, texts), p) for finding, p in worse]
    verdict = f"No regression from {before} to {after}, over {counted(shared, of)} (false alarms at most {alpha:g})."
    if regressions:
        more = f" and {len(regressions) - 1} more" if len(regressions) > 1 else ""
        verdict = f"Regression from {before} to {after}: {regressions[0][0]} (p {regressions[0][1]:.2g}){more}."
    estimates = method.differences(rows_of(store, before), rows_of(store, after))
    # Other estimates may rest on more or fewer for many reasons; of these only the rule of counting is another.
    same = [one for one in estimates if (one.condition, one.metric) in ((PROMPT.name, "mr"), (ORDINARY.name, "clip"))]
    if prompt_ids[0] == prompt_ids[1] and (other := [one for one in same if one.n_before != one.n_after]):
        counts = f"{other[0].n_before} and {other[0].n_after}"
        notes.append(
            f"estimates count the same prompts as {counts}: earlier versions counted prompts, or knew no"
            " near-duplicates"
        )
    return Comparison(before, after, len(shared), count(shared, of), estimates, regressions, notes, verdict)


def differences_table(found: Comparison) -> pa.Table:
    """The differences of the estimates that people are shown, for the terminal."""
    rows = [
        {
            "variant": one.variant,
            "condition": one.condition,
            "metric": one.metric,
            "before": round(one.before, 4),
            "after": round(one.after, 4),
            "change": round(one.change, 4),
            "low": None if one.low is None else round(one.low, 4),
            "high": None if one.high is None else round(one.high, 4),
        }
        for one in found.differences
        if one.metric in columns() and Condition.parse(one.condition).steps is None
    ]
    names, numbers = ("variant", "condition", "metric"), ("before", "after", "change", "low", "high")
    schema = pa.schema([(name, pa.string()) for name in names] + [(name, pa.float64()) for name in numbers])
    return pa.Table.from_pylist(rows, schema)


@dataclass(frozen=True)
class Brought:
    """How often two models gave a prompt's training images back."""

    prompt: str
    unit: str
    """What the prompt counts with; see `tasks.units`."""
    copies_before: int
    """Generations above the threshold, of those of the first audit."""
    images_before: int
    best_before: float
    """The highest SSCD of any generation."""
    copies_after: int
    images_after: int
    best_after: float


def brought_back(store: Store, before: str, after: str) -> list[Brought]:
    """Prompt by prompt, what the original model of an audit gives back that another one's does not; most first.

    Args:
        before, after: ids of completed audits of the same prompts, as of a model without adapters and with them.

    Raises:
        InputError: an audit is unknown, has not completed or does not know its images.
    """
    records = _completed(store, before), _completed(store, after)
    seen = _seen(store, before), _seen(store, after)
    texts = {
        row["prompt_id"]: row["text"]
        for record in records
        for row in store.read("prompts", columns=["prompt_id", "text"], prompt_set=record["prompt_set"]).to_pylist()
    }
    of = _units(store, records, {row["prompt_id"] for rows in seen for row in rows} - {None})
    found = [
        Brought(
            texts.get(pair.prompt_id, pair.prompt_id),
            pair.unit,
            sum(score > COPY_THRESHOLD for score in pair.before),
            len(pair.before),
            max(pair.before),
            sum(score > COPY_THRESHOLD for score in pair.after),
            len(pair.after),
            max(pair.after),
        )
        for pair in _pairs(*seen, "sscd", of)
        if pair.variant == "original" and pair.condition == PROMPT
    ]
    return sorted(found, key=lambda one: (one.copies_before - one.copies_after, one.best_before - one.best_after))


def words_of_brought(found: Sequence[Brought]) -> str:
    """In a sentence, how many images come back with the second model alone, with both, with the first."""
    of = {one.prompt: one.unit for one in found}
    before = {one.unit for one in found if one.copies_before}
    after = {one.unit for one in found if one.copies_after}
    return (
        f"Of {counted(of, of)}, the training image of {len(after - before)} comes back with the adapters and not"
        f" without them, of {len(after & before)} with and without, of {len(before - after)} only without (any"
        f" generation with SSCD above {COPY_THRESHOLD:g})."
    )


def baseline_of(store: Store, audit_id: str, reported: Collection[str], speeds: Collection[str] = ()) -> str | None:
    """The audit that a night's is compared with: the earlier one of the same model and prompts that was accepted last,
    among those with the same settings if there are any; else the last of those that somebody was told of, with the same
    settings. None where there is neither.

    Args:
        reported: the ids of those: had nobody heard of a regression, it would become the baseline in silence.
        speeds: whole names of settings that do not change what comes out.
    """
    rows = query(store, "baseline_audits", audit_id=audit_id).to_pylist()
    own = record_of(store, audit_id)
    alike = {row["audit_id"] for row in rows if _alike(row, own, speeds)}
    accepted = [row["audit_id"] for row in rows if row["accepted_at"] is not None]
    known = [name for name in accepted if name in alike] + accepted
    known += [row["audit_id"] for row in rows if row["audit_id"] in alike and row["audit_id"] in reported]
    return str(known[0]) if known else None


def audits_named(store: Store, before: str, after: str) -> tuple[str, str]:
    """Ids of two audits of which either may be a word: 'latest', 'previous' or 'accepted'.

    'latest' is the completed audit that began last; 'previous' and 'accepted' are seen from the other one: the audit of
    the same model and prompts before it, or the one that was accepted last.

    Raises:
        InputError: there is none.
    """
    ids = [latest(store) if name == "latest" else name for name in (before, after)]
    if all(name in ("previous", "accepted") for name in ids):
        raise InputError(f"{before} of what? Name one audit by its id, or as 'latest'")
    for index, name in enumerate(ids):
        if name not in ("previous", "accepted"):
            continue
        other = ids[1 - index]
        _completed(store, other)
        rows = query(store, "baseline_audits", audit_id=other).to_pylist()
        if name == "accepted":
            rows = [row for row in rows if row["accepted_at"] is not None]
        else:
            rows.sort(key=lambda row: row["started_at"], reverse=True)
        if not rows:
            what = "accepted audit" if name == "accepted" else "audit"
            raise InputError(
                f"there is no {what} of the same model and prompts before {other}: name two audits by their ids"
            )
        ids[index] = str(rows[0]["audit_id"])
    return ids[0], ids[1]


def accept(store: Store, audit_id: str) -> str:
    """Makes an audit, or the 'latest', the baseline of later ones of the same model and prompts; returns its id.

    Raises:
        InputError: it is unknown or has not completed.
    """
    audit_id = latest(store) if audit_id == "latest" else audit_id
    _completed(store, audit_id)
    now = datetime.now(UTC)
    row = {"audit_id": audit_id, "accepted_at": now}
    # A key for each time: an audit may be accepted again, after another one was.
    store.write("accepted", f"{audit_id}-{now:%Y%m%d%H%M%S%f}", [row])
    return audit_id


def latest(store: Store) -> str:
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
            f"the audit {audit_id} does not say which images its estimates rest on: audit the model again; what the "
            "store holds already is not computed again"
        )
    return rows


def _units(store: Store, records: Sequence[Mapping[str, Any]], prompt_ids: Collection[str]) -> dict[str, str]:
    """By prompt id what counts once: by what the prompt sets of both audits say, and by all near-duplicates that any
    audit found in them. An audit does not say which of these are its own; tests are as exact whatever is linked."""
    links: list[Link] = [(name, name, ()) for name in prompt_ids]  # a set may be gone
    near: list[tuple[str, str]] = []
    for name in {record["prompt_set"] for record in records} - {None}:
        rows = store.read("prompts", columns=["prompt_id", "text", "image_ids"], prompt_set=name).to_pylist()
        links += [(row["prompt_id"], row["text"], row["image_ids"] or ()) for row in rows]
        found = store.read("clusters", columns=["prompt_id", "cluster"], prompt_set=name).to_pylist()
        near += [(row["prompt_id"], row["cluster"]) for row in found]
    return units(links, near)


def _pairs(
    before: list[dict[str, Any]], after: list[dict[str, Any]], metric: str, of: Mapping[str, str]
) -> list[method.Pair]:
    """What both audits saw, prompt by prompt, images in the order of triggers and seeds."""
    found: list[dict[tuple[str, str, str], dict[str, float]]] = []
    for rows in (before, after):
        known: dict[tuple[str, str, str], dict[str, float]] = {}
        mine = [row for row in rows if row["metric"] == metric and row["prompt_id"] is not None]
        for row in sorted(mine, key=lambda row: (row["trigger_id"] or "", row["seed"])):
            key = row["variant"], row["condition"], row["prompt_id"]
            known.setdefault(key, {})[row["generation_id"]] = row["value"]
        found.append(known)
    old, new = found
    return [
        method.Pair(
            key[0],
            Condition.parse(key[1]),
            key[2],
            tuple(old[key].values()),
            tuple(generated.values()),
            bool(old[key].keys() & generated),
            of.get(key[2], ""),
        )
        for key, generated in new.items()
        if key in old
    ]


def _power(pairs: Sequence[method.Pair], findings: Sequence[method.Finding], alpha: float) -> str:
    """What the least is that would have been noticed, with the images at hand."""
    mine = [pair for pair in pairs if pair.variant == "original" and not pair.condition.is_attack]
    if not mine:
        return "the original model was not asked with prompts in both audits"
    before, after = min(len(pair.before) for pair in mine), min(len(pair.after) for pair in mine)
    least = method.least_noticed(findings, before, after, alpha)
    if least is not None:
        return f"a prompt that the original never copied would be noticed from {least} copies in {after} images on"
    needed = method.seeds_needed(findings, alpha)
    return (
        f"{before} and {after} images a prompt are too few to notice a single prompt that is now always copied: "
        f"{needed} seeds always suffice"
    )


def _settings_apart(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """Settings, and versions of the program, that the two audits did not share."""
    old, new = _settings(before), _settings(after)
    apart = [
        f"{name} was {old.get(name)}, is {new.get(name)}"
        for name in sorted(old.keys() | new.keys())
        if old.get(name) != new.get(name)
    ]
    if before["code_version"] != after["code_version"]:
        apart.append(f"engram was {before['code_version']}, is {after['code_version']}")
    return apart


def _alike(before: Mapping[str, Any], after: Mapping[str, Any], speeds: Collection[str]) -> bool:
    """Whether two audits asked a model the same: no setting differs that both know, but for those of speed alone."""
    old, new = _settings(before), _settings(after)
    return all(old[name] == new[name] for name in old.keys() & new.keys() - set(speeds))


def _settings(record: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of an audit by their whole names, and its CLIP model."""
    params = json.loads(record["params"])
    return dict(_flat(params.get("settings") or {})) | {"clip": params.get("clip")}


def _flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in settings.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value
