"""The files that an audit is given: its prompts and images, and the model that scores alignment."""

from pathlib import Path

from flows.params import AuditParams, beside
from tasks.collect import task as collecting
from tasks.diffusion.tokens import LongPrompts
from tasks.errors import InputError
from tasks.scorers import clip as clip_score
from tasks.scorers.clip import ClipParams


def inputs_of(
    params: AuditParams, folder: Path, long_prompts: LongPrompts, tokenized: bool = True
) -> collecting.Inputs:
    """The prompts and images of an audit's files, with what is wrong with them; nothing is in a store yet.

    Args:
        folder: the model's.
        tokenized: whether the model's tokenizers look at them; not where it is known that they cannot be used.

    Raises:
        InputError: no prompts are named, and the model has none of its own.
    """
    prompts = params.prompts or beside(folder, "prompts")
    if prompts is None:
        raise InputError(
            f"which prompts? {folder} names none of its own: give a file of memorized prompts with --prompts"
        )
    images, given_nulls = params.images, params.nulls
    if params.prompts is None:
        images = images or beside(folder, "images")
    elif Path(prompts).expanduser().is_dir():  # a training set has images, and nobody writes null prompts for one
        images, given_nulls = images or prompts, given_nulls or str(collecting.NEUTRAL)
    nulls, ordinary, images_at = (Path(path) if path else None for path in (given_nulls, params.ordinary, images))
    return collecting.read_inputs(
        Path(prompts), nulls, ordinary, images_at, folder if tokenized else None, long_prompts
    )


def clip_of(params: AuditParams, folder: Path) -> ClipParams:
    """The model that scores alignment: the one named, or else the model's own.

    Raises:
        InputError: none is named, or none such is there.
    """
    if params.clip is not None:
        return clip_score.clip_named(params.clip)
    own = beside(folder, "clip", clip_score.LOCAL)
    if own is None:
        raise InputError(f"{folder} names no CLIP model: give the folder of one with --clip FOLDER")
    return ClipParams(model=own)
