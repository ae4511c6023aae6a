"""The files of a pipeline's folder: JSON, and safetensors by their headers; no weights are loaded."""

import json
from pathlib import Path
from typing import Any

from tasks.errors import InputError, first_line

INDEX = "model_index.json"
LFS = b"version https://git-lfs"
"""What a pointer of Git LFS begins with."""

_MOST_HEADER = 100_000_000


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        InputError: there is no such file, or it holds none.
    """
    try:
        found = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise InputError(f"{path} is missing: download the model again") from error
    except (ValueError, OSError) as error:
        raise InputError(f"{path} is not JSON ({first_line(error)}): download it again") from error
    if not isinstance(found, dict):
        raise InputError(f"{path} holds no JSON object: download it again")
    return found


def damage(path: Path) -> str | None:
    """What is wrong with a safetensors file, by its header and its size; None if nothing."""
    try:
        safetensors_header(path)
    except InputError as error:
        return str(error)
    return None


def safetensors_header(path: Path) -> dict[str, Any]:
    """By tensor, its dtype, shape and place in a safetensors file; nothing of it is loaded.

    Raises:
        InputError: the file is cut short, or none.
    """
    if not path.exists():
        what = "is a link to a file that is not there" if path.is_symlink() else "is missing"
        raise InputError(f"{path} {what}: download it again")
    size = path.stat().st_size
    with path.open("rb") as stream:
        begin = stream.read(8)
        if (begin + stream.read(len(LFS) - 8)).startswith(LFS):
            raise InputError(f"{path} is a pointer of Git LFS, not the weights: fetch them with git lfs pull")
        length = int.from_bytes(begin, "little")
        if size < 8 or (length <= _MOST_HEADER and 8 + length > size):
            raise InputError(f"{path} is cut short ({size:,} bytes, not even its header is whole): download it again")
        stream.seek(8)
        words = stream.read(length) if length <= _MOST_HEADER else b""
    try:
        header = {name: entry for name, entry in json.loads(words).items() if name != "__metadata__"}
        needed = 8 + length + max((int(entry["data_offsets"][1]) for entry in header.values()), default=0)
    except (ValueError, TypeError, KeyError, AttributeError, IndexError) as error:
        raise InputError(f"{path} is no safetensors file, or its header is broken: download it again") from error
    if size < needed:
        raise InputError(f"{path} is cut short ({size:,} of {needed:,} bytes): download it again")
    if size > needed:
        raise InputError(f"{path} is longer than its header says ({size:,}, not {needed:,} bytes): download it again")
    return header


def weight_files(folder: Path, stem: str) -> list[Path]:
    """The safetensors files of a component, several where its weights are split.

    Args:
        stem: what they are called, "diffusion_pytorch_model" or "model".

    Raises:
        InputError: their index cannot be read.
    """
    whole, index = folder / f"{stem}.safetensors", folder / f"{stem}.safetensors.index.json"
    if not index.is_file():
        return [whole]
    named = read_json(index).get("weight_map")
    if not isinstance(named, dict) or not named:
        raise InputError(f"{index} names no files of weights: download it again")
    names = sorted({str(name) for name in named.values()})
    if outside := [name for name in names if Path(name).name != name]:
        raise InputError(f"{index} names {outside[0]!r}, which is no file beside it: download it again")
    return [folder / name for name in names]


def stem_of(part: str) -> str:
    """What the weights of a component are called."""
    return "model" if part.startswith("text_encoder") else "diffusion_pytorch_model"


def class_in(index: dict[str, Any], part: str) -> str | None:
    """The class of a component, as model_index.json has it; None where it has none."""
    entry = index.get(part)
    return entry[1] if isinstance(entry, list) and len(entry) == 2 and isinstance(entry[1], str) else None


def scheduler_in(index: dict[str, Any]) -> str:
    """The class of the scheduler; with its module where that is not diffusers, whose class it is not."""
    name = str(class_in(index, "scheduler"))
    return name if index["scheduler"][0] == "diffusers" else f"{index['scheduler'][0]}.{name}"
