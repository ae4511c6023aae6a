"""The script for GPUs, on a processor: its parts fail one by one, and what they found is one file and one page."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import gpu

ROOT = Path(__file__).resolve().parent.parent
CPU = torch.device("cpu")


def run(*words: str, **env: str) -> subprocess.CompletedProcess[str]:
    script = ["bash", str(ROOT / "benchmarks" / "gpu.sh"), *words]
    return subprocess.run(script, env=os.environ | env, capture_output=True, text=True)


def stand_in(folder: Path, body: str) -> str:
    """A Python that does something else with the parts, and is Python for the rest."""
    path = folder / "python"
    path.write_text(f'#!/usr/bin/env bash\n{body}\nexec "{sys.executable}" "$@"\n')
    path.chmod(0o755)
    return str(path)


def test_a_part_that_fails_or_hangs_leaves_the_others_alone(tmp_path: Path) -> None:
    quick = """
    case "$*" in
    *"benchmarks.gpu summary"*) ;;
    *"benchmarks.gpu speed"*) echo broken; exit 3 ;;
    *"benchmarks.gpu full"*) sleep 300 ;;
    *"benchmarks.gpu "*) mkdir -p "$7"; echo '{"seconds": 1, "failed": [], "what": {"far": 0.5}}' >"$7/$3.json"; exit ;;
    *pytest*) echo 3 passed; exit ;;
    esac"""
    quick = quick.replace("sleep 300", "exit 124")  # what `timeout` gives
    found = run("--out", str(tmp_path / "out"), PYTHON=stand_in(tmp_path, quick), DEVICE="cpu", WHEELS="none")
    assert found.returncode == 1
    parts = json.loads((tmp_path / "out" / "gpu.json").read_text())
    failed = {name: part["failed"] for name, part in parts.items() if part["failed"]}
    assert failed == {"speed": ["exit code 3"], "full": ["exit code 124"]}
    assert parts["flags"]["what"] == {"far": 0.5} and parts["tests"]["failed"] == []
    assert (tmp_path / "out" / "logs" / "speed.log").read_text() == "broken\n"
    page = (tmp_path / "out" / "summary.txt").read_text()
    assert page == found.stdout and "speed: FAILED: exit code 3" in page and "what: far 0.5" in page


def test_all_parts_together_take_eight_minutes_at_most() -> None:
    lines = (ROOT / "benchmarks" / "gpu.sh").read_text().splitlines()
    parts = {line.split()[1]: int(line.split()[2]) for line in lines if line.startswith(("measure ", "part "))}
    assert parts.keys() == {*gpu.PARTS, "tests"}
    assert sum(parts.values()) <= 8 * 60


def test_an_option_that_it_does_not_have_is_refused(tmp_path: Path) -> None:
    found = run("--smal", OUT=str(tmp_path / "out"))
    assert found.returncode == 2 and "there is no option --smal" in found.stderr
    assert not (tmp_path / "out").exists()


def test_flags_say_that_nothing_computes_in_three_digits(tmp_path: Path) -> None:
    found = gpu.flags(CPU, tmp_path, small=True)
    assert gpu.failures(found) == []
    after: dict[str, Any] = found["after a model was loaded"]
    assert after["cudnn.allow_tf32"] is False and after["cuda.matmul.allow_tf32"] is False


def test_a_processor_is_as_the_processor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = gpu.equality(CPU, tmp_path, small=True)
    assert found["tiny"]["latents"] == 0 and gpu.failures(found) == []
    monkeypatch.setattr(gpu, "TOLERANCE", {"latents": -1.0, "images": 1.0})
    assert gpu.failures(gpu.equality(CPU, tmp_path / "again", small=True)) == ["tiny"]


def test_speed_is_beside_the_plain_loop_and_goes_on_where_a_compiler_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(module: Any) -> Any:
        raise RuntimeError("no compiler\nat all")

    monkeypatch.setattr(torch, "compile", none)
    found = gpu.speed(CPU, tmp_path, small=True)
    assert gpu.failures(found) == ["ours, compiled", "ours, channels last, compiled"]
    assert found["ours, compiled"] == {"error": "RuntimeError: no compiler"}
    ours, plain = found["ours"], found["plain diffusers"]
    assert ours["of plain"] == pytest.approx(ours["evaluations a second"] / plain["evaluations a second"])
    assert plain["of plain"] == 1


@pytest.mark.slow
@pytest.mark.server
def test_the_whole_script_runs_on_a_processor(tmp_path: Path) -> None:
    # What `torch.compile` compiles is no business of the script's, and takes minutes on a processor.
    env = {"PYTHON": sys.executable, "DEVICE": "cpu", "SLOWER": "10", "WHEELS": "none", "TORCHDYNAMO_DISABLE": "1"}
    found = run("--small", "--out", str(tmp_path / "out"), **env)
    assert found.returncode == 0, found.stdout + found.stderr
    parts = json.loads((tmp_path / "out" / "gpu.json").read_text())
    assert parts.keys() == {*gpu.PARTS, "tests"}
    assert any(name.startswith("evaluate") for name in parts["reference"])
