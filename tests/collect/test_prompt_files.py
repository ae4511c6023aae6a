"""Files of prompts as people have them: what is read, and what is said of those that cannot be."""

import csv
import gzip
import io
import json
import os
import zipfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from storage import csv_line, safe_cell
from tasks.collect.task.importing import read_prompt_file
from tasks.errors import InputError
from tasks.prompt_files import PromptEntry, expanded, few, has_words, read_file
from tests.support.prompts import read_prompts

TEXTS = st.lists(
    st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cs", "Zl", "Zp")), min_size=1, max_size=40)
    .map(str.strip)
    .filter(has_words),
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
    assert read_prompts(path, "null") == [PromptEntry(text, "null", numbers=("7",)) for text in texts]


def test_published_csv(tmp_path: Path) -> None:
    path = tmp_path / "memorized.csv"
    rows = ';Caption;URL;type;Index\n0;A "quoted" one;http://x;VM;12\n1;"Rug; 5x8";;TM;13\n2;Other;;N;\n'
    path.write_text("\ufeff" + rows, encoding="utf-8")
    assert read_prompts(path) == [
        PromptEntry('A "quoted" one', "memorized", "VM", numbers=("12",)),
        PromptEntry("Rug; 5x8", "memorized", "TM", numbers=("13",)),
        PromptEntry("Other", "memorized"),
    ]


def test_a_prompt_that_comes_twice_is_one_with_both_images(tmp_path: Path) -> None:
    path = tmp_path / "twice.jsonl"
    path.write_text('{"text": "rug", "image": "a.png"}\n\n{"text": "rug", "image": "b.png"}\n')
    assert read_prompts(path) == [PromptEntry("rug", "memorized", images=("a.png", "b.png"))]


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
        ("a.csv", b"caption,url\n,x\n", "a.csv:2: no caption"),
        ("a.csv", b"caption,url\na,b,c\n", "a.csv:2: more cells"),
        ("a.csv", b"caption,Caption\na,b\n", "two columns called caption"),
        ("a.csv", b'caption\none\n"two\nthree\n', "a.csv:3: a quote is opened here and never closed"),
        ("a.csv", b"caption\ncaf\xe9\n", r"a.csv:2: byte 0xE9 in column 4 \('é' in Windows-1252\) is not UTF-8"),
        ("a.csv", b"c\0a\0p\0", "zero bytes, as UTF-16 without a byte order mark"),
        ("a.csv", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "an Excel workbook of old .*save it as CSV"),
        ("a.csv", b"\n<!DOCTYPE html>\n<p>not found", "a web page or XML, as a failed download leaves"),
        ("a.jsonl", b"version https://git-lfs.github.com/spec/v1\noid", "a pointer of Git LFS"),
        ("a.csv", b"PAR1....PAR1", "a Parquet file: call it .parquet"),
        ("a.csv.gz", gzip.compress(b"caption\none\n", mtime=0)[:-9], "compressed with gzip, but damaged"),
        ("a.jsonl", b'{"caption": "x"}\n{oops\n', "a.jsonl:2: not JSON"),
        ("a.jsonl", b'["x"]\n', "a.jsonl:1: not an object"),
        ("a.jsonl", b'[\n{"caption": "x"}\n]\n', "is a JSON array, not an object a line: call it .json"),
        ("a.jsonl", b'{"caption": "x", "kind": "odd"}\n', "kind 'odd'"),
        ("a.jsonl", b'{"caption": "cat \\ud83d"}\n', "a.jsonl:1: half a character"),
        ("a.jsonl", b'{"caption": "cat \\u0000"}\n', "a.jsonl:1: a zero byte"),
        ("a.jsonl", b'{"caption": ["x", "y"]}\n', "a.jsonl:1: caption is a list, no text"),
        ("a.jsonl", b'{"caption": "\\u200b\\u2028"}\n', "a.jsonl:1: no caption"),
        ("a.jsonl", b"[" * 100_000 + b"\n", "a.jsonl:1: not JSON"),
        ("a.json", b'["x", 3]', "a.json:item 2: neither a text nor an object"),
        ("a.json", b'[\n"x",\noops]', "a.json:3: not JSON"),
        ("a.json", b'{\n"annotations": [{"caption": "x"}]}', "one object with annotations: give an array"),
        ("a.txt", b"\xff\xfe\0", "not UTF-16"),
        ("a.txt", b"Caption\tURL\nx\ty\n", "a.txt:1: a header, not a prompt"),
        ("a.docx", b"x", "prompts are read from"),
        ("a.csv", b"caption\none\n" + b"x" * 200_000 + b"\n", "a.csv:3: field larger than field limit"),
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


def test_an_unclosed_quote_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "prompts.csv"
    path.write_text('caption\n"' + "x" * 200_000)
    with pytest.raises(InputError, match=r"prompts.csv:\d+: field larger .*; is a quote missing\?"):
        read_prompts(path)


@pytest.mark.parametrize("member", ["xl/workbook.xml", "content.xml", "word/document.xml", "captions.csv"])
def test_what_excel_and_others_make_is_named_whatever_it_is_called(tmp_path: Path, member: str) -> None:
    words = {
        "xl/workbook.xml": "an Excel workbook, whatever it is called: save it as CSV",
        "content.xml": "an OpenDocument file",
        "word/document.xml": "a Word document",
        "captions.csv": "a ZIP archive: unpack it first",
    }
    for name in ("prompts.csv", "prompts.xlsx"):
        with zipfile.ZipFile(tmp_path / name, "w") as archive:
            archive.writestr(member, "x")
        assert [words[member] in problem for problem in read_file(tmp_path / name).problems] == [True]


@pytest.mark.parametrize("name", ["a.txt", "a.csv", "a.jsonl.gz", "a.parquet"])
def test_a_pipe_is_not_waited_for(tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / name)
    found = read_prompt_file(tmp_path / name)
    assert found.problems == [f"{tmp_path / name} is a pipe or device: write the prompts to a file, and give that"]


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is a folder: give the file of prompts in it"):
        read_prompts(tmp_path)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("excel.csv", 'sep=;\r\ncaption;url\r\none;x\r\n"two; 2";\r\n'),
        ("quoted.csv", '"sep=|"\ncaption|url\none|x\n"two; 2"|\n'),
        ("bars.csv", "caption|url\none|x\ntwo; 2|\n"),
        ("old-mac.csv", "caption,url\rone,x\rtwo; 2,\r"),
        ("blank.csv", "\n\nCaption,URL\n\none,x\ntwo; 2,,,\n\n"),
        ("tabs.tsv", "TEXT\tURL\none\tx\ntwo; 2\t\n"),
        ("array.json", '[\n {"Caption": "one"},\n {"text": "two; 2"}\n]'),
        ("texts.json", '["one", "two; 2"]'),
        ("lines.json", '{"caption": "one"}\n{"caption": "two; 2"}\n'),
        ("lines.jsonl", '{"caption": "one", "subset": NaN}\r{"caption": "two; 2"}\r'),
        ("plain.txt", "one\n  two; 2  \n"),
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("packed", [False, True])
def test_the_same_prompts_in_every_form(tmp_path: Path, name: str, content: str, encoding: str, packed: bool) -> None:
    data = content.encode(encoding)
    path = tmp_path / (f"{name}.gz" if packed else name)
    path.write_bytes(gzip.compress(data, mtime=0) if packed else data)
    found = read_file(path)
    assert (found.problems, [prompt.text for prompt in found.prompts]) == ([], ["one", "two; 2"])
    assert all(prompt.subset is None for prompt in found.prompts)


def test_every_prompt_knows_its_line(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('sep=;\ncaption;url\n"a bed\nof two lines";x\n\nlast;y\n')
    (tmp_path / "a.jsonl").write_text('\n{"caption": "one"}\n\n{"caption": "two"}\n')
    (tmp_path / "a.json").write_text('["one", "two"]')
    (tmp_path / "a.txt").write_text("\none\n\ntwo\none\n")
    sources = {path.name: [p.source for p in read_prompts(path)] for path in sorted(tmp_path.iterdir())}
    assert {name: [source.removeprefix(f"{tmp_path}/") for source in some] for name, some in sources.items()} == {
        "a.csv": ["a.csv:3", "a.csv:6"],
        "a.json": ["a.json:item 1", "a.json:item 2"],
        "a.jsonl": ["a.jsonl:2", "a.jsonl:4"],
        "a.txt": ["a.txt:2", "a.txt:4"],
    }
    assert [prompt.text for prompt in read_prompts(tmp_path / "a.csv")] == ["a bed\nof two lines", "last"]


def test_all_that_is_wrong_with_a_file_is_said_at_once(tmp_path: Path) -> None:
    lines = ['{"caption": "x", "kind": "null"}', "oops", '{"caption": ""}', '{"caption": "x"}', '{"caption": {}}']
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    found = read_file(tmp_path / "a.jsonl")
    begins = ["a.jsonl:2: not JSON", "a.jsonl:3: no caption", "'x' stands as null at", "a.jsonl:5: caption is a dict"]
    assert len(found.problems) == 4
    assert all(words in problem for words, problem in zip(begins, found.problems, strict=True))
    (tmp_path / "a.csv").write_bytes(b"caption\nfine\n\xe9\nfine\n\xff\n")
    assert [problem.split(":")[1] for problem in read_file(tmp_path / "a.csv").problems] == ["3", "5"]
    with pytest.raises(InputError, match="4 things cannot be used:\n"):
        read_prompts(tmp_path / "a.jsonl")


def test_of_many_faults_the_first_are_shown_and_the_others_counted(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("caption,url\n" + ",x\n" * 50)
    problems = read_file(tmp_path / "a.csv").problems
    assert len(problems) == 21 and problems[-1] == f"and 30 more in {tmp_path / 'a.csv'}"
    assert few(["a"] * 20, "here") == ["a"] * 20


def test_what_may_not_be_meant_is_said(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("caption,type,url\na red\nrug,VM,http://x\nrug,TM,\nrug,VM,\n")
    found = read_file(path)
    assert found.problems == [] and [prompt.text for prompt in found.prompts] == ["a red", "rug"]
    assert found.urls == "url" and found.prompts[1].memorization == "VM"
    assert [notice.split(" rows")[0].split(" prompts")[0] for notice in found.notices] == ["1", "1"]
    assert f"{path}:2" in found.notices[0] and "fewer cells" in found.notices[0]
    assert f"{path}:4" in found.notices[1] and "another type or subset" in found.notices[1]
    (tmp_path / "a.tsv").write_text('TEXT\tURL\n"Untitled\tx\na bed\tx\nthe "sea"\tx\n')
    found = read_file(tmp_path / "a.tsv")
    assert any("1 rows span several lines within quotes" in n and "a.tsv:2" in n for n in found.notices)


def test_a_bomb_is_refused_by_its_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tasks.prompt_files.MOST_BYTES", 1000)
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(b"word\n" * 10_000, mtime=0))
    assert (tmp_path / "a.txt.gz").stat().st_size < 1000
    assert ["larger than" in problem for problem in read_file(tmp_path / "a.txt.gz").problems] == [True]


def test_home_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert expanded(Path("~/a.csv")) == tmp_path / "a.csv"
    with pytest.raises(InputError, match="there is no home folder of that name"):
        expanded(Path("~nobody-of-this-name/a.csv"))


def test_the_quote_before_a_formula_is_taken_away_where_a_scan_put_it(tmp_path: Path) -> None:
    rows = "'=x,norm,0.1\n''-y,norm,0.1\n'plain' text,norm,0.1\n"
    (tmp_path / "flagged.csv").write_text(f"caption,detectors,p_value\n{rows}")
    assert [prompt.text for prompt in read_prompts(tmp_path / "flagged.csv")] == ["=x", "'-y", "'plain' text"]
    (tmp_path / "own.csv").write_text("caption\n'=x\n")
    assert [prompt.text for prompt in read_prompts(tmp_path / "own.csv")] == ["'=x"]


@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.text("'=+-@＝", max_size=4), min_size=1, max_size=5, unique=True))
def test_every_text_comes_back_from_the_file_of_a_scan(tmp_path: Path, heads: list[str]) -> None:
    texts = [f"{head}cat" for head in heads]
    rows = [["caption", "detectors", "p_value"], *([safe_cell(text), "norm", "0.1"] for text in texts)]
    (tmp_path / "flagged.csv").write_text("".join(map(csv_line, rows)))
    assert [prompt.text for prompt in read_prompts(tmp_path / "flagged.csv")] == texts
