"""Imports point down only: flows, the stages' doors, the methods, tasks.diffusion; storage stands apart.

And what a model is made of is known to its family alone: others name no part of it.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
STAGES = ("collect", "scan", "localize", "mitigate", "attack", "evaluate", "report")
HEAVY = ("torch", "diffusers", "transformers", "open_clip", "onnxruntime")
LEAVES = ("tasks.errors", "tasks.methods", "tasks.params", "tasks.progress")
DOORS = {"tasks.subject", "tasks.keys", "tasks.pruned", "tasks.sets", "tasks.detections"}


def layer_of(module: str) -> str:
    """flows, door (task, a file or a folder, and what doors share), diffusion, method, reference or storage."""
    parts = module.split(".")
    if parts[0] in ("flows", "storage"):
        return parts[0]
    if "task" in parts or module in DOORS:
        return "door"
    return parts[1] if parts[1] in ("diffusion", "reference") else "method"


FORBIDDEN = {
    "storage": (*HEAVY, "prefect", "tasks", "flows"),
    "diffusion": ("prefect", "pyarrow", "duckdb", "storage", "flows", "door", "method", "reference"),
    "method": ("prefect", "pyarrow", "duckdb", "storage", "flows", "door", "reference"),
    "door": ("prefect", "duckdb", "flows", "reference"),
    "reference": ("prefect", "duckdb", "flows", "door"),
    "flows": ("torch", "pyarrow", "duckdb"),
}


def imports(source: str) -> Iterator[str]:
    """Modules that a source file imports, `from a import b` as a.b and a."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            # Of a stage's package, what is imported is a module.
            stage = node.module.startswith("tasks.") and node.module.split(".")[1:] in [[one] for one in STAGES]
            yield from (f"{node.module}.{name.name}" for name in node.names if stage)


def wrong(module: str, source: str) -> list[str]:
    forbidden = FORBIDDEN[layer_of(module)]
    found, stage = [], module.split(".")[:2]
    for imported in imports(source):
        top = imported.split(".")[0]
        layer = layer_of(imported) if top == "tasks" and imported.count(".") > 0 and imported not in LEAVES else top
        if layer in forbidden or top in forbidden:
            found.append(f"{module} imports {imported}")
        # A stage reads tables: it calls no other, and knows none of its methods. Flows go through the doors alone.
        of, inside = imported.split(".")[:2], imported.split(".")[2:]
        if of[0] == "tasks" and of[-1] in STAGES and inside and of != stage:
            through = inside[0] == "task" and module.split(".")[0] in ("flows", "engram")
            if not through and layer_of(module) != "reference":
                found.append(f"{module} imports {imported}")
    return found


def modules() -> list[tuple[str, Path]]:
    files = [path for top in ("flows", "tasks", "storage") for path in sorted((ROOT / top).rglob("*.py"))]
    named = [(".".join(path.relative_to(ROOT).with_suffix("").parts), path) for path in files]
    return [(module, path) for module, path in named if path.name != "__init__.py" and module not in LEAVES]


@pytest.mark.parametrize(("module", "path"), modules(), ids=[module for module, _ in modules()])
def test_imports_point_down(module: str, path: Path) -> None:
    assert wrong(module, path.read_text()) == []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("storage.store", "import torch"),
        ("storage.store", "from tasks.diffusion.model import Model"),
        ("tasks.localize.nemo", "import pyarrow as pa"),
        ("tasks.localize.nemo", "from storage import Store"),
        ("tasks.localize.nemo", "from tasks.collect.task import collect_values"),
        ("tasks.localize.task", "from tasks.collect.task import collect_values"),
        ("tasks.localize.task", "from tasks.collect import task"),
        ("tasks.localize.task.weights", "from tasks.collect.task import collect_values"),
        ("tasks.localize.task.weights", "import duckdb"),
        ("tasks.localize.wanda", "from tasks.localize.task.weights import wanda_id"),
        ("tasks.diffusion.model", "from tasks.localize.nemo import nemo"),
        ("tasks.attack.task", "from prefect import flow"),
        ("flows.audit", "import duckdb"),
        ("flows.audit", "from tasks.localize.nemo import NemoParams"),
        ("flows.audit", "from tasks.localize import nemo"),
        ("tasks.mitigate.finetune", "from tasks.attack.search import search"),
        ("tasks.subject", "from tasks.mitigate.inference import Asked"),
        ("tasks.evaluate.task.seen", "from tasks.attack import task"),
    ],
)
def test_the_rules_can_be_broken(module: str, source: str) -> None:
    assert wrong(module, source)


OF_A_FAMILY = {"unet", "UNet2DConditionModel", "alphas_cumprod", "attn2", "scaling_factor", "prediction_type"}
"""What differs between families of models; all else that others need of a model stands in the interface of families."""


def of_a_family(source: str) -> set[str]:
    """Parts of a model that a source file names: as attributes, arguments or imports, or in strings that are no
    sentences, such as keys and paths."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute):
            found.add(node.attr)
        elif isinstance(node, ast.Name):
            found.add(node.id)
        elif isinstance(node, ast.arg | ast.keyword) and node.arg is not None:
            found.add(node.arg)
        elif isinstance(node, ast.alias):
            found.update(node.name.split("."))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and not re.search(r"\s", node.value):
            found.update(re.split(r"[./]", node.value))
    return found & OF_A_FAMILY


def outside_families() -> list[Path]:
    files = [path for top in ("flows", "tasks", "storage", "benchmarks") for path in sorted((ROOT / top).rglob("*.py"))]
    # What builds models of full size, and what compares ours with plain diffusers, names what these are made of.
    plain = {ROOT / "benchmarks" / name for name in ("gpu.py", "published.py")}
    return [
        path for path in files if path not in plain and ROOT / "tasks" / "diffusion" / "families" not in path.parents
    ]


@pytest.mark.parametrize("path", outside_families(), ids=lambda path: str(path.relative_to(ROOT)))
def test_only_families_know_what_a_model_is_made_of(path: Path) -> None:
    assert of_a_family(path.read_text()) == set()


@pytest.mark.parametrize(
    "source",
    [
        "layers_of(model.unet, site)",
        "from diffusers import UNet2DConditionModel",
        "import diffusers as d; d.UNet2DConditionModel()",
        "a = scheduler.alphas_cumprod[t]",
        "'.attn2.' in name",
        "folder / 'unet' / 'config.json'",
        "open('unet/config.json')",
        "vae.config['scaling_factor']",
        "kind(prediction_type=name)",
        "def load(unet): ...",
    ],
)
def test_that_rule_can_be_broken_too(source: str) -> None:
    assert of_a_family(source)
