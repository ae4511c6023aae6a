"""Commands on a set of prompts by itself, before any audit."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from flows.cli.shared import (
    ConfigOption,
    DenoiserOption,
    Format,
    FormatOption,
    LongPromptsOption,
    LoraOption,
    StoreOption,
    VaeOption,
    app,
    lists,
    named_files,
    printed,
    set_by_option,
    settings_of,
    takes,
)
from flows.typed import validated
from storage import StoreError, address_of, visible
from tasks.errors import InputError, noting, refuse

SHOWN = 100
"""Rows that a person is shown unless `--limit` says otherwise; programs get all."""
WIDE = 100
"""Characters of a cell of the summary."""

prompts = typer.Typer(help="A set of prompts by itself, before any audit.", no_args_is_help=True)
app.add_typer(prompts, name="prompts")

ClipOption = Annotated[
    str | None,
    typer.Option(
        help="open_clip model for near-duplicates of captions: FOLDER, OWNER/NAME in the Hub's cache, or NAME=FILE."
    ),
]
ExactOption = Annotated[
    bool, typer.Option("--exact", help="Look for the same captions and images alone: nothing is embedded.")
]
SimilarImagesOption = Annotated[
    float | None,
    typer.Option("--similar-images", help="SSCD cosine from which on two images are near-duplicates; 0.7 if left out."),
]
SimilarCaptionsOption = Annotated[
    float | None,
    typer.Option(
        "--similar-captions", help="CLIP cosine from which on two captions are near-duplicates; 0.95 if left out."
    ),
]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", help="A setting of SSCD, such as --set sscd.weights=FILE.")
]


def set_of(
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE|FOLDER", help="Memorized prompts: CSV, JSONL, text or Parquet; or a training set's folder."
        ),
    ],
    images: Annotated[Path | None, typer.Option(help="Folder of the prompts' training images.")] = None,
    nulls: Annotated[Path | None, typer.Option(help="Prompts that are not memorized.")] = None,
    ordinary: Annotated[Path | None, typer.Option(help="Prompts that quality is measured on.")] = None,
    model: Annotated[
        str | None, typer.Option(help="Model whose tokenizer counts tokens, as `engram audit` has it.")
    ] = None,
    config: ConfigOption = None,
    denoiser: DenoiserOption = None,
    vae: VaeOption = None,
    lora: LoraOption = None,
    long_prompts: LongPromptsOption = None,
) -> Any:
    """Which prompts, as an audit is given them. Its arguments are the options of every command on a set of prompts.

    Raises:
        InputError: options that need a model, and none is named.
    """
    from flows.params import AuditParams  # torch and Prefect take seconds to import
    from flows.prompts import SetParams

    of_model = {"--config": config, "--unet": denoiser, "--vae": vae, "--lora": lora, "--long-prompts": long_prompts}
    if model is None and (given := [name for name, value in of_model.items() if value]):
        raise InputError(f"{', '.join(given)} says how a model reads prompts: name the model with --model")
    files = {"prompts": file, "nulls": nulls, "ordinary": ordinary, "images": images}
    paths = named_files(files | {"config": config, "denoiser": denoiser, "vae": vae})
    params = AuditParams(model=model or "reference", lora=tuple(lora or ()), **paths)
    return SetParams(params, model is not None, long_prompts.value if long_prompts else "truncate")


@prompts.command()
@takes(set_of)
def check(
    params: Any,
    clip: ClipOption = None,
    exact: ExactOption = False,
    similar_images: SimilarImagesOption = None,
    similar_captions: SimilarCaptionsOption = None,
    settings: SetOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
) -> None:
    """Say what a set of prompts holds and all that is wrong with it; exit code 2 if an audit would refuse it.

    Near-duplicates are looked for where nothing is wrong.
    """
    found = _described(params, clip, exact, similar_images, similar_captions, settings)
    if as_json:
        whole = {"accepted": not found.problems, "prompt_set": found.prompt_set, "problems": found.problems}
        print(json.dumps(whole | {"notes": found.notices} | asdict(found.summary), indent=1))
    else:
        printed(found.summary.rows(), Format.TABLE, WIDE)
    refuse(found.problems)


@prompts.command()
@lists
@takes(set_of)
def show(
    params: Any,
    limit: Annotated[
        int | None, typer.Option(min=1, help=f"Rows at most; {SHOWN} in a table and else all if left out.")
    ] = None,
    clip: ClipOption = None,
    exact: ExactOption = False,
    similar_images: SimilarImagesOption = None,
    similar_captions: SimilarCaptionsOption = None,
    settings: SetOption = None,
    form: FormatOption = Format.TABLE,
) -> None:
    """List the prompts as an audit would read them, in its order, with their clusters of near-duplicates."""
    from flows.prompts import rows_of

    found = _described(params, clip, exact, similar_images, similar_captions, settings)
    refuse(found.problems)
    rows = rows_of(found)
    most = limit or (SHOWN if form is Format.TABLE else len(rows))
    printed(rows[:most], form)
    if form is Format.TABLE and len(rows) > most:
        print(f"the first {most} of {len(rows)} prompts; --limit or --format csv prints more")


@prompts.command(name="import")
@takes(set_of)
def import_set(
    params: Any,
    store: StoreOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print what was written as JSON.")] = False,
) -> None:
    """Write a set of prompts and its images to a store as an audit would, to be asked about with SQL."""
    from flows.prompts import import_prompts

    try:
        address = address_of(store)
    except StoreError as error:
        raise InputError(str(error)) from error
    found = import_prompts(
        type(params)(params.files.model_copy(update={"store": address}), params.with_model, params.long_prompts)
    )
    if as_json:
        print(json.dumps(asdict(found), indent=1))
        return
    name = visible(found.prompt_set)
    wrote = ", ".join(f"{number} {table}" for table, number in found.wrote.items())
    print(f"prompt set  {name}: {found.prompts} prompts, {found.images} images")
    print(f"wrote       {wrote or 'nothing: all was in the store already'}")


def _described(
    params: Any,
    clip: str | None,
    exact: bool,
    similar_images: float | None,
    similar_captions: float | None,
    settings: list[str] | None,
) -> Any:
    """What a set holds; what a person should know of it is said on standard error."""
    from flows.prompts import describe
    from tasks.collect.task import DuplicatesParams
    from tasks.progress import say

    problems: list[str] = []
    near: DuplicatesParams | None = None
    if exact and (clip or similar_images or similar_captions or settings):
        problems.append("--exact embeds nothing, so it excludes --clip, --similar-images, --similar-captions and --set")
    if similar_captions is not None and clip is None:
        problems.append("--similar-captions is a cosine of CLIP embeddings: name the model with --clip")
    with noting(problems):
        given = settings_of(settings or [], DuplicatesParams, problems)
        set_by_option(given, problems, images=similar_images, captions=similar_captions)
        near = None if exact else validated(DuplicatesParams, given)
    refuse(problems)
    params = type(params)(params.files.model_copy(update={"clip": clip}), params.with_model, params.long_prompts)
    found = describe(params, near)
    for notice in found.notices:
        say(notice)
    return found
