"""The scan from the command line, on a model of random weights: what is printed, kept, written and refused."""

import csv
import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from prefect.settings import PREFECT_API_URL
from typer.testing import CliRunner, Result

from flows.audit import AuditParams
from flows.cli import main
from flows.cli.commands import app
from flows.run.spec import resolve
from flows.scan import ScanRun, scan, scanned_and_nulls
from flows.settings import Settings
from storage import Store, run_sql, verify
from tasks.errors import InputError
from tasks.prompt_files import PromptEntry
from tasks.scan.task import ScanParams
from tests.support.artifacts import artifact
from tests.support.prompts import read_prompts
from tests.support.world import tiny_world

pytestmark = [pytest.mark.server, pytest.mark.usefixtures("prefect"), pytest.mark.filterwarnings("ignore")]

PROMPTS = """;Caption;URL;type;subset;Index
0;"a ""red"" cup, twice";;VM;cups;7
1;a blue cup;;TM;cups;8
2;a blue cup;;TM;cups;9
3;a bed;;;;10
4;far more letters than a model of thirty-two tokens reads;;VM;;11
"""
NULLS = "one\ntwo\nthree\nfour\n"
ALPHA = "0.8"
"""With four null prompts: flagged is what scores higher than any one of them."""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model and the two files."""
    folder = tmp_path_factory.mktemp("scanned")
    tiny_world(folder)
    (folder / "prompts.csv").write_text(PROMPTS)
    (folder / "nulls.txt").write_text(NULLS)
    return folder


def files(world: Path) -> dict[str, str]:
    place = {"model": world / "model", "store": world / "store", "prompts": world / "prompts.csv"}
    return {name: str(path) for name, path in (place | {"nulls": world / "nulls.txt"}).items()} | {"device": "cpu"}


def engram_scan(world: Path, *words: str) -> Result:
    options = [word for name, value in files(world).items() for word in (f"--{name}", value)]
    found = CliRunner().invoke(app, ["scan", *options, "--alpha", ALPHA, *words])
    assert found.exit_code == 0, found.output
    return found


def test_flagged_prompts_are_what_an_audit_reads(world: Path) -> None:
    out = world / "flagged.csv"
    found = engram_scan(world, "--format", "csv", "--out", str(out), "--long-prompts", "skip")
    rows = list(csv.DictReader(io.StringIO(found.stdout)))
    assert [float(row["p_value"]) for row in rows] == sorted(float(row["p_value"]) for row in rows)
    assert {row["prompt"] for row in rows} == {'a "red" cup, twice', "a blue cup", "a bed"}
    flagged = [row["prompt"] for row in rows if row["flagged"] == "True"]
    assert flagged == [row["prompt"] for row in rows if float(row["p_value"]) <= float(ALPHA)] != []
    assert f"norm flags {len(flagged)} of 3 prompts, compared with 4 null prompts at a false-alarm" in found.stderr
    assert "1 prompt (1 scanned) has more than the 32 tokens that the model reads: left out" in found.stderr
    told_of = {prompt.text: prompt for prompt in read_prompts(world / "prompts.csv")}
    assert told_of["a blue cup"].numbers == ("8", "9")
    assert read_prompts(out) == [told_of[text] for text in flagged]
    # The very file, as `engram audit --prompts` takes it.
    paths = files(world) | {"prompts": str(out), "store": str(world / "audited")}
    spec = resolve(AuditParams(settings=Settings(), **paths))
    assert spec.chosen.erasable == [] and "give --images" in spec.chosen.why_not_erasable
    assert {(prompt.text, prompt.memorization, prompt.subset) for prompt in spec.chosen.memorized} == {
        (text, told_of[text].memorization, told_of[text].subset) for text in flagged
    }


def test_a_second_scan_computes_nothing(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ("--detector", "norm", "--detector", "ssim", "--format", "json", "--long-prompts", "skip")
    first = engram_scan(world, *words)
    store = Store.open(str(world / "store"))
    before = store.parts("detections"), store.parts("findings")
    for detector in ("norm", "ssim"):
        monkeypatch.setattr(f"tasks.scan.{detector}.by_seed", None)
    again = engram_scan(world, *words)
    assert json.loads(again.stdout) == json.loads(first.stdout)
    assert (store.parts("detections"), store.parts("findings")) == before
    assert verify(store) == []
    engram_scan(
        world, "--alpha", "0.9", "--detector", "ssim", "--long-prompts", "skip"
    )  # another decision, by the same scores
    assert len(store.parts("findings")) == len(before[1]) + 1
    names = "SELECT DISTINCT detector, count(DISTINCT prompt_id) AS n FROM detections GROUP BY ALL ORDER BY ALL"
    assert [tuple(row.values()) for row in run_sql(store, names).to_pylist()] == [("norm", 7), ("ssim", 7)]


def test_the_table_ends_with_what_was_flagged(world: Path) -> None:
    lines = engram_scan(world).stdout.splitlines()
    assert lines[0].split() == ["prompt", "detector", "score", "p_value", "flagged"]
    assert lines[-2].startswith("norm flags") and " of 4 prompts" in lines[-2]
    assert lines[-1] == (
        "1 prompt (1 scanned) has more than the 32 tokens that the model reads: truncated, as captions are in training"
    )


def test_what_the_ui_shows(world: Path) -> None:
    found = scan(ScanRun(scan=ScanParams(alpha=float(ALPHA)), **files(world)))
    page = artifact("scan")
    assert page.startswith(f"# Scan {found.scan_id}") and found.words.splitlines()[0] in page
    assert len(json.loads(artifact("suspects"))) == 4


def test_a_model_has_prompts_and_null_prompts_of_its_own(world: Path) -> None:
    own = {"model": str(world / "model"), "store": str(world / "store"), "scan": ScanParams(alpha=0.2)}
    scanned, nulls = scanned_and_nulls(ScanRun.model_validate(own))
    assert {prompt.kind for prompt in scanned} == {"memorized", "ordinary"} and len(scanned) == 10
    assert [prompt.text for prompt in nulls] == [f"picture {n}" for n in (4, 5, 6, 7)]
    scanned, same = scanned_and_nulls(ScanRun.model_validate(own | {"prompts": str(world / "prompts.csv")}))
    assert same == nulls and len(scanned) == 4


def test_no_prompt_is_held_against_itself(world: Path, tmp_path: Path) -> None:
    (tmp_path / "some.csv").write_text("caption,kind\nthree,\nfour,null\nfive,null\nsix,memorized\n")
    both = files(world) | {"prompts": str(tmp_path / "some.csv")}
    scanned, nulls = scanned_and_nulls(ScanRun(scan=ScanParams(alpha=0.25), **both))
    assert [prompt.text for prompt in scanned] == ["three", "six"]
    assert [prompt.text for prompt in nulls] == ["one", "two", "four"]
    del both["nulls"]
    _, nulls = scanned_and_nulls(ScanRun(scan=ScanParams(alpha=0.25), **both))
    assert [prompt.text for prompt in nulls] == ["four", "five", *(f"picture {n}" for n in (4, 5, 6, 7))]
    assert nulls[0] == PromptEntry("four", "null")


@pytest.mark.parametrize(
    ("words", "told_of"),
    [
        (["--alpha", "0.02"], "4 null prompts are too few for a false-alarm rate of 2 %, which needs 49"),
        (["--prompts", "nowhere.csv"], "cannot read nowhere.csv: No such file"),
        (["--nulls", "nowhere.csv"], "cannot read nowhere.csv: No such file"),
        (["--model", "nowhere"], "no model at nowhere: there is no such file or folder"),
        (["--out", "nowhere/flagged.csv"], "there is no folder nowhere for flagged.csv"),
        (["--set", "alphas=1"], "there is no setting 'alphas': did you mean alpha?"),
        (["--set", "ssim.seeds=1"], "ssim.seeds cannot be 1: it may be: integer, >= 2, <= 100"),
        (["--set", "batch=2", "--set", "batch=3"], "batch is set twice, by --set 'batch=2' and by --set 'batch=3'"),
        (["--set", "norm.steps=1001"], "norm.steps cannot be 1001"),
        (["--detector", "norms"], "detectors cannot be"),
        (["--alpha", "0.5", "--set", "alpha=0.4"], "alpha is set twice, by its own option and by --set: leave one"),
        (["--device", "cuda:99", "--alpha", ALPHA], "no device 'cuda:99' here"),
        (["--store", "/dev/null/store"], "cannot open the store /dev/null/store: /dev/null is no folder"),
        (["--set", "alpha"], "--set 'alpha' is not NAME=VALUE"),
        (["--long-prompts", "refuse"], "{world}/prompts.csv:6: 49 tokens, and the model reads 32: shorten it, or"),
        (["--long-prompts", "skip", "--set", "long_prompts=refuse"], "long_prompts is set twice"),
    ],
)
def test_bad_input_is_one_line(
    world: Path,
    words: list[str],
    told_of: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    options = [word for name, value in files(world).items() for word in (f"--{name}", value)]
    monkeypatch.setattr(sys, "argv", ["engram", "scan", *options, *words])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"engram: {told_of.format(world=world)}")


def test_everything_that_is_wrong_with_both_files_is_said_at_once(world: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.csv").write_text("caption\n,\nfine\n")
    (tmp_path / "bad.jsonl").write_text("oops\n")
    both = files(world) | {"prompts": str(tmp_path / "bad.csv"), "nulls": str(tmp_path / "bad.jsonl")}
    with pytest.raises(InputError, match=r"(?s)2 things cannot be used:.*bad\.csv:2: .*bad\.jsonl:1: not JSON"):
        scanned_and_nulls(ScanRun.model_validate(both))


def test_a_null_prompt_that_is_the_same_to_the_model_is_named(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "nulls.txt").write_text("one\ntwo\n\nA  BED\nfour\n")
    scanned_and_nulls(
        ScanRun.model_validate(files(world) | {"nulls": str(tmp_path / "nulls.txt"), "scan": {"alpha": 0.8}})
    )
    places = f"{world / 'prompts.csv'}:5 (scanned), {tmp_path / 'nulls.txt'}:4 (null)"
    assert f"{places} are the same to the model" in capsys.readouterr().err


def test_a_file_that_cannot_be_scanned_at_all_is_one_line(world: Path, tmp_path: Path) -> None:
    """In a process of its own, where nothing but the command decides what is logged."""
    (tmp_path / "long.txt").write_text("far more letters than a model of thirty-two tokens reads\n")
    options = files(world) | {"prompts": str(tmp_path / "long.txt")}
    command = [sys.executable, "-c", "from flows.cli import main; main()", "scan", "--alpha", ALPHA]
    command += ["--long-prompts", "skip"]
    command += [word for name, value in options.items() for word in (f"--{name}", value)]
    env = os.environ | {"PREFECT_API_URL": PREFECT_API_URL.value()}
    found = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert found.returncode == 2 and found.stdout == ""
    (line,) = found.stderr.splitlines()
    assert line.startswith(f"engram: {tmp_path / 'long.txt'} has nothing to scan: 1 prompt (1 scanned) has more than")
    assert line.endswith("left out; take --long-prompts truncate")


def test_a_model_without_prompts_needs_a_file(world: Path, tmp_path: Path) -> None:
    shutil.copytree(world / "model", tmp_path / "model")
    (tmp_path / "model" / "engram.json").unlink()
    with pytest.raises(InputError, match=r"which prompts.*--prompts"):
        scanned_and_nulls(ScanRun(model=str(tmp_path / "model")))
    (tmp_path / "nulls.csv").write_text("caption,kind\none,null\n")
    with pytest.raises(InputError, match="nothing to scan"):
        scanned_and_nulls(ScanRun(model=str(tmp_path / "model"), prompts=str(tmp_path / "nulls.csv")))
