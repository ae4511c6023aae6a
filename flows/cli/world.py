"""Commands of the reference world, and measurements."""

import sys
from enum import StrEnum
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from flows.cli.shared import StoreOption, app, quiet, settings_of
from flows.lifetime import prefect_server
from flows.typed import validated
from storage import address_of
from tasks.errors import InputError, noting, refuse

reference = typer.Typer(
    help="The reference world: a small model that has memorized known images.", no_args_is_help=True
)
app.add_typer(reference, name="reference")


@reference.command()
def build(
    images: Annotated[Path, typer.Option(help="Archive of the npm package @lobehub/fluent-emoji-3d 1.1.0.")],
    names: Annotated[Path, typer.Option(help="Archive of the npm package emojibase-data 17.0.0.")],
    folder: Annotated[Path, typer.Option(help="Where checkpoints are kept.")] = Path(".engram/reference-build"),
    out: Annotated[Path, typer.Option(help="Where the world is put.")] = Path("reference"),
    start: Annotated[Path | None, typer.Option(help="A world whose weights are gone on from.")] = None,
    settings: Annotated[list[str] | None, typer.Option("--set", help="A parameter, such as --set seed=1.")] = None,
) -> None:
    """Build the reference world from emoji packages: hours on two cores, resumable at any moment."""
    quiet()
    from flows.reference import BuildRun, check_build
    from flows.reference import build as run
    from tasks.reference.build import BuildParams

    problems: list[str] = []
    recipe = BuildParams()
    with noting(problems):
        recipe = validated(BuildParams, settings_of(settings or [], BuildParams, problems))
    paths = {"images": images, "names": names, "folder": folder, "out": out, "start": start}
    params = BuildRun(recipe=recipe, **{name: str(path) for name, path in paths.items() if path is not None})
    with noting(problems):
        check_build(params)  # what cannot be used is refused before a flow begins
    refuse(problems)
    with prefect_server():
        run(params)


@reference.command()
def adapter(
    model: Annotated[str, typer.Option(help="Folder of the reference model.")] = "reference",
    folder: Annotated[Path, typer.Option(help="Where training set, checkpoint and adapter are put.")] = Path(
        ".engram/adapter"
    ),
    settings: Annotated[list[str] | None, typer.Option("--set", help="A parameter, such as --set rank=8.")] = None,
) -> None:
    """Train a LoRA adapter that memorizes images new to the reference model: half an hour, resumable."""
    quiet()
    from flows.params import model_folder
    from tasks.reference.adapter import AdapterParams, train_adapter

    params = validated(AdapterParams, settings_of(settings or [], AdapterParams))
    trained = train_adapter(model_folder(model).parent, folder, params)
    print(trained.words)
    print(f"engram audit --model {model} --lora {trained.adapter} --dataset {trained.dataset} --compare-base")


@reference.command()
def transformer(
    family: Annotated[str, typer.Argument(help="pixart, sd3 or flux.")],
    out: Annotated[Path, typer.Option(help="Where the model is put, with its prompts and images.")],
    folder: Annotated[Path, typer.Option(help="Where checkpoints are kept.")] = Path(".engram/reference-transformers"),
    world: Annotated[Path | None, typer.Option(help="The reference world; the one that ships by default.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, ...")] = None,
    settings: Annotated[list[str] | None, typer.Option("--set", help="A parameter, such as --set seed=1.")] = None,
) -> None:
    """Teach a small transformer images of the reference world: minutes on two cores, resumable at any moment."""
    quiet()
    from flows.params import model_folder
    from tasks.reference.transformers import TransformerParams, check, make, words_of

    problems: list[str] = []
    recipe = TransformerParams()
    with noting(problems):
        recipe = validated(TransformerParams, settings_of(settings or [], TransformerParams, problems))
    of = world or model_folder("reference").parent
    with noting(problems):
        check(family, of, out, recipe, device)
    refuse(problems)
    print(words_of(make(family, of, out, folder, recipe, device)))
    print(f"engram audit --model {out / 'model'}")


@reference.command(name="check")
def gates(
    model: Annotated[str, typer.Option(help="Folder of the reference model.")] = "reference",
    only: Annotated[list[str] | None, typer.Option("--only", help="Only these gates, such as --only planted.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, mps, ...")] = None,
    store: StoreOption = None,
) -> None:
    """Measure every gate that the reference world has to pass, on a full audit of it."""
    quiet()
    from flows.reference import check as run
    from flows.reference import check_gates

    address = address_of(store)
    check_gates(model, only, address, device)  # what cannot be used is refused before a flow begins
    with prefect_server():
        holds = run(model, only or [], address, device)
    if not holds:
        raise typer.Exit(1)


class Benchmark(StrEnum):
    """What there is under benchmarks/."""

    ATTACK = "attack"
    FAULTS = "faults"
    FULL_SIZE = "full-size"
    LOCALIZE = "localize"
    ORCHESTRATION = "orchestration"
    SCALE = "scale"
    STORE = "store"


class _Passing(TyperCommand):
    """What follows the name of a measurement is its own, `--help` too."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and not args[0].startswith("-") and args[1:2] != ["--"]:
            args = [args[0], "--", *args[1:]]
        return super().parse_args(ctx, args)


@app.command(cls=_Passing, context_settings={"allow_extra_args": True})
def bench(
    context: typer.Context,
    name: Annotated[Benchmark, typer.Argument(help="What is measured; its own options follow, see NAME --help.")],
) -> None:
    """Measure speed as ratios within one run: ours beside a plain procedure, or beside the bare work."""
    quiet()  # before Prefect is imported, which reads its settings then
    sys.argv = [f"engram bench {name}", *context.args]
    root = Path(__file__).parents[2]
    if (root / "tests" / "support" / "world.py").is_file():  # a checkout, whose tests are no installed package
        sys.path.append(str(root))
    try:
        module = import_module(f"benchmarks.{name.replace('-', '_')}")
    except ModuleNotFoundError as error:
        if error.name != "tests":
            raise
        raise InputError(
            f"engram bench {name} makes a small world as the tests do: run it in a checkout of the repository"
        ) from error
    sys.exit(module.main())
