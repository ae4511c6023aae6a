"""NeMo's search and Wanda's collection beside plain procedures of our own, on the same prompts.

The plain procedures follow the published descriptions step by step; docs/fidelity.md says how both relate to the
published code itself. NeMo: every look at a candidate set runs the denoiser at the first two timesteps for all seeds
and keeps the second; activations are read off the denoiser anew at every step of the selection. What a noise
difference, a similarity, an outlying neuron and the limit of the refinement are it takes from the package, whose tests
compare them with torchmetrics and by hand; what is compared here is the search. Wanda: prompts one at a time; a hook
computes each feed-forward block a second time and brings every activation to the host, where norms are added up; the
first prompt's activations stay in memory.

Ours runs in every kind of refinement, and what it finds is compared prompt by prompt. "sequential" makes the same looks
in the same order, but sample by sample, so that only rounding can part the two. "chain" and "group" leave out looks
that would change the result only if unblocking more neurons took a memory away. `nemo_identical` says whether the
neurons were the same everywhere.

    engram bench localize --model FOLDER [--prompts FILE] [--null-prompts FILE] [--json FILE]
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch
from torch.nn.functional import normalize
from tqdm import tqdm

from tasks.collect.norms import feature_norms
from tasks.collect.values import value_activations
from tasks.diffusion.detection import estimate_threshold, highest_by_seed, pairwise_scores, prompt_differences
from tasks.diffusion.families import Model
from tasks.diffusion.hooks import observed, scaled
from tasks.diffusion.model import audit_defaults, load_model
from tasks.diffusion.noise import initial_noise
from tasks.diffusion.sampling import SamplingParams, denoise
from tasks.diffusion.sites import Layer, Site
from tasks.diffusion.ssim import similarity, to_unit_range
from tasks.errors import InputError
from tasks.localize.nemo import NemoParams, by_layer, nemo
from tasks.localize.search import TIE, Neuron, out_of_distribution
from tasks.localize.statistics import Moments, Statistics, load_statistics
from tasks.localize.wanda import memorized_weights

SUBJECTS = ("a cat", "a red car", "an old house", "two birds", "a glass of water", "the sea", "a tree", "a violin")
PLACES = (
    "on a table",
    "at night",
    "in the snow",
    "by a river",
    "in a garden",
    "under the sky",
    "in a museum",
    "at home",
)
NULL_PROMPTS = [f"{subject} {place}" for subject in SUBJECTS for place in PLACES]


@dataclass
class PlainNemo:
    """The published search, step by step."""

    model: Model
    layers: tuple[Layer, ...]
    statistics: Statistics
    threshold: float
    params: NemoParams
    evaluations: int = 0

    @torch.no_grad()
    def find(self, embedding: torch.Tensor, prompt_id: str) -> dict[int, torch.Tensor]:
        """The memorization neurons of a prompt, by layer index; none when the gate says that it is not memorized."""
        noise = initial_noise(self.model, [(prompt_id, seed) for seed in range(self.params.seeds)])
        unblocked = self._differences(embedding, noise, ())
        watched = highest_by_seed(pairwise_scores(unblocked), len(noise)) > self.threshold
        if not watched.any():
            return {}

        def score(blocked: Sequence[Neuron]) -> float:
            found = self._differences(embedding, noise, blocked)
            return float(similarity(unblocked[watched], found[watched]).max())

        candidates, limit = self._select(embedding, noise, score)
        unblocked = self._differences(embedding, noise, ())
        return by_layer(self._refine(candidates, score, limit))

    def _select(
        self, embedding: torch.Tensor, noise: torch.Tensor, score: Callable[[Sequence[Neuron]], float]
    ) -> tuple[tuple[Neuron, ...], float]:
        theta, k = self.params.theta, 0
        while True:
            activations = self._activations(embedding, noise)
            candidates = out_of_distribution(activations, self.statistics, theta, k)
            reached = score(candidates)
            if reached <= self.threshold:
                return candidates, self.threshold
            theta, k = theta - self.params.theta_step, k + 1
            if theta <= self.params.theta_min + 1e-9:
                return candidates, reached - TIE

    def _refine(
        self, candidates: tuple[Neuron, ...], score: Callable[[Sequence[Neuron]], float], limit: float
    ) -> frozenset[Neuron]:
        kept = list(candidates)
        for layer in reversed(self.layers):
            rest = [neuron for neuron in kept if neuron[0] != layer.index]
            if len(rest) < len(kept) and score(rest) < limit:
                kept = rest
        for layer in reversed(self.layers):
            for neuron in [neuron for neuron in kept if neuron[0] == layer.index]:
                rest = [other for other in kept if other != neuron]
                if score(rest) < limit:
                    kept = rest
        return frozenset(kept)

    def _differences(self, embedding: torch.Tensor, noise: torch.Tensor, blocked: Sequence[Neuron]) -> torch.Tensor:
        factors = {layer.index: torch.ones(layer.outputs) for layer in self.layers}
        for layer, neuron in blocked:
            factors[layer][neuron] = 0
        text = embedding.expand(len(noise), -1, -1)
        with scaled(self.layers, factors):
            for number in range(2):
                prediction = self.model.predict(noise, self.model.schedule.timestep(self.params.steps, number), text)
                self.evaluations += len(noise)
        return to_unit_range(self.model.memory_signal(prediction, noise))

    def _activations(self, embedding: torch.Tensor, noise: torch.Tensor) -> list[torch.Tensor]:
        found: dict[int, torch.Tensor] = {}

        def see(layer: Layer, inputs: torch.Tensor, output: torch.Tensor) -> None:
            found[layer.index] = output[0].float().abs().mean(0)

        first = self.model.schedule.timestep(self.params.steps, 0)
        with observed(self.layers, see):
            self.model.output(noise[:1], first, embedding[None])
        self.evaluations += 1
        return [found[layer.index] for layer in self.layers]


@torch.no_grad()
def plain_norms(
    model: Model, layers: tuple[Layer, ...], embeddings: torch.Tensor, ids: Sequence[str], params: SamplingParams
) -> tuple[dict[tuple[int, int], torch.Tensor], int]:
    """The published collection, step by step: column norms by (step, layer index), and the bytes kept on the host.

    As published, norms are added up prompt by prompt, and every (step, layer) keeps the first prompt's activations.
    """
    first: dict[tuple[int, int], torch.Tensor] = {}
    norms: dict[tuple[int, int], torch.Tensor] = {}
    steps = dict.fromkeys((layer.index for layer in layers), 0)
    empty = model.unconditional()

    def hook_for(layer: Layer) -> Callable[..., None]:
        def hook(module: Any, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
            hidden = inputs[0]
            for part in module.net[:-1]:
                hidden = part(hidden)
            tokens = normalize(hidden.reshape(-1, hidden.shape[-1]).float().cpu(), dim=1)
            key = steps[layer.index], layer.index
            steps[layer.index] += 1
            first.setdefault(key, tokens)
            norms[key] = (norms.get(key, torch.zeros(())).square() + tokens.norm(dim=0).square()).sqrt()

        return hook

    blocks = [model.denoiser.get_submodule(layer.name.removesuffix(".net.2")) for layer in layers]
    handles = [block.register_forward_hook(hook_for(layer)) for block, layer in zip(blocks, layers, strict=True)]
    try:
        for embedding, name in zip(embeddings, ids, strict=True):
            steps.update(dict.fromkeys(steps, 0))
            denoise(model, embedding[None], empty, initial_noise(model, [(name, 0)]), params)
    finally:
        for handle in handles:
            handle.remove()
    return norms, sum(tokens.numel() * tokens.element_size() for tokens in first.values())


REFINEMENTS = ("sequential", "chain", "group")


def benchmark_nemo(
    model: Model, prompts: list[str], null_prompts: list[str], params: NemoParams, statistics: Statistics | None
) -> dict[str, float]:
    """NeMo in each kind of refinement beside the plain search, on the same prompts, noises and threshold.

    The numbers without a kind in their name are those of `params.refinement`.
    """
    layers = model.layers(Site.VALUE)
    null = model.encode(null_prompts)
    values = value_activations(layers, model.text_input(Site.VALUE, null), model.mask(null))
    statistics = statistics or Moments.of(values).statistics()
    threshold = params.threshold
    if threshold is None:
        scores = [
            pairwise_scores(prompt_differences(model, embedding, prompt, params)[1])
            for prompt, embedding in zip(null_prompts, tqdm(null, desc="threshold"), strict=True)
        ]
        threshold = estimate_threshold(scores, params)
    embeddings = model.encode(prompts)
    plain = PlainNemo(model, layers, statistics, threshold, params)
    runs = {kind: Run(params.model_copy(update={"refinement": kind})) for kind in REFINEMENTS}
    prompt_differences(model, embeddings[0], "warm", params)
    seconds = 0.0
    for prompt, embedding in zip(prompts, tqdm(embeddings, desc="nemo"), strict=True):
        start = clock(model)
        expected = plain.find(embedding, prompt)
        seconds += clock(model) - start
        for run in runs.values():
            start = clock(model)
            tokens, mask = model.text_input(Site.VALUE, embedding[None]), model.mask(embedding[None])
            activations = [layer[0] for layer in value_activations(layers, tokens, mask)]
            found = nemo(model, layers, embedding, prompt, activations, statistics, threshold, run.params)
            run.seconds += clock(model) - start
            run.evaluations += found.evaluations
            run.memorized += found.memorized
            run.agreements.append(agreement(expected, found.neurons))
    numbers = {kind: run.numbers(plain.evaluations, seconds) for kind, run in runs.items()}
    return {
        "nemo_prompts": len(prompts),
        "nemo_memorized": runs["sequential"].memorized,
        "nemo_threshold": threshold,
        "nemo_evaluations_plain": plain.evaluations,
        "nemo_seconds_plain": seconds,
        **{f"nemo_{name}": value for name, value in numbers[params.refinement].items()},
        **{f"nemo_{kind}_{name}": value for kind in REFINEMENTS for name, value in numbers[kind].items()},
    }


@dataclass
class Run:
    """One kind of refinement over all prompts."""

    params: NemoParams
    seconds: float = 0.0
    evaluations: int = 0
    memorized: int = 0
    agreements: list[float] = field(default_factory=list)

    def numbers(self, plain_evaluations: int, plain_seconds: float) -> dict[str, float]:
        return {
            "identical": int(all(value == 1 for value in self.agreements)),
            "agreement": sum(self.agreements) / len(self.agreements),
            "evaluations": self.evaluations,
            "evaluations_saved": plain_evaluations / self.evaluations,
            "seconds": self.seconds,
            "speedup": plain_seconds / self.seconds,
        }


def benchmark_wanda(model: Model, prompts: list[str], params: SamplingParams) -> dict[str, float]:
    """Collection of feature norms beside the plain one; the sets that follow from both must be the same."""
    layers = model.layers(Site.FEED_FORWARD_HIDDEN)
    embeddings = model.encode(prompts)
    keys = [(prompt, 0) for prompt in prompts]
    few = params.model_copy(update={"steps": 2})  # warms both up
    plain_norms(model, layers, embeddings[:1], prompts[:1], few)
    feature_norms(model, layers, embeddings, keys, few)
    start = clock(model)
    plain, kept = plain_norms(model, layers, embeddings, prompts, params)
    middle = clock(model)
    sums = feature_norms(model, layers, embeddings, keys, params).sums("both")
    end = clock(model)
    difference = max(float((sums[key].sqrt() - norm.double()).abs().max() / norm.max()) for key, norm in plain.items())
    overlaps = []
    for step, layer in product(range(params.steps), layers):
        weight: Any = layer.module.weight
        flat = torch.ones(layer.inputs)
        first, second = (
            memorized_weights(weight, found, flat, max(0.01, 1.01 / layer.inputs))
            for found in (sums[step, layer.index], plain[step, layer.index].double().square())
        )
        overlaps.append(agreement({layer.index: first}, {layer.index: second}))
    stored = sum(values.numel() * values.element_size() for values in sums.values())
    return {
        "wanda_prompts": len(prompts),
        "wanda_difference": difference,
        "wanda_sets_iou": sum(overlaps) / len(overlaps),
        "wanda_seconds_plain": middle - start,
        "wanda_seconds": end - middle,
        "wanda_speedup": (middle - start) / (end - middle),
        "wanda_bytes_kept_plain": kept,
        "wanda_bytes_kept": stored,
    }


def clock(model: Model) -> float:
    """The time, once the device has done all its work."""
    if model.device.type != "cpu":
        torch.accelerator.synchronize()
    return time.perf_counter()


def agreement(a: dict[int, torch.Tensor], b: dict[int, torch.Tensor]) -> float:
    """IOU of two sets of neurons or weights over all layers; 1 when both are empty."""
    first, second = ({(layer, n) for layer, members in found.items() for n in members.tolist()} for found in (a, b))
    return len(first & second) / len(first | second) if first | second else 1.0


def read_prompts(path: Path | None) -> list[str] | None:
    """Prompts of a text file, one a line."""
    if path is None:
        return None
    try:
        prompts = [line.strip() for line in path.read_text().splitlines() if line.strip()]
    except OSError as error:
        raise InputError(f"cannot read prompts from {path}: {error.strerror}") from error
    if not prompts:
        raise InputError(f"{path} holds no prompts")
    return prompts


def own_prompts(folder: str, kind: str) -> list[str]:
    """Prompts of one kind that a model's `engram.json` names in a Parquet file; none without."""
    path = Path(folder) / str(audit_defaults(folder).get("prompts", ""))
    if path.suffix != ".parquet":
        return []
    rows = pq.read_table(path, columns=["text", "kind"]).to_pylist()
    return [row["text"] for row in rows if row["kind"] == kind]


