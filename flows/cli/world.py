"""Commands of the reference world, and measurements."""

import sys
from enum import StrEnum
from importlib import import_module
from pathlib import Path
from typing import Annotated

import typer

from flows.cli.shared import StoreOption, app, quiet, settings_of
from flows.lifetime import prefect_server
from storage import Store
from tasks.errors import InputError

reference = typer.Typer(
    help="The reference world: a small model that has memorized known images.", no_args_is_help=True
)
app.add_typer(reference, name="reference")


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
    quiet()
    from flows.reference import BuildRun
    from flows.reference import build as run
    from tasks.reference.build import BuildParams

    try:
        recipe = BuildParams(**settings_of(settings or []))
    except ValueError as error:
        raise InputError(f"no such recipe: {'; '.join(str(error).splitlines()[1:3])}") from error
    paths = {"pictures": pictures, "names": names, "folder": folder, "out": out, "start": start}
    with prefect_server():
        run(BuildRun(recipe=recipe, **{name: str(path) for name, path in paths.items() if path is not None}))


@reference.command(name="check")
def gates(
    model: Annotated[str, typer.Option(help="Folder of the reference model.")] = "reference",
    only: Annotated[list[str] | None, typer.Option("--only", help="Only these gates, such as --only planted.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, ...")] = None,
    store: StoreOption = None,
) -> None:
    """Measure every gate that the reference world has to pass, on a full audit of it."""
    quiet()
    from flows.reference import check as run

    with prefect_server():
        holds = run(model, only or [], Store.open(store).url, device)
    if not holds:
        raise typer.Exit(1)


class Benchmark(StrEnum):
    """What there is under benchmarks/."""

    ATTACK = "attack"
    LOCALIZE = "localize"
    ORCHESTRATION = "orchestration"
    STORE = "store"


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def bench(
    context: typer.Context,
    name: Annotated[Benchmark, typer.Argument(help="What is measured; its own options follow, see NAME -- --help.")],
) -> None:
    """Measure speed as ratios within one run: ours beside the published procedure, or beside the bare work."""
    quiet()  # before Prefect is imported, which reads its settings then
    sys.argv = [f"engram bench {name}", *context.args]
    sys.exit(import_module(f"benchmarks.{name}").main())
