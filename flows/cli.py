"""The command line."""

import json
import logging
import os
import sys
import warnings
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from tqdm import tqdm

from storage import Store, StoreError, iou, query, render, run_sql, verify, write_catalog
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
models = typer.Typer(help="The models that are audited every night.", no_args_is_help=True)
app.add_typer(models, name="models")

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


@app.command()
def audit(
    model: ModelOption = "reference",
    profile: ProfileOption = ProfileName.QUICK,
    prompts: PromptsOption = None,
    nulls: NullsOption = None,
    ordinary: OrdinaryOption = None,
    images: ImagesOption = None,
    clip: ClipOption = None,
    device: DeviceOption = None,
    settings: SettingsOption = None,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Audit a model: what it memorized, where, whether it can be cut out, and whether it is then gone."""
    quiet()
    from flows.audit import audit as run

    files = {"prompts": prompts, "nulls": nulls, "ordinary": ordinary, "images": images}
    _tell(run(_params(model, profile, files, clip, device, settings, store)), store, as_json)


def _stage(name: str, words: str) -> None:
    """Adds the command of one stage."""

    def command(
        model: ModelOption = "reference",
        profile: ProfileOption = ProfileName.QUICK,
        prompts: PromptsOption = None,
        nulls: NullsOption = None,
        ordinary: OrdinaryOption = None,
        images: ImagesOption = None,
        clip: ClipOption = None,
        device: DeviceOption = None,
        settings: SettingsOption = None,
        store: StoreOption = None,
        audit_id: AuditOption = None,
    ) -> None:
        quiet()
        from flows import stages

        files = {"prompts": prompts, "nulls": nulls, "ordinary": ordinary, "images": images}
        params = _params(model, profile, files, clip, device, settings, store)
        run = getattr(stages, name)
        if name in ("mitigate", "diagnose", "evaluate", "report"):
            found = run(params, stages.audit_of(params, audit_id))
        else:
            found = run(params)
        if name == "report":
            _tell(found, store, False)
        elif name == "mitigate":
            print("\n".join(found.values()))

    command.__doc__ = (
        words + "\n\nUses what lies in the store; a stage that misses what it needs says which comes first."
    )
    app.command(name=name, rich_help_panel="One stage")(command)


for _name, _words in (
    ("collect", "Collect activations and feature norms of prompts."),
    ("localize", "Find the neurons and weights that hold memorized images, with their controls."),
    ("mitigate", "Make the variants: cut, trained, or defended at inference."),
    ("attack", "Search adversarial embeddings on every variant that claims to have forgotten."),
    ("diagnose", "Ask many triggers of one picture whether memory is local."),
    ("evaluate", "Make pictures of every variant under every probe, and measure them."),
    ("report", "Write the page of an audit."),
):
    _stage(_name, _words)


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
    quiet()
    from flows.plan import model_folder
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


@app.command()
def compare(
    before: Annotated[str, typer.Argument(help="An audit, or 'previous', 'accepted', 'latest'.")] = "previous",
    after: Annotated[str, typer.Argument(help="The audit that is held against it, or such a word.")] = "latest",
    margin: Annotated[
        float, typer.Option(min=0, max=1, help="Share of its CLIP score that a variant may lose.")
    ] = 0.05,
    alpha: Annotated[float, typer.Option(min=0, max=1, help="Chance of any false alarm, at most.")] = 0.05,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
    store: StoreOption = None,
) -> None:
    """Compare two audits: every figure's change, and whether the model got worse; exit code 1 if it did."""
    quiet()
    from flows.plan import CLAIMS
    from tasks.report import task as reporting

    opened = Store.open(store, create=False)
    found = reporting.compare(opened, *reporting.audits_named(opened, before, after), CLAIMS, margin, alpha)
    if as_json:
        print(json.dumps(asdict(found), indent=1))
    else:
        _print(reporting.differences_table(found), Format.TABLE)
        print(*(f"note: {note}" for note in found.notes), found.verdict, sep="\n")
    if found.regressions:
        raise typer.Exit(1)


@app.command()
def results(
    folder: Annotated[Path, typer.Argument(help="Where RESULTS.md and results.json are written.")],
    audit_id: Annotated[str, typer.Option("--audit", help="An audit, or 'latest'.")] = "latest",
    store: StoreOption = None,
) -> None:
    """Write an audit's figures for those who do not have the store; other text in RESULTS.md stays."""
    quiet()
    from tasks.report import task as reporting

    opened = Store.open(store, create=False)
    chosen = reporting.latest(opened) if audit_id == "latest" else audit_id
    print(*(f"wrote {path}" for path in reporting.write_results(opened, chosen, folder)), sep="\n")


@app.command()
def accept(
    audit_id: Annotated[str, typer.Argument(metavar="AUDIT", help="An audit, or 'latest'.")],
    store: StoreOption = None,
) -> None:
    """Accept an audit: nightly audits of the same model and prompts are held against it from now on."""
    from tasks.report import task as reporting

    print(f"accepted {reporting.accept(Store.open(store, create=False), audit_id)}")


@models.command(name="add")
def add_model(
    name: Annotated[str, typer.Argument(help="What the model is called.")],
    model: ModelOption = "reference",
    profile: ProfileOption = ProfileName.FULL,
    prompts: PromptsOption = None,
    nulls: NullsOption = None,
    ordinary: OrdinaryOption = None,
    images: ImagesOption = None,
    clip: ClipOption = None,
    device: DeviceOption = None,
    settings: SettingsOption = None,
    store: StoreOption = None,
) -> None:
    """Audit a model every night, or change how a registered one is audited."""
    quiet()
    from flows.nightly import register

    files = {"prompts": prompts, "nulls": nulls, "ordinary": ordinary, "images": images}
    register(Store.open(store), name, _params(model, profile, files, clip, device, settings, store))
    print(f"{name} is audited every night")


@models.command(name="remove")
def remove_model(
    name: Annotated[str, typer.Argument(help="What the model is called.")], store: StoreOption = None
) -> None:
    """Audit a model no longer; what was found stays in the store."""
    quiet()
    from flows.nightly import remove

    remove(Store.open(store, create=False), name)
    print(f"{name} is no longer audited every night")


@models.command(name="list")
def list_models(store: StoreOption = None, form: FormatOption = Format.TABLE) -> None:
    """List the models that are audited every night."""
    _print(query(Store.open(store, create=False), "registered"), form)


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
    quiet()
    from flows.reference import build as run
    from tasks.reference.build import BuildParams

    begun = str(start) if start is not None else None
    run(str(pictures), str(names), str(folder), str(out), BuildParams(**settings_of(settings or [])), begun)


@reference.command(name="check")
def gates(
    model: Annotated[str, typer.Option(help="Folder of the reference model.")] = "reference",
    only: Annotated[list[str] | None, typer.Option("--only", help="Only the gates whose names begin so.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, ...")] = None,
    store: StoreOption = None,
) -> None:
    """Measure every gate that the reference world has to pass, on a full audit of it."""
    quiet()
    from flows.reference import check as run

    if not run(model, only or [], Store.open(store).url, device):
        raise typer.Exit(1)


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


def _params(
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


def _tell(found: Any, store: str | None, as_json: bool) -> None:
    """An audit's figures, and where its page lies."""
    if as_json:
        figures = Store.open(store).read("metrics", audit_id=found.audit_id).to_pylist()
        print(json.dumps({"audit_id": found.audit_id, "report": found.report, "metrics": figures}, indent=1))
    else:
        print(found.written.table)
        print(f"audit   {found.audit_id}\nreport  {found.report}")


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
        inner[name] = value
    return out


def _print(rows: Any, form: Format) -> None:
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