def spread(prompts: list[str], count: int) -> list[str]:
    """So many prompts from all over the list."""
    return prompts[:: max(1, len(prompts) // count)][:count]


def table(results: dict[str, float]) -> str:
    """The results for people."""
    return "\n".join(f"{name:<36}{value:>16,.4g}" for name, value in results.items())


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", required=True, help="folder of a diffusers pipeline")
    parser.add_argument("--prompts", type=Path, help="memorized prompts, one a line (default: the model's own)")
    parser.add_argument(
        "--null-prompts", type=Path, help="prompts not memorized, one a line (default: the model's own)"
    )
    parser.add_argument("--most", type=int, default=8, help="how many of the model's own prompts are searched")
    parser.add_argument("--statistics", type=Path, help="published statistics, (means, stds) in a torch file")
    parser.add_argument("--threshold", type=float, help="similarity threshold (default: from the null prompts)")
    parser.add_argument("--refinement", choices=REFINEMENTS, default="chain", help="kind whose numbers come first")
    parser.add_argument("--seeds", type=int, default=10, help="initial noises for each prompt")
    parser.add_argument("--batch", type=int, default=32, help="samples in a pass of the denoiser at most")
    parser.add_argument("--wanda-prompts", type=int, default=10, help="prompts of the Wanda collection")
    parser.add_argument("--wanda-steps", type=int, default=50, help="denoising steps of the Wanda collection")
    parser.add_argument("--device", help="cpu, cuda, ... (default: the GPU where there is one)")
    parser.add_argument("--json", type=Path, help="write the results as one flat object")
    options = parser.parse_args(arguments)
    try:
        model = load_model(options.model, options.device)
        prompts = read_prompts(options.prompts) or own_prompts(options.model, "memorized") or NULL_PROMPTS[:4]
        null_prompts = read_prompts(options.null_prompts) or own_prompts(options.model, "null") or NULL_PROMPTS
        layers = model.layers(Site.VALUE)
        statistics = load_statistics(options.statistics, layers) if options.statistics else None
        params = NemoParams(
            seeds=options.seeds, threshold=options.threshold, batch=options.batch, refinement=options.refinement
        )
        searched = prompts if options.prompts else spread(prompts, options.most)
        known = null_prompts if options.null_prompts else spread(null_prompts, len(NULL_PROMPTS))
        results = benchmark_nemo(model, searched, known, params, statistics)
        sampling = SamplingParams(steps=options.wanda_steps, guidance=7.5, batch=options.batch)
        results |= benchmark_wanda(model, spread(prompts, options.wanda_prompts), sampling)
    except ValueError as error:  # bad input, or parameters out of bounds
        print(f"error: {str(error).splitlines()[0]}", file=sys.stderr)
        return 2
    print(table(results))
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
