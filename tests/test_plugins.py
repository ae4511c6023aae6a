"""A package of somebody else's that brings a method of each kind: they are everywhere where our own are."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from storage import Store
from tests.flows.test_audit import SETTINGS
from tests.support.world import tiny_world

pytestmark = [pytest.mark.slow, pytest.mark.server]

CONTRIBUTING = Path(__file__).parents[1] / "CONTRIBUTING.md"
OTHERS = '''
"""A method of each other kind."""

from typing import Annotated

import torch
from pydantic import Field

from tasks.conditions import PROMPT
from tasks.diffusion.detection import DetectionParams
from tasks.diffusion.sites import Site
from tasks.evaluate.estimates import Estimate
from tasks.localize.ground import Found
from tasks.methods import Column, Pruning, detector, localizer, metric

known = {"paper": "A convention of ours.", "control": "Nothing."}


@detector(name="length", title="Length", words="Measures how long embeddings are.", **known)
def length(model, embeddings, prompt_ids, params, batch):
    return embeddings.flatten(1).norm(dim=1).float().cpu()


class FirstParams(DetectionParams):
    """How many, and how null prompts are scored."""

    seeds: Annotated[int, Field(ge=2, description="Initial noises for each null prompt.")] = 2

    count: Annotated[int, Field(ge=1, description="The number of neurons of each layer.")] = 1


@localizer(
    name="first",
    title="First neurons",
    words="Takes the first neurons of each layer.",
    params=FirstParams,
    members="neurons",
    site=Site.VALUE,
    scopes="prompts",
    reads=("images", "null scores"),
    prunings=(
        Pruning(
            name="first-neurons",
            over="union",
            card="the first neurons of each layer",
            claims=True,
            random="as many random ones",
        ),
    ),
    **known,
)
def first(ground, params):
    assert len(ground.null_scores) > 1 and ground.latents(ground.with_images).isfinite().all()
    for layer in ground.layers:
        yield Found(layer, torch.arange(params.count))


@metric(
    name="brightness",
    title="Brightness",
    words="Brightness is the mean of all pixels.",
    applies=lambda condition, variant: condition == PROMPT,
    columns=(Column("brightness", "Brightness", ".1f"),),
    **known,
)
def brightness(seen, params):
    means = [one.mean() for one in seen.pixels([one.id for one in seen.generations]).values()]
    yield Estimate("brightness", float(sum(means) / len(means)), None, None, len(means))
'''
CHOSEN = SETTINGS | {
    "mitigations": ["first-neurons", "upper"],
    "detectors": ["length"],
    "first": {"count": 2},
    "attacked": 1,
    "controls": 1,
    "unseen": 0,
}


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as `pip install --target` leaves it: modules, and what their package names."""
    folder = tmp_path_factory.mktemp("installed")
    (blocks,) = [
        part.partition("```")[0]
        for part in CONTRIBUTING.read_text().split("```python\n")[1:]
        if part.startswith('"""upper.py')
    ]
    (folder / "upper.py").write_text(blocks)
    (folder / "others.py").write_text(OTHERS)
    metadata = folder / "somebody-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: somebody\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text("[engram.methods]\nupper = upper\nothers = others\n")
    return folder


@pytest.fixture(scope="module")
def engram(package: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Runs a command, or other Python, where the package is installed, and gives its output."""
    home = tmp_path_factory.mktemp("prefect")
    root = str(Path(__file__).parents[1])
    env = os.environ | {"PYTHONPATH": os.pathsep.join([root, str(package)]), "PREFECT_HOME": str(home)}
    env |= {"PREFECT_PROFILES_PATH": str(home / "profiles.toml")}

    def run(*words: str, code: str = "from flows.cli import main; main()") -> str:
        ended = subprocess.run(
            [sys.executable, "-c", code, *words], env=env, check=False, capture_output=True, text=True, timeout=900
        )
        assert ended.returncode == 0, ended.stderr[-3000:]
        return ended.stdout

    return run


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_world(tmp_path_factory.mktemp("world"))


def test_they_are_listed_and_their_settings_are_in_the_form(engram: Any) -> None:
    rows = {(row["kind"], row["method"]): row for row in json.loads(engram("methods", "--json"))}
    added = {("detector", "length"), ("localizer", "first"), ("mitigation", "upper"), ("metric", "brightness")}
    assert added <= rows.keys()
    assert rows["localizer", "first"]["variants"] == "first-neurons random-first-neurons"
    code = "import json; from flows.settings import Settings; print(json.dumps(Settings.model_json_schema()))"
    schema = json.loads(engram(code=code))
    chosen = {name: schema["properties"][name]["items"]["enum"] for name in ("mitigations", "detectors")}
    assert {"first-neurons", "upper"} <= {*chosen["mitigations"]} and "length" in chosen["detectors"]
    assert "first" in schema["properties"] and "FirstParams" in schema["$defs"]


def test_an_audit_has_a_method_of_each_kind(engram: Any, model: Path, tmp_path: Path) -> None:
    words = [word for name, value in CHOSEN.items() for word in ("--set", f"{name}={json.dumps(value)}")]
    place = ["--store", str(tmp_path / "store"), "--model", str(model), "--device", "cpu"]
    # Of some items of work each has one prompt: what reads images goes by one id all the same.
    sharded = "import flows.run.work.item as item; item.UNITS = 1; from flows.cli import main; main()"
    told = json.loads(engram("audit", *place, *words, "--json", code=sharded))
    store = Store.open(str(tmp_path / "store"), create=False)
    assert set(store.read("detections")["detector"].to_pylist()) == {"length"}
    sets = {(row["params_id"], row["scope_id"]) for row in store.read("neuron_sets", method="first").to_pylist()}
    assert len({found for found, _ in sets}) == 1 < len(sets)
    variants = ["first-neurons", "random-first-neurons", "upper"]
    assert set(store.read("variants")["method"].to_pylist()) >= {*variants}
    found = {(row["variant"], row["metric"]) for row in store.read("metrics").to_pylist()}
    assert ("original", "auc_length") in found and {(name, "brightness") for name in variants} <= found
    page = Path(told["report"]).read_text()
    assert all(words in page for words in (*variants, "Brightness", "AUC by length"))
    engram("results", str(tmp_path / "results"), "--store", place[1])
    text = (tmp_path / "results" / "RESULTS.md").read_text()
    assert all(words in text for words in (*variants, "Brightness", "AUC by length"))


def test_a_scan_takes_the_detector(engram: Any, model: Path, tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("one\ntwo\n")
    (tmp_path / "nulls.txt").write_text("\n".join(f"null {n}" for n in range(9)) + "\n")
    named = ["--prompts", str(tmp_path / "prompts.txt"), "--nulls", str(tmp_path / "nulls.txt")]
    place = ["--store", str(tmp_path / "store"), "--model", str(model), "--device", "cpu"]
    engram("scan", *named, *place, "--detector", "length", "--alpha", "0.2")
    store = Store.open(str(tmp_path / "store"), create=False)
    assert store.read("findings")["detector"].to_pylist() == ["length"] * 2
