"""A set of prompts by itself: what an audit would refuse, what the set holds, and its rows in a store before any audit.

It is read as `engram audit` reads it with the same options, so what is said here holds there.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from flows.check import of_files, of_store
from flows.inputs import inputs_of
from flows.params import AuditParams
from storage import Store
from tasks.collect import task as collecting
from tasks.collect.task import Described, DuplicatesParams, Inputs
from tasks.diffusion.tokens import LongPrompts
from tasks.errors import gathered, noting, refuse
from tasks.progress import stage
from tasks.scorers.clip import ClipParams, check_clip, clip_named
from tasks.scorers.sscd import check_sscd


@dataclass(frozen=True)
class SetParams:
    """Which prompts, and as which model reads them."""

    files: AuditParams
    """Of which files, CLIP model, store, and model with its pieces count."""
    with_model: bool = False
    """Whether the model's tokenizers look at the prompts."""
    long_prompts: LongPrompts = "truncate"


@dataclass(frozen=True)
class Imported:
    """A set that lies in a store."""

    prompt_set: str
    prompts: int
    images: int
    wrote: dict[str, int]
    """Rows that were not there before, by table; empty where all were."""


def describe(params: SetParams, near: DuplicatesParams | None) -> Described:
    """What a set of prompts holds, and what is wrong with it.

    Args:
        near: what counts as nearly the same; without it neither images nor captions are embedded.

    Raises:
        InputError: files are not there, or the model, SSCD or CLIP cannot be used; all of it at once.
    """
    clip: list[ClipParams] = []

    def named() -> None:
        if near is not None and params.files.clip is not None:
            clip.append(clip_named(params.files.clip))
            check_clip(clip[0])

    with stage("prompts", lambda: "read", announced=False):
        problems = gathered(named, None if near is None else partial(check_sscd, near.sscd))
        inputs, folder = _inputs(params, problems)
        return collecting.described(inputs, folder, near, *clip)


def import_prompts(params: SetParams) -> Imported:
    """Writes a set to the tables `prompts` and `images` as an audit would, which then finds it there.

    Raises:
        InputError: an audit would refuse the set; the store is then as it was.
    """
    with stage("prompts", lambda: "read", announced=False):
        inputs, folder = _inputs(params, of_store(params.files.store))
        found = collecting.described(inputs, folder, None)
        refuse(found.problems)
        store, before = Store.open(params.files.store), Store.written.copy()
        name = collecting.import_inputs(store, inputs)
    return Imported(name, len(found.prompts), len(found.files), dict(sorted((Store.written - before).items())))


def rows_of(found: Described) -> list[dict[str, Any]]:
    """The prompts of a set for people and programs, in the order that an audit takes them in."""
    return [
        {
            "kind": one.kind,
            "prompt_id": one.prompt_id,
            "text": one.text,
            "type": one.memorization,
            "subset": one.subset,
            "images": [name for image in dict.fromkeys(one.image_ids) for name in found.files[image][:1]],
            "exposures": one.exposures,
            "tokens": one.tokens,
            "cluster": one.cluster,
            "place": one.place,
        }
        for one in found.prompts
    ]


def _inputs(params: SetParams, problems: Sequence[str]) -> tuple[Inputs, Path | None]:
    """What the files hold, and the folder of the model; refuses what leaves nothing to be read.

    Args:
        problems: what is wrong already.
    """
    folder, wrong = None, [*problems, *of_files(params.files)]
    with noting(wrong):
        folder = params.files.folder if params.with_model else None
    refuse(wrong)
    return inputs_of(params.files, folder or Path(), params.long_prompts, params.with_model), folder
