"""Commands of the platform: models audited every night, and the server that does it."""

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from flows.cli.shared import (
    Format,
    FormatOption,
    NotifyOption,
    ProfileName,
    StoreOption,
    app,
    asks_what,
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
    from flows.nightly import register

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
def list_models(store: StoreOption = None, form: FormatOption = Format.TABLE) -> None:
    """List the models that are audited every night."""
    printed(query(Store.open(store, create=False), "registered"), form)


@app.command()
def serve(
    host: Annotated[str, typer.Option(help="Address to listen at; others can reach it only with authentication.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen at.")] = 4200,
    home: Annotated[Path, typer.Option(help="Folder of the server's database and logs.")] = Path(".engram/prefect"),
    notify: NotifyOption = None,
    store: StoreOption = None,
) -> None:
    """Bring up the Prefect server with its UI, workers, deployments and automations; Ctrl-C stops all of it."""
    from flows.serve import serve as run

    run(host, port, Store.open(store).url, home, notify)


@app.command()
def deploy(notify: NotifyOption = None, store: StoreOption = None) -> None:
    """Register pools, deployments and automations with a Prefect server that runs already: PREFECT_API_URL."""
    quiet()
    if not os.environ.get("PREFECT_API_URL"):
        raise InputError("which server? set PREFECT_API_URL, or use `engram serve`, which starts one")
    from flows import alerts, deployments

    for name in deployments.deploy(Store.open(store).url, Path.cwd()):
        print(name)
    for name in alerts.install(notify):
        print(name)
