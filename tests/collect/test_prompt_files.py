import csv
import io
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tasks.collect.prompt_files import Prompt, find_images, read_prompts
from tasks.errors import InputError

TEXTS = st.lists(
    st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cs", "Zl", "Zp")), min_size=1, max_size=40)
    .map(str.strip)
    .filter(bool),
    min_size=1,
    max_size=8,
    unique=True,
)


@given(texts=TEXTS, separator=st.sampled_from(",;\t"))
def test_csv_gives_back_what_was_written(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str], separator: str
) -> None:
    stream = io.StringIO()
    writer = csv.writer(stream, delimiter=separator)
    writer.writerow(["", "Caption", "URL", "Index"])
    writer.writerows([[row, text, "", row] for row, text in enumerate(texts)])
    path = tmp_path_factory.mktemp("csv") / "prompts.csv"
    path.write_bytes(stream.getvalue().encode())
    assert [prompt.text for prompt in read_prompts(path)] == texts


@given(texts=TEXTS)
def test_json_lines_give_back_what_was_written(tmp_path_factory: pytest.TempPathFactory, texts: list[str]) -> None:
    path = tmp_path_factory.mktemp("json") / "prompts.jsonl"
    path.write_text("".join(json.dumps({"caption": text, "index": 7}) + "\n" for text in texts), encoding="utf-8")
    assert read_prompts(path, "null") == [Prompt(text, "null", numbers=("7",)) for text in texts]


def test_published_csv(tmp_path: Path) -> None:
    path = tmp_path / "memorized.csv"
    rows = ';Caption;URL;type;Index\n0;A "quoted" one;http://x;VM;12\n1;"Rug; 5x8";;TM;13\n2;Other;;N;\n'
    path.write_text("\ufeff" + rows, encoding="utf-8")
    assert read_prompts(path) == [
        Prompt('A "quoted" one', "memorized", "VM", numbers=("12",)),
        Prompt("Rug; 5x8", "memorized", "TM", numbers=("13",)),
        Prompt("Other", "memorized"),
    ]


def test_a_prompt_that_comes_twice_is_one_with_both_images(tmp_path: Path) -> None:
    path = tmp_path / "twice.jsonl"
    path.write_text('{"text": "rug", "image": "a.png"}\n\n{"text": "rug", "image": "b.png"}\n')
    assert read_prompts(path) == [Prompt("rug", "memorized", images=("a.png", "b.png"))]


def test_plain_text(tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_text("one\n\n  two \n")
    assert [prompt.text for prompt in read_prompts(path, "null")] == ["one", "two"]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.csv", b"", "no column called"),
        ("a.csv", b"URL;type\nx;VM\n", "it has: url, type"),
        ("a.csv", b"caption\n", "holds no prompts"),
        ("a.csv", b"caption,url\n,x\n", "line 2: no caption"),
        ("a.csv", b"caption,url\na,b,c\n", "line 2: more cells"),
        ("a.jsonl", b'{"caption": "x"}\n{oops\n', "line 2: not JSON"),
        ("a.jsonl", b'["x"]\n', "line 1: not an object"),
        ("a.jsonl", b'{"caption": "x", "kind": "odd"}\n', "kind 'odd'"),
        ("a.jsonl", b'{"caption": "cat \\ud83d"}\n', "line 1: half a character"),
        ("a.txt", b"\xff\xfe", "not UTF-8"),
        ("a.docx", b"x", "prompts are read from"),
    ],
)
def test_bad_files_are_refused_in_one_line(tmp_path: Path, name: str, content: bytes, words: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=words) as caught:
        read_prompts(tmp_path / name)
    assert "\n" not in str(caught.value)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot read"):
        read_prompts(tmp_path / "none.csv")


def test_images_are_found_by_name_and_by_number(tmp_path: Path) -> None:
    for name in ("00012.png", "b.jpg"):
        Image.new("RGB", (4, 4)).save(tmp_path / name)
    prompts = [Prompt("one", "memorized", images=("12",)), Prompt("two", "memorized", images=("b.jpg",))]
    found = find_images([*prompts, Prompt("three", "memorized", images=("none",))], tmp_path)
    assert found == {"one": [tmp_path / "00012.png"], "two": [tmp_path / "b.jpg"]}


def test_images_are_found_by_their_metadata(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "x.png")
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "x.png", "text": "one"}\n')
    assert find_images([Prompt("one", "memorized")], tmp_path) == {"one": [tmp_path / "x.png"]}
    # The published file numbers its rows by something that no file is called after.
    assert find_images([Prompt("one", "memorized", images=("103072",))], tmp_path) == {"one": [tmp_path / "x.png"]}


