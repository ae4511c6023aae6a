"""The spec of a run: what was asked, resolved once and written to the store under an id that stages are given."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property, partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from flows.inputs import clip_of, inputs_of
from flows.params import AuditParams, resolved
from flows.rules import together
from flows.run.confirmed import known_of
from flows.selection import Selection
from flows.settings import Settings
from storage import Store, content_key
from tasks.collect import task as collecting
from tasks.diffusion.precision import precision_for
from tasks.errors import InputError, refuse
from tasks.params import is_speed
from tasks.scorers.clip import ClipParams
from tasks.subject import Kind, Prompt, Subject, by_kind, prompts_of


class Run(BaseModel):
    """Which run, in which store: all that a worker has to know."""

    model_config = ConfigDict(title="Run", frozen=True, extra="forbid")

    store: str = Field(".engram/store", description="Address of the store: a folder, or an s3:// URL.")
    run_id: str = Field(description="The run, as `engram audits` shows it; its settings lie in the store.")
    device: str | None = Field(
        None, description="Where it computes: cpu, cuda, mps, ...; CUDA where there is any if empty."
    )


@dataclass(frozen=True, eq=False)
class Spec:
    """What was asked of a run."""

    run_id: str
    params: AuditParams
    """With all settings, the model by its whole name, and the precision that its device computes in."""
    subject: Subject
    chosen: Selection
    """The prompts, by what they are for."""
    long_prompts: str = ""
    """How many prompts are longer than the model reads, and what became of them; empty where none is."""
    notices: tuple[str, ...] = ()
    """What a person should know of the files, where they were read just now."""

    @property
    def settings(self) -> Settings:
        assert self.params.settings is not None
        return self.params.settings

    @property
    def run(self) -> Run:
        """What stages are given of it."""
        return Run(store=self.subject.store, run_id=self.run_id, device=self.subject.device)

    @property
    def contrast(self) -> list[Prompt]:
        """What memorized prompts are compared with: as many null prompts as examined ones, as published; fewer only
        where there are no more."""
        few = len(self.chosen.examined)
        return collecting.empty_prompts(few) if self.settings.contrast == "empty" else self.chosen.nulls[:few]

    @cached_property
    def clip(self) -> ClipParams:
        """The model that scores alignment.

        Raises:
            InputError: none is named, or none such is there.
        """
        return clip_of(self.params, Path(self.subject.model))


def resolve(params: AuditParams, keep: bool = True) -> Spec:
    """Reads what is named, brings the prompts into the store, and writes the spec there, unless it stands there last.

    Where the model lies and how fast to compute is no part of a run's id, so they are those of who asked last.

    Args:
        keep: whether anything is written; a store must be there where nothing is.

    Raises:
        InputError: the model, the prompts or the images cannot be used, or what is asked not in this precision.
    """
    whole = resolved(params)
    assert whole.settings is not None
    settings = whole.settings
    refuse(together(settings))
    folder = params.folder
    inputs = inputs_of(params, folder, settings.long_prompts)
    refuse(inputs.problems)  # before there is a store
    rows, images = collecting.rows_of(inputs)
    store = Store.open(params.store, create=keep)
    subject = Subject(
        store=store.url,
        model=str(folder),
        prompt_set=collecting.set_name(inputs.stem, rows, images),
        device=params.device,
        precision=precision_for(settings.precision, params.device),
    )
    run_id = content_key("run/1", subject.model_id, subject.prompt_set, determining(whole))[:16]
    notices = tuple(inputs.notices)
    if not keep:
        return Spec(run_id, whole, subject, _selection(subject, whole, by_kind(rows)), inputs.long, notices)
    collecting.import_inputs(store, inputs)
    row = {
        "run_id": run_id,
        "model_id": subject.model_id,
        "prompt_set": subject.prompt_set,
        "params": whole.model_dump_json(),
        "long_prompts": inputs.long,
        "code_version": version("engram-audit"),
    }
    last = _last(store, run_id)
    if last is None or row.items() - last.items():
        now = datetime.now(UTC)
        store.write("runs", content_key(run_id, row["params"], now.isoformat()), [row | {"resolved_at": now}])
    return Spec(run_id, whole, subject, chosen_of(subject, whole), inputs.long, notices)


def spec_of(run: Run) -> Spec:
    """The spec of a run, from its store.

    Raises:
        InputError: there is no such run, its settings are of another version, or its model is another by now.
    """
    store = Store.open(run.store, create=False)
    row = _last(store, run.run_id)
    if row is None:
        raise InputError(f"the store has no run {run.run_id!r}: `engram audits` shows the runs of audits")
    try:
        params = AuditParams.model_validate_json(row["params"])
    except ValidationError as error:
        raise InputError(f"the run {run.run_id} has settings of another version: audit again") from error
    params = params.model_copy(update={"store": store.url, "device": run.device})
    assert params.settings is not None
    subject = Subject(
        store=store.url,
        model=str(params.folder),
        prompt_set=row["prompt_set"],
        device=run.device,
        precision=precision_for(params.settings.precision, run.device),
    )
    if subject.model_id != row["model_id"]:
        raise InputError(f"{params.named} changed since run {run.run_id} was resolved: audit it again")
    return Spec(run.run_id, params, subject, chosen_of(subject, params), row["long_prompts"])


def audits_like(spec: Spec) -> list[dict[str, Any]]:
    """The audits of these weights with these prompts and settings, however they ended: their rows in the store.

    A setting that an earlier version did not have counts as what it now is by default, and one that is no more is left
    aside: so a new setting does not part an audit from its estimates.
    """
    subject, wanted = spec.subject, determining(spec.params)
    found = subject.open().read("audits", model_id=subject.model_id, prompt_set=subject.prompt_set)
    rows: list[dict[str, Any]] = found.to_pylist()
    usual = dict(flat(Settings().model_dump(mode="json")))
    return [row for row in rows if _same(json.loads(row["params"]), wanted, usual)]


def chosen_of(subject: Subject, params: AuditParams) -> Selection:
    """The choice among the prompts of a set in the store, by what is known by now of those that are confirmed.

    Raises:
        InputError: fewer images were never seen than are to be attacked.
    """
    return _selection(subject, params, {kind: prompts_of(subject, kind) for kind in get_args(Kind)})


def determining(params: AuditParams) -> dict[str, Any]:
    """What of an audit's parameters its estimates follow from: settings but for those of speed, and the CLIP model."""
    assert params.settings is not None
    every = dict(flat(params.settings.model_dump(mode="json")))
    return {name: value for name, value in every.items() if name not in speeds()} | {"clip": params.clip}


