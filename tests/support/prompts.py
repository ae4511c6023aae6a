"""Prompts from files, and into a store, in one call."""

from pathlib import Path

from storage import Store
from tasks.collect.task import import_inputs, read_inputs
from tasks.diffusion.tokens import LongPrompts
from tasks.errors import refuse
from tasks.prompt_files import Kind, PromptEntry, read_file


def read_prompts(path: Path, kind: Kind = "memorized") -> list[PromptEntry]:
    """The prompts of a file that has nothing wrong with it."""
    found = read_file(path, kind)
    refuse(found.problems)
    return found.prompts


def import_prompts(
    store: Store,
    prompts: Path,
    nulls: Path | None = None,
    ordinary: Path | None = None,
    images: Path | None = None,
    folder: Path | None = None,
    long_prompts: LongPrompts = "truncate",
) -> str:
    """The name of the set that the files make in the store; see `read_inputs`."""
    return import_inputs(store, read_inputs(prompts, nulls, ordinary, images, folder, long_prompts))
