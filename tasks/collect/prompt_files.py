"""Reading the prompt files that people of the field have: CSV, JSON lines, plain text, and folders of images."""

import csv
import io
import json
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal, cast, get_args

from tasks.errors import InputError

Kind = Literal["memorized", "null", "ordinary"]
TEXT = ("caption", "prompt", "text")
IMAGE = ("image", "file_name")
_SCANNED = ("detectors", "p_value")
"""Columns of the files that `engram scan --out` writes."""
_QUOTED = re.compile(r"''*[=+\-@\t\r＝＋－＠]")
"""A cell of such a file that has a quote before its text, so that no spreadsheet takes it for a formula."""
PICTURES = (".png", ".jpg", ".jpeg", ".webp")


@dataclass(frozen=True)
class Prompt:
    """One prompt as a file gives it."""

    text: str
    kind: Kind
    memorization: Literal["VM", "TM"] | None = None
    """Verbatim or template, where the file says so; its other words mean neither."""
    subset: str | None = None
    images: tuple[str, ...] = ()
    """Names, with or without suffix, of the prompt's training images."""
    numbers: tuple[str, ...] = ()
    """What `Index` says: numbers of images, in a folder that belongs to this very file."""


def read_prompts(path: Path, kind: Kind = "memorized") -> list[Prompt]:
    """The prompts of a file, each text once, in the file's order.

    Args:
        path: `.csv` or `.tsv` with a header (separated by comma, semicolon or tab), `.jsonl`, or `.txt` with a prompt
            a line. The text is called caption, prompt or text; `type` or `memorization` says VM or TM; `subset` and
            `kind` are read where they are.
        kind: what prompts are taken for that do not say.

    Raises:
        InputError: the file cannot be read, or a record has no text.
    """
    readers = {".csv": _csv, ".tsv": _csv, ".jsonl": _json_lines, ".json": _json_lines, ".txt": _lines}
    if path.suffix.lower() not in readers:
        raise InputError(
            f"{path}: prompts are read from .csv, .tsv, .jsonl or .txt; a .parquet file holds those of all kinds"
        )
    try:
        content = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 (byte {error.start}): save it as UTF-8") from error
    found: dict[str, Prompt] = {}
    for line, record in readers[path.suffix.lower()](path, content):
        prompt = _prompt(path, line, record, kind)
        if prompt.text in found:
            known = found[prompt.text]
            images = tuple(dict.fromkeys((*known.images, *prompt.images)))
            numbers = tuple(dict.fromkeys((*known.numbers, *prompt.numbers)))
            prompt = replace(known, images=images, numbers=numbers)
        found[prompt.text] = prompt
    if not found:
        raise InputError(f"{path} holds no prompts")
    return list(found.values())


def find_images(prompts: Sequence[Prompt], folder: Path, others: Sequence[Prompt] = ()) -> dict[str, list[Path]]:
    """Training images in a folder, by the text of their prompt.

    Files are matched by the path below the folder or the name that the prompt file gives; where none is called so, by
    its number (`00012.png` is number 12), else by the folder's `metadata.jsonl` with its `file_name` and `text`.
    Lines on standard error say how many pictures belong to no prompt and are left out, and how many prompts have
    none.

    Args:
        others: prompts of further files. Numbers of theirs count rows of another file, so only names and
            `metadata.jsonl` find pictures of them.

    Raises:
        InputError: there is no such folder, no picture in it, none that belongs to a prompt, or several in different
            folders that go by the name of one.
    """
    if not folder.is_dir():
        raise InputError(f"no folder of images at {folder}")
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in PICTURES)
    if not files:
        raise InputError(f"{folder} holds no pictures ({', '.join(PICTURES)})")
    by_path: dict[str, list[Path]] = {}
    by_name: dict[str, list[Path]] = {}
    for path in files:
        below = path.relative_to(folder)
        for whole in (below.as_posix(), below.with_suffix("").as_posix()):
            by_path.setdefault(whole, []).append(path)
        for name in {path.name, _plain(path.stem)}:
            by_name.setdefault(name, []).append(path)
    told = folder / "metadata.jsonl"
    lines = {prompt.text: prompt.images for prompt in read_prompts(told)} if told.is_file() else {}
    none: tuple[str, ...] = ()
    wanted = {prompt.text: (prompt.images, none) for prompt in others}
    wanted |= {prompt.text: (prompt.images, prompt.numbers) for prompt in prompts}
    found = {}
    for text, (images, numbers) in wanted.items():
        for names in (images, numbers, lines.get(text, ())):
            paths = dict.fromkeys(path for name in names for path in _files(name, by_path, by_name))
            if paths:
                found[text] = list(paths)
                break
    if not found:
        raise InputError(
            f"no picture in {folder} belongs to a prompt: name files as the prompt file's image or index column does, "
            "or add a metadata.jsonl with file_name and text"
        )
    if others and not any(prompt.text in found for prompt in others):
        _say(f"no other prompt has a picture in {folder}: attacks will have no control, and nothing can be fine-tuned")
    if bare := [prompt.text for prompt in prompts if prompt.text not in found]:
        of = f"{len(bare)} of {len(prompts)} prompts have no picture in {folder}"
        _say(f"{of}, so copies of theirs are not found, such as of {bare[0][:60]!r}")
    used = {path for paths in found.values() for path in paths}
    if unused := [path for path in files if path not in used]:
        of = f"{len(unused)} of {len(files)} pictures in {folder}"
        _say(f"{of} belong to no prompt and are left out, such as {unused[0].name}")
    return found


