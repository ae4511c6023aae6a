"""How often training shows a prompt: from files, tables and folders of kohya's into the store."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage import Store, content_key
from tasks.collect.task import NEUTRAL, read_prompt_file
from tasks.keys import prompt_id
from tasks.prompt_files import exposures_of, prompts_of
from tests.support.drawings import training_set
from tests.support.prompts import import_prompts, read_prompts

CAPTIONS = st.sampled_from(["a cat", "a dog", "a cow"])


def times(path: Path) -> dict[str, int | None]:
    return {prompt.text: prompt.exposures for prompt in read_prompts(path)}


def test_a_file_says_how_often_a_text_is_shown(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("Caption,Exposures\na cat,10\na dog,3.0\na cow,\na cat,4\nnever,0\n")
    assert times(path) == {"a cat": 14, "a dog": 3, "a cow": None, "never": 0}
    path = tmp_path / "a.jsonl"
    rows: list[dict[str, Any]] = [{"text": "a cat", "exposures": 2}, {"text": "a dog", "exposures": None}]
    path.write_text("\n".join(map(json.dumps, rows)))
    assert times(path) == {"a cat": 2, "a dog": None}


@pytest.mark.parametrize("kind", [pa.int32(), pa.float64(), pa.string()])
def test_a_table_does_too(kind: pa.DataType, tmp_path: Path) -> None:
    path = tmp_path / "laion.parquet"
    exposures = pa.array([2, None, 5], pa.int64()).cast(kind)
    pq.write_table(pa.table({"TEXT": ["a cat", "a dog", "a cat"], "exposures": exposures}), path)
    found = read_prompt_file(path)
    assert {one.text: one.exposures for one in found.prompts} == {"a cat": 7, "a dog": None}
    table = tmp_path / "prompts.parquet"
    rows = [
        {"prompt_id": prompt_id(text), "text": text, "kind": "memorized", "memorization": None, "subset": None}
        | {"image_ids": [image]}
        for text, image in (("a cat", "x"), ("a dog", "y"), ("a cat", "z"))
    ]
    pq.write_table(pa.Table.from_pylist(rows).append_column("exposures", exposures), table)
    found = read_prompt_file(table)
    assert {one.text: (one.images, one.exposures) for one in found.prompts} == {
        "a cat": (("x", "z"), 7),
        "a dog": (("y",), None),
    }


@given(st.lists(st.tuples(CAPTIONS, st.none() | st.integers(0, 10**9 - 1)), min_size=1, max_size=9), st.randoms())
def test_records_of_a_text_add_up_in_any_order(drawn: list[tuple[str, int | None]], order: Any) -> None:
    def found() -> dict[str, int | None]:
        records = [(f"a:{row}", {"text": text, "exposures": number}) for row, (text, number) in enumerate(drawn)]
        return {one.text: one.exposures for one in prompts_of(Path("a"), records, "null", [], []).prompts}

    shown = {text: [number for one, number in drawn if one == text] for text, _ in drawn}
    wanted = {text: None if None in some else sum(n for n in some if n is not None) for text, some in shown.items()}
    assert found() == wanted
    order.shuffle(drawn)
    assert found() == wanted


def test_what_is_known_of_some_lines_only_is_unknown_and_said(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("caption,exposures\na cat,10\na cat,\na cat,3\n")
    found = read_prompt_file(path)
    assert [one.exposures for one in found.prompts] == [None]
    (notice,) = found.notices
    assert notice.startswith("2 prompts stand again, once with exposures and once without") and f"{path}:3" in notice


@pytest.mark.parametrize("value", ["-1", "1.5", "ten", "1e3", "1234567890", "True", "\u0661"])
def test_what_is_no_whole_number_is_refused_by_line(value: str, tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text(f"caption,exposures\na cat,{value}\na dog,2\na cow,{value}\n", encoding="utf-8")
    first, second = read_prompt_file(path).problems
    assert first == f"{path}:2: exposures {value!r} is no whole number below a billion" and f"{path}:4" in second
    with pytest.raises(ValueError, match="no whole number"):
        exposures_of(value)


def test_lists_and_two_columns_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": "a cat", "exposures": [1]}))
    assert "exposures is a list" in read_prompt_file(tmp_path / "a.jsonl").problems[0]
    (tmp_path / "a.csv").write_text("caption,exposures,exposures\na cat,1,2\n")
    assert "two columns called exposures" in read_prompt_file(tmp_path / "a.csv").problems[0]


def test_repeats_of_kohya_are_exposures_and_images_of_a_caption_add_up(tmp_path: Path) -> None:
    folder = training_set(tmp_path / "train")
    store = Store.open(tmp_path / "store")
    name = import_prompts(store, folder, NEUTRAL, images=folder)
    rows = store.read("prompts", prompt_set=name).to_pylist()
    found = {row["text"]: row["exposures"] for row in rows if row["kind"] == "memorized"}
    assert found == {
        "a boat on the lake": 12,  # ten times in one folder, twice in the other
        "a boat on the river": 10,
        "a boat on the sea": 10,
        "a boat on the canal": 10,
        "A Boat, on the Sea!": 2,
        "a tree by the water": 2,
        "a tree, number 0": 2,
        "a tree, number 1": 2,
    }
    assert {row["exposures"] for row in rows if row["kind"] != "memorized"} == {None}


def test_other_folders_say_nothing_of_repeats(tmp_path: Path) -> None:
    folder = training_set(tmp_path / "train")
    (folder / "10_boat").rename(folder / "boats")
    (folder / "2_tree").rename(folder / "12345678901_trees")  # a time, rather than repeats
    assert {prompt.exposures for prompt in read_prompt_file(folder).prompts} == {None}


def test_a_set_without_exposures_has_the_name_that_it_has_always_had(tmp_path: Path) -> None:
    """Else audits of it would be compared with none before."""
    for name, text in (("m", "a cat"), ("n", "a dog\na cow"), ("o", "a cup")):
        (tmp_path / f"{name}.txt").write_text(text)
    store = Store.open(tmp_path / "store")
    name = import_prompts(store, tmp_path / "m.txt", tmp_path / "n.txt", tmp_path / "o.txt")
    columns = ("prompt_id", "text", "kind", "memorization", "subset", "image_ids")
    kinds = [("a cat", "memorized"), ("a dog", "null"), ("a cow", "null"), ("a cup", "ordinary")]
    rows: list[dict[str, Any]] = [
        dict(zip(columns, (prompt_id(text), text, kind, None, None, []), strict=True)) for text, kind in kinds
    ]
    assert name == f"m-{content_key(rows, [])[:8]}" == "m-9dbd9489"
    (tmp_path / "m.csv").write_text("caption,exposures\na cat,2\n")
    assert import_prompts(store, tmp_path / "m.csv", tmp_path / "n.txt", tmp_path / "o.txt") != name
