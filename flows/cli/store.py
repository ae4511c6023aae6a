"""Commands on the store: queries, overlaps, copies for other tools, and its health."""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer
from tqdm import tqdm

from flows.cli.shared import (
    ConfigOption,
    DenoiserOption,
    Format,
    FormatOption,
    LoraOption,
    StoreOption,
    VaeOption,
    app,
    described,
    lists,
    looked_at,
    named_files,
    printed,
    quiet,
)
from flows.typed import values_of
from storage import (
    Amount,
    Forgetting,
    Limits,
    Store,
    drop_former,
    examine,
    forgetting,
    forgetting_images,
    iou,
    queries,
    run_sql,
    visible,
    write_catalog,
)
from storage import compact as compact_store
from storage import forget as forget_audits
from storage import forget_images as forget_images_of
from storage import migrate as migrate_store
from storage import query as run_query
from storage.limits import PATIENT
from storage.tables import VERSION
from tasks.errors import InputError
from tasks.progress import stage, tell

TimeoutOption = Annotated[
    float, typer.Option("--timeout", min=0, metavar="SECONDS", help="Time that it may take; 0 for no limit.")
]


UNGUARDED = (
    "What opens this file reads the store unchecked and without limits, and its SQL can read other files, too "
    "(read_text): run only SQL in it that you trust; `engram sql` is for the rest."
)


def limits_of(timeout: float) -> Limits:
    return Limits(seconds=timeout or None)


def left_out(address: str, reason: str) -> None:
    """Says that a part is not counted."""
    print(f"engram: left out {visible(address)}: it {visible(reason)}", file=sys.stderr)


@app.command()
@lists
def sql(
    statement: Annotated[str, typer.Argument(help="A query over the store's tables and views; see docs/store.md.")],
    timeout: TimeoutOption = PATIENT,
    store: StoreOption = None,
    form: FormatOption = Format.TABLE,
) -> None:
    """Query the store with SQL; read-only, and nothing outside the store can be reached.

    It may take half of the memory. Damaged parts are left out, which a line on stderr says of each.
    """
    printed(run_sql(looked_at(store), statement, limits_of(timeout), left_out), form)


@app.command()
@lists
def query(
    name: Annotated[str | None, typer.Argument(help="The query; what there is is listed if left out.")] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="A parameter of it, such as --set audit_id=A; NULL if left out.")
    ] = None,
    timeout: TimeoutOption = PATIENT,
    store: StoreOption = None,
    form: FormatOption = Format.TABLE,
) -> None:
    """Ask a question that has a name; what its parameters are stands at the head of storage/sql/NAME.sql."""
    if name is None:
        known = [{"query": one, "answers": header} for one, header in queries().items()]
        described(known, form)
    else:
        # What is not given is NULL already; null is a kind of prompts.
        params = {key: "null" if value is None else value for key, value in values_of(settings or []).items()}
        printed(run_query(looked_at(store), name, limits_of(timeout), **params), form)


