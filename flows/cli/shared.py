"""What commands share: the options they take alike, how settings are read, and how rows are printed."""

import json
import logging
import os
import sys
import warnings
from collections.abc import Callable
from enum import StrEnum
from functools import wraps
from inspect import Parameter, Signature, signature
from pathlib import Path
from typing import Annotated, Any

import typer

from storage import Store, rendered, visible_lines
from storage.render import WIDEST
from tasks.errors import InputError

app = typer.Typer(
    help="Audits text-to-image diffusion models for memorized training images.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

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


ModelOption = Annotated[
    str, typer.Option(help="Folder of a diffusers pipeline, OWNER/NAME[@REVISION] on the Hub, or 'reference'.")
]
FormatOption = Annotated[Format, typer.Option("--format", help="How rows are printed.")]
NotifyOption = Annotated[
    str | None,
    typer.Option("--notify", envvar="ENGRAM_NOTIFY", help="Address that gets a POST when a model got worse."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print audit id, report and figures as JSON.")]
AuditOption = Annotated[
    str | None,
    typer.Option(
        "--audit", help="The audit it belongs to; left out, the latest with these settings where one is needed."
    ),
]


def params_of(
    model: ModelOption = "reference",
    profile: Annotated[ProfileName, typer.Option(help="How much is looked at.")] = ProfileName.QUICK,
    prompts: Annotated[Path | None, typer.Option(help="Memorized prompts: CSV, JSONL, text or Parquet.")] = None,
    nulls: Annotated[Path | None, typer.Option(help="Prompts that are not memorized.")] = None,
    ordinary: Annotated[Path | None, typer.Option(help="Prompts that quality is measured on.")] = None,
    images: Annotated[Path | None, typer.Option(help="Folder of the prompts' training images.")] = None,
    clip: Annotated[str | None, typer.Option(help="open_clip model for the CLIP score: local-dir:FOLDER.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, ...; the GPU where there is one if left out.")] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="A setting, such as --set seeds=4 or --set wanda.sparsity=0.05.")
    ] = None,
    store: StoreOption = None,
) -> Any:
    """What a person asked for, as the flows take it. Its arguments are the options of every command that audits."""
    from flows.params import AuditParams, model_folder  # torch and Prefect take seconds to import
    from flows.settings import settings_for
    from tasks.diffusion.model import audit_defaults

    chosen = settings_for(profile.value, audit_defaults(model_folder(model)), **settings_of(settings or []))
    files = {"prompts": prompts, "nulls": nulls, "ordinary": ordinary, "images": images}
    paths = {name: str(path) for name, path in files.items() if path is not None}
    place = {"model": model, "store": Store.open(store).url, "clip": clip, "device": device}
    return AuditParams(profile=profile.value, settings=chosen, **place, **paths)


def asks_what(profile: ProfileName = ProfileName.QUICK) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Gives a command the options of `params_of` beside its own, and hands it what comes of them as `params`.

    Args:
        profile: the one that is taken where none is named.
    """
    asked = [
        option.replace(default=profile) if option.name == "profile" else option
        for option in signature(params_of).parameters.values()
    ]

    def with_options(command: Callable[..., None]) -> Callable[..., None]:
        @wraps(command)
        def run(**told: Any) -> None:
            quiet()
            command(params=params_of(**{option.name: told.pop(option.name) for option in asked}), **told)

        own = [option for option in signature(command).parameters.values() if option.name != "params"]
        every = [option.replace(kind=Parameter.KEYWORD_ONLY) for option in (*asked, *own)]
        run.__signature__ = Signature(every)  # type: ignore[attr-defined]
        run.__annotations__ = {option.name: option.annotation for option in every}
        return run

    return with_options


def settings_of(pairs: list[str]) -> dict[str, Any]:
    """Nested settings from `name=value` and `group.name=value`."""
    out: dict[str, Any] = {}
    for pair in pairs:
        path, equals, text = pair.partition("=")
        if not equals or not path:
            raise InputError(f"--set {pair!r} is not NAME=VALUE")
        try:
            value = json.loads(text)
        except ValueError:
            value = text
        *groups, name = path.split(".")
        inner = out
        for group in groups:
            inner = inner.setdefault(group, {})
            if not isinstance(inner, dict):
                raise InputError(f"--set {pair!r} and another --set of {group!r} exclude each other")
        inner[name] = value
    return out


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
    # A busy machine needs longer for it than Prefect waits, 20 seconds.
    os.environ.setdefault("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "180")
    os.environ.setdefault("PREFECT_LOGGING_LEVEL", "WARNING")
    # What a flow raises is told by `main`; its log would only tell it again, with a traceback.
    os.environ.setdefault("PREFECT_LOGGING_LOGGERS_PREFECT_FLOW_RUNS_LEVEL", "CRITICAL")
    os.environ.setdefault("PREFECT_SERVER_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
    # The server of one command inherits the password of `engram serve`, and then asks for it.
    if password := os.environ.get("PREFECT_SERVER_API_AUTH_STRING"):
        os.environ.setdefault("PREFECT_API_AUTH_STRING", password)
    os.environ.setdefault("DO_NOT_TRACK", "1")
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    logging.getLogger("diffusers").setLevel(logging.ERROR)
