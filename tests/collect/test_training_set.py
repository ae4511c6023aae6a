"""Training sets of fine-tunes as people have them on their disks."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tasks.collect.task import NEUTRAL, read_inputs, read_prompt_file
from tasks.collect.training_set import read_training_set


def image(path: Path, shade: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((8, 8, 3), shade, np.uint8)).save(path)
    return path


def captions(folder: Path) -> dict[str, tuple[str, ...]]:
    found = read_training_set(folder)
    assert found.problems == []
    return {prompt.text: prompt.images for prompt in found.prompts}


def test_folders_of_kohya(tmp_path: Path) -> None:
    for number in range(3):
        image(tmp_path / f"10_sks dog/{number}.png")
    (tmp_path / "10_sks dog/0.txt").write_text("\n a dog, running\nsecond line\n")
    (tmp_path / "10_sks dog/1.caption").write_text("\ufeffa dog, sitting")
    image(tmp_path / "2_cat/x.JPG")
    image(tmp_path / ".hidden/y.png")
    assert captions(tmp_path) == {
        "a dog, running": ("10_sks dog/0.png",),
        "a dog, sitting": ("10_sks dog/1.png",),
        "sks dog": ("10_sks dog/2.png",),
        "cat": ("2_cat/x.JPG",),
    }
    (notice,) = read_training_set(tmp_path).notices
    assert "are repeated 2, 10 times an epoch" in notice


@pytest.mark.parametrize("column", ["text", "caption", "what it shows"])
@pytest.mark.parametrize("form", ["jsonl", "csv"])
def test_imagefolders(form: str, column: str, tmp_path: Path) -> None:
    rows = [{"file_name": f"{n}.png", column: f"a thing, {n // 2}"} for n in range(4)]
    for row in rows:
        image(tmp_path / "train" / row["file_name"])
    path = tmp_path / "train" / f"metadata.{form}"
    if form == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        lines = [f"file_name,{column}", *(f'{row["file_name"]},"{row[column]}"' for row in rows)]
        path.write_text("\n".join(lines) + "\n")
    assert captions(tmp_path) == {
        "a thing, 0": ("train/0.png", "train/1.png"),  # images of one caption are images of one prompt
        "a thing, 1": ("train/2.png", "train/3.png"),
    }


def test_all_that_is_wrong_is_told_at_once(tmp_path: Path) -> None:
    rows: list[Any] = [
        {"file_name": "gone.png", "text": "x"},
        {"text": "y"},
        {"file_name": "a.png", "title": "z", "tags": "w"},
        3,
    ]
    lines = [*(json.dumps(row) for row in rows), "{"]
    (tmp_path / "metadata.jsonl").write_text("\n".join(lines))
    image(tmp_path / "a.png")
    image(tmp_path / "sub" / "b.png")
    found = read_training_set(tmp_path).problems
    wanted = (
        "metadata.jsonl:2: no file_name",
        "metadata.jsonl:3: which column is the caption? There are title, tags; call it text",
        "metadata.jsonl:4: no JSON object",
        "metadata.jsonl:5: not JSON",
        "2 of 2 images in",
        "metadata.jsonl:1: there is no image gone.png",
    )
    for words in wanted:
        assert any(words in problem for problem in found), words
    assert len(found) == len(wanted)
    (tmp_path / "empty").mkdir()
    (problem,) = read_training_set(tmp_path / "empty").problems
    assert "holds no images" in problem


def test_a_list_beside_the_images_is_read_once(tmp_path: Path) -> None:
    """With a column that only sets of images have."""
    for number in range(2):
        image(tmp_path / f"{number}.png", number)
    rows = [{"file_name": f"{n}.png", "what it shows": f"thing {n}"} for n in range(2)]
    (tmp_path / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = read_inputs(tmp_path, NEUTRAL, None, tmp_path)
    assert found.problems == []
    assert {text: [path.name for path in paths] for text, paths in found.files.items()} == {
        f"thing {n}": [f"{n}.png"] for n in range(2)
    }


def test_two_captions_of_one_image_are_refused(tmp_path: Path) -> None:
    image(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("one")
    (tmp_path / "a.caption").write_text("two")
    (problem,) = read_training_set(tmp_path).problems
    assert "a.txt and a.caption differ: keep the one" in problem


def test_a_set_is_read_with_its_images_and_the_neutral_prompts(tmp_path: Path) -> None:
    for number in range(3):
        image(tmp_path / "set" / f"{number}.png", number)
        (tmp_path / "set" / f"{number}.txt").write_text(f"picture {number}")
    found = read_inputs(tmp_path / "set", NEUTRAL, None, tmp_path / "set")
    assert found.problems == []
    kinds = [prompt.kind for prompt in found.prompts]
    assert (kinds.count("memorized"), kinds.count("null"), kinds.count("ordinary")) == (3, 250, 250)
    assert {text: [path.name for path in paths] for text, paths in found.files.items()} == {
        f"picture {number}": [f"{number}.png"] for number in range(3)
    }
    assert any("500 neutral ones that ship" in notice for notice in found.notices)


def test_the_neutral_prompts_are_many_and_different() -> None:
    texts = [prompt.text for prompt in read_prompt_file(NEUTRAL, "null").prompts]
    assert len(texts) == 500 == len({text.lower() for text in texts})
