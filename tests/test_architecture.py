"""Imports point down only: flows, the stages' doors, the methods, tasks.diffusion; storage stands apart.

And what a model is made of is known to its family alone: others name no part of it.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
STAGES = ("collect", "localize", "mitigate", "attack", "evaluate", "report")
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
            yield from (f"{node.module}.{name.name}" for name in node.names if name.name == "task")


def wrong(module: str, source: str) -> list[str]:
    forbidden = FORBIDDEN[layer_of(module)]
    found, stage = [], module.split(".")[:2]
    for imported in imports(source):
        top = imported.split(".")[0]
        layer = layer_of(imported) if top == "tasks" and imported.count(".") > 0 and imported not in LEAVES else top
        if layer in forbidden or top in forbidden:
            found.append(f"{module} imports {imported}")
        # A stage reads tables; it never calls the stage before it.
        if layer_of(module) == "door" and "task" in imported.split(".") and imported.split(".")[:2] != stage:
            found.append(f"{module} imports {imported}")
    return found


def modules() -> list[tuple[str, Path]]:
    files = [path for top in ("flows", "tasks", "storage") for path in sorted((ROOT / top).rglob("*.py"))]
    named = [(".".join(path.relative_to(ROOT).with_suffix("").parts), path) for path in files]
    return [(module, path) for module, path in named if path.name != "__init__.py" and module not in LEAVES]


@pytest.mark.parametrize(("module", "path"), modules(), ids=[module for module, _ in modules()])
def test_imports_point_down(module: str, path: Path) -> None:
    assert wrong(module, path.read_text()) == []


STAGED = ("scan", *STAGES)
ACROSS = {("tasks.scan.task", "tasks.collect.prompt_files"), ("tasks.reference.gates", "tasks.report.verdict")}
"""Files of prompts are read in one way, whoever reads them; and the reference world is judged as reports judge."""


def of_stages(module: str, source: str) -> list[str]:
    """What a module imports of a stage that is not its own. What two stages need lies below both."""
    own = module.split(".")[1]
    return [
        imported
        for imported in imports(source)
        if imported.startswith("tasks.")
        and imported.split(".")[1] in {*STAGED} - {own}
        and (module, imported) not in ACROSS
    ]


@pytest.mark.parametrize(
    ("module", "path"),
    [(module, path) for module, path in modules() if module.startswith("tasks.")],
    ids=[module for module, _ in modules() if module.startswith("tasks.")],
)
def test_what_stages_share_lies_below_them(module: str, path: Path) -> None:
    assert of_stages(module, path.read_text()) == []


def test_that_rule_can_be_broken() -> None:
    assert of_stages("tasks.subject", "from tasks.mitigate.finetune import finetune")
    assert of_stages("tasks.evaluate.task.generations", "from tasks.mitigate.finetune import finetune")


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
    return [path for path in files if ROOT / "tasks" / "diffusion" / "families" not in path.parents]


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
