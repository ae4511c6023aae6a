"""Commands that audit a model: the whole way, one stage of it, and what is done with audits afterwards."""

import json
import sys
import tempfile
import webbrowser
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import ValidationError

from flows.cli.shared import (
    AuditOption,
    Format,
    FormatOption,
    JsonOption,
    ProfileName,
    StoreOption,
    app,
    asks_what,
    described,
    lists,
    looked_at,
    printed,
    quiet,
)
from flows.lifetime import prefect_server
from storage import NoStore, Store, run_sql, visible, visible_lines
from tasks.errors import InputError


@app.command()
@asks_what()
def audit(
    params: Any,
    as_json: JsonOption = False,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", help="Do nothing: list what there is to do, what is there already, and how long it takes."
        ),
    ] = False,
    workers: Annotated[
        int,
        typer.Option(min=1, help="Processes of this machine that share the work; with GPUs each has one of its own."),
    ] = 1,
    spread: Annotated[
        str | None,
        typer.Option(help="Work pool of the server at PREFECT_API_URL whose workers share the work: cpu or gpu."),
    ] = None,
    compare_base: Annotated[
        bool,
        typer.Option(
            "--compare-base", help="Audit the model without its LoRA adapters first, and say what they bring back."
        ),
    ] = False,
) -> None:
    """Audit a model: what it memorized, where, whether it can be pruned away, and whether it is then gone."""
    from flows.audit import audit as run
    from flows.audit import shared

    params = params.model_copy(update={"workers": workers, "spread": spread})
    shared(params)
    if compare_base and not params.lora:
        raise InputError("--compare-base says what LoRA adapters bring back: give them with --lora")
    asked = [params.model_copy(update={"lora": ()}), params] if compare_base else [params]
    if dry_run:
        _foresee(asked, as_json)
        return
    with prefect_server():
        found = [run(one) for one in asked]
    if as_json:
        print(json.dumps(_told(found, params.store), indent=1))
        return
    for each in found:
        _tell(each, params.store)
    if compare_base:
        _tell_brought(params.store, *(each.audit_id for each in found))


def _stage(name: str, words: str) -> None:
    """Adds the command of one stage."""

    def alone(params: Any) -> None:
        from flows import stages
        from flows.run.execution import check_ready
        from flows.run.spec import resolve

        spec = resolve(params)
        check_ready(spec, name)
        with prefect_server():
            getattr(stages, name)(spec.run)

    def of_an_audit(params: Any, audit_id: AuditOption = None) -> None:
        from flows import stages
        from flows.run.execution import check_ready
        from flows.run.spec import resolve
        from tasks.report.task import record_of

        if audit_id is not None:  # before prompts are brought into the store
            record_of(Store.open(params.store, create=False), audit_id)
        spec = resolve(params)
        if audit_id is not None or name != "mitigate":
            audit_id = stages.audit_of(spec, audit_id)
        check_ready(spec, name)
        with prefect_server():
            found = getattr(stages, name)(spec.run, audit_id)
        if name == "report":
            _tell(found, params.store)
        elif name == "mitigate":
            print("\n".join(found.values()))

    command = of_an_audit if name in ("mitigate", "diagnose", "evaluate", "report") else alone
    command.__doc__ = (
        words + "\n\nUses what lies in the store; a stage that misses what it needs says which comes first."
    )
    app.command(name=name, rich_help_panel="One stage")(asks_what()(command))


for _name, _words in (
    ("confirm", "Ask the model which memorized prompts it brings an image back from."),
    ("collect", "Collect activations and feature norms of prompts."),
    ("localize", "Find the neurons and weights that hold memorized images, with their controls."),
    ("mitigate", "Make the variants: pruned, trained, or defended at inference."),
    ("attack", "Search adversarial embeddings on every variant that claims to have forgotten."),
    ("diagnose", "Ask many triggers of one image whether memory is local."),
    ("evaluate", "Make images of every variant under every condition, and measure them."),
    ("report", "Write the page of an audit."),
):
    _stage(_name, _words)


