"""The files of a pipeline's folder: JSON, and safetensors by their headers; no weights are loaded."""

import json
import os
import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tasks.errors import InputError, first_line

INDEX = "model_index.json"
ASSEMBLED = "assembled.json"
"""In the folder of a model that was put together: what it goes by, what it is called, and the digests of its files."""
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


def variant_in(folder: Path, stem: str) -> str | None:
    """The variant that the weights of a component are, such as "fp16", if they lie there under no plain name.

    Raises:
        InputError: there are several, and nothing says which of them the model is.
    """
    if any((folder / f"{stem}.safetensors{end}").is_symlink() for end in ("", ".index.json")):
        return None
    if any((folder / f"{stem}.safetensors{end}").exists() for end in ("", ".index.json")) or not folder.is_dir():
        return None
    names = re.compile(rf"{re.escape(stem)}\.(\w+)(-\d+-of-\d+)?\.safetensors")
    found = sorted({match[1] for path in folder.iterdir() if (match := names.fullmatch(path.name))})
    if len(found) > 1:
        raise InputError(
            f"{folder} has its weights as variants alone ({', '.join(found)}): move those away that are not to be "
            "audited"
        )
    return found[0] if found else None


def conversion_of(path: Path) -> str:
    """The command that makes a safetensors file of a pickle, of which it reads nothing but tensors."""
    free = (path.with_suffix(f"{more}.safetensors") for more in ("", *(f".{number}" for number in range(1, 1000))))
    made = next(one for one in free if not one.exists())
    code = (
        "import torch; from safetensors.torch import save_file; "
        f"d = torch.load({str(path)!r}, 'cpu', weights_only=True); d = d.get('state_dict', d); "
        f"save_file({{k: v.contiguous().clone() for k, v in d.items() if torch.is_tensor(v)}}, {str(made)!r})"
    )
    return f"python -c {shlex.quote(code)}"


def files_below(folder: Path, suffixes: tuple[str, ...]) -> list[Path]:
    """The files of these suffixes in a folder and below it, links to folders followed, in order of name."""
    below = (Path(place) / name for place, _, names in os.walk(folder, followlinks=True) for name in names)
    return sorted(path for path in below if path.suffix in suffixes)


def write_whole(path: Path, content: Mapping[str, Any]) -> None:
    """Writes a JSON object in one step, unless it stands there already."""
    text = json.dumps(content, indent=1) + "\n"
    if not path.is_file() or path.read_text("utf-8") != text:
        aside = path.with_name(f".{path.name}.new")
        aside.write_text(text, "utf-8")
        os.replace(aside, path)


def assembly_in(folder: Path) -> dict[str, Any] | None:
    """What a folder says of how it was put together; None unless it lies in this user's own cache.

    Anybody could write into another folder that it is some model that was audited before.
    """
    path, above = folder / ASSEMBLED, folder.parent
    if above.name != f"models-{os.getuid()}" or not path.is_file():
        return None
    status = above.lstat()
    if status.st_uid != os.getuid() or status.st_mode & 0o077:
        return None
    found = read_json(path)
    named = all(isinstance(found.get(name), str) for name in ("model_id", "name"))
    return found if named and isinstance(found.get("files"), dict) else None


def weight_files(folder: Path, stem: str) -> list[Path]:
    """The safetensors files of a component, several where its weights are split; see `variant_in`.

    Args:
        stem: what they are called, "diffusion_pytorch_model" or "model".

    Raises:
        InputError: their index cannot be read, or they are variants of which none is named.
    """
    variant = variant_in(folder, stem)
    dotted = f".{variant}" if variant else ""
    whole, index = folder / f"{stem}{dotted}.safetensors", folder / f"{stem}.safetensors.index{dotted}.json"
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
