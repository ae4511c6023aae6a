"""The store at the scale of Stable Diffusion 1.4, each figure beside its rival in the same run.

    python -m benchmarks.store                              the whole scale: some 250 million members, 50,000 prompts
    python -m benchmarks.store --steps 2 --layers 3 --prompts 500 --json FILE

Sets are synthetic: in every layer, step and subset about one weight in a hundred, 60 % of them from a pool that the
subsets have in common. Rivals: pickled SciPy CSR matrices on disk; sorted NumPy intersections, SciPy products and plain
NumPy for the answers. The rivals' inputs lie in memory already; the store's answers include reading and decoding.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import pickle
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from scipy import sparse

from storage import Store, connect, iou, query
from storage.tables import FLOATS, MEMBERS

FEED_FORWARD = [(320, 1280)] * 5 + [(640, 2560)] * 5 + [(1280, 5120)] * 6
VALUE = [320, 320, 640, 640, 1280, 1280, 1280]
MODEL = "benchmark"
START = datetime(2024, 1, 1, tzinfo=UTC)

Sets = list[list[NDArray[np.uint32]]]
"""Members by step and subset."""


def main() -> None:
    options = parse()
    if options.measure_iou:
        print(json.dumps(measure_iou(Store.open(options.measure_iou), options.threads)))
        return
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        store = Store.open(Path(folder) / "store")
        figures: dict[str, float] = {}
        figures |= neuron_sets(store, options)
        figures |= intersections(store, options)
        figures |= activations(store, options)
        fill_small_tables(store, options)
        figures |= latencies(store, options)
    width = max(map(len, figures))
    for name, value in figures.items():
        print(f"{name:<{width}}  {value:>14,.4g}")
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1) + "\n")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--layers", type=int, default=16, help="feed-forward layers, smallest first")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--subsets", type=int, default=10)
    parser.add_argument("--density", type=float, default=0.01, help="share of a layer's weights in each set")
    parser.add_argument("--prompts", type=int, default=50_000, help="non-memorized prompts for the statistics")
    parser.add_argument("--memorized", type=int, default=500, help="memorized prompts")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each query; the median counts")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="DuckDB's threads")
    parser.add_argument("--folder", type=Path, help="where to put the store; default the system's temporary folder")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--measure-iou", help=argparse.SUPPRESS)
    return parser.parse_args()


def make_sets(shape: tuple[int, int], options: argparse.Namespace, seed: int) -> Sets:
    """Sets of one layer."""
    choose = np.random.default_rng(seed)
    universe = shape[0] * shape[1]
    size = int(universe * options.density)

    def draw(number: int) -> NDArray[np.uint32]:
        return choose.integers(0, universe, number, dtype=np.uint32)

    result = []
    for _ in range(options.steps):
        pool = draw(size)
        keep = [pool[choose.random(size) < 0.6] for _ in range(options.subsets)]
        result.append([np.unique(np.concatenate([kept, draw(size - len(kept))])) for kept in keep])
    return result


def neuron_sets(store: Store, options: argparse.Namespace) -> dict[str, float]:
    """Write the sets, one part a layer and subset, and weigh them against their rivals."""
    members = raw = csr = csr_bool = plain = 0
    seconds = 0.0
    for number, shape in enumerate(FEED_FORWARD[: options.layers]):
        sets = make_sets(shape, options, number)
        for subset in range(options.subsets):
            lists = lists_of([step[subset] for step in sets], MEMBERS)
            rows = pa.table({"members": lists, "step": pa.array(range(options.steps), pa.int32())})
            for name, value, kind in (
                ("scope", "subset", pa.string()),
                ("scope_id", f"subset {subset}", pa.string()),
                ("params_id", "published", pa.string()),
                ("universe", shape[0] * shape[1], pa.uint64()),
                ("width", shape[1], pa.uint32()),
            ):
                rows = rows.append_column(name, pa.array([value] * options.steps, kind))
            where = {"model_id": MODEL, "method": "wanda", "site": "ff", "layer": layer_name(number)}
            with timed() as clock:
                store.write("neuron_sets", f"subset{subset}", rows, **where)
            seconds += clock.seconds
            members += len(lists.values)
            raw += rows.nbytes
            # The rivals' size does not depend on the step; the first one stands for all.
            csr += csr_bytes(sets[0][subset], shape, np.int64) * options.steps
            csr_bool += csr_bytes(sets[0][subset], shape, np.bool_) * options.steps
            plain += parquet_bytes(lists.slice(0, 1)) * options.steps
    disk = stored_bytes(store, "neuron_sets")
    return {
        "members": members,
        "bytes_per_member": disk / members,
        "csr_pickle_bytes_per_member": csr / members,
        "csr_bool_pickle_bytes_per_member": csr_bool / members,
        "plain_parquet_bytes_per_member": plain / members,
        "write_mib_per_s": raw / seconds / 2**20,
        "write_members_per_s": members / seconds,
    }


def intersections(store: Store, options: argparse.Namespace) -> dict[str, float]:
    """All pairs of subsets in every layer and step."""
    program = [sys.executable, "-m", "benchmarks.store", "--measure-iou", store.place.root]
    program += ["--threads", str(options.threads)]
    # A process of its own, so that its peak of memory is that of the IOU alone.
    ours = json.loads(subprocess.run(program, check=True, capture_output=True, text=True).stdout)
    numpy_s = scipy_s = 0.0
    total = 0
    for number, shape in enumerate(FEED_FORWARD[: options.layers]):
        for sets in make_sets(shape, options, number):
            with timed() as clock:
                counts = [
                    len(np.intersect1d(one, two, assume_unique=True)) for one, two in itertools.combinations(sets, 2)
                ]
            numpy_s += clock.seconds
            with timed() as clock:
                ends = np.cumsum([0, *map(len, sets)])
                data = np.ones(ends[-1], np.int32)
                matrix = sparse.csr_matrix((data, np.concatenate(sets), ends), (len(sets), shape[0] * shape[1]))
                product = (matrix @ matrix.T).toarray()
            scipy_s += clock.seconds
            total += sum(counts)
            if int(np.triu(product, 1).sum()) != sum(counts):
                raise SystemExit("NumPy and SciPy disagree")
    if ours["intersections"] != total:
        raise SystemExit(f"the store counts {ours['intersections']} members in intersections, NumPy {total}")
    return {
        "iou_s": ours["seconds"],
        "iou_numpy_s": numpy_s,
        "iou_scipy_s": scipy_s,
        "iou_time_over_numpy": ours["seconds"] / numpy_s,
        "iou_time_over_scipy": ours["seconds"] / scipy_s,
        "iou_peak_mib": ours["peak_mib"],
    }


def measure_iou(store: Store, threads: int) -> dict[str, float]:
    """All IOUs, in this process."""
    with timed() as clock:
        rows = iou(store, threads=threads)
    return {
        "seconds": clock.seconds,
        "intersections": int(np.sum(rows["intersection"].to_numpy())),
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def activations(store: Store, options: argparse.Namespace) -> dict[str, float]:
    """Write activations of all prompts, and ask for the z-scores of the memorized ones."""
    choose = np.random.default_rng(0)
    count = options.prompts + options.memorized
    kinds = ["null"] * options.prompts + ["memorized"] * options.memorized
    prompts = [
        {"prompt_id": f"p{i}", "text": f"a picture of {i}", "kind": kind, "subset": f"subset {i % 10}"}
        for i, kind in enumerate(kinds)
    ]
    store.write("prompts", "all", prompts, prompt_set="benchmark")
    raw, seconds, plain_s = 0, 0.0, 0.0
    for number, width in enumerate(VALUE):
        where = {"model_id": MODEL, "variant": "original", "site": "value", "layer": f"value {number}"}
        for first in range(0, count, 5000):
            values = choose.gamma(4.0, 0.1, (min(5000, count - first), width)).astype(np.float32)
            names = pa.array([f"p{first + i}" for i in range(len(values))])
            rows = pa.table({"prompt_id": names, "mean_abs": lists_of(list(values), FLOATS)})
            with timed() as clock:
                store.write("activations", f"from{first}", rows, **where)
            seconds += clock.seconds
            raw += values.nbytes
    con = connect(store)
    con.execute(f"SET threads = {options.threads}")
    with timed() as ours:
        rows = query(con, "nemo_zscores", model_id=MODEL)
    if rows.num_rows != options.memorized * sum(VALUE):
        raise SystemExit(f"{rows.num_rows} z-scores, not {options.memorized} x {sum(VALUE)}")
    for number, width in enumerate(VALUE):
        held = store.read("activations", columns=["mean_abs"], layer=f"value {number}")["mean_abs"]
        values = np.concatenate([chunk.flatten().to_numpy() for chunk in held.chunks]).reshape(-1, width)
        with timed() as clock:
            known = values[: options.prompts].astype(np.float64)
            np.abs(values[options.prompts :] - known.mean(axis=0)) / known.std(axis=0, ddof=1)
        plain_s += clock.seconds
    return {
        "bytes_per_activation": stored_bytes(store, "activations") / (count * sum(VALUE)),
        "write_activations_mib_per_s": raw / seconds / 2**20,
        "zscore_s": ours.seconds,
        "zscore_time_over_numpy": ours.seconds / plain_s,
    }


def fill_small_tables(store: Store, options: argparse.Namespace) -> None:
    """What the queries of `latencies` need beside sets and activations."""
    choose = np.random.default_rng(1)
    memorized = [f"p{options.prompts + i}" for i in range(options.memorized)]
    for number, width in enumerate(VALUE):
        where = {"model_id": MODEL, "method": "nemo", "site": "value", "layer": f"value {number}"}
        common = {"params_id": "published", "scope": "prompt", "universe": width}
        sets = [np.unique(choose.geometric(0.05, choose.integers(0, 5)) % width).tolist() for _ in memorized]
        rows = [common | {"scope_id": name, "members": found} for name, found in zip(memorized, sets, strict=True)]
        store.write("neuron_sets", "all", rows, **where)
    norms = lists_of(list(choose.random((options.memorized, 1280), dtype=np.float32)), FLOATS)
    where = {"model_id": MODEL, "variant": "original", "site": "ff", "layer": layer_name(0)}
    store.write("activations", "norms", pa.table({"prompt_id": memorized, "sum_sq": norms}), **where)
    model = {"model_id": MODEL, "source": "hub/benchmark", "family": "sd1", "created_at": START}
    store.write("models", "all", [model])
    for number in range(10):
        audit: dict[str, Any] = {
            "audit_id": f"audit{number}",
            "model_id": MODEL,
            "prompt_set": "benchmark",
            "params": "{}",
        }
        audit |= {"code_version": "1", "started_at": START + timedelta(days=number), "state": "completed"}
        store.write("audits", f"audit{number}", [audit])
        figures = [{"variant": f"v{i % 8}", "probe": f"probe{i // 8}", "metric": "mr", "value": 0.5} for i in range(64)]
        store.write("metrics", f"audit{number}", figures, audit_id=f"audit{number}")
    store.write("accepted", "all", [{"audit_id": "audit2", "accepted_at": START}])
    made = [(name, seed) for name in memorized for seed in range(10)]
    names = [{"prompt_id": name, "seed": seed, "generation_id": f"{name}-{seed}"} for name, seed in made]
    store.write("generations", "all", [row | {"bytes": b""} for row in names], model_id=MODEL, variant="v", probe="p")
    scores = choose.random(len(made)).tolist()
    rows = [{"generation_id": row["generation_id"], "value": score} for row, score in zip(names, scores, strict=True)]
    store.write("scores", "all", rows, metric="sscd")


def latencies(store: Store, options: argparse.Namespace) -> dict[str, float]:
    """What a person waits for ten questions, in milliseconds, on a connection that is open."""
    layer, prompt = layer_name(options.layers - 1), f"p{options.prompts}"
    questions: dict[str, dict[str, Any]] = {
        "iou_pairs": {"layer": layer, "step": 0},
        "iou_kwise": {"layer": layer, "step": 0},
        "neurons_by_layer": {"method": "nemo"},
        "prompts_with_most_neurons": {"method": "nemo"},
        "shared_by_prompts": {"method": "nemo", "at_least": 3},
        "nemo_statistics": {"model_id": MODEL, "layer": "value 0"},
        "wanda_norms": {"model_id": MODEL, "subset": "subset 3"},
        "audit_metrics": {},
        "drift_from_accepted": {},
        "copies": {},
        "nemo_zscores": {"model_id": MODEL, "layer": "value 6", "prompt_id": prompt, "theta": 3.0},
    }
    con = connect(store)
    con.execute(f"SET threads = {options.threads}")
    result = {}
    for name, params in questions.items():
        times = []
        for _ in range(options.repeats):
            with timed() as clock:
                query(con, name, **params)
            times.append(clock.seconds * 1000)
        result[f"query_{name}_ms"] = statistics.median(times)
    return result


class Clock:
    """Seconds of a `timed` block, once it has ended."""

    seconds = 0.0


@contextmanager
def timed() -> Iterator[Clock]:
    clock, start = Clock(), time.perf_counter()
    yield clock
    clock.seconds = time.perf_counter() - start


def layer_name(number: int) -> str:
    return f"ff {number:02}"


def lists_of(arrays: list[NDArray[Any]], kind: pa.ListType) -> pa.ListArray:
    ends = np.cumsum([0, *map(len, arrays)]).astype(np.int32)
    return pa.ListArray.from_arrays(ends, np.concatenate(arrays), type=kind)


def csr_bytes(members: NDArray[np.uint32], shape: tuple[int, int], kind: type) -> int:
    rows, columns = np.divmod(members.astype(np.int64), shape[1])
    return len(pickle.dumps(sparse.csr_matrix((np.ones(len(members), kind), (rows, columns)), shape)))


def parquet_bytes(lists: pa.ListArray) -> int:
    """Bytes with Parquet's defaults and the same compression."""
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"members": lists}), sink, compression="zstd")
    return int(sink.getvalue().size)


def stored_bytes(store: Store, table: str) -> int:
    return sum(entry.size for entry in store.place.files(table))


if __name__ == "__main__":
    main()