@app.command()
@lists
def settings(
    profile: Annotated[ProfileName, typer.Option(help="The profile that values are shown of.")] = ProfileName.FULL,
    model: Annotated[str | None, typer.Option(help="With what the engram.json of this model says.")] = None,
    form: FormatOption = Format.TABLE,
) -> None:
    """List the settings that --set takes, with their values in a profile and their bounds."""
    quiet()
    from flows.params import defaults_for, model_folder
    from flows.settings import listed, settings_for

    named: Any = profile.value
    chosen = settings_for(named, {}) if model is None else defaults_for(named, model_folder(model))
    described(list(listed(chosen)), form)


@app.command()
@lists
def methods(form: FormatOption = Format.TABLE) -> None:
    """List what detects, localizes, mitigates and measures memories, of this package and of others."""
    quiet()
    from tasks.methods import methods as known
    from tasks.methods import variants, variants_of

    variants()  # whether they go together
    rows = [
        {
            "method": one.name,
            "kind": one.kind,
            "title": one.title,
            "variants": " ".join(variants_of(one)),
            "parameters": " ".join(f"{one.group}.{name}" for name in one.params.model_fields),
            "paper": one.paper,
            "control": one.control,
            "what": one.words,
        }
        for one in known()
    ]
    described(rows, form)


@app.command()
@lists
def audits(store: StoreOption = None, form: FormatOption = Format.TABLE) -> None:
    """List the audits in the store."""
    columns = (
        "audit_id, run_id, state, started_at, date_diff('second', started_at, finished_at) AS seconds, "
        "prompt_set, device, model_id"
    )
    printed(run_sql(looked_at(store), f"SELECT {columns} FROM audits ORDER BY started_at"), form)


@app.command()
def compare(
    before: Annotated[
        str,
        typer.Argument(
            help="An audit, or 'latest'; 'previous' and 'accepted' are the last such one before the other audit."
        ),
    ] = "previous",
    after: Annotated[str, typer.Argument(help="The audit that is compared with it, or such a word.")] = "latest",
    margin: Annotated[
        float, typer.Option(min=0, max=1, help="Share of its CLIP score that a variant may lose.")
    ] = 0.05,
    alpha: Annotated[float, typer.Option(min=1e-6, max=1, help="Chance of any false alarm, at most.")] = 0.05,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
    store: StoreOption = None,
) -> None:
    """Compare two audits: the change of every estimate, and whether the model got worse; exit code 1 if it did."""
    quiet()
    from tasks.report import task as reporting

    opened = looked_at(store)
    found = reporting.compare(opened, *reporting.audits_named(opened, before, after), reporting.claims(), margin, alpha)
    if as_json:
        print(json.dumps(asdict(found), indent=1))
    else:
        printed(reporting.differences_table(found), Format.TABLE)
        print(visible_lines("\n".join([*(f"note: {note}" for note in found.notes), found.verdict])))
    if found.regressions:
        raise typer.Exit(1)


@app.command()
def results(
    folder: Annotated[Path, typer.Argument(help="Where RESULTS.md and results.json are written.")],
    audit_id: Annotated[str, typer.Option("--audit", help="An audit, or 'latest'.")] = "latest",
    store: StoreOption = None,
) -> None:
    """Write an audit's estimates for those who do not have the store; other text in RESULTS.md stays."""
    quiet()
    from flows.params import AuditParams, command_of
    from tasks.report import task as reporting

    opened = looked_at(store)
    chosen = reporting.latest(opened) if audit_id == "latest" else audit_id
    params_json = reporting.record_of(opened, chosen)["params"]
    try:
        command = command_of(AuditParams.model_validate_json(params_json))
    except ValidationError as error:
        raise InputError(f"the audit {chosen} has settings of another version: audit again") from error
    print(
        *(f"wrote {visible(str(path))}" for path in reporting.write_results(opened, chosen, folder, command)), sep="\n"
    )


