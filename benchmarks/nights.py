"""A store that one model is audited into night after night: how long a person waits as it grows.

The model does not change, so of a night there are its estimates, its evidence and the record of what it rests on: 41
parts, put there by what puts them there in a real night. As there, each night ends with a compaction, between two of
which more than an hour is taken to pass. Commands are measured as a person gives them, with the start of their process,
once everything was read before.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from unittest.mock import patch

from storage import Store, begun_here, compact, content_key, examine, record_holdings
from storage.processes import BEGUN, ENDED
from tasks.conditions import Condition
from tasks.evaluate.estimates import Estimate
from tasks.evaluate.task import write_estimates
from tasks.subject import Subject

MODEL, PROMPT_SET, RUN = "nightly", "benchmark", "0123456789abcdef"
FIRST = datetime(2024, 1, 1, 2, tzinfo=UTC)
VARIANTS = (
    "original", "nemo", "nemo-union", "wanda", "random-nemo", "random-nemo-union", "random-wanda", "wanda-control",
    "adversarial-finetune",
)  # fmt: skip
METRICS = {
    "prompt": ("mr", "mr_vm", "mr_tm", "mr_generations", "sscd_orig_max", "sscd_orig_median", "sscd_gen", "clip"),
    "ordinary": ("clip", "clip_kept", "fid", "kid"),
}
EVIDENCE = {"prompt": ("sscd", "SSCD"), "ordinary": ("clip", "CLIP")}
"""By condition, the kind of score that is kept, and its scorer."""
LAYERS, PROMPTS, SEEDS = 16, 40, 4
PARAMS = json.dumps({"model": "/models/benchmark", "settings": {"seeds": SEEDS}})
COMMANDS = {
    "select_1": ("sql", "SELECT 1"),
    "audit_metrics": ("query", "audit_metrics", "--set", "audit_id={last}"),
    "latest_metrics": ("query", "audit_metrics"),
    "drift": ("sql", "FROM drift WHERE audit_id = '{last}'"),
    "drift_from_accepted": ("query", "drift_from_accepted", "--set", "audit_id={last}"),
}
SETTLED_S = 2.5
"""What changed a moment ago is checked again each time; by then nothing has."""


def nights(sizes: Sequence[int], options: argparse.Namespace) -> dict[str, float]:
    """Seconds in the smallest store, by command; of the larger ones how many times that it takes there.

    The smallest is asked again beside each larger one, in turns, so that what else the machine is at counts alike.
    """
    found: dict[str, float] = {}
    least = min(sizes)
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        small, store = Store.open(Path(folder) / "smallest"), Store.open(Path(folder) / "growing")
        put_nights(small, range(least), options.loose)
        done = 0
        for size in sorted(sizes):
            if size > least:
                put_nights(store, range(done, size), options.loose)
                done = size
            time.sleep(SETTLED_S)
            here = store if size > least else small
            seconds = {one.url: dict.fromkeys((*COMMANDS, "verify"), 0.0) for one in (small, here)}
            for name in COMMANDS:
                times: dict[str, list[float]] = {url: [] for url in seconds}
                for _ in range(1 + options.repeats):
                    for one, nights_there in {small.url: least, here.url: size}.items():
                        times[one].append(ask(one, name, name_of(nights_there - 1)))
                for one, some in times.items():  # the first time each part was read in full
                    seconds[one][name] = statistics.median(some[1:])
            for one in seconds:
                seconds[one]["verify"] = verified(one)
            found[f"nights_{size}_files"] = sum(1 for path in Path(here.backend.root).rglob("*.parquet"))
            for name, value in seconds[here.url].items():
                if here is small:
                    found[f"nights_{size}_{name}_s"] = value
                else:
                    found[f"nights_{size}_{name}_over_{least}"] = value / seconds[small.url][name]
            shown = ", ".join(f"{name} {value:.2f} s" for name, value in seconds[here.url].items())
            print(f"{size} nights: {shown}", file=sys.stderr, flush=True)
    return found


def verified(url: str) -> float:
    """Seconds that `verify` takes."""
    began = time.perf_counter()
    if damages := examine(Store.open(url)).damages:
        raise SystemExit(f"the store is damaged: {damages[0]}")
    return time.perf_counter() - began


def ask(url: str, name: str, last: str) -> float:
    """Seconds that a command takes; `last` is the audit of the last night."""
    command = [word.format(last=last) for word in COMMANDS[name]]
    program = [sys.executable, "-c", "from flows.cli import main; main()", *command, "--store", url]
    began = time.perf_counter()
    subprocess.run(program, check=True, stdout=subprocess.DEVNULL, cwd=Path(__file__).parents[1])
    return time.perf_counter() - began


def put_nights(store: Store, numbers: range, loose: bool) -> None:
    """The nights of these numbers, and before the first of all what every night finds there.

    Args:
        loose: parts stay as nights write them.
    """
    if numbers.start == 0:
        put_model(store)
    with patch("storage.compaction.HOUR", 0):  # it has passed since the night before
        for number in numbers:
            put_night(store, number)
            if not loose:
                compact(store, gc=True)


def name_of(number: int) -> str:
    """The id of a night's audit."""
    return f"{FIRST + timedelta(days=number):%Y%m%d-%H%M%S}-{number:06x}"


