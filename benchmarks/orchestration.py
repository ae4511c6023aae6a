"""What orchestration costs: the same audit with Prefect and as plain function calls, in one run.

Plain means that every flow and task is replaced by the function it wraps, and that no artifact is made. Both audits
begin with an empty store, and end with the same figures; a first one warms the libraries up and is not counted.

    python -m benchmarks.orchestration [--model FOLDER] [--profile quick] [--set NAME=VALUE ...] [--json FILE]
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from prefect import Flow, Task
from prefect.testing.utilities import prefect_test_harness

from flows import audit as audits
from flows import show, stages
from flows.cli import quiet, settings_of
from flows.plan import AuditParams, model_folder
from flows.settings import Settings, settings_for
from storage import Store
from tasks.diffusion.model import audit_defaults
from tasks.errors import InputError

ARTIFACTS = (
    "create_image_artifact",
    "create_markdown_artifact",
    "create_progress_artifact",
    "create_table_artifact",
    "update_progress_artifact",
)
WARMING: dict[str, Any] = {
    "memorized": 2,
    "nulls": 4,
    "threshold_nulls": 2,
    "ordinary": 2,
    "seeds": 1,
    "attacked": 1,
    "controls": 1,
    "sampling": {"steps": 2},
    "nemo": {"seeds": 2, "threshold": 0.9},
    "wanda": {"tau": 1},
    "dori": {"steps": 1, "batch": 1},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="reference", help="folder of a diffusers pipeline")
    parser.add_argument("--profile", choices=("quick", "full"), default="quick")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="a setting of the audit")
    parser.add_argument("--json", type=Path, help="write the figures as one flat object")
    asked = parser.parse_args()
    quiet()
    defaults = audit_defaults(model_folder(asked.model))
    settings = settings_for(asked.profile, defaults, **settings_of(asked.set))
    with prefect_test_harness(server_startup_timeout=120):
        timed(asked.model, Settings.model_validate(settings.model_dump() | WARMING))
        with_prefect, first = timed(asked.model, settings)
        with plainly():
            plain, second = timed(asked.model, settings)
    if first != second:
        raise InputError("the two audits differ in their figures, so their times do not compare")
    overhead = with_prefect / plain - 1
    print(f"with Prefect   {with_prefect:8.1f} s")
    print(f"plain          {plain:8.1f} s")
    print(f"overhead       {100 * overhead:8.1f} %")
    if asked.json:
        figures = {"with_prefect_s": with_prefect, "plain_s": plain, "overhead": overhead}
        asked.json.write_text(json.dumps(figures, indent=1) + "\n")


def timed(model: str, settings: Settings) -> tuple[float, list[dict[str, Any]]]:
    """Seconds of one audit in a new store, and its figures."""
    with tempfile.TemporaryDirectory() as folder:
        store = Store.open(str(Path(folder) / "store"))
        begun = time.perf_counter()
        found = audits.audit(AuditParams(model=model, store=store.url, settings=settings))
        seconds = time.perf_counter() - begun
        rows = store.read("metrics", audit_id=found.audit_id).drop(["audit_id"]).to_pylist()
    return seconds, sorted(rows, key=str)


@contextmanager
def plainly() -> Iterator[None]:
    """Within, flows and tasks of an audit are plain functions, and artifacts are not made."""
    before = [(module, name, thing) for module in (audits, stages, show) for name, thing in vars(module).items()]
    for module, name, thing in before:
        if isinstance(thing, (Flow, Task)):
            setattr(module, name, thing.fn)
        elif name in ARTIFACTS:
            setattr(module, name, lambda *args, **kwargs: None)
    try:
        yield
    finally:
        for module, name, thing in before:
            setattr(module, name, thing)


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        sys.exit(f"orchestration: {error}")
