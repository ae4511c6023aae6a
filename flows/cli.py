"""The command line."""

import json
import logging
import os
import sys
import warnings
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from tqdm import tqdm

from storage import Store, StoreError, iou, render, run_sql, verify, write_catalog
from tasks.errors import InputError

app = typer.Typer(
    help="Audits text-to-image diffusion models for memorized training images.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
reference = typer.Typer(
    help="The reference world: a small model that has memorized known images.", no_args_is_help=True
)
app.add_typer(reference, name="reference")

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


@app.command()
def audit(
    model: Annotated[str, typer.Option(help="Folder of a diffusers pipeline, or 'reference'.")] = "reference",
    profile: Annotated[ProfileName, typer.Option(help="How much is looked at.")] = ProfileName.QUICK,
    prompts: Annotated[Path | None, typer.Option(help="Memorized prompts: CSV, JSONL, text or Parquet.")] = None,
    nulls: Annotated[Path | None, typer.Option(help="Prompts that are not memorized.")] = None,
    ordinary: Annotated[Path | None, typer.Option(help="Prompts that quality is measured on.")] = None,
    images: Annotated[Path | None, typer.Option(help="Folder of the prompts' training images.")] = None,
    clip: Annotated[str | None, typer.Option(help="open_clip model for the CLIP score: local-dir:FOLDER.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, ...  [default: the GPU where there is one]")] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="A setting, such as --set seeds=4 or --set wanda.sparsity=0.05.")
    ] = None,
    store: StoreOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print audit id, report and figures as JSON.")] = False,
) -> None:
    """Audit a model: what it memorized, where, whether it can be cut out, and whether it is then gone."""
    _quiet()
    from flows.audit import AuditParams, model_folder  # torch and Prefect take seconds to import
    from flows.audit import audit as run
    from flows.settings import settings_for
    from tasks.diffusion.model import audit_defaults

    chosen = settings_for(profile.value, audit_defaults(model_folder(model)), **_settings(settings or []))
    given = {"prompts": prompts, "nulls": nulls, "ordinary": ordinary, "images": images}
    paths = {name: str(path) for name, path in given.items() if path is not None}
    address = Store.open(store).url
    found = run(AuditParams(model=model, store=address, clip=clip, device=device, settings=chosen, **paths))
    if as_json:
        figures = Store.open(address).read("metrics", audit_id=found.audit_id).to_pylist()
        print(json.dumps({"audit_id": found.audit_id, "report": found.report, "metrics": figures}, indent=1))
    else:
        print(found.table)
        print(f"audit   {found.audit_id}\nreport  {found.report}")


@app.command()
def sql(
    statement: Annotated[str, typer.Argument(help="A query over the store's tables and views; see docs/store.md.")],
    store: StoreOption = None,
    form: FormatOption = Format.TABLE,
) -> None:
    """Query the store with SQL; read-only, and nothing outside the store can be reached."""
    _print(run_sql(Store.open(store, create=False), statement), form)


