"""Bringing prompts and their training images into the store, once all that is wrong with them has been looked for."""

import hashlib
import io
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any, get_args

import pyarrow as pa
import pyarrow.parquet as pq

from storage import Store, content_key
from tasks.collect.image_files import find_images, header_of, is_name, read_header, read_whole
from tasks.collect.token_check import same_prompts, tokenized
from tasks.collect.training_set import NEUTRAL, read_training_set
from tasks.diffusion.tokens import LongPrompts, tokenizers_of
from tasks.errors import InputError, first_line, refuse
from tasks.keys import prompt_id
from tasks.progress import progress, say
from tasks.prompt_files import (
    EXPOSURES,
    IMAGE,
    TEXT,
    URL,
    Kind,
    PromptEntry,
    Read,
    Record,
    added,
    endless,
    expanded,
    exposures_of,
    few,
    has_words,
    prompts_of,
    read_file,
    shortened,
    two_kinds,
)
from tasks.subject import shards

PROMPT_COLUMNS = ("prompt_id", "text", "kind", "memorization", "subset", "image_ids")
"""That a Parquet file of the table `prompts` needs; it may have exposures, too."""
IMAGE_COLUMNS = ("image_id", "bytes", "width", "height", "caption")


@dataclass(frozen=True)
class Inputs:
    """Prompts and images as files give them, with all that is wrong with them; nothing is in the store yet."""

    stem: str
    """What the name of the set begins with."""
    prompts: list[PromptEntry] = field(default_factory=list)
    """Of all kinds."""
    files: dict[str, list[Path]] = field(default_factory=dict)
    """Images in a folder, by the text of their prompt."""
    image_rows: list[dict[str, Any]] = field(default_factory=list)
    """Images of a Parquet file: rows of the table `images`."""
    problems: list[str] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)
    unreadable: int = 0
    """Images that belong to a prompt, and whose headers cannot be read; each is a problem, and none of `files`."""
    again: list[str] = field(default_factory=list)
    """Where texts stand that stood before."""
    long: str = ""
    """How many prompts are longer than the model reads, and what became of them; empty where none is."""


def read_inputs(
    prompts: Path,
    nulls: Path | None = None,
    ordinary: Path | None = None,
    images: Path | None = None,
    folder: Path | None = None,
    long_prompts: LongPrompts = "truncate",
) -> Inputs:
    """Reads prompts and looks at their training images.

    Args:
        prompts: a file of memorized prompts, see `read_prompt_file`, the folder of a training set, or a Parquet file of
            the table `prompts`, which holds all kinds.
        nulls, ordinary: files of prompts that are not memorized: what memorized ones are compared with, and what
            quality is measured on. Without `ordinary`, the second half of the nulls.
        images: a folder of the prompts' training images, or a Parquet file of the table `images`, which prompts name
            by their sha256.
        folder: of the model whose tokenizers are asked; without it no prompt is too long.
        long_prompts: whether prompts of too many tokens are truncated, refused, or left out.
    """
    try:
        path, *rest = [None if one is None else expanded(one) for one in (prompts, nulls, ordinary, images)]
    except InputError as error:
        return Inputs(prompts.stem, problems=[str(error)])
    assert path is not None
    null_path, ordinary_path, image_path = rest
    problems: list[str] = []
    table = _is_table(path)
    others: tuple[tuple[Path | None, Kind], ...] = ((null_path, "null"), (ordinary_path, "ordinary"))
    if table and any(other for other, _ in others):
        problems.append(f"{path} holds prompts of all kinds: give no other file of them, or give all as CSV")
    first, reads = read_prompt_file(path, "memorized"), []
    for other, kind in others:
        if other is not None and not table:
            reads.append(
                Read([], [f"{other} holds prompts of all kinds: give it with --prompts, and no other file"], [])
                if _is_table(other)
                else read_prompt_file(other, kind)
            )
    problems += [problem for read in (first, *reads) for problem in read.problems]
    unread = bool(problems)
    notices = [notice for read in (first, *reads) for notice in read.notices]
    if null_path == NEUTRAL:
        notices.append("null prompts are the 500 neutral ones that ship, of common things: --nulls takes others")
    own, others_own = first.prompts, [prompt for read in reads for prompt in read.prompts]
    every, long = [*own, *others_own], ""
    if folder is None:
        notices += same_prompts(every, [prompt.text for prompt in every])
    else:
        try:
            known = tokenized(every, tokenizers_of(folder), long_prompts)
        except InputError as error:
            problems.append(str(error))
        else:
            every, long = known.prompts, known.long
            problems, notices = problems + known.problems, notices + known.notices
            stay = {id(prompt) for prompt in every}
            own, others_own = ([one for one in some if id(one) in stay] for some in (own, others_own))
    problems += few(list(_contradictions(every)), "of such prompts")
    kinds = {prompt.kind for prompt in every}
    left_out = f"; {long}" if long and long_prompts == "skip" else ""
    if not unread and "memorized" not in kinds:
        problems.append(f"{path} has no memorized prompts: an audit needs at least one{left_out}")
    if not unread and "null" not in kinds:
        problems.append(
            "there are no null prompts to compare memorized ones with: give a file of them with --nulls" + left_out
        )
    again = [place for read in (first, *reads) for place in read.again]
    found = Inputs(_stem(path), every, problems=problems, notices=notices, again=again, long=long)
    if image_path is None:
        _without_images(found, first, table)
    elif _is_parquet(image_path):
        found = _with_table(found, image_path, table)
    elif table:
        found.problems.append(f"{path} names images by their sha256: give a Parquet file of the table images, too")
    else:
        found = _with_folder(found, image_path, own, others_own, first, listed=image_path != path)
    return replace(found, prompts=_with_ordinary(found.prompts), notices=list(dict.fromkeys(found.notices)))


