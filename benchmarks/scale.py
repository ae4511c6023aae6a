"""How an audit grows with workers: what share of their time is work, and what is lost to starts, plans and waiting.

The planner, the flows, the store and the processes are the real ones. What sleeps is the device: beside the little that
a model of random weights computes, a worker sleeps for what an item would cost, so that a machine of few cores can show
many workers. Every number of workers has an audit of its own, in a new store; all end with the same estimates.

    engram bench scale [--workers 2 4 8] [--shard SECONDS] [--shards N] [--json FILE]
    engram bench scale --real [--model FOLDER] [--set NAME=VALUE ...]     nothing sleeps; 1 and 2 workers, a thread each
"""

import argparse
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

from flows import audit as audits
from flows.cli.commands import quiet, settings_of
from flows.lifetime import prefect_server
from flows.params import AuditParams, defaults_for, model_folder
from flows.run.execution import SLEEP
from flows.run.outlook import outlook
from flows.run.processes import Processes
from flows.run.spec import resolve
from flows.run.spread import Ended
from flows.settings import Settings
from storage import Store
from tasks.errors import InputError
from tests.support.world import tiny_world

SMALL: dict[str, Any] = {
    "memorized": 4,
    "nulls": 4,
    "threshold_nulls": 2,
    "ordinary": 4,
    "seeds": 100,
    "attacked": 4,
    "controls": 4,
    "starts": ("noise",),
    "mitigations": ("wanda", "nemo-union"),
    "sampling": {"steps": 2},
    "nemo": {"seeds": 2, "threshold": 0.0},
    "wanda": {"tau": 1, "sparsity": 0.1},
    "dori": {"steps": 1, "batch": 1, "images_at_once": 1},
}


class Watched(Processes):
    """Processes whose work is added up."""

    worked = 0.0
    """Seconds of all shards together, from the moment that their model was loaded."""

    def wait(self) -> list[Ended]:
        found = super().wait()
        Watched.worked += sum(ended.seconds for ended in found)
        return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, nargs="+", default=[2, 4, 8], help="numbers of workers")
    parser.add_argument("--shard", type=float, default=60.0, help="seconds that a shard should take")
    parser.add_argument("--shards", type=int, default=64, help="shards of this length, about, that an audit has")
    parser.add_argument("--real", action="store_true", help="nothing sleeps: 1 and 2 workers of one thread each")
    parser.add_argument("--model", default="reference", help="of --real, the folder of a diffusers pipeline")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="of --real, a setting")
    parser.add_argument("--json", type=Path, help="write the numbers as one flat object")
    args = parser.parse_args()
    quiet()
    setattr(audits, "Processes", Watched)  # noqa: B010
    with tempfile.TemporaryDirectory() as folder:
        if args.real:
            # A worker of two has one of two cores; a single one must not have both.
            os.environ["OMP_NUM_THREADS"] = "1"
            model, many = args.model, [1, 2]
            settings = defaults_for("quick", model_folder(model), **settings_of(args.set, Settings))
        else:
            model, many = str(tiny_world(Path(folder) / "world")), args.workers
            settings = Settings.model_validate(SMALL)
            plan = AuditParams(model=model, store=str(Path(folder) / "plan"), settings=settings, device="cpu")
            os.environ[SLEEP] = str(args.shard * args.shards / outlook(resolve(plan)).evaluations)
            Watched.seconds = args.shard
        rows = [timed(model, settings, number, Path(folder)) for number in many]
    if any(row["estimates"] != rows[0]["estimates"] for row in rows):
        raise InputError("the audits differ in their estimates, so their times do not compare")
    numbers: dict[str, float] = {}
    print("workers   seconds     work   at work   lost")
    for row in rows:
        share = row["worked"] / (row["workers"] * row["seconds"])
        print(
            f"{row['workers']:7}   {row['seconds']:5.0f} s   {row['worked']:4.0f} s   {100 * share:5.0f} %"
            f"   {100 * (1 - share):2.0f} %"
        )
        numbers |= {f"seconds_{row['workers']}": row["seconds"], f"at_work_{row['workers']}": share}
    if args.real:
        numbers["faster"] = rows[0]["seconds"] / rows[1]["seconds"]
        print(f"2 workers are {numbers['faster']:.2f} times as fast as 1")
    if args.json:
        args.json.write_text(json.dumps(numbers, indent=1) + "\n")


def timed(model: str, settings: Settings, many: int, folder: Path) -> dict[str, Any]:
    """Seconds of an audit by so many processes in a new store, what of that was work, and its estimates."""
    store = Store.open(str(folder / f"store-{many}"))
    params = AuditParams(model=model, store=store.url, settings=settings, device="cpu", workers=many)
    with prefect_server():
        begun, Watched.worked = time.perf_counter(), 0.0
        found = audits.audit(params)
        seconds = time.perf_counter() - begun
    rows = store.read("metrics", audit_id=found.audit_id).drop(["audit_id"]).to_pylist()
    worked = Watched.worked if many > 1 else seconds
    return {"workers": many, "seconds": seconds, "worked": worked, "estimates": sorted(map(str, rows))}
