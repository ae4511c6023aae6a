"""What commands share: the options they take alike, how settings are read, and how rows are printed."""

import logging
import os
import platform
import shutil
import sys
import textwrap
import warnings
from collections.abc import Callable, Mapping, Sequence
from enum import StrEnum
from functools import wraps
from importlib.metadata import version
from inspect import Parameter, Signature, signature
from pathlib import Path
from typing import Annotated, Any

import typer

from flows.typed import settings_of as settings_of
from storage import Store, StoreError, address_of, mark_lost, render, rendered, visible_lines
from storage.render import WIDEST
from tasks.errors import InputError, gathered, noting, refuse

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _version(wanted: bool) -> None:
    """Says what is installed, a line each, and ends; nothing heavy is imported for it."""
    if wanted:
        print(f"engram {version('engram-audit')}")
        print(*(f"{name} {version(name)}" for name in ("torch", "diffusers", "prefect")), sep="\n")
        print(f"python {platform.python_version()}")
        raise typer.Exit


@app.callback()
def _every_command(
    wanted: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Say which versions are installed.")
    ] = False,
) -> None:
    """Audits text-to-image diffusion models for memorized training images."""


NEEDS_A_PLATFORM = (
    "CANCELLATION_CLEANUP",
    "CLEANUP_RECONCILER",
    "FOREMAN",
    "LATE_RUNS",
    "PAUSE_EXPIRATIONS",
    "REPOSSESSOR",
    "SCHEDULER",
)
"""Services of Prefect's server for deployments, workers and limits, such as `engram serve` has."""

StoreOption = Annotated[
    str | None,
    typer.Option("--store", help="The store: a folder or s3:// URL; $ENGRAM_STORE or .engram/store if left out."),
]


class Format(StrEnum):
    """How rows are printed."""

    TABLE = "table"
    CSV = "csv"
    JSON = "json"
    PARQUET = "parquet"


class ProfileName(StrEnum):
    QUICK = "quick"
    FULL = "full"


class LongPromptsName(StrEnum):
    TRUNCATE = "truncate"
    REFUSE = "refuse"
    SKIP = "skip"