@cache
def _say(line: str) -> None:
    """Once a process: every stage of an audit reads the files anew."""
    # Names of files may hold what steers a terminal.
    print("".join(one if one.isprintable() else repr(one)[1:-1] for one in line), file=sys.stderr)


def _files(image: str, by_path: Mapping[str, list[Path]], by_name: Mapping[str, list[Path]]) -> list[Path]:
    """The files that go by a name: what lies there, below folders that the name may have before; a name without a
    folder also what is called so anywhere, or has that number."""
    parts = Path(image).parts
    for first in range(len(parts)):
        if found := by_path.get(Path(*parts[first:]).as_posix()):
            return found
    if len(parts) != 1:
        return []
    found = by_name.get(image) or by_name.get(_plain(Path(image).stem if Path(image).suffix else image)) or []
    if len({path.parent for path in found}) > 1:
        raise InputError(f"which picture is {image!r}, {found[0]} or {found[1]}? Name it by its path below the folder")
    return found


def _plain(stem: str) -> str:
    return str(int(stem)) if stem.isascii() and stem.isdigit() else stem


def _prompt(path: Path, line: int, record: Mapping[str, str], kind: Kind) -> Prompt:
    text = next((record[name] for name in TEXT if record.get(name, "").strip()), "").strip()
    if not text:
        raise InputError(f"{path}, line {line}: no {', '.join(TEXT[:-1])} or {TEXT[-1]}")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(f"{path}, line {line}: half a character (a lone surrogate) in {text[:60]!a}") from error
    own = record.get("kind") or kind
    if own not in get_args(Kind):
        raise InputError(f"{path}, line {line}: kind {own!r} is none of {', '.join(get_args(Kind))}")
    named = next((record[name] for name in IMAGE if record.get(name)), "")
    memorization = (record.get("memorization") or record.get("type") or "").strip().upper()
    return Prompt(
        text=text,
        kind=cast(Kind, own),
        memorization=cast(Literal["VM", "TM"], memorization) if memorization in ("VM", "TM") else None,
        subset=record.get("subset") or None,
        images=(named,) if named else (),
        numbers=(record["index"],) if record.get("index") else (),
    )


def _csv(path: Path, content: str) -> Iterator[tuple[int, dict[str, str]]]:
    header = content.partition("\n")[0]
    separator = max(",;\t", key=header.count)
    reader = csv.DictReader(io.StringIO(content, newline=""), delimiter=separator)
    try:
        yield from _csv_rows(path, reader, separator)
    except csv.Error as error:
        raise InputError(f"{path}, line {reader.line_num}: {error}; is a quote missing?") from error


def _csv_rows(path: Path, reader: "csv.DictReader[str]", separator: str) -> Iterator[tuple[int, dict[str, str]]]:
    names = [(name or "").strip().lower() for name in reader.fieldnames or []]
    if not set(names) & set(TEXT):
        found = ", ".join(name for name in names if name) or "none"
        raise InputError(f"{path} has no column called {', '.join(TEXT[:-1])} or {TEXT[-1]}; it has: {found}")
    for row in reader:
        if row.get(None):  # type: ignore[call-overload]
            raise InputError(
                f"{path}, line {reader.line_num}: more cells than columns; quote cells that hold {separator!r}"
            )
        cells = {name: row[field] or "" for name, field in zip(names, reader.fieldnames or [], strict=True)}
        if set(_SCANNED) <= set(names):
            cells = {name: cell[1:] if _QUOTED.match(cell) else cell for name, cell in cells.items()}
        yield reader.line_num, cells


def _json_lines(path: Path, content: str) -> Iterator[tuple[int, dict[str, str]]]:
    for number, line in enumerate(content.split("\n"), 1):
        if line.strip():
            try:
                record: Any = json.loads(line)
            except ValueError as error:
                raise InputError(f"{path}, line {number}: not JSON: {error}") from error
            if not isinstance(record, dict):
                raise InputError(f"{path}, line {number}: not an object with a caption")
            yield number, {str(name).lower(): "" if value is None else str(value) for name, value in record.items()}


def _lines(path: Path, content: str) -> Iterator[tuple[int, dict[str, str]]]:
    for number, line in enumerate(content.splitlines(), 1):
        if line.strip():
            yield number, {"text": line}
