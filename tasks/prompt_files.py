"""Reading the prompt files that people of the field have: CSV, JSON lines, JSON arrays and plain text.

Nothing is refused at the first fault: whoever mends a file wants to know all that is wrong with it.
"""

import csv
import gzip
import io
import json
import re
import unicodedata
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, cast, get_args

from tasks.errors import InputError

Kind = Literal["memorized", "null", "ordinary"]
TEXT = ("caption", "prompt", "text")
IMAGE = ("image", "file_name")
EXPOSURES = "exposures"
_SCANNED = ("detectors", "p_value")
"""Columns of the files that `engram scan --out` writes."""
_QUOTED = re.compile(r"''*[=+\-@\t\r＝＋－＠]")
"""A cell of such a file that has a quote before its text, so that no spreadsheet takes it for a formula."""
_WHOLE = re.compile(r"[0-9]{1,9}(\.0*)?")
"""A whole number; pandas writes it as 10.0 where other cells of the column are empty."""
URL = ("url", "image_url", "img_url")
"""Columns with addresses of images, which nothing here fetches."""
FILES = ".csv, .tsv, .json, .jsonl, .txt (each also .gz) or .parquet"
SHOWN = 20
"""Faults of one kind in one file that are shown; of more it is said how many."""
MOST_BYTES = 2**30
"""Of a file of prompts, after decompression."""


@dataclass(frozen=True)
class PromptEntry:
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
    exposures: int | None = None
    """How often training shows the text in an epoch, with all of its images; None if nobody says."""
    source: str = field(default="", compare=False)
    """File and line where it first stands, such as `memorized.csv:17`."""

    @property
    def place(self) -> str:
        """Where it stands; a prompt that no file gave is named by its text."""
        return self.source or repr(self.text[:60])


@dataclass(frozen=True)
class Read:
    """What a file of prompts holds, and what is wrong with it."""

    prompts: list[PromptEntry]
    """Each text once, in the file's order."""
    problems: list[str]
    """For which the file must be refused, each with its line."""
    notices: list[str]
    """What a person should know, but need not mend."""
    urls: str = ""
    """The column with addresses of images, where there is one."""
    again: list[str] = field(default_factory=list)
    """Where texts stand that stood before, each with its line."""


Record = tuple[str, Mapping[str, Any]]
"""Where a prompt stands, and what is said of it, by names in lower case."""


def read_file(path: Path, kind: Kind = "memorized") -> Read:
    """The prompts of a file, with everything that is wrong with it.

    Args:
        path: `.csv` or `.tsv` with a header (separated by comma, semicolon, tab or bar, or as Excel's `sep=` line
            says), `.jsonl`, `.json` with an array or with an object a line, or `.txt` with a prompt a line; UTF-8, or
            UTF-16 or UTF-32 with a byte order mark; each also compressed, with `.gz` behind. The text is called
            caption, prompt or text; `type` or `memorization` says VM or TM; `subset`, `kind` and `exposures` are read
            where they are.
        kind: what prompts are taken for that do not say.
    """
    problems: list[str] = []
    notices: list[str] = []
    suffixes = [suffix.lower() for suffix in path.suffixes[-2:]]
    suffix = (suffixes[:-1] or [""])[-1] if suffixes[-1:] == [".gz"] else (suffixes or [""])[-1]
    readers = {
        ".csv": _csv,
        ".tsv": _csv,
        ".jsonl": _json_lines,
        ".ndjson": _json_lines,
        ".json": _json,
        ".txt": _lines,
    }
    content = _content(path, suffix in readers, problems)
    if content is None:
        return Read([], few(problems, f"in {path}"), [])
    return prompts_of(path, readers[suffix](path, content, problems, notices), kind, problems, notices)