ModelOption = Annotated[
    str,
    typer.Option(
        help="Folder of a diffusers pipeline, a model in one .safetensors file, OWNER/NAME\\[@REVISION] on the Hub, or "
        "'reference'."
    ),
]
ConfigOption = Annotated[
    Path | None,
    typer.Option(
        help="Folder of a pipeline whose configuration a model in one file has; the published one if left out."
    ),
]
DenoiserOption = Annotated[
    Path | None, typer.Option("--unet", help="UNet in place of the model's: a folder, or a .safetensors file.")
]
VaeOption = Annotated[
    Path | None, typer.Option(help="Autoencoder in place of the model's: a folder, or a .safetensors file.")
]
LoraOption = Annotated[
    list[str] | None,
    typer.Option(help="LoRA adapter that is fused into the model: FILE or FILE=SCALE; may be repeated."),
]
FormatOption = Annotated[Format, typer.Option("--format", help="How rows are printed.")]
LongPromptsOption = Annotated[
    LongPromptsName | None,
    typer.Option(
        "--long-prompts",
        help="What is done with prompts of more tokens than the model reads; they are truncated, as in training, if "
        "left out.",
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print audit id, report and estimates as JSON.")]
AuditOption = Annotated[
    str | None,
    typer.Option(
        "--audit", help="The audit it belongs to; left out, the latest with these settings where one is needed."
    ),
]


def params_of(
    model: ModelOption = "reference",
    config: ConfigOption = None,
    denoiser: DenoiserOption = None,
    vae: VaeOption = None,
    lora: LoraOption = None,
    profile: Annotated[ProfileName, typer.Option(help="How much is looked at.")] = ProfileName.QUICK,
    prompts: Annotated[Path | None, typer.Option(help="Memorized prompts: CSV, JSONL, text or Parquet.")] = None,
    dataset: Annotated[
        Path | None,
        typer.Option(help="Folder of a training set, images with captions, in place of --prompts and --images."),
    ] = None,
    nulls: Annotated[Path | None, typer.Option(help="Prompts that are not memorized.")] = None,
    ordinary: Annotated[Path | None, typer.Option(help="Prompts that quality is measured on.")] = None,
    images: Annotated[Path | None, typer.Option(help="Folder of the prompts' training images.")] = None,
    clip: Annotated[
        str | None,
        typer.Option(help="open_clip model for the CLIP score: FOLDER, OWNER/NAME in the Hub's cache, or NAME=FILE."),
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda, mps, ...; CUDA where there is any if left out.")
    ] = None,
    long_prompts: LongPromptsOption = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="A setting, such as --set seeds=4 or --set wanda.sparsity=0.05.")
    ] = None,
    store: StoreOption = None,
) -> Any:
    """What a person asked for, as the flows take it. Its arguments are the options of every command that audits.

    Raises:
        InputError: something cannot be used; all of it at once.
    """
    from flows.check import check, without_model
    from flows.params import AuditParams, defaults_for  # torch and Prefect take seconds to import
    from flows.settings import Settings, settings_for
    from tasks.diffusion.families.pieces.assembly import WHOLE
    from tasks.diffusion.hub import named_on_hub

    problems: list[str] = []
    chosen, address = None, str(store)
    given = settings_of(settings or [], Settings, problems)
    set_by_option(given, problems, long_prompts=long_prompts and long_prompts.value)
    try:
        address = address_of(store)
    except StoreError as error:
        problems.append(str(error))
    if dataset is not None and (prompts is not None or images is not None):
        problems.append("--dataset stands for --prompts and --images: give it alone, or these")
    elif dataset is not None and not dataset.expanduser().is_dir():
        problems.append(f"--dataset {dataset} is no folder")
    prompts = dataset or prompts
    files = {"prompts": prompts, "nulls": nulls, "ordinary": ordinary, "images": images}
    paths = named_files(files | {"config": config, "denoiser": denoiser, "vae": vae})
    named = {"model": model, "lora": tuple(lora or ()), "store": address, "clip": clip, "device": device}
    params = AuditParams(profile=profile.value, settings=None, **named, **paths)
    if named_on_hub(model) or params.pieces != WHOLE:  # it may take long: first what is wrong without it
        problems += [*gathered(lambda: settings_for(profile.value, {}, **given)), *without_model(params)]
        refuse(problems)
    with noting(problems):
        chosen = defaults_for(profile.value, params.folder, **given)
    if chosen is None:  # there is no such model, but what is wrong with the settings is known all the same
        problems += gathered(lambda: settings_for(profile.value, {}, **given))
    params = params.model_copy(update={"settings": chosen})
    with noting(problems):
        check(params, settled=not problems)
    refuse(problems)
    return params


def named_files(files: Mapping[str, Path | None]) -> dict[str, str]:
    """Those of several files that were given, as text."""
    return {name: str(path) for name, path in files.items() if path is not None}


def asks_what(profile: ProfileName = ProfileName.QUICK) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Gives a command the options of `params_of` beside its own, and hands it what comes of them as `params`.

    Args:
        profile: the one that is taken where none is named.
    """
    return takes(params_of, profile=profile)


def takes(make: Callable[..., Any], **defaults: Any) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Gives a command the options of another function beside its own, and hands it what that returns as `params`.

    Args:
        defaults: of options that have others there.
    """
    shared = [
        option.replace(default=defaults.get(option.name, option.default))
        for option in signature(make).parameters.values()
    ]

    def with_options(command: Callable[..., None]) -> Callable[..., None]:
        @wraps(command)
        def run(**values: Any) -> None:
            quiet()
            command(params=make(**{option.name: values.pop(option.name) for option in shared}), **values)

        own = [option for option in signature(command).parameters.values() if option.name != "params"]
        every = [option.replace(kind=Parameter.KEYWORD_ONLY) for option in (*shared, *own)]
        run.__signature__ = Signature(every)  # type: ignore[attr-defined]
        run.__annotations__ = {option.name: option.annotation for option in every}
        return run

    return with_options


def lists(command: Callable[..., None]) -> Callable[..., None]:
    """Gives a command that prints rows in a `form` the option `--json` beside `--format`, as every command has it."""
    own = list(signature(command).parameters.values())
    option = typer.Option("--json", help="Print rows as JSON, as --format json does.")
    extra = Parameter("as_json", Parameter.KEYWORD_ONLY, default=False, annotation=Annotated[bool, option])

    @wraps(command)
    def run(as_json: bool, form: Format, **values: Any) -> None:
        if as_json and form not in (Format.TABLE, Format.JSON):
            raise InputError(f"--json and --format {form.value} exclude each other: leave one out")
        command(form=Format.JSON if as_json else form, **values)

    every = [option.replace(kind=Parameter.KEYWORD_ONLY) for option in (*own, extra)]
    run.__signature__ = Signature(every)  # type: ignore[attr-defined]
    run.__annotations__ = {option.name: option.annotation for option in every}
    return run


