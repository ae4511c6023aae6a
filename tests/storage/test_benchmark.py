from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.nights import ask, name_of, nights, put_nights
from storage import Store

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


def test_the_benchmark_of_nights_compares_stores_with_the_smallest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("benchmarks.nights.SETTLED_S", 0)
    monkeypatch.setattr("benchmarks.nights.ask", lambda url, name, last: 1.0 if "smallest" in url else 3.0)
    figures = nights([3, 1], argparse.Namespace(folder=tmp_path, repeats=1, loose=True))
    assert figures["nights_3_files"] - figures["nights_1_files"] == 2 * 41
    asked = {"select_1", "audit_metrics", "latest_metrics", "drift", "drift_from_accepted"}
    assert set(figures) == {
        "nights_1_files", "nights_3_files", "nights_1_verify_s", "nights_3_verify_over_1",
        *(f"nights_1_{name}_s" for name in asked), *(f"nights_3_{name}_over_1" for name in asked),
    }  # fmt: skip
    assert all(figures[f"nights_1_{name}_s"] == 1 and figures[f"nights_3_{name}_over_1"] == 3 for name in asked)


@pytest.mark.server
def test_what_the_benchmark_of_nights_asks_is_answered(tmp_path: Path) -> None:
    store = Store.open(tmp_path / "store")
    put_nights(store, range(2), loose=False)
    assert ask(store.url, "drift_from_accepted", name_of(1)) > 0


def test_a_night_leaves_few_files(tmp_path: Path) -> None:
    store = Store.open(tmp_path / "store")
    files = []
    for night in range(3):
        put_nights(store, range(night, night + 1), loose=False)
        files.append(sum(1 for _ in Path(store.backend.root).rglob("*.parquet")))
    assert files[2] - files[0] < 5
