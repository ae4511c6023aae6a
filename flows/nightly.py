"""The nightly re-audit: every registered model audited again and compared with the audit that was accepted.

What the store holds is not computed again, so a night costs what changed. The schedule belongs to the deployment; see
docs/nightly.md for what it needs.
"""

import re
from collections.abc import Collection, Mapping
from datetime import UTC, datetime
from typing import Any, Literal

from prefect import flow, runtime
from prefect.artifacts import create_markdown_artifact
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from flows.alerts import ARTIFACT, NIGHTLY, REGRESSION, announce
from flows.audit import Audited, AuditParams, audit
from flows.check import check
from flows.params import clip_in_full, in_full
from flows.run.spec import Spec, audits_like, resolve, speeds
from flows.settings import Settings
from flows.show import show
from flows.typed import Plain, problems_in
from storage import Store, StoreError, compact, forget_images, query
from storage.errors import one_line
from tasks.errors import InputError
from tasks.report import task as reporting

_NAME = re.compile(r"[0-9A-Za-z][0-9A-Za-z._-]{0,63}")


class NightlyParams(Plain):
    """Which models are audited again, and what counts as worse."""

    model_config = ConfigDict(title="Nightly", frozen=True, extra="forbid")

    store: str = Field(".engram/store", description="Address of the store: a folder, or an s3:// URL.")
    models: tuple[str, ...] = Field(
        (), description="Names of the registered models that are audited again; all if empty."
    )
    margin: float = Field(reporting.MARGIN, ge=0, lt=1, description="Share of its CLIP score that a model may lose.")
    alpha: float = Field(reporting.ALPHA, gt=0, lt=1, description="Largest chance of a false alarm for each model.")
    keep_images: int | None = Field(
        None,
        ge=1,
        description="Nights of each model whose images and pages are kept, beside those of accepted audits; all if "
        "empty. Estimates are kept of every night.",
    )


class Night(BaseModel):
    """What came of one model."""

    name: str
    outcome: Literal["no regression", "regression", "first", "failed"]
    words: str
    """The verdict, or why there is none."""
    audit_id: str | None = None
    baseline: str | None = None
    """The audit it was compared with."""
    regressions: list[str] = []
    notes: list[str] = []
    """What the comparison could not see."""
    reused: bool = False
    """Whether the audit was there already: of a run that was late, or is tried again."""


class NightFailed(RuntimeError):
    """Some audits failed, or could not be compared; the others are done, and their results are in the store."""


@flow(name=NIGHTLY, flow_run_name="nightly")
def nightly(params: NightlyParams) -> list[Night]:
    """Audits every registered model again and compares it with the audit that was accepted last, else with that of the
    last night that was told of.

    A regression is an event, `engram.audit.regression` of the resource `engram.model.NAME`; without one it is
    `engram.audit.completed`. A model that fails does not stop the others.

    A night that was missed is made up for once: of several runs that are late, the first one audits, and the others
    find that their models were audited after they were due. So does one that is tried again. What came of an audit is
    told unless a night told it before; one that is tried again tells it in any case.

    Last, the images of nights that are no longer to be kept are removed, see `thin`.

    Raises:
        InputError: no model of that name is registered.
        NightFailed: at the end, when any audit failed or could not be compared, or images could not be removed.
    """
    store, due = Store.open(params.store), runtime.flow_run.scheduled_start_time
    known = registered(store)
    if lost := [name for name in params.models if name not in known]:
        raise InputError(f"no model {lost[0]!r} is registered: engram models list shows them")
    nights = [_night(store, name, known[name], due, params) for name in params.models or known]
    said = [f"{night.name}: {night.words}" for night in nights if night.outcome == "failed"]
    problems = [f"{len(said)} of {len(nights)} models failed. {'; '.join(said)}"] if said else []
    done = []
    if params.keep_images is not None:
        try:
            done.append(thin(store, params.models or known, params.keep_images))
        except StoreError as error:
            problems.append(f"Images of earlier nights could not be removed: {error}")
    _show(nights, due, [*done, *_compacted(store)])
    if problems:
        raise NightFailed(" ".join(problems))
    return nights