@app.command(name="iou")
@lists
def overlap(
    method: Annotated[str | None, typer.Option(help="Only sets found by this method.")] = None,
    layer: Annotated[str | None, typer.Option(help="Only this layer.")] = None,
    step: Annotated[int | None, typer.Option(help="Only this denoising step.")] = None,
    timeout: TimeoutOption = PATIENT,
    store: StoreOption = None,
    form: FormatOption = Format.TABLE,
) -> None:
    """Overlap of every two prompts' or subsets' neuron sets, beside the overlap expected by chance."""
    with tqdm(desc="IOU", unit="layer", disable=None, leave=False) as bar:

        def on_progress(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        given = {"method": method, "layer": layer, "step": step, "seconds": timeout or None}
        rows = iou(Store.open(store, create=False), progress=on_progress, **given)  # type: ignore[arg-type]
    printed(rows, form)


@app.command()
def catalog(file: Annotated[Path, typer.Argument(help="The DuckDB file to write.")], store: StoreOption = None) -> None:
    """Write the store's views into a DuckDB file, for the duckdb shell and other SQL tools."""
    write_catalog(Store.open(store, create=False), file)
    print(f"wrote {visible(str(file))}: open it with `duckdb {visible(str(file))}`")
    print(UNGUARDED)


@app.command()
def export(
    variant: Annotated[str, typer.Argument(help="A variant in the store, such as wanda-0a1b2c3d.")],
    folder: Annotated[Path, typer.Argument(help="The folder to write.")],
    model: Annotated[str, typer.Option(help="The model it was made of, with its pieces.")] = "reference",
    config: ConfigOption = None,
    denoiser: DenoiserOption = None,
    vae: VaeOption = None,
    lora: LoraOption = None,
    changed_only: Annotated[
        bool, typer.Option("--changed-only", help="Only what differs from the model, with a reference to it.")
    ] = False,
    store: StoreOption = None,
) -> None:
    """Write a variant as a diffusers pipeline that loads anywhere."""
    quiet()
    from flows.params import ModelParams
    from tasks.mitigate.task import export_variant, subject_of

    opened = Store.open(store, create=False)
    pieces = named_files({"config": config, "denoiser": denoiser, "vae": vae})
    base = ModelParams(model=model, lora=tuple(lora or ()), **pieces).folder
    export_variant(subject_of(opened, str(base), variant), variant, folder, changed_only)
    print(f"wrote {visible(str(folder))}")


@app.command(name="verify")
def check(
    gc: Annotated[bool, typer.Option("--gc", help="Also remove what writes that died left behind.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the damages as JSON.")] = False,
    store: StoreOption = None,
) -> None:
    """Read every part of the store and say what is damaged, moved, double or missing."""
    opened = Store.open(store, create=False)
    with tqdm(desc="verifying", unit="part", disable=None, leave=False) as bar:

        def on_progress(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        verdict = examine(opened, gc=gc, progress=on_progress)
    damages = verdict.damages
    if as_json:
        print(json.dumps([{"address": damage.address, "reason": damage.reason} for damage in damages], indent=1))
    elif damages:
        print(*(f"{visible(damage.address)}: {visible(damage.reason)}" for damage in damages), sep="\n")
    else:
        print("every part is whole")
    for note in () if as_json else verdict.notes:
        print(f"note: {visible(note)}")
    if damages:
        raise typer.Exit(1)


@app.command()
def migrate(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be done, and do nothing.")] = False,
    gc: Annotated[bool, typer.Option("--gc", help="Once it is done: remove the parts that it began with.")] = False,
    lost: Annotated[
        list[str] | None,
        typer.Option(help="An audit that stands as running on another machine, though its process is gone."),
    ] = None,
    store: StoreOption = None,
) -> None:
    """Bring a store that an earlier release wrote to this one; what was interrupted goes on where it stopped.

    Nobody else can open the store meanwhile. What it began with stays beside what it made, until --gc removes it.
    """
    if gc:
        if lost:
            raise InputError("--gc and --lost exclude each other: migrate first")
        removed = drop_former(store, dry_run)
        print(_said("removed", removed, dry_run) if removed else "there are no former parts to remove")
        return
    with (
        stage("migrate", lambda: f"the store is of version {VERSION}", announced=not dry_run),
        tqdm(desc="migrating", unit="part", disable=None, leave=False) as bar,
    ):

        def on_progress(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)
            tell("writing anew", done, total, "part")

        moved = migrate_store(store, dry_run, lost or (), on_progress)
    if moved is None:
        print(f"the store is of version {VERSION} already")
        return
    print(f"{_said('migrated', moved, dry_run)} to version {VERSION}")
    if not dry_run:
        print("these parts stay beside the new ones; `engram migrate --gc` removes them")


@app.command()
def compact(
    gc: Annotated[
        bool, typer.Option("--gc", help="Also remove the parts that were merged more than an hour ago.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be done, and do nothing.")] = False,
    store: StoreOption = None,
) -> None:
    """Merge the small parts of the store into larger ones; the nightly re-audit does so, too.

    Others may read and write meanwhile. Every table and every figure stays what it is.
    """
    with (
        stage("compact", lambda: found.words(dry_run)[0], announced=not dry_run),
        tqdm(desc="compacting", unit="part", disable=None, leave=False) as bar,
    ):

        def on_progress(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)
            tell("merging", done, total, "part")

        found = compact_store(Store.open(store, create=False), gc, dry_run, on_progress)
    print(*(visible(line) for line in found.words(dry_run)), sep="\n")


@app.command()
def forget(
    audits: Annotated[list[str], typer.Argument(metavar="AUDIT...", help="Audits; `engram audits` lists them.")],
    images: Annotated[
        bool, typer.Option("--images", help="Only their images and pages: estimates and all else stays.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be removed, and remove nothing.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask; needed where no terminal can be asked.")] = False,
    store: StoreOption = None,
) -> None:
    """Remove audits, their pages, and all that they rest on and no other audit needs.

    An accepted baseline and an audit that runs are refused. What was interrupted is finished by the same command.
    """
    quiet()
    from tasks.report import task as reporting

    opened = looked_at(store)
    plan, do = (forgetting_images, forget_images_of) if images else (forgetting, forget_audits)
    found = plan(opened, audits)
    pages = {name: reporting.page_bytes(opened, name) for name in found.audits}
    print(_going(found, [size for size in pages.values() if size], images))
    for note in found.notes:
        print(f"note: {visible(note)}")
    if dry_run:
        return
    if not yes and not sys.stdin.isatty():
        raise InputError("nothing was removed: say --yes where no terminal can be asked")
    if not yes and not typer.confirm("Remove it?"):
        print("nothing was removed")
        return
    for name in found.audits:  # first: when it is interrupted, the audit still says that there is something to do
        reporting.remove_page(opened, name)
    removed = do(opened, audits)
    print(f"removed {len(removed.parts)} parts and {len(removed.weights)} folders of weights ({_mb(removed.size)})")


def _going(found: Forgetting, pages: list[int], images: bool) -> str:
    """What is about to be removed, a line each."""
    of = f"{len(found.audits)} audit{'s' * (len(found.audits) != 1)}"
    lines = [f"{'the images of ' * images}{of}: {_mb(found.size + sum(pages))}"]
    lines += [f"  {name}: {count}" for name, count in found.counts().items()]
    lines += [f"  rows of {one.table}, taken out of parts that have others" for one in found.rows]
    lines += [f"  pages: {len(pages)}"] * bool(pages)
    return "\n".join(lines)


def _mb(size: int) -> str:
    return f"{size / 1e6:.1f} MB"


def _said(what: str, amount: Amount, dry_run: bool) -> str:
    parts = f"{amount.parts} parts of version {amount.version} ({amount.size / 1e6:.1f} MB)"
    return f"would have {what} {parts}" if dry_run else f"{what} {parts}"