@app.command(name="iou")
def overlap(
    method: Annotated[str | None, typer.Option(help="Only sets found by this method.")] = None,
    layer: Annotated[str | None, typer.Option(help="Only this layer.")] = None,
    step: Annotated[int | None, typer.Option(help="Only this denoising step.")] = None,
    store: StoreOption = None,
    form: FormatOption = Format.TABLE,
) -> None:
    """Overlap of every two prompts' or subsets' neuron sets, beside the overlap expected by chance."""
    with tqdm(desc="IOU", unit="layer", disable=None, leave=False) as bar:

        def told(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        rows = iou(Store.open(store, create=False), method=method, layer=layer, step=step, progress=told)
    _print(rows, form)


@app.command()
def catalog(file: Annotated[Path, typer.Argument(help="The DuckDB file to write.")], store: StoreOption = None) -> None:
    """Write the store's views into a DuckDB file, for the duckdb shell and other SQL tools."""
    write_catalog(Store.open(store, create=False), file)
    print(f"wrote {file}: open it with `duckdb {file}`")


@app.command()
def export(
    variant: Annotated[str, typer.Argument(help="A variant in the store, such as wanda-0a1b2c3d.")],
    folder: Annotated[Path, typer.Argument(help="The folder to write.")],
    model: Annotated[str, typer.Option(help="The model it was made of.")] = "reference",
    changed_only: Annotated[
        bool, typer.Option("--changed-only", help="Only what differs from the model, with a reference to it.")
    ] = False,
    store: StoreOption = None,
) -> None:
    """Write a variant as a diffusers pipeline that loads anywhere."""
    _quiet()
    from flows.audit import model_folder
    from tasks.mitigate.task import export_variant
    from tasks.subject import Subject

    address = Store.open(store, create=False).url
    export_variant(Subject(store=address, model=str(model_folder(model)), prompt_set=""), variant, folder, changed_only)
    print(f"wrote {folder}")


@app.command()
def audits(store: StoreOption = None, form: FormatOption = Format.TABLE) -> None:
    """List the audits in the store."""
    columns = (
        "audit_id, state, started_at, date_diff('second', started_at, finished_at) AS seconds, "
        "prompt_set, device, model_id"
    )
    _print(run_sql(Store.open(store, create=False), f"SELECT {columns} FROM audits ORDER BY started_at"), form)


@app.command(name="verify")
def check(
    gc: Annotated[bool, typer.Option("--gc", help="Also remove what writes that died left behind.")] = False,
    store: StoreOption = None,
) -> None:
    """Read every part of the store and say what is damaged."""
    opened = Store.open(store, create=False)
    with tqdm(desc="verifying", unit="part", disable=None, leave=False) as bar:

        def told(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        damages = verify(opened, gc=gc, progress=told)
    for damage in damages:
        print(f"{damage.address}: {damage.reason}")
    if damages:
        raise typer.Exit(1)
    print("every part is whole")


@reference.command()
def build(
    pictures: Annotated[Path, typer.Option(help="Archive of the npm package @lobehub/fluent-emoji-3d 1.1.0.")],
    names: Annotated[Path, typer.Option(help="Archive of the npm package emojibase-data 17.0.0.")],
    folder: Annotated[Path, typer.Option(help="Where checkpoints are kept.")] = Path(".engram/reference-build"),
    out: Annotated[Path, typer.Option(help="Where the world is put.")] = Path("reference"),
    start: Annotated[Path | None, typer.Option(help="A world whose weights are gone on from.")] = None,
    settings: Annotated[list[str] | None, typer.Option("--set", help="A parameter, such as --set seed=1.")] = None,
) -> None:
    """Build the reference world from emoji packages: hours on two cores, resumable at any moment."""
    _quiet()
    from flows.reference import build as run
    from tasks.reference.build import BuildParams

    begun = str(start) if start is not None else None
    run(str(pictures), str(names), str(folder), str(out), BuildParams(**_settings(settings or [])), begun)


@reference.command(name="check")
def gates(
    model: Annotated[str, typer.Option(help="Folder of the reference model.")] = "reference",
    only: Annotated[list[str] | None, typer.Option("--only", help="Only the gates whose names begin so.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, ...")] = None,
    store: StoreOption = None,
) -> None:
    """Measure every gate that the reference world has to pass, on a full audit of it."""
    _quiet()
    from flows.reference import check as run

    if not run(model, only or [], Store.open(store).url, device):
        raise typer.Exit(1)


def main() -> None:
    """Runs the command line; a person's error is one line on stderr and exit code 2."""
    try:
        app()
    except (InputError, StoreError) as error:
        print(f"engram: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("engram: interrupted; the same command goes on from here", file=sys.stderr)
        sys.exit(130)


def _settings(pairs: list[str]) -> dict[str, Any]:
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
        inner[name] = value
    return out


def _print(rows: Any, form: Format) -> None:
    sys.stdout.buffer.write(render(rows, form.value))
    sys.stdout.flush()


def _quiet() -> None:
    """Keeps the terminal for the audit: Prefect's server stays silent and local, libraries' chatter is left out."""
    os.environ.setdefault("PREFECT_LOGGING_LEVEL", "WARNING")
    os.environ.setdefault("PREFECT_SERVER_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
    os.environ.setdefault("DO_NOT_TRACK", "1")
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    logging.getLogger("diffusers").setLevel(logging.ERROR)
