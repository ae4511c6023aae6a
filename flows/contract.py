"""What the check asks of those who know models and prompt files: one function each."""

from pathlib import Path
from typing import NamedTuple, get_args

from tasks.collect import task as collecting
from tasks.errors import noting
from tasks.subject import Asked, Kind, in_turns

PIPELINES = ("StableDiffusionPipeline", "StableDiffusionXLPipeline")


class Inputs(NamedTuple):
    """Prompts as their files give them; nothing is in the store yet."""

    prompts: dict[Kind, list[Asked]]
    """By kind, the first of each subset first; empty where something is wrong."""
    problems: list[str]
    """What is wrong, a sentence each, with file and line."""
    notices: list[str]
    """What a person should know all the same."""


def inputs_of(prompts: Path, nulls: Path | None, ordinary: Path | None, images: Path | None, folder: Path) -> Inputs:
    """The prompts of an audit's files, with what is wrong with files and pictures; `folder` is the model's."""
    problems: list[str] = []
    by_kind: dict[Kind, list[Asked]] = {}
    with noting(problems):
        rows, _ = collecting.read_set(prompts, nulls, ordinary, images)
        by_kind = {kind: in_turns([row for row in rows if row["kind"] == kind]) for kind in get_args(Kind)}
    return Inputs(by_kind, problems, [])
