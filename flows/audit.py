"""The audit: every stage in the way of the data, from prompts to the report."""

import json
import secrets
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from prefect import flow, task
from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.cache_policies import NO_CACHE
from pydantic import BaseModel, ConfigDict, Field

from flows.settings import Settings
from storage import Store, content_key
from tasks.attack import task as attacking
from tasks.collect import task as collecting
from tasks.diffusion.model import audit_defaults
from tasks.errors import InputError
from tasks.evaluate import task as evaluating
from tasks.evaluate.clip_score import ClipParams
from tasks.evaluate.sscd import scorer_of
from tasks.localize import task as localizing
from tasks.localize.wanda import WandaParams
from tasks.mitigate import task as mitigating
from tasks.report import task as reporting
from tasks.subject import ORIGINAL, Asked, Kind, Subject, prompts_of

ATTACKED = (ORIGINAL, "nemo", "wanda")
"""Variants that claim to have removed a memory; controls and rival scores are only prompted."""
LIBRARIES = ("torch", "diffusers", "transformers", "open_clip_torch", "onnxruntime", "duckdb", "pyarrow", "prefect")


class AuditParams(BaseModel):
    """What is audited."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str = Field("reference", description="folder of a diffusers pipeline; 'reference' is the shipped one")
    store: str = Field(".engram/store", description="address of the store: a folder, or an s3:// URL")
    prompts: str | None = Field(None, description="file of memorized prompts; the model's own if empty")
    nulls: str | None = Field(None, description="file of prompts that are not memorized")
    ordinary: str | None = Field(None, description="file of prompts that quality is measured on")
    images: str | None = Field(None, description="folder of the prompts' training images")
    clip: str | None = Field(None, description="open_clip model that scores alignment: local-dir:FOLDER")
    device: str | None = Field(None, description="cpu, cuda, ...; the GPU where there is one if empty")
    settings: Settings = Settings()


class Audited(BaseModel):
    """What came of it."""

    audit_id: str
    report: str
    table: str
    variants: dict[str, str]
    """By the name that figures go by, the variant in the store."""


def _stage(function: Callable[..., Any], name: str) -> Any:
    # The store knows what is done; Prefect keeps no results and hashes no arguments.
    return task(name=name, cache_policy=NO_CACHE, persist_result=False)(function)


import_prompts = _stage(collecting.import_prompts, "import prompts")
register_model = _stage(collecting.register_model, "register model")
collect_values = _stage(collecting.collect_values, "collect value activations")
collect_norms = _stage(collecting.collect_norms, "collect feature norms")
detect = _stage(localizing.detect, "detect")
localize_nemo = _stage(localizing.localize_nemo, "localize: NeMo")
localize_wanda = _stage(localizing.localize_wanda, "localize: Wanda")
localize_control = _stage(localizing.localize_control, "localize: ordinary prompts as a control")
localize_importance = _stage(localizing.localize_importance, "localize: other scores")
memorization_left = _stage(localizing.memorization_left, "localize: memorization by number of neurons")
cut_neurons = _stage(mitigating.cut_neurons, "mitigate: neurons")
cut_weights = _stage(mitigating.cut_weights, "mitigate: weights")
cut_scored = _stage(mitigating.cut_scored, "mitigate: other scores")
attack_images = _stage(attacking.attack_images, "attack: Dori")
write_report = _stage(reporting.write_report, "report")


@flow(name="audit", flow_run_name="audit {params.model}")
def audit(params: AuditParams) -> Audited:
    """Audits a model: what it memorized, where, whether it can be cut out, and whether it is then gone.

    Whatever the store holds already is not computed again, so an interrupted audit goes on where it stopped.

    Raises:
        InputError: the model, the prompts or the images cannot be used.
    """
    started, settings = datetime.now(UTC), params.settings
    folder, subject = _subject(params)
    clip = ClipParams(model=params.clip or _beside(folder, "clip", "local-dir:") or _refuse_clip(folder))
    audit_id = f"{started:%Y%m%d-%H%M%S}-{secrets.token_hex(3)}"
    store, model_id = subject.open(), register_model(subject)
    record = {
        "audit_id": audit_id,
        "model_id": model_id,
        "prompt_set": subject.prompt_set,
        "params": params.model_dump_json(),
        "code_version": version("engram-audit"),
        "library_versions": json.dumps({name: version(name) for name in LIBRARIES}),
        "seed": settings.seed,
        "device": str(subject.load().device),
        "started_at": started,
    }
    store.write("audits", f"{audit_id}-begun", [record | {"state": "running"}])
    state = "failed"
    try:
        found = _stages(subject, settings, clip, audit_id, record)
        state = "completed"
        return found
    except KeyboardInterrupt:
        state = "cancelled"
        raise
    finally:
        ended = record | {"state": state, "finished_at": datetime.now(UTC)}
        store.write("audits", f"{audit_id}-ended", [ended])


def _stages(subject: Subject, settings: Settings, clip: ClipParams, audit_id: str, record: dict[str, Any]) -> Audited:
    memorized = prompts_of(subject, "memorized", settings.memorized)
    nulls = prompts_of(subject, "null", settings.nulls)
    ordinary = prompts_of(subject, "ordinary", settings.ordinary)
    # As many null prompts as memorized ones, as published; fewer only where there are no more.
    few = len(memorized)
    contrast = collecting.empty_prompts(few) if settings.contrast == "empty" else nulls[:few]
    threshold_nulls = nulls[: settings.threshold_nulls]
    tau = min(settings.wanda.tau, settings.sampling.steps)
    wanda = settings.wanda.model_copy(update={"tau": tau})

    collect_values(subject, [*memorized, *nulls])
    collect_norms(subject, [*memorized, *contrast, *ordinary[:few]], settings.sampling, tau)
    detect(subject, [*memorized, *threshold_nulls, *ordinary], settings.nemo)
    nemo_id = localize_nemo(subject, memorized, threshold_nulls, nulls, settings.nemo)
    curve_id = memorization_left(subject, memorized, nemo_id, threshold_nulls, settings.nemo, seed=settings.seed)
    wanda_id = localize_wanda(subject, memorized, contrast, wanda, settings.sampling)
    control_id = localize_control(subject, memorized, ordinary, contrast, wanda, settings.sampling)

    variants = {ORIGINAL: ORIGINAL}
    variants |= cut_neurons(subject, nemo_id, [p.prompt_id for p in memorized], audit_id, seed=settings.seed)
    variants |= cut_weights(subject, wanda_id, localizing.ALL, wanda, audit_id, seed=settings.seed)
    if "wanda" in variants:
        variants |= cut_weights(subject, control_id, localizing.ALL, wanda, audit_id, method="wanda-control")
        variants |= _cut_scored(subject, settings, memorized, ordinary, wanda_id, wanda, audit_id)
    shown: dict[tuple[str, str, str], list[str]] = {}

    def look(name: str, probe: str, wanted: list[evaluating.Shot], by: ClipParams | None = None) -> None:
        ids = evaluate(subject, audit_id, name, variants[name], probe, wanted, settings, by)
        shown[name, variants[name], probe] = ids

    for name in variants:
        look(name, "prompt", evaluating.shots(memorized, settings.seeds))
        look(name, "ordinary", evaluating.shots(ordinary, settings.seeds), clip)

    attacked = [prompt for prompt in memorized if prompt.image_ids][: settings.attacked]
    controls = [prompt for prompt in ordinary if prompt.image_ids][: settings.controls]
    pool = attack_pool(subject, settings)
    for start in settings.starts if attacked else ():
        dori = settings.dori.model_copy(update={"start": start})
        probes = [(name, f"dori-{start}", attacked) for name in variants if name in ATTACKED]
        if controls:
            probes.append((ORIGINAL, f"dori-{start}-control", controls))
        for name, probe, prompts in probes:
            triggers = attack_images(subject, variants[name], prompts, pool, dori, settings.seed)
            look(name, probe, evaluating.shots(prompts, settings.seeds, triggers))

    path = _report_path(subject, audit_id)
    facts = _facts(record, settings, variants, len(memorized), len(ordinary))
    found = reporting.Localized(wanda=wanda_id, control=control_id, curve=curve_id)
    scorer = scorer_of(settings.sscd)
    written = write_report(subject, audit_id, path, variants, memorized, shown, facts, found, scorer)
    _show(audit_id, path, written)
    return Audited(audit_id=audit_id, report=str(path), table=written.table, variants=variants)


def _show(audit_id: str, report: Path, written: reporting.Written) -> None:
    """What the Prefect UI shows of the run: the verdict with the figures, and the overlap of subsets' weights."""
    create_markdown_artifact(
        f"# Audit {audit_id}\n\n{written.verdict}\n\n```text\n{written.table}```\n\nReport: `{report}`\n",
        key="audit",
        description="What the model copies, before and after",
    )
    whole = [row for row in written.overlap if row["layer"] is None and row["step"] is None]
    shown = ("pair", "pairs", "iou", "std", "lowest", "highest", "iou_chance")
    create_table_artifact(
        [{name: row[name] for name in shown} for row in whole],
        key="subspace",
        description="Overlap (IOU) of the weights that subsets of prompts use, beside ordinary prompts and chance",
    )