def generations_of(variant: str, condition: str) -> list[str]:
    """The ids of what a variant was asked for."""
    return [f"{variant}-{condition}-{prompt}-{seed}" for prompt in range(PROMPTS) for seed in range(SEEDS)]


def put_model(store: Store) -> None:
    """What every night finds there: the model, its prompts, activations, sets, generations and scores."""
    store.write("models", MODEL, [{"model_id": MODEL, "source": MODEL, "family": "sd1", "created_at": FIRST}])
    prompts = [
        {"prompt_id": f"p{number}", "text": f"a picture of {number}", "kind": "memorized", "image_ids": [f"i{number}"]}
        for number in range(PROMPTS)
    ]
    store.write("prompts", PROMPT_SET, prompts, prompt_set=PROMPT_SET)
    images = [{"image_id": f"i{number}", "bytes": b"0" * 1000, "width": 8, "height": 8} for number in range(PROMPTS)]
    store.write("images", PROMPT_SET, images)
    run = {"run_id": RUN, "model_id": MODEL, "prompt_set": PROMPT_SET, "params": PARAMS, "long_prompts": ""}
    store.write("runs", RUN, [run | {"code_version": "1", "resolved_at": FIRST}])
    registration = {"name": "benchmark", "state": "registered", "params": PARAMS, "changed_at": FIRST}
    store.write("registrations", "benchmark", [registration])
    for layer in (f"layer {number}" for number in range(LAYERS)):
        values = [{"prompt_id": row["prompt_id"], "mean_abs": [0.1] * 100, "tokens": 77} for row in prompts]
        store.write("activations", "all", values, model_id=MODEL, variant="original", site="value", layer=layer)
        for method in ("nemo", "wanda", "random"):
            row = {"params_id": "p", "scope": "subset", "scope_id": "all", "members": [1, 2, 3], "universe": 100}
            store.write("neuron_sets", "all", [row], model_id=MODEL, method=method, site="value", layer=layer)
    for variant in VARIANTS:
        row = {"variant": variant, "method": variant, "params_id": "p"}
        store.write("variants", variant, [row], model_id=MODEL)
        for condition, (metric, scorer) in EVIDENCE.items():
            names = generations_of(variant, condition)
            shots = [{"prompt_id": f"p{number // SEEDS}", "seed": number % SEEDS} for number in range(len(names))]
            made = [
                shot | {"generation_id": name, "bytes": b"0" * 1000} for shot, name in zip(shots, names, strict=True)
            ]
            store.write("generations", "all", made, model_id=MODEL, variant=variant, condition=condition)
            scores = [
                {"generation_id": name, "reference_id": f"i{number // SEEDS}", "scorer": scorer, "value": 0.5}
                for number, name in enumerate(names)
            ]
            store.write("scores", content_key(variant, condition), scores, metric=metric)


def put_night(store: Store, number: int) -> None:
    """What a night writes: see `flows.audit.recorded`, `tasks.evaluate`, `tasks.report` and `flows.nightly`."""
    audit_id, began = name_of(number), FIRST + timedelta(days=number)
    record: dict[str, Any] = {"audit_id": audit_id, "model_id": MODEL, "run_id": RUN, "prompt_set": PROMPT_SET}
    record |= {"params": PARAMS, "code_version": "1", "seed": 0, "device": "cpu", "started_at": began}
    begun_here(store, audit_id)
    store.write("audits", f"{audit_id}{BEGUN}", [record | {"state": "running"}])
    subject = Subject(store=store.url, model=MODEL, prompt_set=PROMPT_SET)
    for variant in VARIANTS:
        for condition, metrics in METRICS.items():
            value = 0.5 + 0.001 * (number % 7)
            found = [Estimate(metric, value, value - 0.1, value + 0.1, PROMPTS) for metric in metrics]
            write_estimates(subject, audit_id, variant, Condition.parse(condition), found)
            metric, scorer = EVIDENCE[condition]
            row = {"variant": variant, "condition": condition, "metric": metric, "scorer": scorer}
            seen = row | {"generation_ids": generations_of(variant, condition)}
            store.write("evidence", content_key(audit_id, *row.values()), [seen], audit_id=audit_id)
    ended = began + timedelta(minutes=1)
    store.write("audits", f"{audit_id}{ENDED}", [record | {"state": "completed", "finished_at": ended}])
    record_holdings(store, audit_id)
    night = {"name": "benchmark", "audit_id": audit_id, "baseline": name_of(0) if number else None, "told_at": ended}
    store.write("nights", f"benchmark-{audit_id}", [night | {"outcome": "no regression" if number else "first"}])
    if number == 0:
        store.write("accepted", audit_id, [{"audit_id": audit_id, "accepted_at": ended}])
