"""What the stages of an audit take on models of the published shapes: time, memory beside the weights, disk.

Weights are random, prompts and steps few, everything else is an audit's own: its planner, its store, its methods. What
does not fit into memory is counted on the meta device, and so is what a training needs. Limits: collecting and
localizing take 2 GiB beside the model at most, and a pruned variant makes no second copy of the denoiser.

    engram bench full-size [--only sd1.4 sdxl] [--stage count collect ...] [--precision bfloat16] [--memory GIB]
                           [--folder FOLDER] [--device cpu] [--json FILE]

What was measured is kept in the folder: the same command goes on where it was stopped. A model is measured in a process
of its own, so that one that is killed leaves the others alone.
"""

import argparse
import ctypes
import gc
import json
import multiprocessing
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.published import SHAPES, components, write_weights
from flows.cli.commands import quiet
from flows.params import AuditParams
from flows.run.spec import Spec, resolve, spec_of
from flows.run.work import STAGES, work
from flows.settings import Settings
from tasks.collect.norms import norms_by_prompt
from tasks.diffusion.families import Model
from tasks.diffusion.footprint import Unasked, Work, bytes_of, bytes_of_model, bytes_of_work
from tasks.diffusion.model import device_of
from tasks.diffusion.outline import weightless
from tasks.diffusion.precision import Precision
from tasks.diffusion.sampling import SamplingParams, trajectories
from tasks.diffusion.sites import Site
from tasks.errors import InputError
from tasks.keys import prompt_id
from tasks.methods import mitigations
from tasks.mitigate.finetune import FineTuneParams
from tests.support.world import tiny_world

GIB = 2**30
LIMIT = 2 * GIB
"""What collecting and localizing may take beside the model."""
ALL_STAGES = ("count", "load", "check", "batch", *STAGES)
"""Beside those of an audit: what is counted without computing; loading; the comparison with the pipeline's own
sampling; a batch as large as it may be."""
NULLS = 50
AUDIT: dict[str, Any] = {
    "examined": "all",
    "memorized": 1,
    "nulls": NULLS,
    "threshold_nulls": 1,
    "ordinary": 1,
    "seeds": 1,
    "attacked": 1,
    "controls": 0,
    "starts": ("noise",),
    "random_starts": (),
    "mitigations": ("wanda", "nemo-union"),
    "sampling": {"steps": 2},
    "nemo": {"seeds": 2, "threshold": 0.99},
    "sscd": {"side": 32},
    "wanda": {"tau": 1, "sparsity": 0.1},
    "dori": {"steps": 1, "batch": 2, "images_at_once": 1},
}
"""An audit of one memorized prompt and a few others, at two steps."""
WORK: tuple[Work, ...] = ("evaluation", "gradient", "text", "decoder", "encoder")
Numbers = dict[str, float]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    every = [*SHAPES]
    parser.add_argument("--only", nargs="+", choices=every, default=every, help="these models")
    parser.add_argument("--stage", nargs="+", choices=ALL_STAGES, default=list(ALL_STAGES), help="these stages")
    parser.add_argument("--precision", choices=("float32", "mixed", "bfloat16"), default="float32")
    parser.add_argument("--device", default=None, help="cpu, cuda, ...; the GPU where there is one")
    parser.add_argument("--memory", type=float, help="GiB that a model and its work may take; what is free by default")
    parser.add_argument("--folder", type=Path, default=Path(".engram/full-size"), help="where models and results lie")
    parser.add_argument("--json", type=Path, help="write the numbers as one flat object")
    args = parser.parse_args()
    quiet()
    args.folder.mkdir(parents=True, exist_ok=True)
    numbers: Numbers = {}
    lines: list[str] = []
    for name in args.only:
        found, said = counted(name, args.folder, args.precision, in_detail="count" in args.stage)
        if {*args.stage} - {"count"}:
            may = args.memory * GIB if args.memory else psutil.virtual_memory().available
            need = found[f"{name} weights GiB"] * GIB + LIMIT
            if need > may and device_of(args.device).type == "cpu":
                said.append(f"  does not fit: {need / GIB:.1f} GiB with its work, of {may / GIB:.1f}; counted alone")
            else:
                rows = measured(name, args)
                found |= {f"{name} {row} {what}": value for row, of in rows.items() for what, value in of.items()}
                said += list(table(rows, found[f"{name} denoiser GiB"]))
        numbers |= found
        lines += said
        print("\n".join(said), flush=True)
    if args.json:
        args.json.write_text(json.dumps(numbers, indent=1) + "\n")
    return 1 if any("EXCEEDED" in line or "FAILED" in line for line in lines) else 0


