"""Training images: which file belongs to which prompt, and whether it can be used."""

import io
import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import IO

from PIL import Image, ImageOps, features

from tasks.errors import InputError, first_line
from tasks.prompt_files import PromptEntry, endless, few, read_file, shortened

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "JPEG2000", *(["AVIF"] if features.check("avif") else []))
"""Formats that are read, whatever a file is called."""
MOST_PIXELS = 64_000_000
"""Of an image. A file of a few kilobytes can unfold into gigabytes; photographs have up to some 60 million pixels."""
MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "HSV")
"""Kinds of pixels that have a look of their own in 8 bits; 16-bit grey, for one, would turn white."""
UNREAD = {
    ".avif": "AVIF",
    ".heic": "HEIC",
    ".heif": "HEIF",
    ".hif": "HEIF",
    ".jxl": "JPEG XL",
    ".svg": "SVG",
    ".psd": "Photoshop",
    ".pdf": "PDF",
    ".eps": "EPS",
    ".exr": "OpenEXR",
    ".tga": "TGA",
    ".ico": "ICO",
    ".dng": "raw",
    ".cr2": "raw",
    ".cr3": "raw",
    ".nef": "raw",
    ".arw": "raw",
    ".npy": "NumPy",
}
"""By suffix, what else people keep images in, and nothing here reads."""
_INSIDE = (
    (b"\xff\x0a", 0, "a JPEG XL image"),
    (b"JXL ", 4, "a JPEG XL image"),
    (b"ftyphei", 4, "a HEIC image"),
    (b"ftyphev", 4, "a HEIC image"),
    (b"ftypmif1", 4, "a HEIF image"),
    (b"ftypavi", 4, "an AVIF image"),
    (b"8BPS", 0, "a Photoshop file"),
    (b"%PDF", 0, "a PDF file"),
    (b"PK\x03\x04", 0, "a ZIP archive"),
    (b"version https://git-lfs", 0, "a pointer of Git LFS, not the image: fetch it with `git lfs pull`, or"),
)


@cache
def suffixes() -> frozenset[str]:
    """Suffixes of files that are read as images, in lower case."""
    Image.init()
    return frozenset(suffix for suffix, name in Image.registered_extensions().items() if name in FORMATS)


@dataclass(frozen=True)
class Found:
    """Which images belong to which prompts, and what is wrong with that."""

    files: dict[str, list[Path]]
    """By the text of the prompt."""
    problems: list[str]
    notices: list[str]
    bare: list[PromptEntry]
    """Prompts that have none."""


@dataclass(frozen=True)
class Header:
    """What an image says of itself."""

    width: int
    """Pixels, the right way up where the whole image was read."""
    height: int
    frames: int
    """More than one where it is animated, or has several pages."""


