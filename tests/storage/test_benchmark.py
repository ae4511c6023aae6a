from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_benchmark_prints_and_writes_the_same_flat_figures(tmp_path: Path) -> None:
    size = ["--layers", "2", "--steps", "2", "--subsets", "3", "--prompts", "20", "--memorized", "4", "--repeats", "1"]
    options = [*size, "--threads", "1", "--folder", str(tmp_path), "--json", str(tmp_path / "figures.json")]
    program = [sys.executable, "-m", "benchmarks.store", *options]
    ended = subprocess.run(program, cwd=ROOT, check=False, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stderr
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert [line.split()[0] for line in ended.stdout.splitlines()] == list(figures)
    assert all(isinstance(value, int | float) and value > 0 for value in figures.values())
    assert {"bytes_per_member", "iou_time_over_numpy", "iou_peak_mib", "zscore_s"} <= set(figures)
    assert sum(name.startswith("query_") for name in figures) >= 10
    # Small sets already: a member takes a fraction of what a pickled matrix needs for it.
    assert figures["bytes_per_member"] < figures["csr_pickle_bytes_per_member"] / 3
    assert [path.name for path in tmp_path.iterdir()] == ["figures.json"]
