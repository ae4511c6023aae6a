"""Bringing prompts and their images into the store."""

import hashlib
import io
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from storage import Store
from tasks.collect.task import read_inputs
from tasks.collect.task.importing import PROMPT_COLUMNS
from tasks.diffusion.sampling import from_bytes
from tasks.diffusion.tokens import LongPrompts
from tasks.errors import InputError
from tasks.keys import prompt_id
from tests.support.prompts import import_prompts
from tests.support.world import tokenizer_alone


def prompts_table(path: Path) -> Path:
    rows: list[dict[str, object]] = [
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
    with pytest.raises(InputError, match=r"nulls\.parquet holds prompts of all kinds: give it with --prompts"):
        import_prompts(Store.open(tmp_path / "store"), tmp_path / "memorized.txt", nulls=table)


def test_a_prompt_is_of_one_kind(tmp_path: Path) -> None:
    for name, texts in (("memorized", "a cat\na cup\n"), ("nulls", "a dog\na cup\n"), ("ordinary", "a dog\na cow\n")):
        (tmp_path / f"{name}.txt").write_text(texts)
    memorized, nulls, ordinary = (tmp_path / f"{name}.txt" for name in ("memorized", "nulls", "ordinary"))
    store = Store.open(tmp_path / "store")
    with pytest.raises(InputError) as refusal:
        import_prompts(store, memorized, nulls, ordinary)
    first, *lines = str(refusal.value).split("\n  ")
    assert first == "2 things cannot be used:"
    assert lines == [
        f"'a cup' stands as memorized at {memorized}:2 and as null at {nulls}:2: leave it in one place",
        f"'a dog' stands as null at {nulls}:1 and as ordinary at {ordinary}:1: leave it in one place",
    ]
    assert store.read("prompts").num_rows == 0


def test_prompts_of_a_csv_name_images_of_a_table_by_their_sha256(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "x.png")
    data = (tmp_path / "x.png").read_bytes()
    name = hashlib.sha256(data).hexdigest()
    row = {"image_id": name, "bytes": data, "width": 4, "height": 4, "caption": None}
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "images.parquet")
    (tmp_path / "nulls.txt").write_text("a dog\na cow\n")
    nulls, images = tmp_path / "nulls.txt", tmp_path / "images.parquet"
    store = Store.open(tmp_path / "store")
    (tmp_path / "flagged.csv").write_text(f"caption,image\na cat,{name}\n")
    made = import_prompts(store, tmp_path / "flagged.csv", nulls, images=images)
    rows = store.read("prompts", prompt_set=made, kind="memorized").to_pylist()
    assert [(one["text"], one["image_ids"]) for one in rows] == [("a cat", [name])]
    (tmp_path / "flagged.csv").write_text("caption,image\na cat,x.png\n")
    with pytest.raises(InputError, match=r"no prompt names an image of .* by its sha256"):
        import_prompts(store, tmp_path / "flagged.csv", nulls, images=images)


def test_images_are_taken_the_way_up_that_they_say(tmp_path: Path) -> None:
    image = Image.new("RGB", (8, 4), "black")
    image.paste("white", (0, 0, 4, 4))  # the left half, which is below when it is turned
    turned = Image.Exif()
    turned[0x0112] = 8
    image.save(tmp_path / "1.png", exif=turned)
    (tmp_path / "prompts.csv").write_text("caption,index\na cat,1\n")
    (tmp_path / "nulls.txt").write_text("a dog\na cow\n")
    store = Store.open(tmp_path / "store")
    import_prompts(store, tmp_path / "prompts.csv", tmp_path / "nulls.txt", images=tmp_path)
    (row,) = store.read("images").to_pylist()
    seen = from_bytes(row["bytes"])
    assert (row["width"], row["height"]) == (4, 8) and seen.shape == (8, 4, 3)
    assert seen[:4].max() == 0 and seen[4:].min() == 255


def test_images_without_a_look_in_eight_bits_are_refused(tmp_path: Path) -> None:
    Image.fromarray(np.full((4, 4), 40_000, np.uint16)).save(tmp_path / "1.png")
    (tmp_path / "prompts.csv").write_text("caption,index\na cat,1\n")
    (tmp_path / "nulls.txt").write_text("a dog\na cow\n")
    with pytest.raises(InputError, match="8 bits a channel"):
        import_prompts(
            Store.open(tmp_path / "store"), tmp_path / "prompts.csv", tmp_path / "nulls.txt", images=tmp_path
        )


