"""Bringing prompts and their images into the store."""

import hashlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from storage import Store
from tasks.collect.task import import_prompts
from tasks.diffusion.sampling import from_bytes
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


def test_pictures_are_taken_the_way_up_that_they_say(tmp_path: Path) -> None:
    picture = Image.new("RGB", (8, 4), "black")
    picture.paste("white", (0, 0, 4, 4))  # the left half, which is below when it is turned
    turned = Image.Exif()
    turned[0x0112] = 8
    picture.save(tmp_path / "1.png", exif=turned)
    (tmp_path / "prompts.csv").write_text("caption,index\na cat,1\n")
    (tmp_path / "nulls.txt").write_text("a dog\na cow\n")
    store = Store.open(tmp_path / "store")
    import_prompts(store, tmp_path / "prompts.csv", tmp_path / "nulls.txt", images=tmp_path)
    (row,) = store.read("images").to_pylist()
    seen = from_bytes(row["bytes"])
    assert (row["width"], row["height"]) == (4, 8) and seen.shape == (8, 4, 3)
    assert seen[:4].max() == 0 and seen[4:].min() == 255


def test_pictures_without_a_look_in_eight_bits_are_refused(tmp_path: Path) -> None:
    Image.fromarray(np.full((4, 4), 40_000, np.uint16)).save(tmp_path / "1.png")
    (tmp_path / "prompts.csv").write_text("caption,index\na cat,1\n")
    (tmp_path / "nulls.txt").write_text("a dog\na cow\n")
    with pytest.raises(InputError, match="8 bits a channel"):
        import_prompts(
            Store.open(tmp_path / "store"), tmp_path / "prompts.csv", tmp_path / "nulls.txt", images=tmp_path
        )


def test_rows_of_one_text_are_one_prompt_of_all_their_pictures(tmp_path: Path) -> None:
    table, images = tmp_path / "prompts.parquet", []
    for number in range(2):
        Image.new("RGB", (4, 4), (number, 0, 0)).save(tmp_path / f"{number}.png")
        data = (tmp_path / f"{number}.png").read_bytes()
        images.append(
            {
                "image_id": hashlib.sha256(data).hexdigest(),
                "bytes": data,
                "width": 4,
                "height": 4,
                "caption": None,
            }
        )
    pq.write_table(pa.Table.from_pylist(images), tmp_path / "images.parquet")
    rows = pq.read_table(prompts_table(table)).to_pylist()
    names = [image["image_id"] for image in images]
    rows = [rows[0] | {"image_ids": [name]} for name in names] + [row | {"image_ids": []} for row in rows[1:]]
    schema = pa.schema([(name, pa.string()) for name in list(rows[0])[:-1]] + [("image_ids", pa.list_(pa.string()))])
    pq.write_table(pa.Table.from_pylist(rows, schema), table)
    store = Store.open(tmp_path / "store")
    name = import_prompts(store, table, images=tmp_path / "images.parquet")
    found = {row["text"]: row["image_ids"] for row in store.read("prompts", prompt_set=name).to_pylist()}
    assert found == {"a cat": names, "a dog": [], "a cow": []}


def test_what_cannot_be_read_as_a_picture_is_named(tmp_path: Path) -> None:
    (tmp_path / "prompts.csv").write_text("caption,index\na cat,1\n")
    (tmp_path / "nulls.txt").write_text("a dog\na cow\n")
    (tmp_path / "1.png").mkdir()
    asked = Store.open(tmp_path / "store"), tmp_path / "prompts.csv", tmp_path / "nulls.txt"
    with pytest.raises(InputError, match=r"1\.png cannot be read as a picture"):
        import_prompts(*asked, images=tmp_path)
    (tmp_path / "1.png").rmdir()
    (tmp_path / "1.png").write_bytes(b"no picture")
    with pytest.raises(InputError, match=r"1\.png cannot be read as a picture"):
        import_prompts(*asked, images=tmp_path)
    assert asked[0].read("images").num_rows == asked[0].read("prompts").num_rows == 0
