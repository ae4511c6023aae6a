"""The command line: what it offers, and what it refuses in one line."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any
from urllib.request import proxy_bypass

import pytest
import torch
from prefect.settings import Settings as PrefectSettings
from typer.testing import CliRunner

from flows.cli import main
from flows.cli.commands import app, quiet, reach_this_machine, settings_of
from flows.cli.shared import NEEDS_A_PLATFORM
from flows.serve import environment
from flows.settings import Settings, settings_for
from storage import Store
from tasks.errors import InputError
from tasks.methods import method, methods, metrics
from tests.support.rows import put_sets

COMMANDS = (
    *("audit", "confirm", "collect", "localize", "mitigate", "attack", "diagnose", "evaluate", "report"),
    *(
        "settings",
        "methods",
        "scan",
        "sql",
        "query",
        "iou",
        "catalog",
        "export",
        "verify",
        "audits",
        "compare",
        "results",
        "accept",
    ),
    *("prompts", "models", "serve", "deploy", "reference", "bench"),
)


def refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """What a command that cannot be carried out says."""
    monkeypatch.setattr(sys, "argv", ["engram", *words])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 2
    return capsys.readouterr().err.strip()


def test_what_a_person_can_mend_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def raising(error: Exception) -> Callable[[], None]:
        def raises() -> None:
            raise error

        return raises

    monkeypatch.setattr("flows.cli.commands.app", raising(torch.OutOfMemoryError("CUDA out of memory")))
    said = refused(monkeypatch, capsys)
    assert said.startswith("engram: not one image fits into the device's memory") and "\n" not in said
    monkeypatch.setattr("flows.cli.commands.app", lambda: torch.zeros(2) @ torch.zeros(3))
    with pytest.raises(RuntimeError, match="inconsistent tensor size"):
        main()


def test_help_lists_every_command() -> None:
    said = CliRunner().invoke(app, ["--help"]).output
    names = {line.split()[1] for line in said.splitlines() if line.startswith("│") and len(line.split()) > 2}
    assert set(COMMANDS) <= names
    for name in COMMANDS:
        assert CliRunner().invoke(app, [name, "--help"]).exit_code == 0


def test_every_setting_that_is_listed_can_be_set() -> None:
    said = CliRunner().invoke(app, ["settings", "--profile", "quick", "--format", "json"])
    rows = json.loads(said.output)
    given = settings_of([f"{row['setting']}={row['value']}" for row in rows], Settings)
    assert settings_for("full", {}, **given) == settings_for("quick", {})
    assert {"seeds": "2", "nemo.theta": "5.0"}.items() <= {row["setting"]: row["value"] for row in rows}.items()
    (seeds,) = (row for row in rows if row["setting"] == "seeds")
    assert seeds["may be"] == "integer, >= 1, <= 100" and seeds["what"]


def test_every_metric_has_its_own_settings() -> None:
    settings = settings_for("full", {})
    set_apart = [one for one in metrics() if one.params.model_fields]
    assert "extraction" in {one.name for one in set_apart}
    assert all(isinstance(settings.of(one), one.params) for one in set_apart)
    assert settings.of(method("metric", "extraction")).generations == 100  # as the profile has it


def test_every_method_is_listed_with_its_parameters_and_paper() -> None:
    rows = {
        (row["kind"], row["method"]): row for row in json.loads(CliRunner().invoke(app, ["methods", "--json"]).output)
    }
    assert rows.keys() == {(one.kind, one.name) for one in methods()} and {"detector", "metric"} <= {k for k, _ in rows}
    assert rows["detector", "norm"]["parameters"] == "norm.seeds norm.steps"
    assert "Carlini" in rows["metric", "extraction"]["paper"]
    assert all(row[column].endswith(".") for row in rows.values() for column in ("what", "control"))


def test_named_queries_are_listed_and_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "iou_pairs" in CliRunner().invoke(app, ["query"]).output
    store = Store.open(tmp_path / "store")
    put_sets(store, {"a": [1, 2], "b": [2, 3]})
    where = ["--store", str(tmp_path / "store"), "--format", "json"]
    (row,) = json.loads(CliRunner().invoke(app, ["query", "iou_pairs", *where]).output)
    assert row["iou"] == pytest.approx(1 / 3)
    assert json.loads(CliRunner().invoke(app, ["query", "iou_pairs", "--set", "method=none", *where]).output) == []
    for kind in ("null", "memorized"):
        prompt: dict[str, Any] = {"prompt_id": kind, "text": kind, "kind": kind, "image_ids": []}
        store.write("prompts", kind, [prompt], prompt_set="p")
        norms = {"prompt_id": kind, "step": 0, "timestep": 9, "sum_sq": [4.0], "tokens": 1, "params_id": "n"}
        place = {"model_id": "m", "variant": "original", "site": "ff-hidden", "layer": "x"}
        store.write("activations", kind, [norms], **place)
    answer = CliRunner().invoke(app, ["query", "wanda_norms", "--set", "model_id=m", "--set", "kind=null", *where])
    assert [row["prompts"] for row in json.loads(answer.output)] == [1]
    assert "takes" in refused(monkeypatch, capsys, "query", "iou_pairs", "--set", "metod=x", *where)
    assert "there are audit_metrics" in refused(monkeypatch, capsys, "query", "iou", *where)


def test_a_benchmark_takes_its_own_options(tmp_path: Path) -> None:
    command = ["bench", "attack", "--steps", "5", "--images-at-once", "1", "--json", str(tmp_path / "figures.json")]
    found = CliRunner().invoke(app, command)
    assert found.exit_code == 0, found.output
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures["step_over_bare"] == pytest.approx(figures["step_s"] / figures["bare_s"])


def test_all_that_is_wrong_with_a_build_is_told_at_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    archives = ("--images", str(tmp_path / "none.tgz"), "--names", str(tmp_path / "neither.tgz"))
    said = refused(monkeypatch, capsys, "reference", "build", *archives, "--set", "stepps=3")
    first, *rest = said.splitlines()
    assert first == "engram: 3 things cannot be used:"
    assert "there is no setting 'stepps': there are seed, part, images" in rest[0]
    assert all("no archive at" in line and "npm pack" in line for line in rest[1:])


def test_gates_that_there_are_not_are_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    said = refused(monkeypatch, capsys, "reference", "check", "--only", "plated", "--store", str(tmp_path / "store"))
    assert said.startswith("engram: no gates 'plated': there are autoencoder, clip, planted,") and "\n" not in said
    assert not (tmp_path / "store").exists()


def test_a_server_for_one_command_looks_for_no_work_of_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", dict(os.environ))
    quiet()
    services = PrefectSettings().server.services
    assert not any(getattr(services, name.lower()).enabled for name in NEEDS_A_PLATFORM)
    # What a run writes must reach the database all the same.
    assert services.event_persister.enabled and services.task_run_recorder.enabled
    named = environment("http://127.0.0.1:4200", Path())
    assert not [name for name in named if name.startswith("PREFECT_SERVER_SERVICES") and name.endswith("_ENABLED")]


def test_a_proxy_is_not_asked_for_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    def environment_of(**variables: str) -> None:
        kept = {name: value for name, value in os.environ.items() if "proxy" not in name.lower()}
        monkeypatch.setattr(os, "environ", kept | variables)
        reach_this_machine()

    for name in ("http_proxy", "HTTPS_PROXY"):
        environment_of(**{name: "http://proxy:3128", "NO_PROXY": "internal.example"})
        assert all(proxy_bypass(host) for host in ("127.0.0.1:4200", "localhost", "internal.example"))
        assert not proxy_bypass("huggingface.co")
    environment_of(http_proxy="http://proxy:3128", no_proxy="*")
    assert proxy_bypass("huggingface.co")
    environment_of()  # any such variable would turn the proxy of a whole Mac off
    assert not {"no_proxy", "NO_PROXY"} & os.environ.keys()


def test_a_setting_without_a_value_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert refused(monkeypatch, capsys, "audit", "--set", "seeds") == "engram: --set 'seeds' is not NAME=VALUE"


def test_damages_are_told_to_people_and_programs(tmp_path: Path) -> None:
    store = Store.open(tmp_path / "store")
    put_sets(store, {"a": [1, 2]})
    command = ["verify", "--store", str(tmp_path / "store")]
    assert CliRunner().invoke(app, command).output == "every part is whole\n"
    assert json.loads(CliRunner().invoke(app, [*command, "--json"]).output) == []
    (part,) = (tmp_path / "store").rglob("*.parquet")
    part.write_bytes(part.read_bytes()[:-20])
    found = CliRunner().invoke(app, [*command, "--json"])
    assert found.exit_code == 1
    (damage,) = json.loads(found.output)
    assert part.name in damage["address"]
    assert CliRunner().invoke(app, command).output == f"{damage['address']}: {damage['reason']}\n"


@pytest.mark.parametrize(
    ("command", "closed", "code"),
    [
        ("--version", ">&-", 0),
        ("--help", "<&- >&-", 0),
        ("audits --store none", "2>&-", 2),
        ("audits --store none", ">&-", 2),
    ],
)
def test_closed_streams_lead_nowhere(command: str, closed: str, code: int, tmp_path: Path) -> None:
    words = f"{sys.executable} -c 'from flows.cli import main; main()' {command} {closed}"
    root = str(Path(__file__).resolve().parents[2])
    found = subprocess.run(
        ["bash", "-c", words], capture_output=True, text=True, cwd=tmp_path, env=os.environ | {"PYTHONPATH": root}
    )
    refused = "engram: there is no store at none; give its address with --store or ENGRAM_STORE\n"
    assert (found.returncode, found.stdout) == (code, "")  # errors are not printed into what others read
    assert found.stderr == (refused if code and "2>" not in closed else "")


def test_the_versions_are_told_without_loading_anything() -> None:
    command = [sys.executable, "-X", "importtime", "-c", "from flows.cli import main; main()", "--version"]
    found = subprocess.run(command, capture_output=True, text=True, check=True)
    assert [line.split()[0] for line in found.stdout.splitlines()] == [
        "engram",
        "torch",
        "diffusers",
        "prefect",
        "python",
    ]
    assert found.stdout.splitlines()[1] == f"torch {version('torch')}"
    imported = {line.rpartition("|")[2].strip() for line in found.stderr.splitlines()}
    assert "typer" in imported and not {"torch", "prefect", "diffusers"} & imported


@pytest.mark.parametrize(
    "command", [["settings"], ["methods"], ["query"], ["audits"], ["models", "list"], ["sql", "SELECT 1 AS a"]]
)
def test_every_list_is_json_for_programs(tmp_path: Path, command: list[str]) -> None:
    Store.open(tmp_path / "store")
    place = [] if command[0] in ("settings", "methods", "query") else ["--store", str(tmp_path / "store")]
    answers = [CliRunner().invoke(app, [*command, *place, *form]) for form in (["--json"], ["--format", "json"])]
    assert all(answer.exit_code == 0 for answer in answers)
    assert isinstance(json.loads(answers[0].stdout), list) and answers[0].stdout == answers[1].stdout


def test_two_forms_at_once_are_refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    said = refused(monkeypatch, capsys, "settings", "--json", "--format", "csv")
    assert said == "engram: --json and --format csv exclude each other: leave one out"


@pytest.mark.parametrize("columns", [60, 80, 160, 640])
def test_settings_can_be_read_on_a_terminal_of_any_width(monkeypatch: pytest.MonkeyPatch, columns: int) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    lines = CliRunner().invoke(app, ["settings"]).stdout.splitlines()
    assert max(map(len, lines)) <= columns
    rows = json.loads(CliRunner().invoke(app, ["settings", "--json"]).stdout)
    words = " ".join(" ".join(lines).split())
    for row in rows:  # nothing is shortened
        assert all(" ".join(text.split()) in words for text in row.values())
    assert (len(lines) == len(rows) + 2) == (columns == 640)


def test_in_a_pipe_each_setting_has_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    lines = CliRunner().invoke(app, ["settings"]).stdout.splitlines()
    (seeds,) = (line for line in lines if line.startswith("seeds "))
    assert "integer, >= 1, <= 100" in seeds and "Number of images made of each prompt" in seeds


@pytest.mark.parametrize("columns", [60, 80, 160])
def test_help_can_be_read_on_a_terminal_of_any_width(columns: int) -> None:
    for command in (["--help"], ["audit", "--help"], ["scan", "--help"], ["models", "add", "--help"]):
        said = CliRunner().invoke(app, command, env={"COLUMNS": str(columns)}, terminal_width=columns).output
        assert max(map(len, said.splitlines())) <= columns
    said = CliRunner().invoke(app, ["audit", "--help"], env={"COLUMNS": "160"}).output
    assert "OWNER/NAME[@REVISION]" in said  # brackets are no markup


def test_a_log_has_no_bars_of_libraries() -> None:
    code = "from flows.cli.shared import quiet; quiet(); from transformers.utils import logging as log; "
    code += "print(log.is_progress_bar_enabled())"
    environment = {name: value for name, value in os.environ.items() if name != "HF_HUB_DISABLE_PROGRESS_BARS"}
    said = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, env=environment)
    assert said.stdout == "False\n"


@pytest.mark.parametrize("words", [("--help",), ("--", "--help")])
def test_a_benchmark_lists_its_own_options(words: tuple[str, ...]) -> None:
    assert CliRunner().invoke(app, ["bench", "attack", *words]).output.startswith("usage: engram bench attack")
    assert "scale" in CliRunner().invoke(app, ["bench", "--help"]).output


def test_an_audit_is_not_spread_two_ways(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for more in ([], ["--dry-run"]):
        said = refused(monkeypatch, capsys, "audit", "--workers", "2", "--spread", "gpu", *more)
        assert said == "engram: --workers and --spread exclude each other: leave one out"


def test_a_benchmark_that_needs_a_checkout_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise ModuleNotFoundError("No module named 'tests'", name="tests")

    monkeypatch.setattr("flows.cli.world.import_module", missing)
    answer = CliRunner().invoke(app, ["bench", "scale"])
    assert isinstance(answer.exception, InputError) and "run it in a checkout of the repository" in str(
        answer.exception
    )
