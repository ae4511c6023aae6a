"""The first minute: everything that can be refused is, at once, before any work, server or write to the store.

Commands ask before they bring up a Prefect server, flows before their first task; a process that asked does not ask
again of the same files.
"""

from functools import lru_cache, partial
from pathlib import Path

from flows import rules
from flows.inputs import clip_of, inputs_of
from flows.params import AuditParams, resolved
from flows.selection import Selection
from flows.settings import Settings
from storage import StoreError, address_of
from tasks.collect import task as collecting
from tasks.diffusion.families.pieces.assembly import WHOLE
from tasks.diffusion.families.schedule import Choice
from tasks.diffusion.folder import notes_of, problems_of
from tasks.diffusion.hub import named_on_hub
from tasks.diffusion.model import usable_device
from tasks.diffusion.outline import Outline, outline_of
from tasks.diffusion.precision import precision_for
from tasks.errors import gathered, noting, refuse
from tasks.progress import say, stage
from tasks.scorers.clip import check_clip
from tasks.scorers.sscd import check_sscd
from tasks.subject import by_kind


def check(params: AuditParams, settled: bool = True) -> None:
    """Looks at all that an audit is given: model, device, store, prompts, images, scorers and settings.

    Lines on standard error say what will be left out though settings ask for it.

    Args:
        settled: whether the settings are those that are meant; else nothing is said of what follows from them.

    Raises:
        InputError: something cannot be used; all of it at once, a sentence each.
    """
    paths = [params.prompts, params.nulls, params.ordinary, params.images, params.clip, params.model]
    paths += [params.config, params.denoiser, params.vae, *(text.rpartition("=")[0] or text for text in params.lora)]
    if (settings := params.settings) is not None:
        paths += [settings.sscd.weights, *(str(path) for own in settings.files().values() for path in own.values())]
    # What is refused is one line; so it says nothing before, unless it takes long.
    with stage("check", lambda: "model, prompts, images and settings", announced=False):
        _checked(params.model_dump_json(), settled, tuple(_stamp(path) for path in paths if path is not None))


@lru_cache(maxsize=8)
def _checked(params_json: str, settled: bool, stamps: tuple[object, ...]) -> None:
    params = AuditParams.model_validate_json(params_json)
    if named_on_hub(params.model) or params.pieces != WHOLE:  # it may take long: first what is wrong without it
        refuse(without_model(params))
    problems = [*gathered(partial(usable_device, params.device)), *of_store(params.store)]
    folder, settings, chosen = None, params.settings, None
    notes: list[str] = []
    with noting(problems):
        folder = params.folder
        settings = resolved(params).settings
    problems += of_scorers(params, settings, folder)
    if folder is not None and settings is not None:
        outline = of_model(folder, problems, settings.sampling.scheduler, settings.sampling.steps)
        chosen, notes = of_prompts(params, folder, settings, problems, tokenized=outline is not None)
        notes = [
            *(notes_of(folder, precision_for(settings.precision, params.device)) if outline is not None else []),
            *(rules.of_sampling(settings, outline) if outline is not None else []),
            *notes,
        ]
        if settled:
            problems += rules.together(settings)
            problems += rules.with_model(settings, outline) if outline is not None else []
            problems += rules.with_prompts(settings, chosen) if chosen is not None else []
            # Of workers of a pool nobody knows here what they have: they look themselves, before they train.
            if not problems and chosen is not None and chosen.erasable and params.spread is None:
                problems += rules.with_device(settings, folder, params.device)
            notes += rules.notices(settings, chosen) if chosen is not None else []
    refuse(problems)
    for note in notes:
        say(note)


def check_run(params: AuditParams) -> None:
    """Looks at what a run needs on the machine that computes it: device, model and scorers. Prompts lie in the store.

    Raises:
        InputError: something cannot be used; all of it at once.
    """
    problems = gathered(partial(usable_device, params.device))
    folder = params.folder
    settings = params.settings
    assert settings is not None
    problems += of_scorers(params, settings, folder)
    of_model(folder, problems, settings.sampling.scheduler, settings.sampling.steps)
    refuse(problems)


def of_model(folder: Path, problems: list[str], scheduler: Choice = "ddim", steps: int | None = None) -> Outline | None:
    """The outline of a model; None, and problems more, where it cannot be used.

    Args:
        scheduler, steps: of what is to be sampled; nothing is where they are left out.
    """
    found = problems_of(folder, scheduler, steps)
    problems += found
    with noting(problems):
        return outline_of(folder) if not found else None
    return None


def of_store(address: str) -> list[str]:
    """What is wrong with the place of a store."""
    try:
        address_of(address)
    except StoreError as error:
        return [str(error)]
    return []


def without_model(params: AuditParams) -> list[str]:
    """What is wrong whatever the model is: device, store, files that are not there, the CLIP model that is named."""
    return [
        *gathered(partial(usable_device, params.device)),
        *of_store(params.store),
        *of_files(params),
        *of_scorers(params, params.settings, None),
    ]


def of_files(params: AuditParams) -> list[str]:
    """Which of the files that are named are not there."""
    named = {kind: getattr(params, kind) for kind in ("prompts", "nulls", "ordinary", "images")}
    return [
        f"there is no {path}, which was given with --{kind}"
        for kind, path in named.items()
        if path is not None and not Path(path).expanduser().exists()
    ]


def of_scorers(params: AuditParams, settings: Settings | None, folder: Path | None) -> list[str]:
    """What is wrong with the models that score images, which are loaded and asked about one."""

    def clip() -> None:
        if folder is not None:
            check_clip(clip_of(params, folder))
        elif params.clip is not None:
            check_clip(clip_of(params, Path()))

    return gathered(partial(check_sscd, settings.sscd) if settings is not None else None, clip)


def of_prompts(
    params: AuditParams, folder: Path, settings: Settings, problems: list[str], tokenized: bool
) -> tuple[Selection | None, list[str]]:
    """The choice among the prompts of the files, and what is worth a line; no choice where they cannot be used."""
    found, rows = None, None
    with noting(problems):
        found = inputs_of(params, folder, settings.long_prompts, tokenized)
    if found is None:
        return None, []
    problems += found.problems
    if found.problems:
        return None, found.notices
    with noting(problems):
        rows, _ = collecting.rows_of(found)
    if rows is None:
        return None, found.notices
    prompts = by_kind(rows)
    if empty := [kind for kind, some in prompts.items() if not some]:
        where = params.nulls or params.prompts or folder
        problems.append(f"there are no {empty[0]} prompts in {where}: give more, at least two null prompts")
        return None, found.notices
    return Selection(settings, prompts), list(found.notices)


def _stamp(path: str) -> tuple[object, ...]:
    """What changes when a file does, or what lies in a folder of files."""
    place = Path(path.removeprefix("local-dir:")).expanduser()
    try:
        files = [place, *sorted(place.iterdir())] if place.is_dir() else [place]
        return (path, *((str(file), stat.st_size, stat.st_mtime_ns) for file in files for stat in (file.stat(),)))
    except OSError:
        return (path,)