def counted(name: str, folder: Path, precision: Precision, in_detail: bool) -> tuple[Numbers, list[str]]:
    """What is counted of a model without weights, in GiB, and the same in words.

    Args:
        in_detail: whether work and trainings are counted beside the weights.
    """
    model = weightless(configured(name, folder, precision), precision)
    sizes = {part: bytes_of(module) / GIB for part, module in components(model).items()}
    out = {f"{name} weights GiB": bytes_of_model(model) / GIB, f"{name} denoiser GiB": sizes[model.denoiser_name]}
    words = ", ".join(f"{part} {size:.2f}" for part, size in sizes.items())
    said = [f"{name}, {precision}: {out[f'{name} weights GiB']:.2f} GiB of weights ({words})"]
    if not in_detail:
        return out, said
    one = {work: bytes_of_work(model, work) / GIB for work in WORK}
    out |= {f"{name} {work} of one GiB": size for work, size in one.items()}
    said.append("  counted, GiB for one sample: " + ", ".join(f"{work} {size:.2f}" for work, size in one.items()))
    out[f"{name} evaluation TFLOP"] = operations(model) / 1e12
    said.append(f"  counted, an evaluation: {out[f'{name} evaluation TFLOP']:.2f} TFLOP")
    if precision in ("float32", "mixed"):
        for training in mitigations():
            for again in (False, True) if training.memory is not None else ():
                assert training.memory is not None
                params = training.changed(FineTuneParams(gradient_checkpointing=again))
                row = f"{training.name}{' with checkpointing' if again else ''}"
                out[f"{name} {row} GiB"] = training.memory(params, model) / GIB
                said.append(f"  counted, {row}: {out[f'{name} {row} GiB']:.1f} GiB with the model")
    return out, said


@torch.no_grad()
def operations(model: Model) -> int:
    """Floating-point operations of an evaluation of the denoiser for one sample, a multiplication and an addition being
    two; of a model without weights."""
    latents = torch.empty(1, *model.latent_shape, device=model.device, dtype=model.dtype)
    with Unasked():
        text = model.unconditional()
        with FlopCounterMode(display=False) as counter:
            model.output(latents, 500.0, text)
    return int(counter.get_total_flops())


def configured(name: str, folder: Path, precision: Precision) -> Path:
    """The folder of a model, its configuration in it."""
    place = folder / f"{name}-{precision}" / "model"
    if not (place / "model_index.json").is_file():
        shutil.rmtree(place.parent, ignore_errors=True)
        place.parent.mkdir()
        # Beside the model lie prompts, images and what scores them; of the little model nothing is left.
        made = tiny_world(place.parent, lambda there: there.mkdir())
        prompts = place.parent / "prompts.parquet"
        rows = pq.read_table(prompts).to_pylist()
        texts = [f"a painting of {number} boats" for number in range(NULLS)]
        rows += [{"prompt_id": prompt_id(text), "text": text, "kind": "null", "image_ids": []} for text in texts]
        pq.write_table(pa.Table.from_pylist(rows), prompts)
        SHAPES[name](made)
    return place


def measured(name: str, args: argparse.Namespace) -> dict[str, Numbers]:
    """By row of the table, what was measured, now or before, by a process of its own."""
    results = args.folder / f"{name}-{args.precision}" / "results.json"
    asked = (name, args.folder, args.precision, args.device, tuple(args.stage), results)
    process = multiprocessing.get_context("spawn").Process(target=measure, args=asked)
    process.start()
    process.join()
    rows = read(results)
    if process.exitcode:
        rows["FAILED"] = {"exit code": float(process.exitcode)}
    return rows


def read(results: Path) -> dict[str, Numbers]:
    rows: dict[str, Numbers] = json.loads(results.read_text()) if results.is_file() else {}
    return rows


def measure(
    name: str, folder: Path, precision: Precision, device: str | None, stages: tuple[str, ...], results: Path
) -> None:
    """Measures what is asked for of a model and not known yet; each row is kept as soon as it is known."""
    quiet()
    place = configured(name, folder, precision)
    if not (place / "weights").is_file():
        dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
        write_weights(place, weightless(place, precision), dtype)
        (place / "weights").touch()
    os.environ["ENGRAM_CACHE"] = str(place.parent.resolve() / "cache")  # digests of what lies here belong here
    store = place.parent / "store"
    settings = Settings.model_validate(AUDIT | {"precision": precision})
    params = AuditParams(model=str(place), store=str(store), device=device, settings=settings)
    audited(params, stages, results, name)