def prompts_of(path: Path, records: Iterable[Record], kind: Kind, problems: list[str], notices: list[str]) -> Read:
    """The prompts of records: of a file's lines, or of the rows of a table.

    Records of one text are one prompt. Its exposures are their sum: each is a line of the training set, so an epoch
    shows the text as often as all of them together.

    Args:
        problems, notices: what was and is found to be wrong meanwhile is added.
    """
    found: dict[str, PromptEntry] = {}
    differing: list[str] = []
    again: list[str] = []
    partly: list[str] = []
    urls = ""
    for source, record in records:
        prompt = _prompt(source, record, kind, problems)
        urls = urls or next((name for name in URL if record.get(name)), "")
        if prompt is None:
            continue
        if (known := found.get(prompt.text)) is not None:
            again.append(source)
            if known.kind != prompt.kind:
                problems.append(two_kinds(known, prompt))
            if (known.memorization, known.subset) != (prompt.memorization, prompt.subset):
                differing.append(source)
            images = tuple(dict.fromkeys((*known.images, *prompt.images)))
            numbers = tuple(dict.fromkeys((*known.numbers, *prompt.numbers)))
            if (known.exposures is None) != (prompt.exposures is None):
                partly.append(source)
            exposures = added(known.exposures, prompt.exposures)
            prompt = replace(known, images=images, numbers=numbers, exposures=exposures)
        found[prompt.text] = prompt
    if differing:
        notices.append(
            f"{len(differing)} prompts stand again with another type or subset, of which the first counts: "
            f"{shortened(differing)}"
        )
    if partly:
        notices.append(
            f"{len(partly)} prompts stand again, once with {EXPOSURES} and once without, which are then unknown: "
            f"{shortened(partly)}"
        )
    if not found and not problems:
        problems.append(f"{path} holds no prompts")
    return Read(list(found.values()), few(problems, f"in {path}"), notices, urls, again)


def exposures_of(value: Any) -> int | None:
    """The exposures that a cell says; None where it is empty.

    Raises:
        ValueError: it is no whole number, or a very large one.
    """
    text = (_cell(value) or "").strip()
    if text and not _WHOLE.fullmatch(text):
        raise ValueError(f"{EXPOSURES} {text[:60]!r} is no whole number below a billion")
    return int(float(text)) if text else None


def added(one: int | None, other: int | None) -> int | None:
    """The exposures of a text that stands twice; unknown where either is."""
    return None if one is None or other is None else one + other


def expanded(path: Path) -> Path:
    """A path whose `~` is somebody's home folder.

    Raises:
        InputError: there is no such person.
    """
    try:
        return path.expanduser()
    except RuntimeError as error:
        raise InputError(f"{path}: there is no home folder of that name") from error


def endless(path: Path) -> bool:
    """Whether it is there and neither file nor folder: a pipe waits for its writer, gives what it holds once only, and
    a device may never end."""
    return path.exists() and not path.is_file() and not path.is_dir()


def two_kinds(first: PromptEntry, second: PromptEntry) -> str:
    """That a text stands under two kinds."""
    both = f"{first.kind} at {first.place} and as {second.kind} at {second.place}"
    return f"{first.text[:60]!r} stands as {both}: leave it in one place"


def few(problems: Sequence[str], where: str) -> list[str]:
    """The first of these, and how many more there are."""
    more = len(problems) - SHOWN
    return [*problems[:SHOWN], *([f"and {more} more {where}"] if more > 0 else [])]


def shortened(places: Sequence[str], most: int = 5) -> str:
    """Some of these places, and how many more there are."""
    more = len(places) - most
    return ", ".join(places[:most]) + (f" and {more} more" if more > 0 else "")


def has_words(text: str) -> bool:
    """Whether anything is left of a text without spaces and signs that nobody sees."""
    return any(unicodedata.category(sign) not in ("Cc", "Cf", "Zs", "Zl", "Zp") for sign in text)