def test_rows_of_one_text_are_one_prompt_of_all_their_images(tmp_path: Path) -> None:
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


def test_what_cannot_be_read_as_an_image_is_named(tmp_path: Path) -> None:
    (tmp_path / "prompts.csv").write_text("caption,index\na cat,1\n")
    (tmp_path / "nulls.txt").write_text("a dog\na cow\n")
    (tmp_path / "1.png").mkdir()
    inputs = Store.open(tmp_path / "store"), tmp_path / "prompts.csv", tmp_path / "nulls.txt"
    with pytest.raises(InputError, match=r"prompts\.csv:2: .*1\.png cannot be read as an image \(Is a directory\)"):
        import_prompts(*inputs, images=tmp_path)
    (tmp_path / "1.png").rmdir()
    (tmp_path / "1.png").write_bytes(b"no image")
    with pytest.raises(InputError, match=r"prompts\.csv:2: .*1\.png cannot be read as an image"):
        import_prompts(*inputs, images=tmp_path)
    assert inputs[0].read("images").num_rows == inputs[0].read("prompts").num_rows == 0


def given(folder: Path, **files: str) -> dict[str, Path]:
    """Files of prompts by what they hold."""
    for name, text in files.items():
        (folder / f"{name}.csv").write_text(text)
    return {name: folder / f"{name}.csv" for name in files}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model's folder of which nothing but the tokenizer is there: it reads 32 letters, start and end among them."""
    return tokenizer_alone(tmp_path_factory.mktemp("model"))


def test_everything_that_is_wrong_is_said_at_once_and_nothing_is_written(tmp_path: Path, model: Path) -> None:
    images = tmp_path / "images"
    images.mkdir()
    for name, data in {"broken.png": b"no image", "empty.png": b"", "1.heic": b"x"}.items():
        (images / name).write_bytes(data)
    Image.new("RGB", (4, 4)).save(images / "fine.png")
    Image.new("I;16", (4, 4)).save(images / "grey.png")
    files = given(
        tmp_path,
        memorized="caption,image\na cat,fine.png\na cup,broken.png\n,fine.png\na bed,lost.png\na sea,grey.png\n"
        "a sun,1.heic\na toy,empty.png\n",
        nulls="text\na dog\na cup\n" + "far more letters than it reads x" * 2 + "\n",
        ordinary="text,kind\na hat,odd\na hen,\n",
    )
    before = sorted(tmp_path.rglob("*"))
    inputs = files["memorized"], files["nulls"], files["ordinary"], images, model
    problems = read_inputs(*inputs, "refuse").problems
    words = [
        "memorized.csv:4: no caption, prompt or text",
        "ordinary.csv:2: kind 'odd' is none of memorized, null, ordinary",
        "nulls.csv:4: 54 tokens, and the model reads 32",
        "'a cup' stands as memorized at",
        "memorized.csv:7: ",
        "memorized.csv:5: there is no image 'lost.png'",
        "broken.png cannot be read as an image (it is of no kind that is read here)",
        "empty.png cannot be read as an image (it is empty)",
        "grey.png has pixels of kind I;16",
    ]
    assert len(problems) == len(words)
    assert [word for word, problem in zip(words, problems, strict=True) if word not in problem] == []
    with pytest.raises(InputError, match="9 things cannot be used:"):
        import_prompts(Store.open(tmp_path / "store"), *inputs, "refuse")
    assert sorted(path for path in tmp_path.rglob("*") if "store" not in path.parts) == before
    assert [path for path in (tmp_path / "store").rglob("*") if path.suffix == ".parquet"] == []


def test_images_that_break_off_are_all_named(tmp_path: Path) -> None:
    whole = io.BytesIO()
    Image.effect_noise((64, 64), 50).save(whole, "PNG")
    for name in ("1.png", "2.png"):
        (tmp_path / name).write_bytes(whole.getvalue()[:-500])
    files = given(tmp_path, memorized="caption,index\na cat,1\na cup,2\n", nulls="text\na dog\na cow\n")
    store = Store.open(tmp_path / "store")
    with pytest.raises(InputError, match=r"(?s)2 things cannot be used:.*1\.png .*truncated.*2\.png .*truncated"):
        import_prompts(store, files["memorized"], files["nulls"], images=tmp_path)
    assert store.read("images").num_rows == store.read("prompts").num_rows == 0


