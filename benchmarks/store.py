"""The store at the scale of Stable Diffusion 1.4, each number beside its baseline in the same run.

    engram bench store                                      the whole scale: some 250 million members, 50,000 prompts
    engram bench store --steps 2 --layers 3 --prompts 500 --json FILE
    engram bench store --only nights --nights 10,100        stores of so many nights, see benchmarks.nights

Sets are synthetic: in every layer, step and subset about one weight in a hundred, 60 % of them from a pool that the
subsets have in common. Rivals: pickled SciPy CSR matrices and other encodings on disk; sorted NumPy intersections,
SciPy products and plain NumPy for the answers. The baselines' time begins when their input lies in memory, decoded and
sorted; the store's includes finding, reading and decoding it. Rivals use one thread, DuckDB as many as it is given.
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
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from scipy import sparse

from storage import Store, connect, iou, query
from storage.layout import partition_of
from storage.tables import FLOATS, MEMBERS, TABLES

FEED_FORWARD = [(320, 1280)] * 5 + [(640, 2560)] * 5 + [(1280, 5120)] * 6
VALUE = [320, 320, 640, 640, 1280, 1280, 1280]
MODEL = "benchmark"
BY = ("store", "numpy", "scipy")
MEMORY_MIB = 2048
"""What DuckDB may hold while it answers a query; what is more goes to the temporary folder."""
START = datetime(2024, 1, 1, tzinfo=UTC)

ENCODINGS: dict[str, tuple[str | None, bool, str]] = {
    "parquet_default": (None, True, "zstd"),
    "parquet_plain": (None, False, "zstd"),
    "parquet_split": ("BYTE_STREAM_SPLIT", False, "zstd"),
    "parquet_delta_only": ("DELTA_BINARY_PACKED", False, "none"),
}
"""Encodings that the store does not use for members: encoding, dictionary, compression."""

Sets = list[list[NDArray[np.uint32]]]
"""Members by step and subset."""


def main() -> None:
    options = parse()
    if options.measure_iou:
        print(json.dumps(measure_iou(Store.open(options.measure_iou, create=False), options.by, options.threads)))
        return
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        store = Store.open(Path(folder) / "store")
        numbers: dict[str, float] = {}
        for measure in (neuron_sets, intersections, activations, latencies, growing):
            if options.only not in (None, "nights" if measure is growing else "scale"):
                continue
            with timed() as clock:
                numbers |= measure(store, options)
            print(f"{measure.__name__}: {clock.seconds:.0f} s", file=sys.stderr, flush=True)
    width = max(map(len, numbers))
    for name, value in numbers.items():
        # In full where there are digits before the point, else to four digits.
        print(f"{name:<{width}}  {f'{value:,.0f}' if value >= 10_000 else f'{value:.4g}':>14}")
    if options.json:
        options.json.write_text(json.dumps(numbers, indent=1) + "\n")


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
    parser.add_argument(
        "--nights",
        type=lambda text: [int(one) for one in text.split(",")],
        default=[10, 100, 365, 1000],
        metavar="N,N,...",
        help="nights in the stores that questions are measured on; the largest of the defaults takes half an hour",
    )
    parser.add_argument("--loose", action="store_true", help="parts stay as nights write them: nothing is compacted")
    parser.add_argument("--only", choices=("scale", "nights"), help="this half alone")
    parser.add_argument("--json", type=Path, help="write the numbers to this file")
    parser.add_argument("--measure-iou", help=argparse.SUPPRESS)
    parser.add_argument("--by", choices=BY, help=argparse.SUPPRESS)
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
    """Write the sets, one part a layer and subset, and weigh them against their baselines."""
    members = raw = sampled = csr = csr_bool = 0
    seconds = csr_seconds = 0.0
    others = dict.fromkeys(ENCODINGS, 0)
    for number, shape in enumerate(FEED_FORWARD[: options.layers]):
        sets = make_sets(shape, options, number)
        for subset in range(options.subsets):
            every = [step[subset] for step in sets]
            where = {"model_id": MODEL, "method": "wanda", "site": "ff", "layer": layer_name(number)}
            with timed() as clock:
                lists = lists_of(every, MEMBERS)
                rows = pa.table({"members": lists, "step": pa.array(range(options.steps), pa.int32())})
                for name, value, kind in (
                    ("scope", "subset", pa.string()),
                    ("scope_id", f"subset {subset}", pa.string()),
                    ("params_id", "published", pa.string()),
                    ("universe", shape[0] * shape[1], pa.uint64()),
                    ("width", shape[1], pa.uint32()),
                ):
                    rows = rows.append_column(name, pa.array([value] * options.steps, kind))
                store.write("neuron_sets", f"subset{subset}", rows, **where)
            seconds += clock.seconds
            members += len(lists.values)
            raw += rows.nbytes
            with timed() as clock:
                csr += write_csr(options.folder, every, shape, np.int64)
            csr_seconds += clock.seconds
            # The other baselines' size does not depend on the step; the first one stands for all.
            sampled += len(every[0])
            csr_bool += write_csr(options.folder, every[:1], shape, np.bool_)
            for name in others:
                others[name] += parquet_bytes(lists.slice(0, 1), *ENCODINGS[name])
    return {
        "members": members,
        "bytes_per_member": stored_bytes(store, "neuron_sets") / members,
        "csr_pickle_bytes_per_member": csr / members,
        "csr_bool_pickle_bytes_per_member": csr_bool / sampled,
        **{f"{name}_bytes_per_member": size / sampled for name, size in others.items()},
        "write_mib_per_s": raw / seconds / 2**20,
        "write_members_per_s": members / seconds,
        "write_csr_pickle_members_per_s": members / csr_seconds,
    }


def intersections(store: Store, options: argparse.Namespace) -> dict[str, float]:
    """All pairs of subsets in every layer and step, each way in a process of its own, whose peak of memory it is."""
    found = {}
    for by in BY:
        program = [sys.executable, "-m", "benchmarks.store", "--measure-iou", store.backend.root, "--by", by]
        program += ["--threads", str(options.threads)]
        found[by] = json.loads(subprocess.run(program, check=True, stdout=subprocess.PIPE, text=True).stdout)
    if len({one["intersections"] for one in found.values()}) != 1:
        raise SystemExit(f"the three ways disagree: {found}")
    return {
        "iou_s": found["store"]["seconds"],
        "iou_numpy_s": found["numpy"]["seconds"],
        "iou_scipy_s": found["scipy"]["seconds"],
        "iou_time_over_numpy": found["store"]["seconds"] / found["numpy"]["seconds"],
        "iou_time_over_scipy": found["store"]["seconds"] / found["scipy"]["seconds"],
        "iou_peak_mib": found["store"]["peak_mib"],
        "iou_numpy_peak_mib": found["numpy"]["peak_mib"],
        "iou_scipy_peak_mib": found["scipy"]["peak_mib"],
    }


def measure_iou(store: Store, by: str, threads: int) -> dict[str, float]:
    """All IOUs, in this process."""
    seconds, total = 0.0, 0
    if by == "store":
        with timed() as clock:
            rows = iou(store, threads=threads)
        seconds, total = clock.seconds, int(np.sum(rows["intersection"].to_numpy()))
    else:
        count = numpy_intersections if by == "numpy" else scipy_intersections
        parts = store.parts("neuron_sets")
        for layer in sorted({partition_of(TABLES["neuron_sets"], part)["layer"] for part in parts}):
            rows = store.read("neuron_sets", columns=["step", "universe", "members"], layer=layer).combine_chunks()
            steps, universe = rows["step"].to_numpy(), rows["universe"][0].as_py()
            members = rows["members"].chunk(0)
            for step in np.unique(steps):
                sets = [members[row].values.to_numpy() for row in np.flatnonzero(steps == step)]
                with timed() as clock:
                    total += count(sets, universe)
                seconds += clock.seconds
    return {"seconds": seconds, "intersections": total, "peak_mib": peak_mib()}


def peak_mib() -> float:
    """The most memory that this process held. On Linux not by `getrusage`, whose number begins at the parent's."""
    status = Path("/proc/self/status")
    if status.exists():
        (line,) = (line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) / 1024
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def numpy_intersections(sets: list[NDArray[np.uint32]], universe: int) -> int:
    """Members in the intersections of all pairs, the sets being sorted already."""
    return sum(len(np.intersect1d(one, two, assume_unique=True)) for one, two in itertools.combinations(sets, 2))