def attack_pool(subject: Subject, settings: Settings) -> list[str]:
    """Prompts that attacks start from, or whose spread their noise has."""
    limits: tuple[tuple[Kind, int | None], ...] = (
        ("memorized", settings.memorized),
        ("null", settings.nulls),
        ("ordinary", settings.ordinary),
    )
    return [prompt.text for kind, limit in limits for prompt in prompts_of(subject, kind, limit)]


def _cut_scored(
    subject: Subject,
    settings: Settings,
    memorized: Sequence[Asked],
    ordinary: Sequence[Asked],
    wanda_id: str,
    wanda: WandaParams,
    audit_id: str,
) -> dict[str, str]:
    """As many weights of each layer as Wanda cuts, chosen by each of the other scores that were asked for."""
    pictured = [[prompt for prompt in prompts if prompt.image_ids] for prompts in (memorized, ordinary)]
    if settings.scores and not all(pictured):
        raise InputError("other scores need training images of memorized and of ordinary prompts: give --images")
    out: dict[str, str] = {}
    for score in settings.scores:
        chosen = settings.importance.model_copy(update={"score": score})
        found = localize_importance(subject, *pictured, chosen, wanda_id, wanda)
        out |= cut_scored(subject, score, found, localizing.ALL, audit_id)
    return out