def speeds(kind: type[BaseModel] = Settings, group: str = "") -> set[str]:
    """The whole names of settings that change how fast a result is computed, and not the result."""
    out: set[str] = set()
    for name, one in kind.model_fields.items():
        if isinstance(one.annotation, type) and issubclass(one.annotation, BaseModel):
            out |= speeds(one.annotation, f"{group}{name}.")
        elif is_speed(one):
            out.add(group + name)
    return out


def flat(settings: Mapping[str, Any], group: str = "") -> Iterator[tuple[str, Any]]:
    """Nested settings by their whole names, such as `wanda.tau`."""
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{group}{name}.")
        else:
            yield group + name, value


def _last(store: Store, run_id: str) -> dict[str, Any] | None:
    """The row of a run that was written last; None where there is none."""
    rows: list[dict[str, Any]] = store.read("runs", run_id=run_id).to_pylist()
    return max(rows, key=lambda row: row["resolved_at"], default=None)


def _same(before: Mapping[str, Any], wanted: Mapping[str, Any], usual: Mapping[str, Any]) -> bool:
    """Whether an earlier audit's parameters, as JSON has them, ask for what these settings do."""
    known = dict(flat(before.get("settings") or {})) | {"clip": before.get("clip")}
    return all(known.get(name, usual.get(name)) == value for name, value in wanted.items())


def _selection(subject: Subject, params: AuditParams, prompts: Mapping[Kind, list[Prompt]]) -> Selection:
    assert params.settings is not None
    chosen = Selection(params.settings, prompts)
    chosen.check_unseen()
    return chosen.narrowed(known_of(subject, chosen, partial(clip_of, params, Path(subject.model))))
