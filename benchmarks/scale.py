"""How an audit grows with workers: what share of their time the device is at work, and what the rest is lost to.

The planner, the flows, the store and the processes are the real ones. What sleeps is the device: beside the little that
a model of random weights computes, a worker sleeps for what an item would cost, so that a machine of few cores can show
many workers. Every number of workers has an audit of its own, in a new store, with as much sleep for each worker; all
end with the same estimates. Whatever is no sleep counts as lost, also what is computed.

    engram bench scale [--workers 2 4 8] [--shard SECONDS] [--each N] [--json FILE]
    engram bench scale --real [--model FOLDER] [--set NAME=VALUE ...]     nothing sleeps; 1 and 2 workers, a thread each
"""

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from flows import audit as audits
from flows.cli.commands import quiet, settings_of
from flows.lifetime import prefect_server
from flows.params import AuditParams, defaults_for, model_folder
from flows.run.execution import SLEEP
from flows.run.outlook import outlook
from flows.run.processes import Processes
from flows.run.spec import resolve
from flows.run.spread import Ended, Shard
from flows.run.work import work
from flows.settings import Settings
from storage import Store
from tasks.errors import InputError
from tests.support.world import tiny_world

SMALL: dict[str, Any] = {
    "examined": "all",
    "nulls": 4,
    "threshold_nulls": 2,
    "seeds": 64,
    "starts": ("noise", "prompt"),
    "mitigations": ("wanda", "nemo-union", "nemo"),
    "sampling": {"steps": 2},
    "nemo": {"seeds": 2, "threshold": 0.0},
    "sscd": {"side": 32},
    "wanda": {"tau": 1, "sparsity": 0.1},
    "dori": {"steps": 1, "batch": 1, "images_at_once": 1},
}
"""An audit of many items alike: each one of generation is 64 images, which cost little to make and to score."""
LEAST = 4
"""Memorized prompts of the shortest audit. A longer one has more of them, in items as long as its."""


class Watched(Processes):
    """Processes of which is known what they did with their time."""

    held, worked = 0.0, 0.0
    """Seconds in which a worker had a shard, of all together; and those of them in which its model was loaded."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._begun: dict[int, float] = {}

    def begin(self, shard: Shard) -> None:
        self._begun[shard.number] = time.perf_counter()
        super().begin(shard)

    def wait(self) -> list[Ended]:
        found = super().wait()
        for ended in found:
            Watched.held += time.perf_counter() - self._begun.pop(ended.shard.number)
            Watched.worked += ended.seconds
        return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4, 8, 16], help="numbers of workers")
    parser.add_argument("--shard", type=float, default=60.0, help="seconds that a shard should take")
    parser.add_argument("--each", type=int, default=8, help="shards of this length, about, that there are for a worker")
    parser.add_argument("--real", action="store_true", help="nothing sleeps: 1 and 2 workers of one thread each")
    parser.add_argument("--model", default="reference", help="of --real, the folder of a diffusers pipeline")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="of --real, a setting")
    parser.add_argument("--json", type=Path, help="write the numbers as one flat object")
    args = parser.parse_args()
    quiet()
    setattr(audits, "Processes", Watched)  # noqa: B010
    with tempfile.TemporaryDirectory() as folder:
        # Each worker has one thread, and so has the only one, which is this process.
        os.environ["OMP_NUM_THREADS"] = "1"
        torch.set_num_threads(1)
        a_worker = 0.0
        if args.real:
            model, many = args.model, [1, 2]
            settings = defaults_for("quick", model_folder(model), **settings_of(args.set, Settings))
        else:
            prompts = max(LEAST, args.each // 2)
            model, many = str(tiny_world(Path(folder) / "world", memorized=prompts)), args.workers
            size = dict.fromkeys(("memorized", "ordinary", "attacked", "controls"), prompts)
            settings = Settings.model_validate(SMALL | size)
            plan = AuditParams(model=model, store=str(Path(folder) / "plan"), settings=settings, device="cpu")
            a_worker = args.shard * args.each / outlook(resolve(plan)).evaluations
            Watched.seconds = args.shard
        rows = []
        for number in many:
            if not args.real:
                os.environ[SLEEP] = str(a_worker * number)
            rows.append(timed(model, settings, number, Path(folder)))
            print(f"{number} done in {rows[-1]['seconds']:.0f} s", file=sys.stderr, flush=True)
    for row in rows:
        if differ := sorted({*rows[0]["estimates"]} ^ {*row["estimates"]}):
            what = f"{differ[0]} and {differ[1]}" if len(differ) > 1 else differ[0]
            raise InputError(f"the audits differ in {len(differ)} estimates, so their times do not compare: {what}")
    numbers = real(rows) if args.real else asleep(rows, a_worker)
    if args.json:
        args.json.write_text(json.dumps(numbers, indent=1) + "\n")


def real(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Prints how much faster 2 workers are than 1."""
    numbers = {f"seconds_{row['workers']}": row["seconds"] for row in rows}
    numbers["faster"] = rows[0]["seconds"] / rows[1]["seconds"]
    print("workers   seconds")
    for row in rows:
        print(f"{row['workers']:7}   {row['seconds']:5.0f} s")
    print(f"2 workers are {numbers['faster']:.2f} times as fast as 1")
    return numbers


def asleep(rows: list[dict[str, Any]], a_worker: float) -> dict[str, float]:
    """Prints of each audit the speed-up, and what its workers' time went to.

    Args:
        a_worker: seconds that each worker slept for an evaluation of the audit's, whoever did it.
    """
    numbers: dict[str, float] = {}
    print("workers   seconds   speed-up   device   beside it   starting   waiting")
    for row in rows:
        many, seconds, slept = row["workers"], row["seconds"], a_worker * row["evaluations"]
        whole, device = many * seconds, slept / seconds
        beside, starting = (row["worked"] - many * slept) / whole, (row["held"] - row["worked"]) / whole
        waiting = 1 - row["held"] / whole
        print(
            f"{many:7}   {seconds:5.0f} s   {many * device:8.2f}   {100 * device:4.1f} %   {100 * beside:7.1f} %"
            f"   {100 * starting:6.1f} %   {100 * waiting:5.1f} %"
        )
        numbers |= {f"seconds_{many}": seconds, f"device_{many}": device, f"beside_{many}": beside}
        numbers |= {f"starting_{many}": starting, f"waiting_{many}": waiting}
    return numbers


def timed(model: str, settings: Settings, many: int, folder: Path) -> dict[str, Any]:
    """Seconds of an audit by so many processes in a new store, what its workers did with them, and its estimates."""
    store = Store.open(str(folder / f"store-{many}"))
    params = AuditParams(model=model, store=store.url, settings=settings, device="cpu", workers=many)
    with prefect_server():
        begun, Watched.held, Watched.worked = time.perf_counter(), 0.0, 0.0
        found = audits.audit(params)
        seconds = time.perf_counter() - begun
    rows = store.read("metrics", audit_id=found.audit_id).drop(["audit_id"]).to_pylist()
    # One worker is this process itself.
    held, worked = (Watched.held, Watched.worked) if many > 1 else (seconds, seconds)
    done = sum(item.cost * item.size for item in work(resolve(params)))
    times = {"seconds": seconds, "held": held, "worked": worked}
    return {"workers": many, "evaluations": done, "estimates": sorted(map(str, rows))} | times
