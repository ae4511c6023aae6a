"""The reference world: built from emoji packages, and measured against the gates it has to pass."""

import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from prefect import flow, task
from prefect.artifacts import create_image_artifact, create_markdown_artifact
from prefect.cache_policies import NO_CACHE
from pydantic import ConfigDict, Field
from rich.console import Console
from rich.table import Table

from flows.audit import AuditParams, audit
from flows.check import check as check_audit
from flows.inputs import clip_of
from flows.params import defaults_for, model_folder
from flows.run.spec import chosen_of
from flows.settings import Settings
from flows.show import show, shown_progress, uri
from flows.typed import Plain
from storage import Store
from tasks.attack import task as attacking
from tasks.collect import task as collecting
from tasks.conditions import ORDINARY, PROMPT, Condition, dori
from tasks.diffusion.precision import precision_for
from tasks.diffusion.sampling import to_png
from tasks.errors import gathered, noting, refuse
from tasks.evaluate import task as evaluating
from tasks.keys import detection_id
from tasks.localize import task as localizing
from tasks.methods import method
from tasks.mitigate import task as mitigating
from tasks.reference import assemble, gates
from tasks.reference import build as recipe
from tasks.reference.bank import embed_bank
from tasks.reference.build import BuildParams
from tasks.reference.images import check_archives
from tasks.report import task as reporting
from tasks.subject import ORIGINAL, Prompt, Subject, prompts_of

CONTROLS = 24
"""Ordinary and held-out images, each, that the attack must not bring back."""
ACROSS = 12
"""Images in a row of what is drawn beside the README."""


class BuildRun(Plain):
    """Which packages the reference world is built from, and where."""

    model_config = ConfigDict(title="Reference world", frozen=True, extra="forbid")

    images: str = Field(description="Archive of the npm package @lobehub/fluent-emoji-3d 1.1.0.")
    names: str = Field(description="Archive of the npm package emojibase-data 17.0.0.")
    folder: str = Field(
        ".engram/reference-build", description="Folder of checkpoints, which a build that was stopped goes on from."
    )
    out: str = Field("reference", description="Folder that the world is put into when it is done.")
    start: str | None = Field(
        None, description="Folder of a world whose weights are gone on from; steps of 0 keep them as they are."
    )
    recipe: BuildParams = BuildParams()


