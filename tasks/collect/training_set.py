"""Training sets of fine-tunes as sets of memorized prompts: folders of images with their captions.

Three forms are known, also mixed and in subfolders: kohya's (`10_name/`, ten repeats an epoch, a caption beside each
image as .txt or .caption, else the name), imagefolder of Hugging Face (`metadata.jsonl` or `metadata.csv` beside the
images), and images with a text of the same name.
"""

import csv
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tasks.prompt_files import EXPOSURES, Read, Record, few, prompts_of, shortened

IMAGES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".jp2", ".avif")
CAPTIONS = (".txt", ".caption")
METADATA = ("metadata.jsonl", "metadata.csv")
NEUTRAL = Path(__file__).with_name("neutral.txt")
"""500 captions of common things, made up for this project: null prompts of sets that have none."""
CAPTION = ("text", "caption", "prompt")
"""Columns of a `metadata` file that are the caption; without one of them, the only column beside `file_name`."""
_KOHYA = re.compile(r"([0-9]{1,9})_(.+)")
"""Repeats and name."""


def read_training_set(folder: Path) -> Read:
    """The captions of a folder's images as memorized prompts, with everything that is wrong with it.

    Images of one caption are images of one prompt. Names of images are paths below the folder. The repeats of a folder
    of kohya's are exposures of its images' captions.
    """
    problems: list[str] = []
    notices: list[str] = []
    files = sorted(path for path in folder.rglob("*") if path.is_file() and not _hidden(path, folder))
    images = [path for path in files if path.suffix.lower() in IMAGES]
    if not images:
        return Read([], [f"{folder} holds no images ({', '.join(IMAGES)}): give the folder of a training set"], [])
    told = _in_metadata([path for path in files if path.name in METADATA], problems)
    records, bare = [], []
    for path in images:
        if path in told:
            records.append(told.pop(path))
        elif (found := _beside(path, problems)) is not None:
            records.append(found)
        elif (name := _KOHYA.fullmatch(path.parent.name)) is not None:
            records.append((str(path), {"caption": name[2]}))
        else:
            bare.append(str(path.relative_to(folder)))
            continue
        source, cells = records[-1]
        repeats = _KOHYA.fullmatch(path.parent.name)
        record = {"caption": cells.get("caption", ""), "image": str(path.relative_to(folder))}
        records[-1] = source, record | ({EXPOSURES: repeats[1]} if repeats else {})
    if bare:
        problems.append(
            f"{len(bare)} of {len(images)} images in {folder} have no caption: {shortened(bare)}; write it beside the "
            "image, as .txt of the same name, or in metadata.jsonl"
        )
    problems += few([f"{source}: there is no image {path.name}" for path, (source, _) in told.items()], f"in {folder}")
    every = {int(one[1]) for path in images if (one := _KOHYA.fullmatch(path.parent.name))}
    if len(every) > 1:
        notices.append(
            f"folders of {folder} are repeated {', '.join(map(str, sorted(every)))} times an epoch: images that were "
            f"seen more often come back more easily; the column {EXPOSURES} of the table prompts has them"
        )
    return prompts_of(folder, records, "memorized", problems, notices)


def _in_metadata(files: list[Path], problems: list[str]) -> dict[Path, Record]:
    """By image, what the `metadata` files say of it."""
    found: dict[Path, Record] = {}
    for file in files:
        for source, row in _rows(file, problems):
            name = str(row.get("file_name") or "").strip()
            caption = _caption(row)
            if not name:
                problems.append(f"{source}: no file_name, which says what image it is of")
            elif caption is None:
                columns = ", ".join(column for column in row if column != "file_name") or "none"
                problems.append(f"{source}: which column is the caption? There are {columns}; call it text")
            else:
                found[file.parent / name] = source, {"caption": caption}
    return found


def _rows(file: Path, problems: list[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The rows of a `metadata` file, with where they stand."""
    try:
        text = file.read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        problems.append(f"cannot read {file}: {error}")
        return
    if file.suffix == ".csv":
        reader = csv.DictReader(text.splitlines(keepends=True))
        for row in reader:
            yield f"{file}:{reader.line_num}", {str(name).lower(): value for name, value in row.items()}
        return
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            problems.append(f"{file}:{number}: not JSON: {error}")
            continue
        if isinstance(row, dict):
            yield f"{file}:{number}", {str(name).lower(): value for name, value in row.items()}
        else:
            problems.append(f"{file}:{number}: no JSON object")


def _caption(row: Mapping[str, object]) -> str | None:
    named = next((row[name] for name in CAPTION if str(row.get(name) or "").strip()), None)
    others = [value for name, value in row.items() if name != "file_name"]
    value = named if named is not None else others[0] if len(others) == 1 else None
    return value if isinstance(value, str) else None


def _beside(image: Path, problems: list[str]) -> Record | None:
    """The caption in a file of the image's name, its first line as trainers read it; None where there is none."""
    found: dict[Path, str] = {}
    for path in map(image.with_suffix, CAPTIONS):
        if path.is_file():
            lines = path.read_text("utf-8-sig", "replace").splitlines()
            found[path] = next((line.strip() for line in lines if line.strip()), "")
    if len({*found.values()}) > 1:
        names = " and ".join(path.name for path in found)
        problems.append(f"{image}: {names} differ: keep the one that the model was trained with")
    return next(((str(path), {"caption": text}) for path, text in found.items()), None)


def _hidden(path: Path, folder: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(folder).parts)