@task(name="evaluate", task_run_name="evaluate {name}, {probe}", cache_policy=NO_CACHE, persist_result=False)
def evaluate(
    subject: Subject,
    audit_id: str,
    name: str,
    variant: str,
    probe: str,
    wanted: Sequence[evaluating.Shot],
    settings: Settings,
    clip: ClipParams | None,
) -> list[str]:
    """Pictures of one variant under one probe, their scores and figures; the ids of the pictures."""
    ids = evaluating.generate_pictures(subject, variant, probe, wanted, settings.sampling)
    evaluating.score_copies(subject, variant, probe, wanted, ids, settings.sscd)
    found = evaluating.copy_figures(subject, wanted, ids, settings.sscd)
    found += evaluating.diversity_figure(subject, wanted, ids, settings.sscd)
    if variant != ORIGINAL and not probe.startswith("dori"):
        originals = [evaluating.generation_id(subject, ORIGINAL, probe, shot, settings.sampling) for shot in wanted]
        evaluating.score_change(subject, variant, probe, ids, originals, settings.sscd)
        found += evaluating.change_figure(subject, wanted, ids, settings.sscd)
    if clip is not None:
        evaluating.score_alignment(subject, variant, probe, wanted, ids, clip)
        found += evaluating.alignment_figure(subject, wanted, ids, clip)
    evaluating.write_figures(subject, audit_id, name, probe, found)
    return ids


def _subject(params: AuditParams) -> tuple[Path, Subject]:
    """The model's folder, and the subject with its prompts in the store."""
    folder = model_folder(params.model)
    prompts = params.prompts or _beside(folder, "prompts")
    if prompts is None:
        raise InputError(
            f"which prompts? {folder} names none of its own: give a file of memorized prompts with --prompts"
        )
    images = params.images or (_beside(folder, "images") if params.prompts is None else None)
    paths = [Path(path) if path else None for path in (prompts, params.nulls, params.ordinary, images)]
    store = Store.open(params.store)
    name = import_prompts(store, *paths)
    return folder, Subject(store=store.url, model=str(folder), prompt_set=name, device=params.device)


def model_folder(model: str) -> Path:
    """The folder of a model; 'reference' is the model that ships with the project.

    Raises:
        InputError: there is none.
    """
    shipped = Path(__file__).resolve().parent.parent / "reference" / "model"
    folder = shipped if model == "reference" else Path(model).expanduser()
    if not folder.is_dir():
        raise InputError(f"no model at {folder}: give the folder of a diffusers pipeline with --model")
    return folder.resolve()


def _beside(folder: Path, name: str, prefix: str = "") -> str | None:
    """A path that the model's `engram.json` gives, relative to its folder."""
    path = audit_defaults(folder).get(name)
    return f"{prefix}{(folder / path).resolve()}" if path else None


def _refuse_clip(folder: Path) -> str:
    raise InputError(f"{folder} names no CLIP model: give one with --clip local-dir:FOLDER")


def _report_path(subject: Subject, audit_id: str) -> Path:
    # Reports of a remote store lie beside the shell they were asked from.
    root = Path(subject.store.removeprefix("file://")) if subject.store.startswith("file://") else Path(".engram/store")
    return root.parent / "reports" / audit_id / "report.html"


def _facts(
    record: dict[str, Any], settings: Settings, variants: dict[str, str], memorized: int, ordinary: int
) -> list[tuple[str, str]]:
    libraries = ", ".join(f"{name} {number}" for name, number in json.loads(record["library_versions"]).items())
    return [
        ("model", str(json.loads(record["params"])["model"])),
        ("fingerprint", record["model_id"]),
        ("prompts", f"{memorized} memorized, {ordinary} ordinary, of set {record['prompt_set']}"),
        ("seeds", f"{settings.seeds} a prompt or trigger"),
        ("sampling", f"{settings.sampling.steps} steps, guidance {settings.sampling.guidance}"),
        ("variants", ", ".join(f"{name} = {stored}" for name, stored in variants.items() if name != stored)),
        ("nothing found by", ", ".join(name for name in ("nemo", "wanda") if name not in variants) or "none"),
        ("device", record["device"]),
        ("started", f"{record['started_at']:%Y-%m-%d %H:%M} UTC"),
        ("versions", libraries),
        ("settings", content_key(record["params"])[:8]),
    ]