@flow(name="reference-build", flow_run_name="reference world")
def build(params: BuildRun) -> None:
    """Builds the reference world: hours on two cores. Every step goes on from its checkpoints.

    Raises:
        InputError: the packages are not those, or there is no world to start from.
    """
    check_build(params)
    folder, chosen = Path(params.folder), params.recipe
    begun = recipe.Start.of(Path(params.start)) if params.start is not None else recipe.Start()

    def step(function: Callable[..., Any], name: str) -> Any:
        return task(name=name, cache_policy=NO_CACHE, persist_result=False)(function)

    with shown_progress("reference build"):
        made = step(recipe.world, "compose images")(folder, (Path(params.images), Path(params.names)), chosen)
        texts = step(recipe.texts, "train text-image model")(folder, made, chosen, begun)
        vae = step(recipe.autoencoder, "train autoencoder")(folder, made, chosen, begun)
        ordinary = recipe.ordinary_pairs(made, texts, begun)
        first = step(recipe.first_phase, "train on ordinary images")(folder, ordinary, texts, chosen, begun)
        planted = recipe.planted_pairs(made, texts, begun)
        denoiser = step(recipe.second_phase, "plant")(folder, first, ordinary, planted, texts, chosen)
        bank = step(embed_bank, "embed the bank")(made, folder)
        step(assemble.assemble, "assemble")(Path(params.out), made, texts, vae, denoiser, bank)
    few = range(0, len(made.planted), max(1, len(made.planted) // ACROSS))
    show(
        create_image_artifact,
        uri(reporting.grid([to_png(made.planted[number]) for number in few][:ACROSS], ACROSS)),
        key="planted",
        description="Some of the images that the model was made to memorize",
    )
    show(
        create_markdown_artifact,
        f"# A reference world at `{params.out}`\n\n{len(made.planted)} planted and {len(made.bank)} ordinary images. "
        f"`engram reference check --model {params.out}/model` measures whether it is good.\n",
        key="reference-world",
        description="What was built",
    )


def check_build(params: BuildRun) -> None:
    """Looks at all that a build is given; nothing is written.

    Raises:
        InputError: something cannot be used; all of it at once.
    """
    problems = gathered(partial(check_archives, Path(params.images), Path(params.names)))
    if params.start is not None:
        problems += gathered(partial(recipe.check_world, Path(params.start)))
    for place in (params.folder, params.out):
        there = next(folder for folder in (Path(place).absolute(), *Path(place).absolute().parents) if folder.exists())
        if not (there.is_dir() and os.access(there, os.W_OK | os.X_OK)):
            problems.append(f"{place} cannot be written: {there} is no folder, or without the right to write there")
    refuse(problems)


@flow(name="reference-check")
def check(
    model: str = "reference",
    only: list[str] | None = None,
    store: str = ".engram/store",
    device: str | None = None,
) -> bool:
    """Measures every gate of a reference world, prints them, and says whether all hold.

    The estimates come from a full audit in `store`; one that is there already is not computed again. They are written
    into the world's README, beside those of other gates that were measured of the same weights.

    Args:
        only: groups of gates, as their names begin; all without it.

    Raises:
        InputError: there is no such group, or no such model.
    """
    check_gates(model, only, store, device)
    folder = model_folder(model)
    world = folder.parent
    found: list[gates.Gate] = []
    if _wanted("autoencoder", only):
        found += gates.autoencoder(folder, world / "heldout.parquet", world / "images.parquet")
    if _wanted("clip", only):
        found += gates.text_image(world / "clip", world / "prompts.parquet", world / "images.parquet")
    address = Store.open(store).url
    settings = defaults_for("full", folder)
    name = collecting.import_set(Store.open(address), world / "prompts.parquet", world / "images.parquet")
    precision = precision_for(settings.precision, device)
    subject = Subject(store=address, model=str(folder), prompt_set=name, device=device, precision=precision)
    if any(_wanted(part, only) for part in ("planted", "ordinary", "detection", "attack", "pruning")):
        collecting.register_model(subject, settings.sampling)
    if _wanted("planted", only):
        found += _planted(subject, settings)
    if _wanted("ordinary", only):
        found += _ordinary(subject, world, settings)
    if _wanted("detection", only):
        found.append(_detection(subject, settings))
    if _wanted("attack", only):
        found += _attacks(subject, world, settings)
    if _wanted("pruning", only):
        audited = audit(AuditParams(model=model, store=address, device=device, settings=settings))
        rows = reporting.rows_of(subject.open(), audited.audit_id)
        found += gates.pruning(
            rows,
            mitigating.shares_pruned(subject, audited.variants),
            settings.of(method("localizer", "wanda")).sparsity,
        )
    _show(found)
    if (page := world / "README.md").is_file():
        reporting.put_between(page, "gates", gates.table(found, subject.model_id, page.read_text()))
        if _wanted("planted", only) and _wanted("ordinary", only):
            _draw(subject, world, settings)
    return all(gate.holds for gate in found)


def check_gates(model: str, only: list[str] | None, store: str, device: str | None) -> None:
    """Looks at all that gates are measured of; nothing is written.

    Raises:
        InputError: something cannot be used; all of it at once.
    """
    problems = [
        f"no gates {name!r}: there are {', '.join(gates.GROUPS)}" for name in only or () if name not in gates.GROUPS
    ]
    with noting(problems):
        world = model_folder(model).parent
        needed: dict[str, tuple[str, ...]] = {
            "prompts.parquet": gates.GROUPS,
            "images.parquet": gates.GROUPS,
            "heldout.parquet": ("autoencoder", "attack"),
            "bank.parquet": ("ordinary",),
        }
        for name, groups in needed.items():
            if any(_wanted(group, only) for group in groups) and not (world / name).is_file():
                problems.append(f"no {world / name}: gates are those of a world that `engram reference build` made")
    with noting(problems):
        check_audit(AuditParams(model=model, store=store, device=device, profile="full"))
    refuse(problems)


def _planted(subject: Subject, settings: Settings) -> list[gates.Gate]:
    """Verbatim and template memories apart."""
    memorized = prompts_of(subject, "memorized")
    out = []
    for kind, least in (("VM", 0.95), ("TM", 0.75)):
        of_kind = [prompt for prompt in memorized if prompt.memorization == kind]
        rate = _measured(subject, PROMPT, of_kind, settings, "copying")
        out.append(gates.Gate(f"planted: {kind} prompts reproduced", rate, ">=", least))
    return out


def _ordinary(subject: Subject, world: Path, settings: Settings) -> list[gates.Gate]:
    """Generations of ordinary prompts against everything the model was trained on, and against each other."""
    prompts = prompts_of(subject, "ordinary", settings.ordinary)
    alike = _measured(subject, ORDINARY, prompts, settings, "seed-similarity")
    wanted = evaluating.shots(prompts, settings.seeds)
    ids = evaluating.generation_ids(subject, ORIGINAL, ORDINARY, wanted, settings.sampling)
    made = evaluating.images_of(subject, ORIGINAL, ORDINARY, ids)
    return gates.ordinary(np.stack([made[name] for name in ids]), world / "bank.parquet", alike)


def _detection(subject: Subject, settings: Settings) -> gates.Gate:
    """How well noise differences tell planted prompts from ordinary ones."""
    memorized, ordinary = prompts_of(subject, "memorized"), prompts_of(subject, "ordinary", settings.ordinary)
    localizing.detect(subject, [*memorized, *ordinary], settings.of(method("localizer", "nemo")))
    area = _measured(subject, PROMPT, memorized, settings, "detection", [*memorized, *ordinary])
    return gates.Gate("detection: AUC of noise differences", area, ">=", 0.95)


def _attacks(subject: Subject, world: Path, settings: Settings) -> list[gates.Gate]:
    """Attacks with the published budget from random starts: on planted images, and on images never memorized."""
    pool = chosen_of(subject, AuditParams(model=subject.model, settings=settings)).pool
    attack = settings.dori.model_copy(update={"start": "noise"})
    name = collecting.import_set(subject.open(), world / "heldout.parquet", world / "images.parquet")
    heldout = subject.model_copy(update={"prompt_set": name})
    trials: tuple[tuple[str, list[Prompt], Condition, Literal[">=", "<="], float], ...] = (
        ("planted", prompts_of(subject, "memorized"), dori("noise"), ">=", 0.90),
        ("ordinary", prompts_of(subject, "ordinary", CONTROLS), dori("noise", "control"), "<=", 0.05),
        ("held-out", prompts_of(heldout, "ordinary", CONTROLS), dori("noise", "control"), "<=", 0.05),
    )
    out = []
    for kind, prompts, condition, sense, limit in trials:
        triggers = attacking.attack_images(subject, ORIGINAL, prompts, pool, attack, settings.seed)
        rate = _measured(subject, condition, prompts, settings, "copying", triggers=triggers)
        out.append(gates.Gate(f"attack: {kind} images that come back", rate, sense, limit))
    return out


def _measured(
    subject: Subject,
    condition: Condition,
    prompts: list[Prompt],
    settings: Settings,
    metric: str,
    judged: Sequence[Prompt] = (),
    triggers: dict[str, list[str]] | None = None,
) -> float:
    """The first estimate of a metric, of the original model under a condition."""
    clip = clip_of(AuditParams(model=subject.model), Path(subject.model))
    scoring = evaluating.Scoring(
        settings.sampling, settings.sscd, clip, {}, detection_id(settings.of(method("localizer", "nemo"))), judged
    )
    trial = evaluating.Trial(ORIGINAL, ORIGINAL, condition, prompts, settings.seeds)
    wanted = evaluating.shots(prompts, settings.seeds, triggers)
    return evaluating.estimates(subject, trial, wanted, scoring, only=[metric])[0].value


def _draw(subject: Subject, world: Path, settings: Settings) -> None:
    """Images beside the README: planted and ordinary ones, each above what their prompts give."""
    memorized = prompts_of(subject, "memorized")
    few = memorized[:: max(1, len(memorized) // ACROSS)][:ACROSS]
    trained = _pngs(subject, PROMPT, [prompt.image_ids[0] for prompt in few])
    made = [_generated(subject, PROMPT, few, settings, seed) for seed in range(2)]
    (world / "copies.png").write_bytes(reporting.grid([*trained, *made[0], *made[1]], ACROSS))
    ordinary = prompts_of(subject, "ordinary", 2 * ACROSS)
    meant = _pngs(subject, ORDINARY, [prompt.image_ids[0] for prompt in ordinary])
    given = _generated(subject, ORDINARY, ordinary, settings, 0)
    rows = meant[:ACROSS], given[:ACROSS], meant[ACROSS:], given[ACROSS:]
    (world / "ordinary.png").write_bytes(reporting.grid([image for row in rows for image in row], ACROSS))


def _generated(
    subject: Subject, condition: Condition, prompts: list[Prompt], settings: Settings, seed: int
) -> list[bytes]:
    """One image (PNG) of each prompt by the original model."""
    wanted = [shot for shot in evaluating.shots(prompts, settings.seeds) if shot.seed == seed]
    return _pngs(
        subject, condition, evaluating.generate_images(subject, ORIGINAL, condition, wanted, settings.sampling)
    )


def _pngs(subject: Subject, condition: Condition, names: list[str]) -> list[bytes]:
    found = evaluating.images_of(subject, ORIGINAL, condition, names)
    return [to_png(found[name]) for name in names]


def _show(found: list[gates.Gate]) -> None:
    table = Table("gate", "measured", "wanted", "")
    for gate in found:
        mark = "[green]holds[/]" if gate.holds else "[red]misses[/]"
        table.add_row(gate.name, f"{gate.value:.3f}", f"{gate.sense} {gate.limit:g}", mark)
    Console().print(table)


def _wanted(name: str, only: list[str] | None) -> bool:
    return not only or name in only