def test_a_long_prompt_keeps_its_text_and_id_and_can_be_left_out(tmp_path: Path, model: Path) -> None:
    text = "far more letters than the model reads, which ends long before"
    files = given(tmp_path, memorized=f'caption\na cat\n"{text}"\n', nulls="text\none\ntwo\nthree\nfour\n")
    texts: dict[str, list[str]] = {}
    kept: tuple[LongPrompts, ...] = ("truncate", "skip")
    for how in kept:
        store = Store.open(tmp_path / how)
        name = import_prompts(store, files["memorized"], files["nulls"], folder=model, long_prompts=how)
        rows = store.read("prompts", prompt_set=name).to_pylist()
        texts[how] = [row["text"] for row in rows if row["kind"] == "memorized"]
        assert all(row["prompt_id"] == prompt_id(row["text"]) for row in rows)
    assert texts == {"truncate": ["a cat", text], "skip": ["a cat"]}
    # A set is the same whether or not a model was asked of it, where nothing is left out.
    names = {
        import_prompts(Store.open(tmp_path / "x"), files["memorized"], files["nulls"], folder=folder)
        for folder in (None, model)
    }
    assert len(names) == 1
    found = read_inputs(files["memorized"], files["nulls"], folder=model)
    assert found.long.startswith("1 prompt (1 memorized) has more than the 32 tokens that the model reads: truncated")
    assert any(f"({files['memorized']}:3)" in notice for notice in found.notices)


def test_where_all_are_left_out_that_is_the_reason(tmp_path: Path, model: Path) -> None:
    files = given(tmp_path, memorized=f"caption\n{'x' * 40}\n", nulls=f"text\n{'y' * 40}\n")
    problems = read_inputs(files["memorized"], files["nulls"], None, None, model, "skip").problems
    words = "; 2 prompts (1 memorized, 1 null) have more than the 32 tokens that the model reads: left out"
    assert [problem.endswith(words) for problem in problems] == [True, True]


def test_a_file_that_cannot_be_read_is_no_reason_to_complain_of_images(tmp_path: Path, model: Path) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "1.png")
    files = given(tmp_path, memorized="url\nx\n", nulls="text\none\ntwo\n")
    for nulls in (files["nulls"], None):
        problems = read_inputs(files["memorized"], nulls, None, tmp_path, model).problems
        assert len(problems) == 1 and "has no column called" in problems[0]


def test_prompts_that_are_the_same_to_the_model_are_named(tmp_path: Path, model: Path) -> None:
    files = given(
        tmp_path,
        memorized="caption\nA  Cat\nCafe\u0301\n\uff26\uff35\uff2c\uff2c\n" + 2 * ("x" * 40 + "{}\n"),
        nulls="text\na cat\nfull\nCaf\u00e9\nother\n",
    )
    files["memorized"].write_text(files["memorized"].read_text().format("a", "b"))
    read = read_inputs(files["memorized"], files["nulls"], None, None, model)
    problems, notices = read.problems, read.notices
    assert problems == []
    memorized, nulls = files.values()
    words = [
        "2 prompts (2 memorized) have more than the 32 tokens",
        f"{memorized}:2 (memorized), {nulls}:2 (null) are the same to the model",
        f"{memorized}:3 (memorized), {nulls}:4 (null) are the same to the model",
        f"{memorized}:4 (memorized), {nulls}:3 (null) differ by case, spaces or Unicode form only",
        f"{memorized}:5 (memorized), {memorized}:6 (memorized) are equal after truncation",
    ]
    assert [word for word, notice in zip(words, notices, strict=True) if word not in notice] == []


def test_a_model_without_a_tokenizer_is_one_more_problem(tmp_path: Path, model: Path) -> None:
    files = given(tmp_path, memorized="caption\na cat\n,\n", nulls="text\na dog\n")
    shutil.copytree(model, tmp_path / "model")
    shutil.rmtree(tmp_path / "model" / "tokenizer")
    problems = read_inputs(files["memorized"], files["nulls"], None, None, tmp_path / "model").problems
    assert len(problems) == 2 and "cannot load the tokenizer of" in problems[1]
    assert all("\n" not in problem for problem in problems)


