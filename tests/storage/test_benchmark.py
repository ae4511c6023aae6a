from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def figures_of(folder: Path, *options: str) -> dict[str, float]:
    """What the benchmark writes; it prints the same."""
    program = [sys.executable, "-m", "benchmarks.store", *options]
    program += ["--repeats", "1", "--folder", str(folder), "--json", str(folder / "figures.json")]
    ended = subprocess.run(program, cwd=ROOT, check=False, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stderr
    figures: dict[str, float] = json.loads((folder / "figures.json").read_text())
    assert [line.split()[0] for line in ended.stdout.splitlines()] == list(figures)
    assert all(isinstance(value, int | float) and value > 0 for value in figures.values())
    assert [path.name for path in folder.iterdir()] == ["figures.json"]
    return figures


def test_the_benchmark_prints_and_writes_the_same_flat_figures(tmp_path: Path) -> None:
    size = ["--layers", "2", "--steps", "2", "--subsets", "3", "--prompts", "20", "--memorized", "4"]
    figures = figures_of(tmp_path, "--only", "scale", "--threads", "1", *size)
    assert {"bytes_per_member", "iou_time_over_numpy", "iou_peak_mib", "zscore_s"} <= set(figures)
    assert sum(name.startswith("query_") for name in figures) >= 10
    # Small sets already: a member takes a fraction of what a pickled matrix needs for it.
    assert figures["bytes_per_member"] < figures["csr_pickle_bytes_per_member"] / 3


@pytest.mark.slow
@pytest.mark.server
def test_the_benchmark_of_nights_compares_stores_with_the_smallest(tmp_path: Path) -> None:
    figures = figures_of(tmp_path, "--only", "nights", "--nights", "3,1")
    assert figures["nights_3_files"] - figures["nights_1_files"] == 2 * 41
    asked = {"select_1", "audit_metrics", "latest_metrics", "drift", "drift_from_accepted", "verify"}
    assert set(figures) == {
        "nights_1_files", "nights_3_files",
        *(f"nights_1_{name}_s" for name in asked), *(f"nights_3_{name}_over_1" for name in asked),
    }  # fmt: skip
