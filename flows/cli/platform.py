"""Commands of the platform: models audited every night, and the server that does it."""

import os
import signal
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from flows.cli.shared import (
    Format,
    FormatOption,
    ProfileName,
    StoreOption,
    app,
    asks_what,
    lists,
    printed,
    quiet,
)
from storage import Store, query, visible
from tasks.errors import InputError

models = typer.Typer(help="The models that are audited every night.", no_args_is_help=True)
app.add_typer(models, name="models")


@models.command(name="add")
@asks_what(ProfileName.FULL)
def add_model(params: Any, name: Annotated[str, typer.Argument(help="What the model is called.")]) -> None:
    """Audit a model every night, or change how a registered one is audited."""
    from flows.nightly import check_name, register

    check_name(name)  # before there is a store
    register(Store.open(params.store), name, params)
    print(f"{visible(name)} is audited every night")


@models.command(name="remove")
def remove_model(
    name: Annotated[str, typer.Argument(help="What the model is called.")], store: StoreOption = None
) -> None:
    """Audit a model no longer; what was found stays in the store."""
    quiet()
    from flows.nightly import remove

    remove(Store.open(store, create=False), name)
    print(f"{visible(name)} is no longer audited every night")


@models.command(name="list")
@lists
def list_models(store: StoreOption = None, form: FormatOption = Format.TABLE) -> None:
    """List the models that are audited every night."""
    printed(query(Store.open(store, create=False), "registered"), form)


NotifyOption = Annotated[
    str | None,
    typer.Option(
        "--notify",
        envvar="ENGRAM_NOTIFY",
        help="Address that gets a POST when a model got worse or a night failed, or @FILE. It is a secret: the "
        "environment and a file keep it, the list of processes does not.",
    ),
]
NotifyFileOption = Annotated[
    Path | None, typer.Option("--notify-file", help="The same address, from a file that holds nothing else.")
]


KeepImagesOption = Annotated[
    int | None,
    typer.Option(
        "--keep-images",
        min=1,
        metavar="N",
        help="Keep images and pages of the last N nights of each model, and of accepted audits; estimates are always "
        "kept. As it was set before if left out, at first all.",
    ),
]


def _address(context: typer.Context, notify: str | None, file: Path | None) -> str | None:
    """Who is told, from wherever it was given."""
    from flows.receiver import read_address

    given = context.get_parameter_source("notify")
    typed = given is not None and given.name == "COMMANDLINE"
    if file is not None and not typed:
        notify = None  # what is typed counts more than the environment
    address = read_address(notify, file)
    if typed and address == notify:
        print(
            "engram: everybody on this machine can read --notify in the list of processes; "
            "set ENGRAM_NOTIFY instead, or give --notify-file FILE",
            file=sys.stderr,
        )
    return address


@app.command()
def serve(
    context: typer.Context,
    host: Annotated[str, typer.Option(help="Address to listen at; others can reach it only with authentication.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen at.")] = 4200,
    name: Annotated[
        list[str] | None,
        typer.Option(
            help="A further name that browsers and programs reach it by, such as https://audits.example.com behind a "
            "proxy; may be repeated. Also $ENGRAM_SERVE_NAMES."
        ),
    ] = None,
    home: Annotated[Path, typer.Option(help="Folder of the server's database and logs.")] = Path(".engram/prefect"),
    cpu_workers: Annotated[
        int, typer.Option(min=0, help="Runs of the pool cpu at a time; 0 on a machine whose GPUs do all the work.")
    ] = 2,
    gpus: Annotated[
        int | None,
        typer.Option(min=0, help="GPUs that work, each with a worker of its own; all that there are if left out."),
    ] = None,
    notify: NotifyOption = None,
    notify_file: NotifyFileOption = None,
    keep_images: KeepImagesOption = None,
    store: StoreOption = None,
) -> None:
    """Bring up the Prefect server with its UI, workers, deployments and automations; Ctrl-C stops all of it."""
    from flows.serve import serve as run

    signal.set_wakeup_fd(-1)  # it ends in an order of its own
    address = _address(context, notify, notify_file)
    run(host, port, Store.open(store).url, home, address, name or [], cpu_workers, gpus, keep_images)


@app.command()
def deploy(
    context: typer.Context,
    notify: NotifyOption = None,
    notify_file: NotifyFileOption = None,
    keep_images: KeepImagesOption = None,
    store: StoreOption = None,
) -> None:
    """Register pools, deployments and automations with a Prefect server that runs already: PREFECT_API_URL."""
    quiet()
    if not os.environ.get("PREFECT_API_URL"):
        raise InputError("which server? set PREFECT_API_URL, or use `engram serve`, which starts one")
    address = _address(context, notify, notify_file)
    from flows import alerts, deployments

    for name in deployments.deploy(Store.open(store).url, Path.cwd(), keep_images):
        print(name)
    for name in alerts.install(address):
        print(name)