@app.command(name="open")
def open_page(
    audit_id: Annotated[str, typer.Argument(metavar="AUDIT", help="An audit, or 'latest'.")] = "latest",
    only_path: Annotated[bool, typer.Option("--path", help="Print where it lies, and open nothing.")] = False,
    store: StoreOption = None,
) -> None:
    """Open the page of an audit in the browser, and print its path; from S3 it is downloaded first."""
    quiet()
    from tasks.report import task as reporting

    opened = looked_at(store)
    chosen = reporting.latest(opened) if audit_id == "latest" else audit_id
    reporting.record_of(opened, chosen)
    path = reporting.page_here(opened, chosen)
    print(visible(str(path)), flush=True)
    if not only_path and not webbrowser.open(path.as_uri()):
        print("engram: no browser is to be had here: open that file in one", file=sys.stderr)


@app.command()
def accept(
    audit_id: Annotated[str, typer.Argument(metavar="AUDIT", help="An audit, or 'latest'.")],
    store: StoreOption = None,
) -> None:
    """Accept an audit: nightly audits of the same model and prompts are compared with it from now on."""
    from tasks.report import task as reporting

    print(f"accepted {reporting.accept(looked_at(store), audit_id)}")


def _foresee(asked: Sequence[Any], as_json: bool) -> None:
    """Lists the work of audits; the store stays as it is, and none is begun."""
    from flows.run.outlook import outlook
    from flows.run.spec import resolve

    found = []
    with tempfile.TemporaryDirectory() as scratch:
        for params in asked:
            try:
                Store.open(params.store, create=False)
            except NoStore:  # so nothing is there yet
                params = params.model_copy(update={"store": Store.open(Path(scratch) / "store").url})
            found.append(outlook(resolve(params, keep=False)))
    if as_json:
        rows = [{"work": each.records(), "seconds": each.seconds, "memory": dict(each.memory)} for each in found]
        base = {"base": rows[0]} if len(rows) > 1 else {}
        print(json.dumps(rows[-1] | base, indent=1))
        return
    for one, each in zip(asked, found, strict=True):
        if len(asked) > 1:
            print(visible(one.named))
        printed(each.records(), Format.TABLE)
        print(each.words())


def _told(found: Sequence[Any], store: str) -> dict[str, Any]:
    """An audit as JSON has it; of two also the first, without adapters, and what these brought back."""
    from tasks.report import task as reporting

    opened = Store.open(store)

    def told(one: Any) -> dict[str, Any]:
        estimates = opened.read("metrics", audit_id=one.audit_id).to_pylist()
        return {"audit_id": one.audit_id, "report": one.report, "metrics": estimates}

    if len(found) == 1:
        return told(found[0])
    brought = reporting.brought_back(opened, *(one.audit_id for one in found))
    return told(found[1]) | {"base": told(found[0]), "brought_back": [asdict(one) for one in brought]}


def _tell(found: Any, store: str) -> None:
    """An audit's estimates, and where its page lies."""
    print(found.written.table)
    print(f"audit   {found.audit_id}\nreport  {visible(found.report)}")
    if found.report.startswith("s3://"):
        print(f"open    engram open {found.audit_id} --store {visible(store)}")


def _tell_brought(store: str, without: str, with_adapters: str) -> None:
    """What adapters bring back, prompt by prompt, and in a sentence."""
    from tasks.report import task as reporting

    found = reporting.brought_back(Store.open(store), without, with_adapters)
    if not found:
        print("What the adapters bring back was not measured: the prompts have no images; give them with --images.")
        return
    rows = [
        {
            "prompt": one.prompt,
            "copies without": f"{one.copies_before} of {one.images_before}",
            "copies with": f"{one.copies_after} of {one.images_after}",
            "best SSCD without": round(one.best_before, 3),
            "best SSCD with": round(one.best_after, 3),
        }
        for one in found
    ]
    print()
    printed(rows, Format.TABLE)
    print(reporting.words_of_brought(found))
    print(f"All that changed: engram compare {without} {with_adapters} --store {visible(store)}")
