"""The commands of the README on files of one's own, in a shell that asks for a password and goes through a proxy."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import duckdb
import pyarrow.parquet as pq
import pytest
from diffusers import StableDiffusionPipeline
from typer.testing import CliRunner

from flows.cli.commands import app
from tests.support.world import tiny_world

pytestmark = [pytest.mark.slow, pytest.mark.server]

SETTINGS = {
    "seeds": 2,
    "examined": "all",
    "memorized": 4,
    "threshold_nulls": 2,
    "ordinary": 3,
    "attacked": 1,
    "controls": 1,
    "starts": ["noise"],
    "sampling": {"steps": 2},
    "nemo": {"seeds": 3, "threshold": 0.0, "theta": 1.5, "theta_min": 1.0},
    "wanda": {"sparsity": 0.1, "tau": 2},
    "dori": {"steps": 2, "batch": 2},
    "mitigations": ["nemo", "nemo-union", "wanda", "random-tokens", "reweighted-attention", "ordinary-finetune"],
    "finetune": {"epochs": 1, "images_per_step": 2, "noises": 1, "ordinary_batch": 2, "check_every": 0},
}
LONG = " in far more letters than the thirty that this model reads"
"""Behind a prompt of each kind, and behind one that is only kept for fine-tuning."""


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Model, prompts and images as people have them, and the options that name them."""
    folder = tmp_path_factory.mktemp("own")
    model = tiny_world(folder / "world")
    (model / "engram.json").unlink()
    prompts = pq.read_table(folder / "world" / "prompts.parquet").to_pylist()
    images = {row["image_id"]: row["bytes"] for row in pq.read_table(folder / "world" / "images.parquet").to_pylist()}
    (folder / "images").mkdir()
    lines: dict[str, list[str]] = {"memorized": ["Caption,type,Index,subset"], "null": [], "ordinary": []}
    for number, row in enumerate(prompts):
        name = f"{number}.png"
        row["text"] += LONG if number in (0, 4, 8, 12) else ""
        (folder / "images" / name).write_bytes(images[row["image_ids"][0]])
        lines[row["kind"]].append(
            {
                "memorized": f"{row['text']},VM,{number},{row['subset']}",
                "null": row["text"],
                "ordinary": json.dumps({"text": row["text"], "file_name": name}),
            }[row["kind"]]
        )
    files = {"memorized": "memorized.csv", "null": "captions.txt", "ordinary": "ordinary.jsonl"}
    for kind, name in files.items():
        (folder / name).write_text("\n".join(lines[kind]) + "\n")
    prompts_of = dict(zip(("--prompts", "--nulls", "--ordinary"), files.values(), strict=True))
    options = ["--model", str(model), "--clip", f"local-dir:{folder / 'world' / 'clip'}", "--device", "cpu"]
    options += [word for option, name in prompts_of.items() for word in (option, str(folder / name))]
    options += ["--images", str(folder / "images"), "--store", str(folder / "store")]
    return options + [word for name, value in SETTINGS.items() for word in ("--set", f"{name}={json.dumps(value)}")]


def engram(*words: str, home: Path) -> str:
    hostile = {"http_proxy": "http://127.0.0.1:9", "PREFECT_SERVER_API_AUTH_STRING": "auditor:secret"}
    command = [str(Path(sys.executable).with_name("engram")), *words]
    env = os.environ | hostile | {"PREFECT_HOME": str(home), "PREFECT_PROFILES_PATH": str(home / "profiles.toml")}
    ended = subprocess.run(command, env=env, check=False, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr[-3000:]
    return ended.stdout


@pytest.fixture(scope="module")
def answer(given: list[str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return dict(json.loads(engram("audit", *given, "--json", home=tmp_path_factory.mktemp("prefect"))))


def printed(given: list[str], *words: str) -> str:
    """What a command that only reads the store prints."""
    found = CliRunner().invoke(app, [*words, "--store", given[given.index("--store") + 1]])
    assert found.exit_code == 0, found.output
    return found.stdout


def test_an_audit_of_own_files(answer: dict[str, Any]) -> None:
    figures = {(row["variant"], row["condition"], row["metric"]): row["n"] for row in answer["metrics"]}
    # Index counts the images by number, the ordinary ones are found by their names.
    assert figures["original", "prompt", "mr"] == 4 and figures["wanda", "dori-noise", "mr"] == 1
    assert figures["original", "ordinary", "mr"] == 3 and figures["original", "dori-noise-control", "mr"] == 1
    page = Path(answer["report"]).read_text()
    assert page.count("picture 0") > 0
    # Prompts of more tokens than the model reads go through every stage, and the page says how many they are.
    assert "4 prompts (1 memorized, 1 null, 2 ordinary) have more than the 32 tokens that the model reads" in page
    assert {"random-tokens", "reweighted-attention", "ordinary-finetune"} <= {
        row["variant"] for row in answer["metrics"]
    }


def test_a_stage_alone_tells_the_same(given: list[str], answer: dict[str, Any], tmp_path: Path) -> None:
    table = engram("report", *given, home=tmp_path)
    assert f"audit   {answer['audit_id']}" in table and "random-wanda" in table


def test_what_is_asked_of_the_store_afterwards(given: list[str], answer: dict[str, Any], tmp_path: Path) -> None:
    (row,) = json.loads(printed(given, "audits", "--format", "json"))
    assert (row["audit_id"], row["state"]) == (answer["audit_id"], "completed")
    pairs = json.loads(printed(given, "iou", "--method", "wanda", "--format", "json"))
    assert pairs and all(0 <= pair["iou"] <= 1 for pair in pairs)
    printed(given, "catalog", str(tmp_path / "store.duckdb"))
    with duckdb.connect(str(tmp_path / "store.duckdb"), read_only=True) as catalog:
        assert catalog.sql("SELECT count(*) FROM metrics").fetchall() == [(len(answer["metrics"]),)]
    names = json.loads(printed(given, "sql", "SELECT variant FROM variants WHERE method = 'wanda'", "--format", "json"))
    printed(given, "export", names[0]["variant"], str(tmp_path / "out"), "--model", given[given.index("--model") + 1])
    pruned = StableDiffusionPipeline.from_pretrained(tmp_path / "out", safety_checker=None).unet
    assert any((weight == 0).any() for name, weight in pruned.named_parameters() if "ff.net.2.weight" in name)
