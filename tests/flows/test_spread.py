"""Work that is spread: whoever does which item, in whatever order, however often, the store ends up the same."""

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from flows.params import AuditParams
from flows.run.execution import execute_items
from flows.run.processes import check_many
from flows.run.spec import Spec, resolve, spec_of
from flows.run.spread import Ended, Shard, spread
from flows.run.work import work
from flows.settings import Settings
from storage import Store
from tasks.errors import InputError
from tests.flows.test_run import SETTINGS, do, rows
from tests.support.processes import descendants
from tests.support.world import tiny_world

WHOLE: dict[str, Any] = SETTINGS | {
    "examined": "all",
    "memorized": 3,
    "seeds": 1,
    "attacked": 1,
    "mitigations": ("wanda", "nemo-union", "random-tokens", "ordinary-finetune"),
    "finetune": {"epochs": 1, "ordinary_batch": 1, "images_per_step": 2},
}
EVERYTHING: dict[str, Any] = WHOLE | {"diagnosed": 1, "triggers": 3, "efforts": (1, 2), "detectors": ("norm",)}
TABLES = ("activations", "neuron_sets", "nemo_traces", "variants", "triggers", "generations", "scores", "metrics")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flows.run.work.item.UNITS", 2)


def resolved(model: Path, store: Path, **changed: Any) -> Spec:
    settings = Settings.model_validate(WHOLE | changed)
    return resolve(AuditParams(model=str(model), store=str(store), device="cpu", settings=settings))


@pytest.fixture(scope="module")
def alone(model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """All tables after the work was done item by item, in its order."""
    spec = resolved(model, tmp_path_factory.mktemp("alone") / "store")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("flows.run.work.item.UNITS", 2)
        do(spec)
    return {table: rows(spec.subject.store, table) for table in TABLES}


class Unsteady:
    """Workers that do shards in any order, and of which some end in the middle of one."""

    seconds = 0.5
    least = 0.1

    def __init__(self, spec: Spec, many: int, seed: int) -> None:
        self.many, self._run, self._draw = many, spec.run, random.Random(seed)
        self._begun: list[Shard] = []
        self.overlapped = 0

    def free(self) -> int:
        return self.many - len(self._begun)

    def begin(self, shard: Shard) -> None:
        self._begun.append(shard)
        self.overlapped += len({one.stage for one in self._begun}) > 1

    def wait(self) -> list[Ended]:
        shard = self._begun.pop(self._draw.randrange(len(self._begun)))
        half = len(shard.ids) // 2
        if shard.tries == 1 and self._draw.random() < 0.2:
            execute_items(spec_of(self._run), "an audit", shard.stage, shard.ids[:half])
            return [Ended(shard, lost="killed")]
        return [Ended(shard, 0.1, execute_items(spec_of(self._run), "an audit", shard.stage, shard.ids))]


def test_what_an_item_needs_comes_before_it(model: Path, tmp_path: Path) -> None:
    spec = resolved(model, tmp_path / "store", **EVERYTHING)
    items = list(work(spec, foreseen=True))
    assert len({item.id for item in items}) == len(items)
    given = {item.gives for item in items if item.gives}
    for number, item in enumerate(items):
        later = {one.gives for one in items[number:] if one.gives}
        assert not later & {*item.needs}, item.name
    assert {need for item in items for need in item.needs} <= given  # nothing is waited for that nobody gives


@pytest.mark.slow
def test_neither_order_nor_company_nor_losses_change_the_tables(
    model: Path, tmp_path: Path, alone: dict[str, list[str]]
) -> None:
    spec = resolved(model, tmp_path / "store")
    workers, said = Unsteady(spec, many=3, seed=1), list[str]()
    assert len([*spread(spec, "an audit", workers, said.append)]) > len(TABLES)
    assert workers.overlapped and any("another worker does it" in line for line in said)
    assert not any("has no result" in line for line in said)
    for table in TABLES:
        assert rows(spec.subject.store, table) == alone[table], table
    # What is there is not done again.
    before = Store.open(spec.subject.store).parts("generations")
    again = [item.name for item in spread(spec, "an audit", Unsteady(spec, many=2, seed=7), said.append)]
    assert not any(name.startswith("generate") for name in again)
    assert Store.open(spec.subject.store).parts("generations") == before


def test_what_ends_every_worker_ends_the_audit(model: Path, tmp_path: Path) -> None:
    class Deadly(Unsteady):
        def wait(self) -> list[Ended]:
            return [Ended(self._begun.pop(), lost="its process ended by itself (signal 9)")]

    spec = resolved(model, tmp_path / "store")
    with pytest.raises(InputError, match=r"confirm: register model \(1\) ended its worker 3 times: its process ended"):
        list(spread(spec, "an audit", Deadly(spec, 1, 0), lambda line: None))


def test_what_cannot_be_done_ends_the_audit_in_one_line(model: Path, tmp_path: Path) -> None:
    class Refusing(Unsteady):
        def wait(self) -> list[Ended]:
            return [Ended(self._begun.pop(), error="prompts have no images")]

    spec = resolved(model, tmp_path / "store")
    with pytest.raises(InputError, match=r"^confirm: register model \(1\): prompts have no images$"):
        list(spread(spec, "an audit", Refusing(spec, 1, 0), lambda line: None))


def test_items_that_are_none_are_refused(model: Path, tmp_path: Path) -> None:
    spec = resolved(model, tmp_path / "store")
    with pytest.raises(InputError, match="1 items of the work are none as the store now stands"):
        execute_items(spec, "an audit", "collect", ["mistyped"])
    with pytest.raises(InputError, match="at least one process has to work"):
        check_many(0, "cpu")


def command(model: Path, store: Path, *more: str) -> list[str]:
    words = [word for name, value in WHOLE.items() for word in ("--set", f"{name}={json.dumps(value)}")]
    start = [sys.executable, "-c", "from flows.cli import main; main()", "audit", "--json", "--device", "cpu"]
    return [*start, "--model", str(model), "--store", str(store), *words, *more]


@pytest.mark.slow
@pytest.mark.server
def test_processes_share_the_work_and_one_that_is_killed_is_replaced(model: Path, tmp_path: Path) -> None:
    """The figures of one process, and of three of which two are killed, are the same to the last digit."""
    found = {}
    for many in (1, 3):
        store = tmp_path / f"store{many}"
        log = (tmp_path / "log").open("w+")
        more = ["--workers", str(many)] if many > 1 else []
        # Products of matrices are added up in another order by another number of threads.
        env = os.environ | {"OMP_NUM_THREADS": "1"}
        process = subprocess.Popen(command(model, store, *more), stdout=subprocess.PIPE, stderr=log, env=env)
        killed = 0
        while many == 3 and process.poll() is None and killed < 2:
            working = [one for one, line in descendants(process.pid).items() if "flows.run.worker" in line]
            if working and (store / "activations").is_dir():
                time.sleep(4)
                working[0].send_signal(signal.SIGKILL)
                killed += 1
            time.sleep(1)
        answer = process.communicate()[0]
        log.seek(0)
        said = log.read()
        assert process.returncode == 0, said[-3000:]
        assert many == 1 or re.search(r"work: done after .*: \d+ items by 3 processes on cpu", said)
        audit_id = json.loads(answer)["audit_id"]
        metrics = Store.open(str(store), create=False).read("metrics", audit_id=audit_id).drop(["audit_id"])
        found[many] = sorted(map(str, metrics.to_pylist()))
    assert killed == 2
    assert found[1] == found[3]