def thin(store: Store, names: Collection[str], keep: int) -> str:
    """Removes the images and pages of all but the last nights of these models. Those of accepted audits stay, and so
    does what any other audit needs.

    Args:
        keep: nights of each model, at least 1: the last is what the next one may be compared with.

    Returns:
        What was removed, in words.

    Raises:
        StoreError: a part that has to be looked into is not sound, or something cannot be removed.
    """
    rows = store.read("nights", columns=["name", "audit_id", "told_at"]).to_pylist()
    kept = set(store.read("accepted", columns=["audit_id"])["audit_id"].to_pylist())
    for name in {row["name"] for row in rows}:
        told = sorted((row["told_at"], row["audit_id"]) for row in rows if row["name"] == name)
        # Of a model that is not looked after, or no longer, nothing is removed.
        kept |= {audit_id for _, audit_id in (told[-keep:] if name in names else told)}
    known = set(store.read("audits", columns=["audit_id"])["audit_id"].to_pylist())
    past = sorted({row["audit_id"] for row in rows} & known - kept)
    for audit_id in past:
        reporting.remove_page(store, audit_id)
    found = forget_images(store, past)
    return f"removed {len(found.parts)} parts of images of earlier nights, {found.size / 1e6:.1f} MB"


def _night(store: Store, name: str, params_json: str, due: datetime, params: NightlyParams) -> Night:
    """One model: audited, compared, reported. Whatever goes wrong is its own matter and not that of the others."""
    try:
        registered_params = AuditParams.model_validate_json(params_json).model_copy(update={"store": store.url})
    except ValueError as error:
        why = "; ".join(problems_in(error, AuditParams)) if isinstance(error, ValidationError) else one_line(error)
        words = f"its registration does not fit this version, register it again ({why})"
        return Night(name=name, outcome="failed", words=words)
    try:
        check(registered_params)
        spec = resolve(registered_params)
        done = _audited_since(spec, due)
        if done is None:
            state = audit(registered_params, return_state=True)
            if not state.is_completed():
                return Night(name=name, outcome="failed", words=f"{state.name}: {state.message}")
            found: Audited = state.result()
            night = _compared(store, name, found.audit_id, params)
        else:
            night = _compared(store, name, done, params).model_copy(update={"reused": True})
        _tell(store, night, reporting.page_place(store, str(night.audit_id)))
    except Exception as error:
        return Night(name=name, outcome="failed", words=one_line(error))
    return night


def _compacted(store: Store) -> list[str]:
    """Merges what the night wrote, and removes what was merged in nights before; in words, as what goes wrong."""
    try:
        return compact(store, gc=True).words()
    except StoreError as error:
        # What the night found stands; the store grows until somebody reads this.
        return [f"**the store was not compacted**: {error}"]


def _tell(store: Store, night: Night, report: str) -> None:
    """The event, and the row that says that somebody was told."""
    # A run that is tried again may have ended between the two; what the server has it does not take twice.
    if night.audit_id in _told(store, night.name) and (runtime.flow_run.run_count or 1) == 1:
        return
    announce(
        REGRESSION if night.regressions else "engram.audit.completed",
        resource={"prefect.resource.id": f"engram.model.{night.name}", "prefect.resource.name": night.name},
        payload=night.model_dump() | {"report": report},
        key=f"{night.name} {night.audit_id} {night.baseline}",
    )
    row = night.model_dump(include={"name", "audit_id", "baseline", "outcome"}) | {"told_at": datetime.now(UTC)}
    store.write("nights", f"{night.name}-{night.audit_id}", [row])


def _compared(store: Store, name: str, audit_id: str, params: NightlyParams) -> Night:
    known = _told(store, name) | _before_nights(store, name)
    baseline = reporting.baseline_of(store, audit_id, known, speeds())
    if baseline is None:
        return Night(name=name, outcome="first", words="nothing to compare with yet", audit_id=audit_id)
    found = reporting.compare(store, baseline, audit_id, reporting.claims(), params.margin, params.alpha)
    return Night(
        name=name,
        outcome="regression" if found.regressions else "no regression",
        words=found.verdict,
        audit_id=audit_id,
        baseline=baseline,
        regressions=[words for words, _ in found.regressions],
        notes=list(found.notes),
    )


def _audited_since(spec: Spec, due: datetime) -> str | None:
    """The last completed audit of the same model with the same parameters, if it began after this run was due."""
    since = [row for row in audits_like(spec) if row["state"] == "completed" and row["started_at"] >= due]
    return str(max(since, key=lambda row: row["started_at"])["audit_id"]) if since else None


def _told(store: Store, name: str) -> set[str]:
    """The audits of this model that a night told of."""
    return set(store.read("nights", columns=["audit_id"], name=name)["audit_id"].to_pylist())


