"""What orchestration costs: the same audit with Prefect and as plain function calls, in one run.

Plain means that every flow and task is replaced by the function it wraps, that no artifact is made, and that no server
runs beside. All audits begin with an empty store, and end with the same estimates; a small one before each warms the
libraries up and is not counted, nor is the start of a server.

    engram bench orchestration [--model FOLDER] [--profile quick] [--set NAME=VALUE ...] [--json FILE]
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

from flows import audit as audits
from flows import show, stages
from flows.cli.commands import quiet, settings_of
from flows.lifetime import prefect_server
from flows.params import AuditParams, model_folder
from flows.run import execution
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
LIMIT = 0.05
"""Orchestration may cost this share of an audit."""
WARMING: dict[str, Any] = {
    "examined": "all",
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
    parser.add_argument("--pairs", type=int, default=2, help="audits of each kind")
    parser.add_argument("--json", type=Path, help="write the numbers as one flat object")
    args = parser.parse_args()
    quiet()
    defaults = audit_defaults(model_folder(args.model))
    settings = settings_for(args.profile, defaults, **settings_of(args.set, Settings))
    seconds: dict[str, list[float]] = {"with Prefect": [], "plain": []}
    estimates: list[list[dict[str, Any]]] = []
    values = settings.model_dump()
    small = {name: values[name] | value if isinstance(value, dict) else value for name, value in WARMING.items()}
    warming = Settings.model_validate(values | small)
    for number in range(args.pairs):
        # Who goes first takes turns, so that a machine that gets faster or slower favours neither.
        for kind in ("with Prefect", "plain") if number % 2 == 0 else ("plain", "with Prefect"):
            with plainly() if kind == "plain" else prefect_server():
                timed(args.model, warming)
                took, rows = timed(args.model, settings)
            seconds[kind].append(took)
            estimates.append(rows)
    if any(rows != estimates[0] for rows in estimates):
        raise InputError("the audits differ in their estimates, so their times do not compare")
    # Of the noise that a busy machine adds, the shortest run has least.
    with_prefect, plain = (min(found) for found in seconds.values())
    overhead = with_prefect / plain - 1
    for kind, found in seconds.items():
        print(f"{kind:<14} {min(found):8.1f} s   of {', '.join(f'{took:.1f}' for took in found)}")
    print(f"overhead       {100 * overhead:8.1f} %, limit {100 * LIMIT:g} %")
    if args.json:
        written = {"with_prefect_s": with_prefect, "plain_s": plain, "overhead": overhead, "pairs": args.pairs}
        args.json.write_text(json.dumps(written, indent=1) + "\n")
    if overhead > LIMIT:
        sys.exit(1)


def timed(model: str, settings: Settings) -> tuple[float, list[dict[str, Any]]]:
    """Seconds of one audit in a new store, and its estimates."""
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
    modules = (audits, stages, show, execution)
    before = [(module, name, thing) for module in modules for name, thing in vars(module).items()]
    setattr(execution, "task", lambda function, *named, **more: function)  # noqa: B010
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
