"""Python in README and docs/python.md: every example runs, on a tiny world in place of the model that ships.

And `import engram` is light."""

import ast
import json
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import engram
from storage import Store, run_sql
from tasks.keys import prompt_id
from tests.support.world import tiny_world

ROOT = Path(__file__).resolve().parents[1]
PAGES = [(ROOT / page).read_text() for page in ("README.md", "docs/python.md")]
EXAMPLE = re.compile(r"^## ([^\n]+)\n(?:(?!^## ).)*?^```python\n(.+?)^```$", re.DOTALL | re.MULTILINE)
SETTINGS = {
    "examined": "all",
    "memorized": 2,
    "threshold_nulls": 2,
    "ordinary": 2,
    "seeds": 1,
    "attacked": 0,
    "sampling": {"steps": 2},
    "nemo": {"seeds": 2, "threshold": 0.0, "theta": 1.5, "theta_min": 1.0},
    "wanda": {"sparsity": 0.1, "tau": 2},
}
CAPTIONS = ["a cup", "a bed", "a boat"]


def examples() -> dict[str, str]:
    """By the headline above it, the code of an example."""
    return {headline: code for page in PAGES for headline, code in EXAMPLE.findall(page)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a reader stands: a model that says itself what it is audited with, and two files of prompts."""
    folder = tmp_path_factory.mktemp("reader")
    own = tiny_world(folder) / "engram.json"
    own.write_text(json.dumps(json.loads(own.read_text()) | {"settings": SETTINGS}))
    nulls = [f"null {number}" for number in range(20)]
    rows: list[dict[str, Any]] = [
        {"prompt_id": prompt_id(text), "text": text, "kind": "null", "memorization": None, "subset": None}
        | {"image_ids": []}
        for text in nulls
    ]
    prompts = pq.read_table(folder / "prompts.parquet")
    pq.write_table(pa.concat_tables([prompts, pa.Table.from_pylist(rows, prompts.schema)]), folder / "prompts.parquet")
    (folder / "captions.txt").write_text("\n".join(CAPTIONS))
    (folder / "ordinary.txt").write_text("\n".join(nulls))
    return folder


@pytest.fixture(scope="module")
def ran(folder: Path) -> dict[str, dict[str, Any]]:
    """By its headline, what the names of an example stand for after all of them ran, one after the other."""
    found: dict[str, dict[str, Any]] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for headline, code in examples().items():
            for shipped in ("reference/model", "reference"):
                code = code.replace(f'"{shipped}"', f'"{folder / "model"}"')
            # Random weights remember nothing; with this threshold they count as if they did, and are searched.
            code = code.replace("threshold=0.428", "threshold=0.0")
            found[headline] = {}
            exec(compile(code, headline, "exec"), found[headline])
    return found


def test_examples_are_short() -> None:
    lines = {headline: [line for line in code.splitlines() if line] for headline, code in examples().items()}
    assert len(lines) == sum(page.count("```python") for page in PAGES) == 5
    assert max(map(len, lines.values())) <= 10


@pytest.mark.server
@pytest.mark.filterwarnings("ignore")
@pytest.mark.slow
def test_an_audit(ran: dict[str, dict[str, Any]], folder: Path) -> None:
    audited = [ran[headline]["audited"] for headline in ("Python", "Audit a model")]
    assert all((folder / each.report).read_text().startswith("<!doctype html>") for each in audited)
    rows = run_sql(Store.open(folder / "audits"), "SELECT audit_id, state FROM audits ORDER BY started_at").to_pylist()
    assert rows == [{"audit_id": each.audit_id, "state": "completed"} for each in audited]


@pytest.mark.server
@pytest.mark.filterwarnings("ignore")
def test_a_scan(ran: dict[str, dict[str, Any]]) -> None:
    names = ran["Scan a list of prompts"]
    assert {row["prompt"] for row in names["rows"]} == set(CAPTIONS)
    assert set(names["suspects"]) == {row["prompt"] for row in names["rows"] if row["p_value"] <= 0.05}


@pytest.mark.server
@pytest.mark.filterwarnings("ignore")
def test_nemo_of_one_prompt(ran: dict[str, dict[str, Any]]) -> None:
    names = ran["Run NeMo on one prompt"]
    found, layers = names["found"], names["layers"]
    assert found.memorized and found.trace
    assert all(set(neurons.tolist()) <= set(range(layers[n].outputs)) for n, neurons in found.neurons.items())
    assert [tuple(each.shape) for each in names["activations"]] == [(layer.outputs,) for layer in layers]


@pytest.mark.server
@pytest.mark.filterwarnings("ignore")
def test_the_store_as_a_frame(ran: dict[str, dict[str, Any]], folder: Path) -> None:
    frame = ran["Read the store as a DataFrame"]["metrics"]
    last = "(SELECT max_by(audit_id, started_at) FROM audits WHERE state = 'completed')"
    statement = f"SELECT count(*) AS n, sum(value) AS total FROM metrics WHERE audit_id = {last}"
    (wanted,) = run_sql(Store.open(folder / "audits"), statement).to_pylist()
    assert len(frame) == wanted["n"] > 0
    assert frame["value"].sum() == pytest.approx(wanted["total"])


def test_import_is_light_and_the_store_needs_no_torch() -> None:
    heavy = "[name for name in ('torch', 'prefect', 'diffusers', 'duckdb', 'pyarrow') if name in sys.modules]"
    code = f"import sys, engram; print({heavy}); engram.connect, engram.prefect_server; print({heavy})"
    printed = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert printed.splitlines()[0] == "[]"
    assert not {"torch", "prefect", "diffusers"} & set(ast.literal_eval(printed.splitlines()[1]))


def test_type_checkers_see_the_same_names() -> None:
    """Each name stands twice in the package: for type checkers, and for when it is asked for."""
    tree = ast.parse((ROOT / "engram" / "__init__.py").read_text())
    seen = {
        str(name.asname): str(node.module)
        for block in tree.body
        if isinstance(block, ast.If)
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for name in node.names
    }
    assert sorted(seen) == dir(engram)
    assert all(getattr(engram, name) is getattr(import_module(home), name) for name, home in seen.items())
    with pytest.raises(AttributeError, match="'engram' has no attribute 'audits'"):
        engram.audits  # type: ignore[attr-defined]  # noqa: B018