def scipy_intersections(sets: list[NDArray[np.uint32]], universe: int) -> int:
    """The same from the product of a sparse matrix, a row a set, with its transpose."""
    ends = np.cumsum([0, *map(len, sets)])
    matrix = sparse.csr_matrix((np.ones(ends[-1], np.int32), np.concatenate(sets), ends), (len(sets), universe))
    return int(np.triu((matrix @ matrix.T).toarray(), 1).sum())


def activations(store: Store, options: argparse.Namespace) -> dict[str, float]:
    """Write activations of all prompts, and ask for the z-scores of the memorized ones."""
    choose = np.random.default_rng(0)
    count = options.prompts + options.memorized
    kinds = ["null"] * options.prompts + ["memorized"] * options.memorized
    prompts = [
        {"prompt_id": f"p{i}", "text": f"an image of {i}", "kind": kind, "subset": f"subset {i % 10}"}
        for i, kind in enumerate(kinds)
    ]
    store.write("prompts", "all", prompts, prompt_set="benchmark")
    raw, seconds, plain_s, plain = 0, 0.0, 0.0, 0
    for number, width in enumerate(VALUE):
        where = {"model_id": MODEL, "variant": "original", "site": "value", "layer": f"value {number}"}
        for first in range(0, count, 5000):
            values = choose.gamma(4.0, 0.1, (min(5000, count - first), width)).astype(np.float32)
            names = pa.array([f"p{first + i}" for i in range(len(values))])
            lists = lists_of(list(values), FLOATS)
            rows = pa.table({"prompt_id": names, "mean_abs": lists})
            with timed() as clock:
                store.write("activations", f"from{first}", rows, **where)
            seconds += clock.seconds
            raw += values.nbytes
            plain += parquet_bytes(lists, None, False)
    con = open_sql(store, options)
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
        "plain_parquet_bytes_per_activation": plain / (count * sum(VALUE)),
        "write_activations_mib_per_s": raw / seconds / 2**20,
        "zscore_s": ours.seconds,
        "zscore_numpy_s": plain_s,
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
        numbers = [
            {"variant": f"v{i % 8}", "condition": f"condition{i // 8}", "metric": "mr", "value": 0.5} for i in range(64)
        ]
        store.write("metrics", f"audit{number}", numbers, audit_id=f"audit{number}")
    store.write("accepted", "all", [{"audit_id": "audit2", "accepted_at": START}])
    made = [(name, seed) for name in memorized for seed in range(10)]
    names = [{"prompt_id": name, "seed": seed, "generation_id": f"{name}-{seed}"} for name, seed in made]
    store.write(
        "generations", "all", [row | {"bytes": b""} for row in names], model_id=MODEL, variant="v", condition="p"
    )
    scores = choose.random(len(made)).tolist()
    rows = [{"generation_id": row["generation_id"], "value": score} for row, score in zip(names, scores, strict=True)]
    store.write("scores", "all", rows, metric="sscd")


