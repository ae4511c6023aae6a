"""Bringing prompts and their images into the store."""

import hashlib
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from storage import Store
from tasks.collect.task import import_prompts
from tasks.errors import InputError
from tasks.keys import prompt_id


def prompts_table(path: Path) -> Path:
    rows = [
        {
            "prompt_id": prompt_id(text),
            "text": text,
            "kind": kind,
            "memorization": None,
            "subset": None,
            "image_ids": [],
        }
        for text, kind in (("a cat", "memorized"), ("a dog", "null"), ("a cow", "ordinary"))
    ]
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


def test_a_table_of_prompts_holds_all_kinds_and_nothing_is_given_beside_it(tmp_path: Path) -> None:
    store, table = Store.open(tmp_path / "store"), prompts_table(tmp_path / "prompts.parquet")
    others = tmp_path / "others.txt"
    others.write_text("a horse\n")
    with pytest.raises(InputError, match="holds prompts of all kinds"):
        import_prompts(store, table, nulls=others)
    with pytest.raises(InputError, match="holds prompts of all kinds"):
        import_prompts(store, table, ordinary=others)
    with pytest.raises(InputError, match="a Parquet file of the table images"):
        import_prompts(store, table, images=tmp_path)
    assert store.read("prompts").num_rows == 0
    name = import_prompts(store, table)
    assert sorted(store.read("prompts", prompt_set=name)["text"].to_pylist()) == ["a cat", "a cow", "a dog"]


def test_null_prompts_are_no_table(tmp_path: Path) -> None:
    (tmp_path / "memorized.txt").write_text("a cat\n")
    table = prompts_table(tmp_path / "nulls.parquet")
    with pytest.raises(InputError, match=r"\.csv, \.tsv, \.jsonl or \.txt; a \.parquet file holds those of all kinds"):
        import_prompts(Store.open(tmp_path / "store"), tmp_path / "memorized.txt", nulls=table)


def test_a_prompt_is_of_one_kind(tmp_path: Path) -> None:
    for name, texts in (("memorized", "a cat\na cup\n"), ("nulls", "a dog\na cup\n"), ("ordinary", "a dog\na cow\n")):
        (tmp_path / f"{name}.txt").write_text(texts)
    files = {name: tmp_path / f"{name}.txt" for name in ("nulls", "ordinary")}
    store = Store.open(tmp_path / "store")
    with pytest.raises(InputError, match="2 prompts stand under two kinds, such as 'a cup' as memorized and as null"):
        import_prompts(store, tmp_path / "memorized.txt", **files)
    assert store.read("prompts").num_rows == 0


def test_prompts_of_a_csv_name_images_of_a_table_by_their_sha256(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "x.png")
    data = (tmp_path / "x.png").read_bytes()
    name = hashlib.sha256(data).hexdigest()
    row = {"image_id": name, "bytes": data, "width": 4, "height": 4, "caption": None}
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "images.parquet")
    (tmp_path / "nulls.txt").write_text("a dog\na cow\n")
    place = {"nulls": tmp_path / "nulls.txt", "images": tmp_path / "images.parquet"}
    store = Store.open(tmp_path / "store")
    (tmp_path / "flagged.csv").write_text(f"caption,image\na cat,{name}\n")
    made = import_prompts(store, tmp_path / "flagged.csv", **place)
    rows = store.read("prompts", prompt_set=made, kind="memorized").to_pylist()
    assert [(one["text"], one["image_ids"]) for one in rows] == [("a cat", [name])]
    (tmp_path / "flagged.csv").write_text("caption,image\na cat,x.png\n")
    with pytest.raises(InputError, match=r"no prompt names an image of .* by its sha256"):
        import_prompts(store, tmp_path / "flagged.csv", **place)