def header_of(name: str, data: IO[bytes], whole: bool = False) -> Header:
    """Reads the beginning of an image, or with `whole` all of its pixels.

    Args:
        name: what errors call it.

    Raises:
        InputError: it is no image that is read here, is broken, has more than `MOST_PIXELS`, or pixels of more than 8
            bits a channel.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of Pillow's own limit, which lies above ours
            with Image.open(data, formats=FORMATS) as image:
                size = image.width * image.height
                if size > MOST_PIXELS:
                    raise InputError(_too_large(name, f"{image.width} x {image.height} pixels"))
                if image.mode not in MODES:
                    raise InputError(f"{name} has pixels of kind {image.mode}: save it with 8 bits a channel")
                # The further frames of a JPEG are previews and depths of the same image.
                frames = 1 if image.format == "MPO" else int(getattr(image, "n_frames", 1))
                if whole:
                    image.load()
                    return Header(*ImageOps.exif_transpose(image).size, frames)
                return Header(image.width, image.height, frames)
    except InputError:
        raise
    except Image.DecompressionBombError as error:
        raise InputError(_too_large(name, "too many pixels")) from error
    except Exception as error:  # decoders raise whatever a broken file makes them
        raise InputError(f"{name} cannot be read as an image ({_why(data, error)}): replace it or remove it") from error


def find_images(
    prompts: Sequence[PromptEntry], folder: Path, others: Sequence[PromptEntry] = (), listed: bool = True
) -> Found:
    """Training images in a folder, by the text of their prompt.

    Files are matched by the path below the folder or the name that the prompt file gives; where none is called so, by
    its number (`00012.png` is number 12), else by the folder's `metadata.jsonl` with its `file_name` and `text`. A
    name that leads to no file is a problem; a number that leads to none is not, since published files number rows of
    a data set of which hardly anybody has all images. Files and folders whose names begin with a dot are left out.

    Args:
        others: prompts of further files. Numbers of theirs count rows of another file, so only names and
            `metadata.jsonl` find images of them.
        listed: whether `metadata.jsonl` is read; not where the prompts were read from it.
    """
    if not folder.is_dir():
        what = "is no folder: give the folder that the images lie in" if folder.exists() else "there is no such folder"
        return Found({}, [f"{folder}: {what}"], [], [*prompts, *others])
    every = sorted(path for path in folder.rglob("*") if not _hidden(path.relative_to(folder)))
    files = [path for path in every if path.suffix.lower() in suffixes()]
    unread = [path for path in every if path.suffix.lower() in UNREAD and path.suffix.lower() not in suffixes()]
    if not files:
        others_there = f"; {len(unread)} are of kinds that are not read, such as {unread[0].name}" if unread else ""
        kinds = ", ".join(sorted(suffixes()))
        problem = f"{folder} holds no images that are read here ({kinds}){others_there}: save them as PNG or JPEG"
        return Found({}, [problem], [], [*prompts, *others])
    names, unread_names = _Names(folder, files), _Names(folder, unread)
    problems: list[str] = []
    listing = folder / "metadata.jsonl"
    lines: dict[str, tuple[str, ...]] = {}
    if listed and listing.is_file():
        metadata = read_file(listing)
        problems += metadata.problems
        lines = {prompt.text: prompt.images for prompt in metadata.prompts}
    found: dict[str, list[Path]] = {}
    missing: list[str] = []
    unusable: list[str] = []
    none: tuple[str, ...] = ()
    wanted = {prompt.text: (prompt, none) for prompt in others}
    wanted |= {prompt.text: (prompt, prompt.numbers) for prompt in prompts}
    for text, (prompt, numbers) in wanted.items():
        for group in (prompt.images, numbers, lines.get(text, ())):
            try:
                by_name = {name: names.files(name) for name in group}
            except InputError as error:
                problems.append(f"{prompt.place}: {error}")
                break
            if any(by_name.values()):
                found[text] = list(dict.fromkeys(path for paths in by_name.values() for path in paths))
                missing += [f"{prompt.place}: {_lost(name, folder)}" for name, paths in by_name.items() if not paths]
                break
        else:
            named = [name for name in (*prompt.images, *lines.get(text, ())) if is_name(name)]
            other = [path for name in (*named, *numbers) for path in unread_names.files(name, several=True)]
            if other:
                kind = UNREAD[other[0].suffix.lower()]
                unusable.append(f"{prompt.place}: {other[0]} is {kind}, which is not read: save it as PNG or JPEG")
            else:
                missing += [f"{prompt.place}: {_lost(name, folder)}" for name in named]
    where = f"in {folder}"
    problems += few(unusable, where)
    if found:
        problems += few(missing, where)
    elif prompts and not problems:  # else whatever is wrong is wrong with the prompts
        asked_for = next((f", such as {p.images[0]!r} of {p.place}" for p in prompts if p.images), "")
        problems.append(
            f"no image in {folder} belongs to a prompt{asked_for}: name files as the prompt file's image or index "
            "column does, or add a metadata.jsonl with file_name and text"
        )
    return Found(
        found,
        problems,
        _notices(folder, files, found, prompts, others) if found else [],
        [prompt for prompt, _ in wanted.values() if prompt.text not in found],
    )


class _Names:
    """Files below a folder, by everything that they may be called."""

    def __init__(self, folder: Path, files: Sequence[Path]) -> None:
        self.by_path: dict[str, list[Path]] = {}
        self.by_name: dict[str, list[Path]] = {}
        for path in files:
            below = path.relative_to(folder)
            for whole in (below.as_posix(), below.with_suffix("").as_posix()):
                self.by_path.setdefault(whole, []).append(path)
            for name in {path.name, _plain(path.stem)}:
                self.by_name.setdefault(name, []).append(path)

    def files(self, image: str, several: bool = False) -> list[Path]:
        """The files that go by a name: what lies there, below folders that the name may have before; a name without a
        folder also what is called so anywhere, or has that number.

        Args:
            several: whether files in different folders may go by it.
        """
        parts = Path(image).parts
        for first in range(len(parts)):
            if found := self.by_path.get(Path(*parts[first:]).as_posix()):
                return found
        if len(parts) != 1:
            return []
        stem = Path(image).stem if Path(image).suffix else image
        found = self.by_name.get(image) or self.by_name.get(_plain(stem)) or []
        if len({path.parent for path in found}) > 1 and not several:
            raise InputError(
                f"which image is {image!r}, {found[0]} or {found[1]}? Name it by its path below the folder"
            )
        return found


def _notices(
    folder: Path,
    files: Sequence[Path],
    found: Mapping[str, list[Path]],
    prompts: Sequence[PromptEntry],
    others: Sequence[PromptEntry],
) -> list[str]:
    """What a person may not have meant."""
    notices = []
    if others and not any(prompt.text in found for prompt in others):
        notices.append(
            f"no other prompt has an image in {folder}: attacks will have no control, and nothing can be fine-tuned"
        )
    if bare := [prompt.place for prompt in prompts if prompt.text not in found]:
        of = f"{len(bare)} of {len(prompts)} prompts have no image in {folder}"
        notices.append(f"{of}, so copies of theirs are not found: {shortened(bare)}")
    used = {path for paths in found.values() for path in paths}
    if unused := [path.name for path in files if path not in used]:
        of = f"{len(unused)} of {len(files)} images in {folder}"
        notices.append(f"{of} belong to no prompt and are left out: {shortened(unused)}")
    return notices


def _hidden(below: Path) -> bool:
    """What systems and tools put beside images, such as `._1.jpg`."""
    return any(part.startswith(".") or part == "__MACOSX" for part in below.parts)


def _plain(stem: str) -> str:
    return str(int(stem)) if stem.isascii() and stem.isdigit() else stem


def is_name(name: str) -> bool:
    """Whether it names a file, and is neither an address nor a number of some data set."""
    return "://" not in name and not name.replace(".", "", 1).isdigit()


def _lost(name: str, folder: Path) -> str:
    there = folder / name
    if os.path.isfile(there):  # of any name, however long or odd
        return f"{there} is no kind of image that is read here: save it as PNG or JPEG"
    return f"there is no image {name!r} in {folder}: add it, or leave its name out"


def _too_large(name: str, size: str) -> str:
    return f"{name} has {size}, and images may have {MOST_PIXELS // 1_000_000} million at most: scale it down"


def _why(data: IO[bytes], error: Exception) -> str:
    """Why a file cannot be read, by how it begins."""
    try:
        data.seek(0)
        begin = data.read(64)
    except (OSError, ValueError):
        begin = b"?"
    if not begin:
        return "it is empty"
    if begin.lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml", b"<svg")):
        return "it is a web page or SVG, as a failed download leaves"
    for magic, at, what in _INSIDE:
        if begin[at:].startswith(magic):
            return f"it is {what}, which is not read here"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if type(error).__name__ == "UnidentifiedImageError":
        return "it is of no kind that is read here"
    return first_line(error)


def read_header(path: Path) -> Header:
    """The header of a file, see `header_of`."""
    if endless(path):
        raise InputError(f"{path} cannot be read as an image (it is a pipe or device): replace it or remove it")
    try:
        with path.open("rb") as stream:
            return header_of(str(path), stream)
    except OSError as error:
        raise InputError(f"{path} cannot be read as an image ({error.strerror}): replace it or remove it") from error


def read_whole(path: Path) -> tuple[bytes, Header]:
    """A file's content, and what its pixels say, see `header_of`."""
    read_header(path)  # before all of it is in memory
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read as an image ({error.strerror}): replace it or remove it") from error
    return data, header_of(str(path), io.BytesIO(data), whole=True)