def test_pictures_without_a_prompt_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("1.png", "2.png", "3.png"):
        Image.new("RGB", (4, 4)).save(tmp_path / name)
    one = [Prompt("one", "memorized", images=("1",))]
    assert find_images(one, tmp_path) == {"one": [tmp_path / "1.png"]}
    told = capsys.readouterr().err
    assert told == f"2 of 3 pictures in {tmp_path} belong to no prompt and are left out, such as 2.png\n"
    find_images(one, tmp_path)
    assert capsys.readouterr().err == ""  # it is said once
    find_images([*one, Prompt("others", "memorized", images=("2", "3"))], tmp_path)
    assert capsys.readouterr().err == ""
    find_images([*one, Prompt("bare", "memorized"), Prompt("others", "memorized", images=("2", "3"))], tmp_path)
    told = capsys.readouterr().err
    assert (
        told == f"1 of 3 prompts have no picture in {tmp_path}, so copies of theirs are not found, such as of 'bare'\n"
    )


def test_images_that_belong_to_nothing(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no pictures"):
        find_images([], tmp_path)
    Image.new("RGB", (4, 4)).save(tmp_path / "x.png")
    with pytest.raises(InputError, match="belongs to a prompt"):
        find_images([Prompt("one", "memorized", images=("12",))], tmp_path)
    with pytest.raises(InputError, match="no folder"):
        find_images([], tmp_path / "none")


def test_pictures_of_a_further_file_are_found_by_name_and_by_metadata_not_by_number(tmp_path: Path) -> None:
    for name in ("1.png", "dog.png", "sea.png"):
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "sea.png", "text": "the sea"}\n')
    mine = [Prompt("a cat", "memorized", images=("1",))]
    others = [Prompt("a dog", "ordinary", images=("dog.png",)), Prompt("a car", "null", numbers=("1",))]
    found = find_images(mine, tmp_path, [*others, Prompt("the sea", "ordinary")])
    assert {text: [path.name for path in paths] for text, paths in found.items()} == {
        "a cat": ["1.png"],
        "a dog": ["dog.png"],
        "the sea": ["sea.png"],
    }


def test_an_unclosed_quote_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "prompts.csv"
    path.write_text('caption\n"' + "x" * 200_000)
    with pytest.raises(InputError, match=r"prompts.csv, line \d+: field larger .*; is a quote missing\?"):
        read_prompts(path)


def test_pictures_of_one_name_in_two_folders_are_told_apart_by_their_paths(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "01.png").write_bytes(b"x")
    prompts = [Prompt("a cat", "memorized", images=("cat/01.png",)), Prompt("a dog", "memorized", images=("dog/01",))]
    assert find_images(prompts, tmp_path) == {
        "a cat": [tmp_path / "cat" / "01.png"],
        "a dog": [tmp_path / "dog" / "01.png"],
    }
    for name in ("01.png", "1"):
        with pytest.raises(InputError, match=r"which picture is '.*cat/01\.png or .*dog/01\.png"):
            find_images([Prompt("a cat", "memorized", images=(name,))], tmp_path)
    # A path that is not there is not taken for another folder's, but one that begins further up is right.
    assert find_images([prompts[0], Prompt("a cow", "memorized", images=("cow/01.png",))], tmp_path).keys() == {"a cat"}
    above = Prompt("a dog", "memorized", images=("pictures/dog/01.png",))
    assert find_images([above], tmp_path) == {"a dog": [tmp_path / "dog" / "01.png"]}
    (tmp_path / "01.png").write_bytes(b"x")
    found = find_images([Prompt("a cat", "memorized", images=("01.png",))], tmp_path)
    assert found == {"a cat": [tmp_path / "01.png"]}


def test_a_number_beside_a_name_counts_only_where_the_name_finds_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("index,file_name,caption\n3,00017.png,named\n17,http://x/y.png,numbered\n")
    prompts = read_prompts(path)
    assert [(prompt.images, prompt.numbers) for prompt in prompts] == [
        (("00017.png",), ("3",)),
        (("http://x/y.png",), ("17",)),
    ]
    for name in ("00003.png", "00017.png"):
        (tmp_path / name).write_bytes(b"x")
    assert find_images(prompts, tmp_path) == {name: [tmp_path / "00017.png"] for name in ("named", "numbered")}


def test_that_nothing_will_be_a_control_is_said_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "1.png").write_bytes(b"x")
    others = [Prompt("a dog", "ordinary", numbers=("1",))]
    find_images([Prompt("a cat", "memorized", numbers=("1",))], tmp_path, others)
    assert "attacks will have no control" in capsys.readouterr().err
