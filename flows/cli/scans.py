"""The command that looks for memorized prompts among many."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from flows.cli.shared import (
    ConfigOption,
    DenoiserOption,
    Format,
    FormatOption,
    LongPromptsOption,
    LoraOption,
    ModelOption,
    StoreOption,
    VaeOption,
    app,
    lists,
    named_files,
    printed,
    quiet,
    set_by_option,
    settings_of,
)
from flows.lifetime import prefect_server
from flows.typed import validated
from storage import Store, StoreError, address_of, query, visible
from tasks.errors import noting, refuse

SHOWN = 100
"""Rows that a person is shown; programs get all."""


@app.command()
@lists
def scan(
    prompts: Annotated[
        Path | None,
        typer.Option(help="Prompts that are scanned: CSV, JSONL, text or Parquet; the model's own if left out."),
    ] = None,
    nulls: Annotated[
        Path | None, typer.Option(help="Prompts that are not memorized; the model's own if left out.")
    ] = None,
    model: ModelOption = "reference",
    config: ConfigOption = None,
    denoiser: DenoiserOption = None,
    vae: VaeOption = None,
    lora: LoraOption = None,
    detectors: Annotated[
        list[str] | None,
        typer.Option(
            "--detector", help="What tells memorized prompts, see `engram methods`; may be repeated; norm if left out."
        ),
    ] = None,
    alpha: Annotated[
        float | None,
        typer.Option(help="False-alarm rate: share flagged of prompts that are not memorized; 0.02 if left out."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(dir_okay=False, help="CSV file for the flagged prompts, as `engram audit --prompts` reads it."),
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda, mps, ...; CUDA where there is any if left out.")
    ] = None,
    long_prompts: LongPromptsOption = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", help="A setting, such as --set norm.seeds=10 or --set anisotropy.cosine=1."),
    ] = None,
    store: StoreOption = None,
    form: FormatOption = Format.TABLE,
) -> None:
    """Find memorized prompts of a model whose memorized set is unknown, most suspicious first."""
    quiet()
    from flows.scan import ScanRun, check_scan, scanned_and_nulls
    from flows.scan import scan as run
    from tasks.prompt_files import expanded
    from tasks.scan.task import ScanParams, write_flagged

    problems: list[str] = []
    chosen, address = ScanParams(), str(store)
    out = None if out is None else expanded(out)
    if out is not None and not out.parent.is_dir():
        problems.append(f"there is no folder {out.parent} for {out.name}: make it first")
    with noting(problems):
        given = settings_of(settings or [], ScanParams, problems)
        set_by_option(
            given, problems, detectors=detectors or None, alpha=alpha, long_prompts=long_prompts and long_prompts.value
        )
        chosen = validated(ScanParams, given)
    try:
        address = address_of(store)
    except StoreError as error:
        problems.append(str(error))
    paths = named_files({"prompts": prompts, "nulls": nulls, "config": config, "denoiser": denoiser, "vae": vae})
    params = ScanRun(model=model, lora=tuple(lora or ()), store=address, device=device, scan=chosen, **paths)
    with noting(problems):
        check_scan(params, settled=not problems)  # what cannot be used is refused before a flow begins
    refuse(problems)
    scanned, _ = scanned_and_nulls(params)
    opened = Store.open(address)
    with prefect_server():
        found = run(params)
    if out is not None:  # first: whoever reads the rows may not read them to the end
        number = write_flagged(opened, found.scan_id, scanned, out)
        shown = visible(str(out))
        print(f"wrote {shown}: {number} prompts for `engram audit --prompts {shown}`", file=sys.stderr)
    rows = query(opened, "suspects", scan_id=found.scan_id)
    printed(rows.slice(0, SHOWN) if form is Format.TABLE else rows, form)
    if form is Format.TABLE and rows.num_rows > SHOWN:
        print(f"the first {SHOWN} of {rows.num_rows} rows; --format csv prints all")
    # Programs read the rows alone.
    print(found.words, file=sys.stdout if form is Format.TABLE else sys.stderr)
