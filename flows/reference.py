"""The reference world: built from emoji packages, and measured against the gates it has to pass."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from prefect import flow, task
from prefect.cache_policies import NO_CACHE
from rich.console import Console
from rich.table import Table

from flows.audit import AuditParams, audit, model_folder
from flows.settings import Settings, settings_for
from storage import Store
from tasks.attack import task as attacking
from tasks.collect import task as collecting
from tasks.diffusion.model import audit_defaults
from tasks.evaluate import task as evaluating
from tasks.evaluate.figures import auc
from tasks.localize import task as localizing
from tasks.reference import assemble, gates
from tasks.reference import build as recipe
from tasks.report.task import rows_of
from tasks.subject import ORIGINAL, Subject, prompts_of

CONTROLS = 24
"""Ordinary and held-out pictures, each, that the attack must not bring back."""


@flow(name="reference-build")
def build(pictures: str, names: str, folder: str, out: str, params: recipe.BuildParams) -> None:
    """Builds the reference world; every step goes on from its checkpoints in `folder`.

    Args:
        pictures, names: archives of the npm packages @lobehub/fluent-emoji-3d and emojibase-data.
        out: where the world is put when it is done.
    """
    place = Path(folder)

    def step(function: Callable[..., Any], name: str) -> Any:
        return task(name=name, cache_policy=NO_CACHE, persist_result=False)(function)

    made = step(recipe.world, "compose pictures")(place, (Path(pictures), Path(names)), params)
    told = step(recipe.texts, "train text-image model")(place, made, params)
    vae = step(recipe.autoencoder, "train autoencoder")(place, made, params)
    ordinary = recipe.ordinary_pairs(made, told)
    first = step(recipe.first_phase, "train on ordinary pictures")(place, ordinary, told, params)
    planted = recipe.planted_pairs(made, told, params)
    unet = step(recipe.second_phase, "plant")(place, first, ordinary, planted, told, params)
    step(assemble.assemble, "assemble")(Path(out), made, told, vae, unet)


@flow(name="reference-check")
def check(model: str = "reference", only: list[str] | None = None, device: str | None = None) -> bool:
    """Measures every gate of a reference world, prints them, and says whether all hold."""
    folder = model_folder(model)
    world = folder.parent
    address = Store.open(".engram/reference-check").url
    found: list[gates.Gate] = []
    if _wanted("autoencoder", only):
        found += gates.autoencoder(folder, world / "heldout.parquet", world / "images.parquet")
    if _wanted("clip", only):
        found += gates.text_image(world / "clip", world / "prompts.parquet", world / "images.parquet")
    if any(_wanted(name, only) for name in ("planted", "ordinary", "detection", "attack", "cut")):
        settings = settings_for("full", audit_defaults(folder), starts=("noise",), attacked=48, controls=CONTROLS)
        audited = audit(AuditParams(model=model, store=address, device=device, settings=settings))
        print(audited.table)
        name = collecting.import_set(Store.open(address), world / "prompts.parquet", world / "images.parquet")
        subject = Subject(store=address, model=str(folder), prompt_set=name, device=device)
        found += _of_planted(subject, settings)
        found += gates.of_figures(rows_of(subject.open(), audited.audit_id))
        found.append(_held_out(subject, world, settings))
    _show(found)
    if not only and (world / "README.md").is_file():
        _write(world / "README.md", found)
    return all(gate.holds for gate in found)


def _of_planted(subject: Subject, settings: Settings) -> list[gates.Gate]:
    """Verbatim and template memories apart, and how well noise differences tell planted prompts."""
    memorized = prompts_of(subject, "memorized")
    out = []
    for kind, least in (("VM", 0.95), ("TM", 0.75)):
        wanted = evaluating.shots([p for p in memorized if p.memorization == kind], settings.seeds)
        ids = [evaluating.generation_id(subject, ORIGINAL, "prompt", shot, settings.sampling) for shot in wanted]
        rate = evaluating.copy_figures(subject, wanted, ids)[0]
        out.append(gates.Gate(f"planted: {kind} prompts reproduced", rate.value, ">=", least))
    ordinary = prompts_of(subject, "ordinary", settings.ordinary)
    scores = localizing.scores_of(subject, [*memorized, *ordinary], settings.nemo)
    own, others = (np.array([scores[p.prompt_id].mean() for p in group]) for group in (memorized, ordinary))
    found = auc(own, others)
    return [*out, gates.Gate("detection: AUC of noise differences", found.value, ">=", 0.95)]


def _held_out(subject: Subject, world: Path, settings: Settings) -> gates.Gate:
    """The attack's control on emoji that no model has ever seen."""
    pool = [prompt.text for kind in ("memorized", "null", "ordinary") for prompt in prompts_of(subject, kind)]
    name = collecting.import_set(subject.open(), world / "heldout.parquet", world / "images.parquet")
    asked = prompts_of(subject.model_copy(update={"prompt_set": name}), "ordinary", CONTROLS)
    dori = settings.dori.model_copy(update={"start": "noise"})
    triggers = attacking.attack_images(subject, ORIGINAL, asked, pool, dori, settings.seed)
    wanted = evaluating.shots(asked, settings.seeds, triggers)
    probe = "dori-noise-control"
    ids = evaluating.generate_pictures(subject, ORIGINAL, probe, wanted, settings.sampling)
    evaluating.score_copies(subject, ORIGINAL, probe, wanted, ids, settings.sscd)
    rate = evaluating.copy_figures(subject, wanted, ids)[0]
    return gates.Gate("attack: held-out pictures that come back", rate.value, "<=", 0.05)


def _write(readme: Path, found: list[gates.Gate]) -> None:
    """Puts the table between the marks of the world's README."""
    lines = ["| gate | measured | wanted | |", "|---|---:|---:|---|"]
    for gate in found:
        lines.append(
            f"| {gate.name} | {gate.value:.3f} | {gate.sense} {gate.limit:g} | {'holds' if gate.holds else 'misses'} |"
        )
    before, _, rest = readme.read_text().partition("<!-- gates -->\n")
    after = rest.partition("<!-- /gates -->")[2]
    table = "\n".join(lines)
    readme.write_text(f"{before}<!-- gates -->\n{table}\n<!-- /gates -->{after}")


def _show(found: list[gates.Gate]) -> None:
    table = Table("gate", "measured", "wanted", "")
    for gate in found:
        mark = "[green]holds[/]" if gate.holds else "[red]misses[/]"
        table.add_row(gate.name, f"{gate.value:.3f}", f"{gate.sense} {gate.limit:g}", mark)
    Console().print(table)


def _wanted(name: str, only: list[str] | None) -> bool:
    return not only or any(name.startswith(prefix) for prefix in only)
