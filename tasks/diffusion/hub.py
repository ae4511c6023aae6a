"""Models of the Hugging Face Hub by their names: weights come as safetensors only, and no code of theirs runs."""

import re
from functools import lru_cache
from pathlib import Path

import httpx
from diffusers import DiffusionPipeline
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from tasks.diffusion.files import assembly_in
from tasks.errors import InputError, first_line

_NAME = re.compile(r"(?P<model>[\w.-]+/[\w.-]+)(@(?P<revision>[\w./-]+))?", re.ASCII)
_ADDRESS = re.compile(
    r"(?:https?://(?:www\.)?(?:huggingface\.co|hf\.co)/|hf://|hf:)([\w.-]+/[\w.-]+)(?:/.*)?", re.ASCII
)
_CACHED = re.compile(r"models--(?P<owner>[\w.-]+?)--(?P<name>[\w.-]+)", re.ASCII)


def named_on_hub(model: str) -> bool:
    """Whether this reads like OWNER/NAME or OWNER/NAME@REVISION on the Hub, and not like a folder of this machine."""
    return _NAME.fullmatch(model) is not None and not Path(model.partition("/")[0]).exists()


def name_in(address: str) -> str | None:
    """OWNER/NAME of an address of the Hub, such as a browser shows; None where it is none."""
    found = _ADDRESS.fullmatch(address)
    return found[1] if found else None


@lru_cache(maxsize=16)
def hub_folder(model: str) -> Path:
    """The folder of a model of the Hub in the cache of `huggingface_hub` (HF_HOME), downloaded if it is not there.

    Asks the Hub once a process which revision a name stands for, unless HF_HUB_OFFLINE is set.

    Args:
        model: OWNER/NAME, or OWNER/NAME@REVISION for a branch, tag or commit.

    Raises:
        InputError: the Hub has no such model, does not give it, or cannot be reached.
    """
    found = _NAME.fullmatch(model)
    assert found is not None
    try:
        folder = DiffusionPipeline.download(
            found["model"],
            revision=found["revision"],
            use_safetensors=True,
            safety_checker=None,
            feature_extractor=None,
        )
    except (OSError, ValueError, AttributeError, ImportError, HfHubHTTPError, httpx.HTTPError) as error:
        raise InputError(_refusal(model, error.__cause__ or error)) from error
    return Path(folder)


def source_of(folder: str) -> str:
    """What a model is called: OWNER/NAME where its folder is of the Hub's cache, its pieces where it was put together,
    else the folder."""
    path = Path(folder)
    if (record := assembly_in(path)) is not None:
        return str(record["name"])
    cached = _CACHED.fullmatch(path.parent.parent.name) if path.parent.name == "snapshots" else None
    return f"{cached['owner']}/{cached['name']}" if cached else folder


def _refusal(model: str, error: BaseException) -> str:
    if isinstance(error, GatedRepoError):
        return f"{model} is given to those only who accepted its terms: do so on the Hub, and set HF_TOKEN"
    if isinstance(error, RepositoryNotFoundError | RevisionNotFoundError):
        return f"no folder {model} here, and the Hub has no model of that name or revision"
    if isinstance(error, EntryNotFoundError):
        return f"{model} holds no diffusers pipeline on the Hub (no model_index.json): name one that does"
    return f"no folder {model} here, and it cannot be had from the Hub: {first_line(error)}"