def latencies(store: Store, options: argparse.Namespace) -> dict[str, float]:
    """What a person waits for an answer, in milliseconds, on a connection that is open.

    The paper's two plots look at every set there is. Beside the query for one layer stands what the same answer costs
    when DuckDB cannot tell from the condition which files it needs, and reads them all.
    """
    fill_small_tables(store, options)
    layer, prompt = layer_name(options.layers - 1), f"p{options.prompts}"
    questions: dict[str, dict[str, Any]] = {
        "iou_pairs": {"layer": layer, "step": 0},
        "iou_kwise": {"layer": layer, "step": 0},
        "neurons_by_layer": {"method": "nemo"},
        "prompts_with_most_neurons": {"method": "nemo"},
        "shared_by_prompts": {"method": "nemo", "at_least": 3},
        "nemo_statistics": {"model_id": MODEL, "layer": "value 0"},
        "nemo_zscores": {"model_id": MODEL, "layer": "value 6", "prompt_id": prompt, "theta": 3.0},
        "wanda_norms": {"model_id": MODEL, "subset": "subset 3"},
        "audit_metrics": {},
        "drift_from_accepted": {},
        "copies": {},
    }
    con = open_sql(store, options)
    result = {}
    for name, params in questions.items():
        result[f"query_{name}_ms"] = waiting(options.repeats, lambda: query(con, name, **params))  # noqa: B023
    for name in ("iou_by_layer", "iou_by_step"):
        result[f"query_{name}_ms"] = waiting(1, lambda: query(con, name, method="wanda"))  # noqa: B023
    for name, condition in (("pruned", "layer = $layer"), ("unpruned", "layer || left(params_id, 0) = $layer")):
        statement = f"SELECT sum(members[1]) FROM neuron_sets WHERE {condition}"
        result[f"one_layer_{name}_ms"] = waiting(
            options.repeats,
            lambda: con.execute(statement, {"layer": layer}).fetchall(),  # noqa: B023
        )
    return result


def growing(store: Store, options: argparse.Namespace) -> dict[str, float]:
    """What a person waits for as nights gather, in stores of their own."""
    from benchmarks.nights import nights  # it imports torch, which would count in the memory that IOUs take

    return nights(options.nights, options)


def waiting(repeats: int, ask: Callable[[], object]) -> float:
    """Median milliseconds."""
    times = []
    for _ in range(repeats):
        with timed() as clock:
            ask()
        times.append(clock.seconds * 1000)
    return statistics.median(times)


def open_sql(store: Store, options: argparse.Namespace) -> duckdb.DuckDBPyConnection:
    con = connect(store)
    con.execute(f"SET threads = {options.threads}; SET memory_limit = '{MEMORY_MIB}MiB'")
    return con


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


def write_csr(folder: Path | None, sets: list[NDArray[np.uint32]], shape: tuple[int, int], kind: type) -> int:
    """Bytes of sets as pickled matrices, all in one file that is flushed once, on the disk as safely as a part."""
    with tempfile.TemporaryFile(dir=folder) as file:
        for members in sets:
            rows, columns = np.divmod(members.astype(np.int64), shape[1])
            pickle.dump(sparse.csr_matrix((np.ones(len(members), kind), (rows, columns)), shape), file)
        file.flush()
        os.fsync(file.fileno())
        return file.tell()


def parquet_bytes(lists: pa.ListArray, encoding: str | None, dictionary: bool, compression: str = "zstd") -> int:
    """Bytes of a list column in another encoding."""
    sink = pa.BufferOutputStream()
    encodings = {"values.list.element": encoding} if encoding else None
    options = {"use_dictionary": dictionary, "column_encoding": encodings, "compression": compression}
    pq.write_table(pa.table({"values": lists}), sink, **options)
    return int(sink.getvalue().size)


def stored_bytes(store: Store, table: str) -> int:
    return sum(entry.size for entry in store.backend.files(table))


if __name__ == "__main__":
    main()
