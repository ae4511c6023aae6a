"""Prompts of more tokens than the model reads, from the option to what a plan, a command and a page say of them."""

import json
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from flows.cli.commands import app
from flows.cli.shared import LongPromptsName, params_of
from flows.facts import facts_of
from flows.params import AuditParams, command_of
from flows.run.spec import resolve
from flows.settings import Settings, listed, settings_for
from tasks.errors import InputError
from tasks.subject import prompts_of
from tests.support.world import tiny_world

LONG = "far more letters than the model reads, which ends long before"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("long")
    tiny_world(folder)
    (folder / "memorized.csv").write_text(f'caption\na cat\n"{LONG}"\n')
    (folder / "nulls.txt").write_text(f"one\ntwo\n{LONG} it does\nthree\n")
    return folder


def params(world: Path, store: Path, **settings: Any) -> AuditParams:
    files = {"model": world / "model", "store": store, "prompts": world / "memorized.csv", "nulls": world / "nulls.txt"}
    return AuditParams(
        settings=Settings(**settings),
        clip=f"local-dir:{world / 'clip'}",
        device="cpu",
        **{name: str(path) for name, path in files.items()},
    )


def test_by_default_they_are_truncated_and_counted(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = resolve(params(world, tmp_path / "store"))
    assert [prompt.text for prompt in spec.chosen.memorized] == ["a cat", LONG]
    assert spec.subject.embed(spec.chosen.memorized).shape[0] == 2
    words = "2 prompts (1 memorized, 1 null) have more than the 32 tokens that the model reads: truncated"
    assert spec.long_prompts.startswith(words)
    places = f"{world / 'memorized.csv'}:3, {world / 'nulls.txt'}:3"
    lines = capsys.readouterr().err.splitlines()
    assert [places in line for line in lines if line.startswith(f"note: {words}")] == [True]
    record = {
        "model_id": "m",
        "device": "cpu",
        "started_at": datetime(2026, 1, 1),
        "library_versions": {},
        "params": "{}",
    }
    facts = dict(facts_of(spec, record, {}))
    assert facts["long prompts"].startswith(f"of the whole set, {words}")
    assert facts_without(world, tmp_path) == 0


def facts_without(world: Path, tmp_path: Path) -> int:
    """How much is said of a set in which nothing is too long."""
    (tmp_path / "short.txt").write_text("a cat\n")
    (tmp_path / "nulls.txt").write_text("one\ntwo\n")
    paths = {"prompts": str(tmp_path / "short.txt"), "nulls": str(tmp_path / "nulls.txt")}
    spec = resolve(params(world, tmp_path / "store").model_copy(update=paths))
    return len(spec.long_prompts) + len(spec.notices)


def test_they_can_be_left_out(world: Path, tmp_path: Path) -> None:
    spec = resolve(params(world, tmp_path / "store", long_prompts="skip"))
    assert [prompt.text for prompt in spec.chosen.memorized] == ["a cat"]
    texts = {prompt.text for kind in ("null", "ordinary") for prompt in prompts_of(spec.subject, kind)}
    assert texts == {"one", "two", "three"}


def test_they_can_be_refused_all_at_once_before_there_is_a_store(world: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError) as refusal:
        resolve(params(world, tmp_path / "store", long_prompts="refuse"))
    first, *lines = str(refusal.value).split("\n  ")
    assert first == "2 things cannot be used:"
    assert [line.split(": ")[0] for line in lines] == [f"{world / 'memorized.csv'}:3", f"{world / 'nulls.txt'}:3"]
    assert all("tokens, and the model reads 32" in line for line in lines)
    assert not (tmp_path / "store").exists()


def test_the_setting_is_one_of_all_and_an_option_of_its_own(world: Path) -> None:
    (row,) = [row for row in listed(settings_for("quick", {})) if row["setting"] == "long_prompts"]
    assert (row["value"], row["may be"]) == (json.dumps("truncate"), "truncate, refuse, skip")
    asked_of = partial(params_of, str(world / "model"), store=str(world / "store"), long_prompts=LongPromptsName.SKIP)
    params = asked_of(settings=["seeds=3", "wanda.sparsity=0.1"])
    assert (params.settings.long_prompts, params.settings.seeds) == ("skip", 3)
    assert "long_prompts" in command_of(params)
    with pytest.raises(InputError, match="long_prompts is set twice"):
        asked_of(settings=["long_prompts=refuse"])


@pytest.mark.parametrize("command", ["audit", "confirm", "collect", "localize", "evaluate", "report", "scan"])
def test_every_command_has_the_option(command: str) -> None:
    assert "--long-prompts" in CliRunner().invoke(app, [command, "--help"], env={"COLUMNS": "200"}).stdout