def audited(params: AuditParams, stages: Sequence[str], results: Path, name: str) -> dict[str, Numbers]:
    """Measures the stages of an audit, item by item, where they are not known yet.

    Args:
        results: the file that each row is kept in.
        name: what the model is called where progress is shown.
    """
    rows, meter = read(results), Meter(device_of(params.device), Path(params.store))

    def keep() -> None:
        results.write_text(json.dumps(rows, indent=1) + "\n")

    def row(label: str, do: Callable[[], Any]) -> None:
        if label in rows or label.split(":")[0] not in stages:
            return
        rows[label] = meter.of(do)
        keep()
        words = ", ".join(f"{what} {value:.2f}" for what, value in rows[label].items())
        print(f"{name} {label}: {words}", file=sys.stderr, flush=True)

    spec = resolve(params)
    before = meter.now()
    row("load: weights", spec.subject.load)
    spec.subject.load()
    meter.base = meter.now()
    if "load: weights" in rows:
        rows["load: weights"].setdefault("GiB that stay", (meter.base - before) / GIB)
        keep()
    row("batch: feature norms", lambda: largest_batch(spec))
    for stage in STAGES:
        for item in work(spec_of(spec.run), stage, audit_id="full-size"):
            label = "check: sampling" if item.method == "register model" else f"{stage}: {item.name}"
            if item.anew or item.missing():
                row(label, item.do)
            if stage == "confirm" and not item.anew and item.missing():
                item.do()  # other stages wait for it, measured or not
        if stage == "mitigate":
            for variant in variants_of(spec):
                row(f"mitigate: apply {variant.split('-')[0]}", partial(apply, spec, variant))
    return rows


def largest_batch(spec: Spec) -> None:
    """Feature norms of as many prompts as are taken at a time, one step."""
    model, sampling = spec.subject.load(), SamplingParams(steps=1)
    most = trajectories(model, sampling)
    text, keys = model.encode(["a boat"]), [("a boat", seed) for seed in range(most)]
    layers = model.layers(Site.FEED_FORWARD_HIDDEN)
    for _ in norms_by_prompt(model, layers, text.expand(most, -1, -1), keys, sampling, steps=1):
        pass


def variants_of(spec: Spec) -> list[str]:
    """The pruned variants in the store."""
    found = spec.subject.open().read("variants", columns=["variant", "rule"], model_id=spec.subject.model_id)
    return sorted({one["variant"] for one in found.to_pylist() if one["rule"] is not None})


def apply(spec: Spec, variant: str) -> None:
    with spec.subject.loaded(variant):
        pass


class Meter:
    """Seconds, memory and disk of something that is done."""

    def __init__(self, device: torch.device, store: Path) -> None:
        self.device, self.store = device, store
        self.base = self.now()
        """Bytes that are taken before anything is done: the model, once it is loaded."""

    def of(self, do: Callable[[], Any]) -> Numbers:
        """The peak is beside what was there when `base` was set."""
        disk = on_disk(self.store)
        with self._peak() as peak:
            begun = time.perf_counter()
            do()
            seconds = time.perf_counter() - begun
        return {"seconds": seconds, "GiB": (peak[0] - self.base) / GIB, "MB": (on_disk(self.store) - disk) / 1e6}

    def now(self) -> int:
        gc.collect()
        if self.device.type == "cuda":
            return int(torch.cuda.memory_allocated(self.device))
        ctypes.CDLL(None).malloc_trim(0)
        return int(psutil.Process().memory_info().rss)

    @contextmanager
    def _peak(self) -> Iterator[list[int]]:
        """Within, the most memory that was taken is watched; afterwards the list has it."""
        found: list[int] = []
        self.now()
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            yield found
            found.append(int(torch.cuda.max_memory_allocated(self.device)))
            return
        Path("/proc/self/clear_refs").write_text("5")  # the peak is from now on
        yield found
        status = Path("/proc/self/status").read_text().splitlines()
        found.append(1024 * int(next(line.split()[1] for line in status if line.startswith("VmHWM"))))


def on_disk(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) if folder.is_dir() else 0


def table(rows: Mapping[str, Numbers], denoiser: float) -> Iterator[str]:
    """The rows in words, and which limits are kept.

    Args:
        denoiser: GiB of its weights.
    """
    yield "  stage                                                    seconds   GiB beside   MB in the store"
    for label, of in rows.items():
        if "seconds" not in of:
            yield f"  {label}: {', '.join(f'{what} {value:g}' for what, value in of.items())}"
            continue
        most = LIMIT / GIB if label.split(":")[0] in ("collect", "localize", "batch") else None
        if label.startswith("mitigate: apply"):
            most = denoiser / 2
        kept = "" if most is None else f"   limit {most:.2f}: {'kept' if of['GiB'] <= most else 'EXCEEDED'}"
        yield f"  {label:55} {of['seconds']:9.1f} {of['GiB']:12.2f} {of['MB']:17.1f}{kept}"


if __name__ == "__main__":
    raise InputError("run it by `engram bench full-size`")