def import_inputs(store: Store, inputs: Inputs) -> str:
    """Prompts and images into the store; what a person should know of them is said once a process.

    Returns:
        The name of the set: the file's name and a digest of the content, so a changed file is another set.

    Raises:
        InputError: something cannot be used, all of it at once. The store is then as it was.
    """
    rows, image_rows = rows_of(inputs)
    for notice in inputs.notices:
        say(notice)
    return _keep(store, inputs.stem, rows, image_rows)


def rows_of(inputs: Inputs) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Rows of `prompts` and of `images`, the latter without bytes where they lie in files. Images are read whole.

    Raises:
        InputError: something cannot be used, all of it at once.
    """
    refuse(inputs.problems)
    rows, image_rows, broken = looked_at(inputs)
    refuse(few(broken, "of such images"))
    return rows, image_rows


def looked_at(inputs: Inputs) -> tuple[list[dict[str, Any]], list[dict[str, Any]], list[str]]:
    """The same rows of what can be used, whatever is wrong with the rest; and a line for each image that cannot be
    read to its end.
    """
    files, broken = _identified({path for paths in inputs.files.values() for path in paths})
    named = {text: [files[path]["image_id"] for path in paths if path in files] for text, paths in inputs.files.items()}
    known = {row["image_id"] for row in inputs.image_rows}
    rows = []
    for prompt in inputs.prompts:
        ids = named.get(prompt.text, []) if not inputs.image_rows else [name for name in prompt.images if name in known]
        rows.append(_prompt_row(prompt, ids))
    return rows, inputs.image_rows or list(files.values()), broken


def import_set(store: Store, prompts: Path, images: Path) -> str:
    """Reads a set as the tables have it, Parquet files of `prompts` and `images`, without asking for all kinds.

    Raises:
        InputError: a file cannot be used, or prompts name images that are not there.
    """
    read = read_prompt_file(prompts)
    image_rows, problems = _image_rows(images)
    found = Inputs(prompts.stem, read.prompts, image_rows=image_rows, problems=[*read.problems, *problems])
    _name_lost(found, images)
    return import_inputs(store, found)


def read_prompt_file(path: Path, kind: Kind = "memorized") -> Read:
    """The prompts of a file with everything that is wrong with it, Parquet files and training sets among them; see
    `read_file` and `read_training_set`.

    Of a Parquet file, rows of the table `prompts`, or else of any table with a column caption, prompt or text, in
    capitals or not, as LAION's are.

    Args:
        kind: what prompts are taken for that do not say.
    """
    if path.is_dir() and kind == "memorized":
        return read_training_set(path)
    if not _is_parquet(path) or endless(path):
        return read_file(path, kind)
    try:
        return _table_prompts(path) if _is_table(path) else _parquet_prompts(path, kind)
    except (OSError, pa.ArrowException) as error:
        return Read([], [_not_parquet(path, error)], [])


def _contradictions(prompts: Sequence[PromptEntry]) -> Iterator[str]:
    first: dict[str, PromptEntry] = {}
    for prompt in prompts:
        known = first.setdefault(prompt.text, prompt)
        if known.kind != prompt.kind:
            yield two_kinds(known, prompt)


def _with_ordinary(prompts: list[PromptEntry]) -> list[PromptEntry]:
    """The same, with ordinary ones: quality is measured on other prompts than those that thresholds and statistics are
    estimated from, so where none are given, they are the second half of the nulls."""
    if any(prompt.kind == "ordinary" for prompt in prompts):
        return prompts
    nulls = [prompt for prompt in prompts if prompt.kind == "null"]
    free = {id(prompt) for prompt in nulls[len(nulls) // 2 :]}
    return [replace(prompt, kind="ordinary") if id(prompt) in free else prompt for prompt in prompts]


def _without_images(found: Inputs, first: Read, table: bool) -> None:
    if table:
        _name_lost(found, None)
    if first.urls:
        found.notices.append(
            f"the addresses of images in column {first.urls} are not fetched: download the images, and give their "
            "folder with --images"
        )


def _with_table(found: Inputs, images: Path, table: bool) -> Inputs:
    image_rows, problems = _image_rows(images)
    found = replace(found, image_rows=image_rows, problems=[*found.problems, *problems])
    if table:
        _name_lost(found, images)
        return found
    known = {row["image_id"] for row in image_rows}
    if image_rows and not any(known.intersection(prompt.images) for prompt in found.prompts):
        found.problems.append(f"no prompt names an image of {images} by its sha256: give a folder of images")
    elif image_rows:
        lost = [(one, name) for one in found.prompts for name in one.images if name not in known and is_name(name)]
        found.problems.extend(few([f"{one.place}: no image {name!r} in {images}" for one, name in lost], "of such"))
    return found


def _with_folder(
    found: Inputs, folder: Path, own: list[PromptEntry], others: list[PromptEntry], first: Read, listed: bool
) -> Inputs:
    matched = find_images(own, folder, others, listed)
    owner = {path: prompt.place for prompt in found.prompts for path in matched.files.get(prompt.text, ())}
    broken: dict[Path, str] = {}
    moving = []
    for path in sorted(owner):
        try:
            if read_header(path).frames > 1:
                moving.append(path.name)
        except InputError as error:
            broken[path] = f"{owner[path]}: {error}"
    notices = list(matched.notices)
    if moving:
        notices.append(
            f"{len(moving)} images are animated or have several pages, of which the first is taken: {shortened(moving)}"
        )
    if first.urls and matched.bare:
        notices.append(f"the addresses of images in column {first.urls} are not fetched: download what is missing")
    problems = [*found.problems, *matched.problems, *few(list(broken.values()), f"in {folder}")]
    files = {text: [path for path in paths if path not in broken] for text, paths in matched.files.items()}
    return replace(found, files=files, problems=problems, notices=[*found.notices, *notices], unreadable=len(broken))


def _name_lost(found: Inputs, images: Path | None) -> None:
    """Adds what a table of prompts names, and no table of images has; nothing where that table could not be read."""
    if images is not None and not found.image_rows and found.problems:
        return
    known = {row["image_id"] for row in found.image_rows}
    if lost := [prompt.place for prompt in found.prompts if set(prompt.images) - known]:
        where = "are not given: give --images" if images is None else f"are not in {images}"
        found.problems.append(f"{len(lost)} prompts name images that {where}: {shortened(lost)}")


def set_name(stem: str, rows: list[dict[str, Any]], image_rows: list[dict[str, Any]]) -> str:
    """What a set of these prompts and images is called in a store, whether or not it is there; see `rows_of`.

    Args:
        stem: what the name begins with.
    """
    return f"{stem}-{content_key(rows, sorted({row['image_id'] for row in image_rows}))[:8]}"


def _keep(store: Store, stem: str, rows: list[dict[str, Any]], image_rows: list[dict[str, Any]]) -> str:
    by_id = {row["image_id"]: row for row in image_rows}
    name = set_name(stem, rows, image_rows)
    if by_id:
        stored = set(store.read("images", columns=["image_id"])["image_id"].to_pylist())
        unseen = [row for image, row in by_id.items() if image not in stored]
        for block in shards(unseen, 64):
            whole = [row if "bytes" in row else _with_bytes(row) for row in block]
            store.write("images", content_key([row["image_id"] for row in block]), whole)
    store.write("prompts", content_key(name), rows, prompt_set=name)
    return name


def _prompt_row(prompt: PromptEntry, image_ids: list[str]) -> dict[str, Any]:
    return {
        "prompt_id": prompt_id(prompt.text),
        "text": prompt.text,
        "kind": prompt.kind,
        "memorization": prompt.memorization,
        "subset": prompt.subset,
        "image_ids": image_ids,
    } | ({EXPOSURES: prompt.exposures} if prompt.exposures is not None else {})
    # Left out where it is not known, so that sets go by the names that they have had.


def _identified(paths: Collection[Path]) -> tuple[dict[Path, dict[str, Any]], list[str]]:
    """Rows of `images` of these files, but for the bytes, which all together need not fit into memory; and a line for
    each file that cannot be read to its end."""
    out: dict[Path, dict[str, Any]] = {}
    broken: list[str] = []
    with progress(len(paths), "reading images", "image") as done:
        for path in sorted(paths):
            try:
                stamp = path.stat()
                out[path] = _image_row(path, stamp.st_size, stamp.st_mtime_ns) | {"path": path}
            except OSError as error:
                broken.append(f"cannot read {path}: {error.strerror}")
            except InputError as error:
                broken.append(str(error))
            done(1)
    return out, broken


@cache
def _image_row(path: Path, size: int, changed: int) -> dict[str, Any]:
    """What a file is called by its content, and its width and height the right way up. Once a process for each file:
    every stage asks."""
    data, header = read_whole(path)
    return {"image_id": hashlib.sha256(data).hexdigest(), "width": header.width, "height": header.height}


def _with_bytes(row: Mapping[str, Any]) -> dict[str, Any]:
    data = row["path"].read_bytes()
    if hashlib.sha256(data).hexdigest() != row["image_id"]:
        raise InputError(f"{row['path']} changed while it was imported: run it again")
    return {"image_id": row["image_id"], "bytes": data, "width": row["width"], "height": row["height"]}


def _is_parquet(path: Path) -> bool:
    return path.suffix.lower() == ".parquet"


def _is_table(path: Path) -> bool:
    """Whether a file is one of the table `prompts`."""
    if not _is_parquet(path):
        return False
    try:
        return "prompt_id" in pq.ParquetDataset(path).schema.names
    except (OSError, pa.ArrowException):
        return False


def _not_parquet(path: Path, error: Exception) -> str:
    if not path.exists():
        return f"cannot read {path}: No such file or directory"
    return f"cannot read {path}: {getattr(error, 'strerror', None) or first_line(error)}"


def _table_prompts(path: Path) -> Read:
    """Each prompt once: rows of one text, as where a file has one for each image, are one prompt of all images."""
    rows, problems = _parquet(path, PROMPT_COLUMNS, optional=(EXPOSURES,))
    for number, row in enumerate(rows, 1):
        if not isinstance(row["text"], str) or not has_words(row["text"]):
            problems.append(f"{path}:row {number}: no text")
        elif row["kind"] not in get_args(Kind):
            problems.append(f"{path}:row {number}: kind {row['kind']!r} is none of {', '.join(get_args(Kind))}")
        elif not isinstance(row["image_ids"], (list, type(None))):
            problems.append(f"{path}:row {number}: image_ids is no list")
        else:
            try:
                row[EXPOSURES] = exposures_of(row.get(EXPOSURES))
            except ValueError as error:
                problems.append(f"{path}:row {number}: {error}")
    if problems:
        return Read([], few(problems, f"in {path}"), [])
    problems += _checked(path, rows, "prompt_id", lambda row: prompt_id(row["text"]))
    found: dict[tuple[str, str], PromptEntry] = {}
    for number, row in enumerate(rows, 1):
        kind, source = row["kind"], f"{path}:row {number}"
        known, times = found.get((row["text"], kind)), row[EXPOSURES]
        images = tuple(dict.fromkeys((*(known.images if known else ()), *(row["image_ids"] or ()))))
        if known is None:
            known = PromptEntry(row["text"], kind, row["memorization"], row["subset"], source=source)
        else:
            times = added(known.exposures, times)
        found[row["text"], kind] = replace(known, images=images, exposures=times)
    return Read(list(found.values()), problems or ([] if found else [f"{path} holds no prompts"]), [])


def _parquet_prompts(path: Path, kind: Kind) -> Read:
    """Prompts of any table that has a column of texts."""
    data = pq.ParquetDataset(path)
    wanted = {*TEXT, *IMAGE, *URL, "index", "kind", "type", "memorization", "subset", EXPOSURES}
    fields = [one for one in data.schema if one.name.lower() in wanted]
    columns = {one.name: one.name.lower() for one in fields}
    problems = []
    if not set(columns.values()) & set(TEXT):
        problems.append(
            f"{path} has no column called {', '.join(TEXT[:-1])} or {TEXT[-1]}; it has: "
            f"{', '.join(data.schema.names)[:200]}"
        )
    lowered = [one.name.lower() for one in fields]
    if twice := [one.name for one in fields if lowered.count(one.name.lower()) > 1]:
        problems.append(f"{path} has columns {' and '.join(twice)}, told apart by capitals at most: rename one")
    for one in fields:
        name, lower, held = one.name, one.name.lower(), one.type
        if pa.types.is_nested(held) or pa.types.is_binary(held) or pa.types.is_large_binary(held):
            what = "write its images as files, and give their folder with --images" if lower in IMAGE else "give texts"
            problems.append(f"{path} has {held} in column {name}, which is not read: {what}")
    if problems:
        return Read([], problems, [])

    def records() -> Iterator[Record]:
        rows = data.read(columns=list(columns))
        start = 0
        for batch in rows.to_batches(max_chunksize=10_000):
            for number, row in enumerate(batch.to_pylist(), start + 1):
                yield f"{path}:row {number}", {columns[name]: row[name] for name in columns}
            start += batch.num_rows

    return prompts_of(path, records(), kind, problems, [])


def _image_rows(path: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """Rows of the table `images`, and what is wrong with them."""
    try:
        rows, problems = _parquet(path, IMAGE_COLUMNS)
    except (OSError, pa.ArrowException) as error:
        return [], [_not_parquet(path, error)]
    if empty := [f"{path}:row {number}: no bytes" for number, row in enumerate(rows, 1) if not row["bytes"]]:
        return [], few(empty, f"in {path}")
    problems += _checked(path, rows, "image_id", lambda row: hashlib.sha256(row["bytes"]).hexdigest())
    broken = []
    for number, row in enumerate(rows, 1):
        try:
            header_of(f"{path}:row {number}", io.BytesIO(row["bytes"]))
        except InputError as error:
            broken.append(str(error))
    return rows, problems + few(broken, f"in {path}")


def _parquet(
    path: Path, columns: tuple[str, ...], optional: tuple[str, ...] = ()
) -> tuple[list[dict[str, Any]], list[str]]:
    """Rows of these columns, and of optional ones that are there, and what is wrong with the file."""
    rows = pq.read_table(path)
    if missing := sorted(set(columns) - set(rows.column_names)):
        return [], [f"{path} has no column {', '.join(missing)}: it needs {', '.join(columns)}"]
    there = [*columns, *(name for name in optional if name in rows.column_names)]
    found: list[dict[str, Any]] = rows.select(there).to_pylist()
    return found, []


def _checked(path: Path, rows: list[dict[str, Any]], column: str, right: Callable[[dict[str, Any]], str]) -> list[str]:
    """Ids that do not follow from what they name: results are kept by them, and would outlive a change."""
    wrong = [
        f"{path}:row {number}: {column} {row[column]!r} should be {right(row)!r}, which follows from its content"
        for number, row in enumerate(rows, 1)
        if row[column] != right(row)
    ]
    return few(wrong, f"in {path}")


def _stem(path: Path) -> str:
    """A file's name without suffixes: `captions` of `captions.csv.gz`."""
    return Path(path.stem).stem if path.suffix.lower() == ".gz" else path.stem