def _prompt(source: str, record: Mapping[str, Any], kind: Kind, problems: list[str]) -> PromptEntry | None:
    """A record as a prompt; none, and what is wrong with it, where it is none."""
    cells = {name: _cell(value) for name, value in record.items()}
    texts = (*TEXT, *IMAGE, "index", "kind", "subset", EXPOSURES)
    if nested := [name for name in texts if cells.get(name) is None and name in cells]:
        what = type(record[nested[0]]).__name__
        problems.append(f"{source}: {nested[0]} is a {what}, no text: give a line or row for each value")
        return None
    row = cast(dict[str, str], {name: value or "" for name, value in cells.items()})
    text = next((row[name] for name in TEXT if row.get(name, "").strip()), "").strip()
    if not has_words(text):
        problems.append(f"{source}: no {', '.join(TEXT[:-1])} or {TEXT[-1]}")
        return None
    try:
        text.encode()
    except UnicodeEncodeError:
        problems.append(f"{source}: half a character (a lone surrogate) in {text[:60]!a}")
        return None
    if "\0" in text:
        problems.append(f"{source}: a zero byte in {text[:60]!a}: remove it")
        return None
    own = row.get("kind", "").strip().lower() or kind
    if own not in get_args(Kind):
        problems.append(f"{source}: kind {own!r} is none of {', '.join(get_args(Kind))}")
        return None
    try:
        exposures = exposures_of(row.get(EXPOSURES))
    except ValueError as error:
        problems.append(f"{source}: {error}")
        return None
    named = next((row[name] for name in IMAGE if row.get(name)), "")
    memorization = (row.get("memorization") or row.get("type") or "").strip().upper()
    return PromptEntry(
        text=text,
        kind=cast(Kind, own),
        memorization=cast(Literal["VM", "TM"], memorization) if memorization in ("VM", "TM") else None,
        subset=row.get("subset") or None,
        images=(named,) if named else (),
        numbers=(row["index"],) if row.get("index") else (),
        exposures=exposures,
        source=source,
    )


def _cell(value: Any) -> str | None:
    """A value as text, nothing for what stands for nothing; None where it has parts of its own."""
    if value is None or value != value:  # pandas writes NaN where a cell is empty
        return ""
    return None if isinstance(value, (dict, list, tuple, bytes)) else str(value)


_MAGIC = {
    b"\xd0\xcf\x11\xe0": "an Excel workbook of old (.xls): save it as CSV UTF-8 in Excel",
    b"PAR1": "a Parquet file: call it .parquet",
    b"BZh": "compressed with bzip2: unpack it first",
    b"\xfd7zXZ": "compressed with xz: unpack it first",
    b"\x28\xb5\x2f\xfd": "compressed with zstd: unpack it first",
    b"7z\xbc\xaf": "a 7z archive: unpack it first",
    b"Rar!": "a RAR archive: unpack it first",
    b"%PDF": "a PDF file: copy the prompts into a text file",
    b"SQLite format 3": "an SQLite database: export its table as CSV",
    b"version https://git-lfs": "a pointer of Git LFS, not the file itself: fetch it with `git lfs pull`",
}
"""What files are that begin so, whatever they are called, and what to do."""


def _content(path: Path, known: bool, problems: list[str]) -> str | None:
    """A file as text; None, and what is wrong with it, where it is none.

    Args:
        known: whether files of its suffix are read.
    """
    if path.is_dir():
        problems.append(f"{path} is a folder: give the file of prompts in it")
        return None
    if endless(path):
        problems.append(f"{path} is a pipe or device: write the prompts to a file, and give that")
        return None
    try:
        with path.open("rb") as stream:
            data = stream.read(MOST_BYTES + 1)
    except OSError as error:
        problems.append(f"cannot read {path}: {error.strerror}")
        return None
    other = next((what for magic, what in _MAGIC.items() if data.startswith(magic)), None)
    if data.startswith(b"PK\x03\x04"):
        other = _zipped(data)
    if other is None and data[:64].lstrip(b"\xef\xbb\xbf \r\n\t").lower().startswith(
        (b"<!doctype", b"<html", b"<?xml")
    ):
        other = "a web page or XML, as a failed download leaves: download it again"
    if other is None and not known:
        other = f"no file of prompts that is read here: prompts are read from {FILES}"
    if other is not None:
        problems.append(f"{path} is {other}")
        return None
    if data.startswith(b"\x1f\x8b"):
        try:
            with gzip.open(io.BytesIO(data)) as packed:
                data = packed.read(MOST_BYTES + 1)
        except (OSError, EOFError, zlib.error) as error:
            problems.append(f"{path} is compressed with gzip, but damaged ({error}): make or download it again")
            return None
    if len(data) > MOST_BYTES:
        problems.append(f"{path} is larger than {MOST_BYTES >> 30} GiB: split it")
        return None
    return _decoded(path, data, problems)


