"""What commands share: the options they take alike, how settings are read, and how rows are printed."""

import json
import logging
import os
import sys
import warnings
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from storage import Store, render
from tasks.errors import InputError

app = typer.Typer(
    help="Audits text-to-image diffusion models for memorized training images.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

StoreOption = Annotated[
    str | None,
    typer.Option("--store", help="The store: a folder or s3:// URL.  [default: $ENGRAM_STORE or .engram/store]"),
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


FormatOption = Annotated[Format, typer.Option("--format", help="How rows are printed.")]
NotifyOption = Annotated[
    str | None,
    typer.Option("--notify", envvar="ENGRAM_NOTIFY", help="Address that gets a POST when a model got worse."),
]
ModelOption = Annotated[str, typer.Option("--model", help="Folder of a diffusers pipeline, or 'reference'.")]
ProfileOption = Annotated[ProfileName, typer.Option("--profile", help="How much is looked at.")]
PromptsOption = Annotated[
    Path | None, typer.Option("--prompts", help="Memorized prompts: CSV, JSONL, text or Parquet.")
]
NullsOption = Annotated[Path | None, typer.Option("--nulls", help="Prompts that are not memorized.")]
OrdinaryOption = Annotated[Path | None, typer.Option("--ordinary", help="Prompts that quality is measured on.")]
ImagesOption = Annotated[Path | None, typer.Option("--images", help="Folder of the prompts' training images.")]
ClipOption = Annotated[str | None, typer.Option("--clip", help="open_clip model for the CLIP score: local-dir:FOLDER.")]
DeviceOption = Annotated[
    str | None, typer.Option("--device", help="cpu, cuda, ...  [default: the GPU where there is one]")
]
SettingsOption = Annotated[
    list[str] | None, typer.Option("--set", help="A setting, such as --set seeds=4 or --set wanda.sparsity=0.05.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print audit id, report and figures as JSON.")]
AuditOption = Annotated[
    str | None, typer.Option("--audit", help="The audit it belongs to.  [default: the latest of this model]")
]


def params_of(
    model: str,
    profile: ProfileName,
    files: dict[str, Path | None],
    clip: str | None,
    device: str | None,
    settings: list[str] | None,
    store: str | None,
) -> Any:
    """What a person asked for, as the flows take it."""
    from flows.plan import AuditParams, model_folder  # torch and Prefect take seconds to import
    from flows.settings import settings_for
    from tasks.diffusion.model import audit_defaults

    chosen = settings_for(profile.value, audit_defaults(model_folder(model)), **settings_of(settings or []))
    paths = {name: str(path) for name, path in files.items() if path is not None}
    return AuditParams(model=model, store=Store.open(store).url, clip=clip, device=device, settings=chosen, **paths)


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


def printed(rows: Any, form: Format) -> None:
    sys.stdout.buffer.write(render(rows, form.value))
    sys.stdout.flush()


def quiet() -> None:
    """Keeps the terminal for the audit: Prefect's server stays silent and local, libraries' chatter is left out."""
    os.environ.setdefault("PREFECT_LOGGING_LEVEL", "WARNING")
    os.environ.setdefault("PREFECT_SERVER_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
    os.environ.setdefault("DO_NOT_TRACK", "1")
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    logging.getLogger("diffusers").setLevel(logging.ERROR)
