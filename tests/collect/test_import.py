"""Bringing prompts and their images into the store."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

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
