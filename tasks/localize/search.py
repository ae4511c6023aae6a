"""NeMo's search for memorization neurons, over any score (Hintersdorf et al., NeurIPS 2024, Algorithms 3 and 4).

The score of a candidate set says how much of the memory is left while the set is blocked: 1 is all of it. Nothing here
knows a denoiser, so a search can be followed by hand.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Annotated, Literal, Protocol

import torch
from pydantic import ConfigDict, Field, model_validator

from tasks.localize.statistics import Statistics
from tasks.params import Params

Neuron = tuple[int, int]
"""Index of the layer within its site, index of the output."""
Candidates = frozenset[Neuron]
AHEAD = 64
"""Checks of the refinement that a score knows of in advance."""
TIE = 1e-5
"""Scores that lie no further apart count as equal: rounding moves them by some 1e-6 between machines and batches."""


class Score(Protocol):
    """Scores candidate sets in order, up to and with the first that has failed; at least one.

    A score is a maximum over seeds. A set that has failed by some seeds cannot pass by others, so its score may be the
    maximum so far; the score of a set that has not failed is the full one.
    """

    def __call__(self, chain: Sequence[Candidates], failed: Callable[[float], bool]) -> list[float]: ...


class SearchParams(Params):
    """The thresholds that the initial selection walks through, and the kind of refinement."""

    model_config = ConfigDict(title="NeMo: the search")

    theta: Annotated[
        float, Field(gt=0, le=100, description="The z-score above which a neuron is a candidate, at first.")
    ] = 5.0
    theta_step: Annotated[float, Field(gt=0, le=10, description="By how much theta falls at each step.")] = 0.25
    theta_min: Annotated[float, Field(ge=0, le=100, description="The theta at which the selection gives up.")] = 1.0
    refinement: Annotated[
        Literal["sequential", "chain", "group"],
        Field(
            description="How candidates are dropped: one by one as published; the same, with all seeds only at the end"
            " of each run of drops; or many at once, split on failure."
        ),
    ] = "sequential"

    @model_validator(mode="after")
    def _falls(self) -> "SearchParams":
        if self.theta_min >= self.theta:
            raise ValueError(f"theta_min {self.theta_min} must lie below theta {self.theta}")
        return self


@dataclass(frozen=True)
class Check:
    """One look at a candidate set, as the search made it."""

    phase: Literal["select", "layer", "neuron"]
    theta: float
    """At this step, or where the selection ended."""
    k: int
    layer: int | None
    """The layer whose candidates, or one of them, were unblocked; None while selecting, and for groups of layers."""
    neuron: int | None
    """The neuron that was unblocked; None for more than one."""
    unblocked: int
    """Candidates unblocked for this check."""
    candidates: int
    """Candidates left blocked during this check."""
    score: float
    """Of the blocked candidates; where they failed, the score of the seeds that decided it."""
    kept: bool
    """Selecting: the memory is gone, the selection ends. Refining: what was unblocked is needed and stays blocked."""


def out_of_distribution(
    activations: Sequence[torch.Tensor], statistics: Statistics, theta: float, k: int
) -> tuple[Neuron, ...]:
    """Neurons with |activation - mean| / std > theta, and the k of highest activation in each layer.

    A neuron whose activation never varied (std 0) has no z-score and comes in by its activation only. The query
    `nemo_zscores` mirrors the first half in SQL.

    Args:
        activations: by layer, (outputs,).

    Returns:
        By layer; within a layer by index, then the k highest, highest first: the order of the published search.
    """
    out: list[Neuron] = []
    for index, (activation, mean, std) in enumerate(zip(activations, statistics.means, statistics.stds, strict=True)):
        values = activation.float().cpu()
        mean, std = mean.cpu(), std.cpu()
        z = torch.where(std > 0, (values - mean).abs() / std, 0)
        highest = values.abs().topk(min(k, len(values))).indices.tolist()
        z[highest] = 0  # they come after the outliers, once
        outliers = (z > theta).nonzero().flatten().tolist()
        out += [(index, neuron) for neuron in outliers + highest]
    return tuple(out)


def initial_selection(
    activations: Sequence[torch.Tensor], statistics: Statistics, score: Score, threshold: float, params: SearchParams
) -> tuple[tuple[Neuron, ...], float, list[Check]]:
    """Algorithm 3: widens the candidates until blocking them brings the score down to the threshold.

    Returns:
        The candidates, the threshold for their refinement (see `refinement_limit`), and every step. When theta reaches
        its minimum the search gives up: it ends with what it has.
    """
    theta, k = params.theta, 0
    trace: list[Check] = []
    while True:
        found = out_of_distribution(activations, statistics, theta, k)
        candidates = frozenset(found)
        reached = score([candidates], lambda value: value > threshold)[0]
        gone = reached <= threshold
        last = theta - params.theta_step <= params.theta_min + 1e-9
        if last and not gone:
            reached = score([candidates], lambda value: False)[0]
        trace.append(Check("select", theta, k, None, None, 0, len(candidates), reached, gone))
        if gone or last:
            return found, refinement_limit(trace[-1], threshold), trace
        theta, k = theta - params.theta_step, k + 1


def refinement_limit(end: Check, threshold: float) -> float:
    """What the score must stay below for Algorithm 4 to let neurons go.

    It is the threshold of the selection, or after a give-up the score that the selection ended with, less `TIE`. There
    the candidates' own score is the limit, so neurons without any effect score just the limit, and only rounding would
    say on which side. As printed, what does not fall below the limit is kept; so a tie is kept, on every machine.

    Args:
        end: the last step of the selection.
        threshold: the one that the selection was to reach.
    """
    return threshold if end.kept else end.score - TIE


def refine(
    found: Sequence[Neuron], score: Score, threshold: float, params: SearchParams, theta: float = 0.0, k: int = 0
) -> tuple[Candidates, list[Check]]:
    """Algorithm 4: unblocks, by layers and then by neurons, whatever the score stays below the threshold without.

    From the last layer to the first, as published. With group refinement as many at once as possible: a group that is
    needed is split in halves. It gives the same neurons as the sequential one wherever blocking more neurons never
    brings back the memory.

    Args:
        found: candidates in the order in which they are tried within their layer.
        theta, k: where the selection ended, for the trace.

    Returns:
        The neurons that are needed, and every check.
    """
    trace: list[Check] = []
    drop = _drop_in_groups if params.refinement == "group" else _drop_one_by_one
    kept = frozenset(found)
    phases: tuple[Literal["layer", "neuron"], ...] = ("layer", "neuron")
    for phase in phases:
        parts = [frozenset({neuron}) for neuron in _last_layer_first(found) if neuron in kept]
        if phase == "layer":
            parts = [
                frozenset(n for n in kept if n[0] == layer) for layer in sorted({n[0] for n in kept}, reverse=True)
            ]

        def record(
            part: Candidates, left: int, value: float, needed: bool, phase: Literal["layer", "neuron"] = phase
        ) -> None:
            layers = {layer for layer, _ in part}
            layer = layers.pop() if len(layers) == 1 else None
            neuron = next(iter(part))[1] if len(part) == 1 and phase == "neuron" else None
            trace.append(Check(phase, theta, k, layer, neuron, len(part), left, value, needed))

        kept = drop(kept, parts, score, threshold, record)
    return kept, trace


def _last_layer_first(found: Iterable[Neuron]) -> list[Neuron]:
    return sorted(found, key=lambda neuron: -neuron[0])  # stable: the order within a layer stays


_Record = Callable[[Candidates, int, float, bool], None]


def _drop_one_by_one(
    kept: Candidates, parts: Sequence[Candidates], score: Score, threshold: float, record: _Record
) -> Candidates:
    while parts:
        # What will be asked if no part turns out to be needed; the score may look at some of it together.
        chain = [kept - dropped for dropped in accumulate(parts[:AHEAD], frozenset[Neuron].union)]
        for part, rest, value in zip(parts, chain, score(chain, lambda value: value >= threshold), strict=False):
            needed = value >= threshold
            record(part, len(rest), value, needed)
            kept = kept if needed else rest
            parts = parts[1:]
    return kept


def _drop_in_groups(
    kept: Candidates, parts: Sequence[Candidates], score: Score, threshold: float, record: _Record
) -> Candidates:
    if not parts:
        return kept
    group = frozenset().union(*parts)
    value = score([kept - group], lambda value: value >= threshold)[0]
    needed = value >= threshold
    record(group, len(kept - group), value, needed)
    if not needed:
        return kept - group
    if len(parts) == 1:
        return kept
    middle = len(parts) // 2
    kept = _drop_in_groups(kept, parts[:middle], score, threshold, record)
    return _drop_in_groups(kept, parts[middle:], score, threshold, record)