@pytest.mark.parametrize("column", ["TEXT", "caption", "Prompt"])
def test_a_parquet_file_of_captions_is_read_as_a_csv_is(tmp_path: Path, column: str) -> None:
    rows = [{"URL": f"http://x/{text}.png", column: text, "similarity": 0.3} for text in ("a cat", "a cup", "a cat")]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "laion.parquet")
    files = given(tmp_path, memorized=f"{column},URL\na cat,x\na cup,x\n", nulls="text\na dog\na cow\n")
    of_csv, of_table = (read_inputs(path, files["nulls"]) for path in (files["memorized"], tmp_path / "laion.parquet"))
    assert of_table.prompts == of_csv.prompts and of_table.problems == []
    assert of_table.prompts[1].source == f"{tmp_path / 'laion.parquet'}:row 2"
    assert any("addresses of images in column url are not fetched" in notice for notice in of_table.notices)
    # Null prompts may be such a file, too.
    assert read_inputs(files["nulls"], tmp_path / "laion.parquet").problems == []


def test_what_is_wrong_with_a_parquet_file_is_said(tmp_path: Path) -> None:
    bad = {
        "no.parquet": pa.table({"url": ["x"]}),
        "nested.parquet": pa.table({"text": ["x"], "image": [{"bytes": b"x", "path": "x"}]}),
        "twice.parquet": pa.table({"text": ["x"], "TEXT": ["x"]}),
        "empty.parquet": pa.table({"TEXT": ["x", None, ""]}),
        "ids.parquet": pa.table({"prompt_id": ["x"], "text": ["x"]}),
        "same.parquet": pa.table([["x"], ["y"]], names=["text", "text"]),
        "kind.parquet": pa.table(
            {name: [value] for name, value in zip(PROMPT_COLUMNS, ("x", "x", "odd", None, None, None), strict=True)}
        ),
    }
    found = {}
    for name, table in bad.items():
        pq.write_table(table, tmp_path / name)
        found[name] = read_inputs(tmp_path / name, None, None, None, tmp_path).problems
    (tmp_path / "text.parquet").write_text("caption\na cat\n")
    found["text.parquet"] = read_inputs(tmp_path / "text.parquet", None, None, None, tmp_path).problems
    words = {
        "no.parquet": "has no column called caption, prompt or text; it has: url",
        "nested.parquet": "in column image, which is not read: write its images as files",
        "twice.parquet": "has columns text and TEXT, told apart by capitals at most",
        "empty.parquet": "empty.parquet:row 2: no caption, prompt or text",
        "ids.parquet": "has no column image_ids, kind, memorization, subset",
        "same.parquet": "has columns text and text",
        "kind.parquet": "kind.parquet:row 1: kind 'odd' is none of",
        "text.parquet": "cannot read",
    }
    assert [name for name in words if words[name] not in found[name][0]] == []
    assert "row 3" in found["empty.parquet"][1]


def test_images_of_a_table_are_looked_at_too(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = []
    for data in (b"no image", b"GIF89a"):
        name = hashlib.sha256(data).hexdigest()
        rows.append({"image_id": name, "bytes": data, "width": 4, "height": 4, "caption": None})
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "images.parquet")
    files = given(
        tmp_path, memorized=f"caption,image\na cat,{rows[0]['image_id']}\na cup,lost\n", nulls="text\na dog\n"
    )
    problems = read_inputs(files["memorized"], files["nulls"], images=tmp_path / "images.parquet").problems
    assert len(problems) == 3
    assert "images.parquet:row 1 cannot be read" in problems[0] and "images.parquet:row 2" in problems[1]
    assert "memorized.csv:3: no image 'lost' in" in problems[2]


def test_animated_images_and_home_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "1.GIF", save_all=True, append_images=frames[1:], format="GIF")
    given(tmp_path, memorized="caption,index\na cat,1\n", nulls="text\na dog\na cow\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    store = Store.open(tmp_path / "store")
    import_prompts(store, Path("~/memorized.csv"), Path("~/nulls.csv"), images=Path("~"))
    (row,) = store.read("images").to_pylist()
    assert from_bytes(row["bytes"])[0, 0].tolist() == [255, 0, 0]
    assert "1 images are animated or have several pages, of which the first is taken: 1.GIF" in capsys.readouterr().err