def _zipped(data: bytes) -> str:
    """What a ZIP file is."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError):
        names = []
    if any(name.startswith("xl/") for name in names):
        return "an Excel workbook, whatever it is called: save it as CSV UTF-8 in Excel"
    if "content.xml" in names:
        return "an OpenDocument file, whatever it is called: save its table as CSV UTF-8"
    if any(name.startswith("word/") for name in names):
        return "a Word document, whatever it is called: copy the prompts into a text file"
    return "a ZIP archive: unpack it first"


_MARKS = {
    b"\xff\xfe\0\0": "utf-32",
    b"\0\0\xfe\xff": "utf-32",
    b"\xff\xfe": "utf-16",
    b"\xfe\xff": "utf-16",
    b"\xef\xbb\xbf": "utf-8-sig",
}
"""Byte order marks; those of UTF-32 first, which begin as one of UTF-16 does."""


def _decoded(path: Path, data: bytes, problems: list[str]) -> str | None:
    encoding = next((name for mark, name in _MARKS.items() if data.startswith(mark)), "utf-8")
    if encoding == "utf-8" and b"\0" in data:
        problems.append(f"{path} has zero bytes, as UTF-16 without a byte order mark or no text has: save it as UTF-8")
        return None
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        if not encoding.startswith("utf-8"):
            problems.append(f"{path} is not {encoding.upper()} (byte {error.start}), as it says: save it as UTF-8")
            return None
    for number, line in enumerate(re.split(rb"\r\n?|\n", data), 1):
        try:
            line.decode()
        except UnicodeDecodeError as error:
            byte = line[error.start]
            sign = bytes([byte]).decode("cp1252", "replace")
            problems.append(
                f"{path}:{number}: byte 0x{byte:02X} in column {error.start + 1} ({sign!r} in Windows-1252) is not "
                "UTF-8: save the file as UTF-8"
            )
    return None


def _csv(path: Path, content: str, problems: list[str], notices: list[str]) -> Iterator[Record]:
    lines = list(io.StringIO(content, newline=""))
    above = next((number for number, line in enumerate(lines) if line.strip()), 0)
    header = lines[above] if lines else ""
    separator = max(",;\t", key=header.count)
    if separator not in header and "|" in header:
        separator = "|"
    if said := re.fullmatch(r'"?sep=(.)"?\s*', header, re.IGNORECASE):  # Excel's own line, which is no header
        separator, above = said[1], above + 1
    reader = csv.reader(lines[above:], delimiter=separator)
    try:
        yield from _rows(path, reader, lines, above, separator, problems, notices)
    except csv.Error as error:
        problems.append(f"{path}:{above + reader.line_num}: {error}; is a quote missing?")


def _rows(
    path: Path,
    reader: Any,
    lines: list[str],
    above: int,
    separator: str,
    problems: list[str],
    notices: list[str],
) -> Iterator[Record]:
    names = [name.strip().lower() for name in next(reader, [])]
    if not set(names) & set(TEXT):
        found = ", ".join(name for name in names if name) or "none"
        problems.append(f"{path} has no column called {', '.join(TEXT[:-1])} or {TEXT[-1]}; it has: {found[:200]}")
        return
    if twice := [name for name in (*TEXT, *IMAGE, "index", "kind", EXPOSURES) if names.count(name) > 1]:
        problems.append(f"{path} has two columns called {twice[0]}: rename one")
        return
    short: list[str] = []
    spanning: list[str] = []
    begun = reader.line_num
    for row in reader:
        begun, before = reader.line_num, begun
        if not row:
            continue
        source = f"{path}:{above + before + 1}"
        if any(row[len(names) :]):
            problems.append(f"{source}: more cells than columns; quote cells that hold {separator!r}")
            continue
        if len(row) < len(names):
            short.append(source)
        if begun - before > 1:
            spanning.append(source)
        if begun == len(lines) - above and _open("".join(lines[above + before :]), separator):
            problems.append(f"{source}: a quote is opened here and never closed: close it, or double it if it is meant")
            continue
        cells = dict(zip(names, row + [""] * (len(names) - len(row)), strict=False))
        if set(_SCANNED) <= set(names):
            cells = {name: cell[1:] if _QUOTED.match(cell) else cell for name, cell in cells.items()}
        yield source, cells
    if spanning:
        notices.append(
            f"{len(spanning)} rows span several lines within quotes, as where a quote is meant as such and not "
            f"doubled: {shortened(spanning)}"
        )
    if short:
        notices.append(
            f"{len(short)} rows have fewer cells than the header, as where a line break is not quoted: "
            f"{shortened(short)}"
        )


def _open(last: str, separator: str) -> bool:
    """Whether the last record of a file ends within quotes, which the reader lets pass."""
    try:
        list(csv.reader(io.StringIO(last, newline=""), delimiter=separator, strict=True))
    except csv.Error as error:
        return "unexpected end" in str(error)
    return False


def _json_lines(path: Path, content: str, problems: list[str], notices: list[str]) -> Iterator[Record]:
    if content.lstrip().startswith("[") and _parsed(content) is not None and "\n" in content.strip():
        problems.append(f"{path} is a JSON array, not an object a line: call it .json")
        return
    for number, line in enumerate(re.split(r"\r\n?|\n", content), 1):
        if line.strip():
            yield from _object(f"{path}:{number}", line, problems)


def _json(path: Path, content: str, problems: list[str], notices: list[str]) -> Iterator[Record]:
    """An array of objects or texts, one object, or an object a line."""
    if not content.lstrip().startswith("["):
        whole = _parsed(content)
        if not isinstance(whole, dict) or "\n" not in content.strip():
            yield from _json_lines(path, content, problems, notices)
        elif any(isinstance(value, (dict, list)) for value in whole.values()):
            keys = ", ".join(map(str, whole))
            problems.append(f"{path} is one object with {keys[:200]}: give an array of objects with a {TEXT[0]}")
        else:
            yield f"{path}:1", _lowered(whole)
        return
    try:
        items = json.loads(content)
    except (ValueError, RecursionError) as error:
        problems.append(f"{path}:{getattr(error, 'lineno', 1)}: not JSON: {error}")
        return
    for number, item in enumerate(items, 1):
        if isinstance(item, str):
            yield f"{path}:item {number}", {"text": item}
        elif isinstance(item, dict):
            yield f"{path}:item {number}", _lowered(item)
        else:
            problems.append(f"{path}:item {number}: neither a text nor an object with a {TEXT[0]}")


def _object(source: str, line: str, problems: list[str]) -> Iterator[Record]:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        problems.append(f"{source}: not JSON: {error}")
        return
    if isinstance(record, dict):
        yield source, _lowered(record)
    else:
        problems.append(f"{source}: not an object with a {TEXT[0]}")


def _parsed(content: str) -> Any:
    """What JSON says; None where it is none."""
    try:
        return json.loads(content)
    except (ValueError, RecursionError):
        return None


def _lowered(record: dict[str, Any]) -> dict[str, Any]:
    return {str(name).lower(): value for name, value in record.items()}


def _lines(path: Path, content: str, problems: list[str], notices: list[str]) -> Iterator[Record]:
    lines = content.splitlines()
    cells = [cell.strip('"').lower() for cell in re.split(r"[\t,;|]", lines[0])] if lines else []
    if set(cells) & set(TEXT):
        problems.append(f"{path}:1: a header, not a prompt: call the file .csv or .tsv, or remove the line")
        return
    for number, line in enumerate(lines, 1):
        if line.strip():
            yield f"{path}:{number}", {"text": line}