def described(rows: Sequence[Mapping[str, str]], form: Format) -> None:
    """Prints things with their descriptions: a table where the terminal is wide enough, else one below the other.

    Args:
        rows: what a thing is called first, what it is last; the same names in all.
    """
    narrow = sys.stdout.isatty() or "COLUMNS" in os.environ  # in a pipe, a line each is what other tools want
    width = shutil.get_terminal_size().columns
    table = render([dict(row) for row in rows], "table", widest=1_000).decode()
    if form is not Format.TABLE or not narrow or max(map(len, table.splitlines()), default=0) <= width:
        printed([dict(row) for row in rows], form, widest=1_000)
        return
    for row in rows:
        (_, name), *facts, (_, words) = row.items()
        known = [f"{what}: {value}" for what, value in facts if value]
        for line in [name, *known, words]:
            indent = "" if line is name else "    "
            # Names and values may be longer than a line; they are not broken at hyphens, which belong to them.
            lines = textwrap.wrap(line, width, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False)
            print(*lines, sep="\n")


def looked_at(store: str | None) -> Store:
    """The store of a command that shows audits; those whose process is gone are marked as lost, and named.

    Raises:
        StoreError: there is none.
    """
    opened = Store.open(store, create=False)
    try:
        for name in mark_lost(opened):
            print(
                f"engram: the audit {name} is lost: its process is gone; the same command goes on from there",
                file=sys.stderr,
            )
    except StoreError as error:  # as where others may only read
        print(f"engram: lost audits could not be marked: {error}", file=sys.stderr)
    return opened


def set_by_option(given: dict[str, Any], problems: list[str], **values: Any) -> None:
    """Adds settings that have options of their own to those of `--set`; one that is set twice is a problem more."""
    for name, value in values.items():
        if value is not None:
            if name in given and given[name] != value:
                problems.append(f"{name} is set twice, by its own option and by --set: leave one")
            given[name] = value


def printed(rows: Any, form: Format, widest: int = WIDEST) -> None:
    """Prints rows piece by piece. What a terminal shows cannot steer it, whatever the format."""
    terminal = sys.stdout.isatty()
    if terminal and form is Format.PARQUET:
        raise InputError("Parquet is nothing to look at: write it to a file, with > FILE")
    sys.stdout.flush()
    for piece in rendered(rows, form.value, widest):
        if terminal and form is Format.CSV:
            piece = visible_lines(piece.decode("utf-8", "replace")).encode()
        sys.stdout.buffer.write(piece)
    sys.stdout.flush()


def quiet() -> None:
    """Keeps the terminal for the audit: Prefect's server stays silent and local, libraries' chatter is left out.

    Where no server runs yet, a command brings one up for its own runs. That one does not look for work that it never
    has, which every few seconds would stop the threads that compute.
    """
    for service in NEEDS_A_PLATFORM:
        os.environ.setdefault(f"PREFECT_SERVER_SERVICES_{service}_ENABLED", "false")
    os.environ.setdefault("PREFECT_LOGGING_LEVEL", "WARNING")
    os.environ.setdefault("PREFECT_SERVER_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
    # The server of one command inherits the password of `engram serve`, and then asks for it.
    if password := os.environ.get("PREFECT_SERVER_API_AUTH_STRING"):
        os.environ.setdefault("PREFECT_API_AUTH_STRING", password)
    os.environ.setdefault("DO_NOT_TRACK", "1")
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
    if not sys.stderr.isatty():  # a log has lines of ours
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    # What a flow raises is told by `main`; its log would only tell it again, with a traceback.
    for name in ("flow_runs", "task_runs"):
        logging.getLogger(f"prefect.{name}").addFilter(lambda record: record.levelno < logging.ERROR)
    warnings.filterwarnings("ignore", message="Failed to create the Prefect home directory")
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    logging.getLogger("diffusers").setLevel(logging.ERROR)