def _before_nights(store: Store, name: str) -> set[str]:
    """The audits from before the model was registered, or registered anew after it was removed: a person had them made,
    and saw what came of them."""
    rows = store.read("registrations", columns=["state", "changed_at"], name=name).to_pylist()
    removed = max((row["changed_at"] for row in rows if row["state"] == "removed"), default=None)
    since = min(row["changed_at"] for row in rows if removed is None or row["changed_at"] > removed)
    audits = store.read("audits", columns=["audit_id", "started_at"], state="completed").to_pylist()
    return {row["audit_id"] for row in audits if row["started_at"] < since}


def _show(nights: list[Night], due: datetime, compacted: list[str]) -> None:
    """The summary in the Prefect UI.

    Args:
        compacted: what became of the store's parts.
    """
    lines = ["| model | outcome | | audit | compared with |", "|---|---|---|---|---|"]
    if not nights:
        lines = ["No model is registered: `engram models add` adds one."]
    for night in nights:
        words = night.words.replace("|", "\\|").replace("\n", " ")
        audits = (f"`{name}`" if name else "" for name in (night.audit_id, night.baseline))
        outcome = f"**{night.outcome}**{', audited before' if night.reused else ''}"
        lines.append(f"| {night.name} | {outcome} | {words} | {' | '.join(audits)} |")
    for night in nights:
        if night.regressions or night.notes:
            notes = (f"- note: {words}" for words in night.notes)
            lines += ["", f"## {night.name}", "", *(f"- {words}" for words in night.regressions), *notes]
    show(
        create_markdown_artifact,
        "\n".join([f"# The night of {due:%Y-%m-%d}", "", *lines, "", f"The store: {'; '.join(compacted)}.", ""]),
        key=ARTIFACT,
        description="Registered models, audited again and compared with the accepted audit.",
    )


def registered(store: Store) -> Mapping[str, str]:
    """By name of the registered models, the parameters of their audits (JSON)."""
    return {row["name"]: row["params"] for row in query(store, "registered").to_pylist()}


def check_name(name: str) -> None:
    """Raises InputError where no model can be called so."""
    if not _NAME.fullmatch(name):
        raise InputError(f"{name!r} is no name: use up to 64 letters, digits, '.', '_' and '-'")


def register(store: Store, name: str, params: AuditParams) -> None:
    """Adds a model to the nights, or changes the parameters of its audits.

    Paths are kept in full, since a worker looks at them from elsewhere; links are kept as links, which may lead to
    another model tomorrow.

    Raises:
        InputError: the name cannot be used, or there is no such model or file.
    """
    check_name(name)
    full: dict[str, str] = {}
    for kind in ("prompts", "nulls", "ordinary", "images"):
        if (named := getattr(params, kind)) is not None:
            path = in_full(named)
            if not path.exists():
                raise InputError(f"there is no {path}, which was given with --{kind}")
            full[kind] = str(path)
    full |= params.in_full()
    if params.clip is not None:
        full["clip"] = clip_in_full(params.clip)
    whole = params.model_copy(update=full | _settings_in_full(params.settings))
    check(whole.model_copy(update={"store": store.url}))  # what a night would refuse is refused now
    _write(store, name, "registered", whole.model_dump_json())


def _settings_in_full(settings: Settings | None) -> dict[str, Settings]:
    """The settings with the files that they name as paths in full; nothing where there are none."""
    if settings is None:
        return {}
    changed: dict[str, Any] = {
        group: getattr(settings, group).model_copy(update={name: in_full(path) for name, path in files.items()})
        for group, files in settings.files().items()
    }
    sscd = settings.sscd
    if sscd.weights is not None:
        sscd = sscd.model_copy(update={"weights": str(in_full(sscd.weights))})
    return {"settings": settings.model_copy(update=changed | {"sscd": sscd})}


def remove(store: Store, name: str) -> None:
    """Takes a model out of the nights; its audits stay.

    Raises:
        InputError: no model of that name is registered.
    """
    if name not in registered(store):
        raise InputError(f"no model {name!r} is registered: engram models list shows them")
    _write(store, name, "removed", None)


def _write(store: Store, name: str, state: str, params: str | None) -> None:
    now = datetime.now(UTC)
    row = {"name": name, "state": state, "params": params, "changed_at": now}
    store.write("registrations", f"{name}-{now:%Y%m%d%H%M%S%f}", [row])
