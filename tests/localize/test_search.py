"""Algorithms 3 and 4 on scripted scores, followed by hand."""

from collections.abc import Callable, Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from tasks.localize.search import (
    TIE,
    Candidates,
    Check,
    Neuron,
    SearchParams,
    initial_selection,
    out_of_distribution,
    refine,
    refinement_limit,
)
from tasks.localize.statistics import Statistics
from tests.support.search import one_by_one

ACTIVATIONS = [torch.tensor([5.5, 4.9, 1.1, 0.3]), torch.tensor([0.2, 0.6])]
STANDARD = Statistics((torch.zeros(4), torch.zeros(2)), (torch.ones(4), torch.ones(2)))


def needs(*memory: Neuron) -> Callable[[Candidates], float]:
    """A memory that is gone when all of these neurons are blocked."""
    return lambda blocked: 0.2 if blocked.issuperset(memory) else 0.9


def test_outliers_come_by_index_and_then_the_highest() -> None:
    assert out_of_distribution(ACTIVATIONS, STANDARD, 5.0, 0) == ((0, 0),)
    assert out_of_distribution(ACTIVATIONS, STANDARD, 1.0, 1) == ((0, 1), (0, 2), (0, 0), (1, 1))
    assert out_of_distribution(ACTIVATIONS, STANDARD, 99.0, 3) == ((0, 0), (0, 1), (0, 2), (1, 1), (1, 0))


def test_the_deviation_goes_both_ways_and_must_be_there() -> None:
    statistics = Statistics((torch.tensor([10.0, 1.0, 0.0]),), (torch.tensor([1.0, 0.0, 0.0]),))
    activations = [torch.tensor([4.0, 3.0, 0.0])]
    assert out_of_distribution(activations, statistics, 5.0, 0) == ((0, 0),)
    assert out_of_distribution(activations, statistics, 5.0, 2) == ((0, 0), (0, 1))


def test_a_worked_example() -> None:
    score = one_by_one(needs((0, 1)))
    params = SearchParams()
    found, limit, selection = initial_selection(ACTIVATIONS, STANDARD, score, 0.4, params)
    assert selection == [
        Check("select", 5.0, 0, None, None, 0, 1, 0.9, False),
        Check("select", 4.75, 1, None, None, 0, 3, 0.2, True),
    ]
    assert found == ((0, 1), (0, 0), (1, 1))
    assert limit == 0.4
    kept, refinement = refine(found, score, limit, params, 4.75, 1)
    assert refinement == [
        Check("layer", 4.75, 1, 1, None, 1, 2, 0.2, False),
        Check("layer", 4.75, 1, 0, None, 2, 0, 0.9, True),
        Check("neuron", 4.75, 1, 0, 1, 1, 1, 0.9, True),
        Check("neuron", 4.75, 1, 0, 0, 1, 1, 0.2, False),
    ]
    assert kept == {(0, 1)}


def test_the_selection_gives_up_at_the_least_theta_and_keeps_what_it_reached() -> None:
    def score(blocked: Candidates) -> float:
        return 1 - len(blocked) / 20

    found, limit, selection = initial_selection(ACTIVATIONS, STANDARD, one_by_one(score), 0.1, SearchParams())
    assert [check.theta for check in selection] == [5 - 0.25 * i for i in range(16)]
    assert [check.k for check in selection] == list(range(16))
    assert selection[-1].theta == 1.25  # theta then reaches 1, and the search ends without another look
    assert not any(check.kept for check in selection)
    assert len(found) == 6
    assert selection[-1].score == pytest.approx(0.7)
    assert limit == selection[-1].score - TIE
    kept, _ = refine(found, one_by_one(score), limit, SearchParams())
    assert kept == set(found)  # without any of them the score is higher


def test_the_selection_stops_at_the_threshold_the_refinement_below_it() -> None:
    found, limit, _ = initial_selection(ACTIVATIONS, STANDARD, one_by_one(lambda blocked: 0.4), 0.4, SearchParams())
    assert (found, limit) == (((0, 0),), 0.4)
    assert refine(found, one_by_one(lambda blocked: 0.4), 0.4, SearchParams())[0] == {(0, 0)}


def test_the_score_reached_is_asked_for_in_full() -> None:
    """A score that stops at the first seed above the threshold is too low to be a threshold itself."""

    def score(chain: Sequence[Candidates], failed: Callable[[float], bool]) -> list[float]:
        return [0.5 if failed(0.5) else 0.8]

    _, limit, selection = initial_selection(ACTIVATIONS, STANDARD, score, 0.4, SearchParams())
    assert selection[-1].score == 0.8
    assert limit == 0.8 - TIE


KINDS = ("sequential", "chain", "group")


def after_a_give_up(effects: dict[Neuron, float], rounding: Callable[[Candidates], float], kind: str) -> Candidates:
    """What is left of neurons whose blocking lowers the score by so much, when no threshold was reached."""

    def score(blocked: Candidates) -> float:
        return 0.9 - sum(effects[neuron] for neuron in blocked) + rounding(blocked)

    activations = [torch.tensor([9.0] * 4)] * 3
    statistics = Statistics((torch.zeros(4),) * 3, (torch.ones(4),) * 3)
    params = SearchParams.model_validate({"refinement": kind})
    found, limit, selection = initial_selection(activations, statistics, one_by_one(score), 0.1, params)
    assert not selection[-1].kept and frozenset(found) == effects.keys()
    return refine(found, one_by_one(score), limit, params)[0]


@pytest.mark.parametrize("kind", KINDS)
@given(
    seeds=st.tuples(st.integers(), st.integers()),
    effects=st.lists(st.sampled_from([0.0, 0.05, -0.001]), min_size=12, max_size=12),
)
def test_rounding_does_not_decide_after_a_give_up(kind: str, seeds: tuple[int, int], effects: list[float]) -> None:
    """Two machines, whose scores differ by rounding either way, find the same neurons."""
    neurons = {(layer, neuron): effects[4 * layer + neuron] for layer in range(3) for neuron in range(4)}

    def machine(seed: int) -> Callable[[Candidates], float]:
        return lambda blocked: (hash((seed, blocked)) % 3 - 1) * 1e-6

    first, second = (after_a_give_up(neurons, machine(seed), kind) for seed in seeds)
    assert first == second == after_a_give_up(neurons, lambda blocked: 0.0, kind)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rounding", [-1e-7, 0.0, 1e-7])
def test_a_tie_after_a_give_up_is_kept_as_printed(kind: str, rounding: float) -> None:
    """What has no effect scores just the limit, which is not below it; what hinders is let go."""
    effects = {(layer, neuron): 0.0 for layer in range(3) for neuron in range(4)}
    whole = frozenset(effects)
    assert after_a_give_up(effects, lambda blocked: rounding * (blocked != whole), kind) == whole
    hindering = effects | {(0, 1): -0.001, (2, 0): 0.05}
    kept = after_a_give_up(hindering, lambda blocked: rounding * (blocked != whole), kind)
    assert (0, 1) not in kept and (2, 0) in kept


def test_a_threshold_that_was_reached_is_kept_to_as_it_is() -> None:
    """Ties are made by a give-up alone: elsewhere the limit is no score of the candidates."""
    found, limit, selection = initial_selection(ACTIVATIONS, STANDARD, one_by_one(needs((0, 1))), 0.4, SearchParams())
    assert selection[-1].kept and limit == refinement_limit(selection[-1], 0.4) == 0.4
    barely_below = one_by_one(lambda blocked: 0.4 - 1e-7)
    assert refine(found, barely_below, limit, SearchParams())[0] == frozenset()


NEURONS = st.tuples(st.integers(0, 2), st.integers(0, 3))


def transcription(found: Sequence[Neuron], score: Callable[[Candidates], float], threshold: float) -> Candidates:
    """Algorithm 4 as it is printed, from the last layer to the first."""
    refined = set(found)
    for layer in (2, 1, 0):
        in_layer = {neuron for neuron in refined if neuron[0] == layer}
        if in_layer and score(frozenset(refined - in_layer)) < threshold:
            refined -= in_layer
    for layer in (2, 1, 0):
        for neuron in [neuron for neuron in found if neuron in refined and neuron[0] == layer]:
            if score(frozenset(refined - {neuron})) < threshold:
                refined.remove(neuron)
    return frozenset(refined)


@given(found=st.lists(NEURONS, unique=True), seed=st.integers(), ahead=st.integers(1, 100))
def test_any_score_any_look_ahead_gives_what_the_printed_algorithm_gives(
    found: list[Neuron], seed: int, ahead: int
) -> None:
    def score(blocked: Candidates) -> float:
        return hash((seed, blocked)) % 1000 / 1000

    def look_ahead(chain: Sequence[Candidates], failed: Callable[[float], bool]) -> list[float]:
        out: list[float] = []
        for candidates in chain[:ahead]:
            out.append(score(candidates))
            if failed(out[-1]):
                break
        return out

    expected = transcription(found, score, 0.5)
    for way in (one_by_one(score), look_ahead):
        kept, trace = refine(found, way, 0.5, SearchParams())
        assert kept == expected
        dropped = [check.unblocked for check in trace if not check.kept]
        assert sum(dropped) == len(found) - len(kept)
    assert refine(found, one_by_one(score), 0.5, SearchParams())[1] == refine(found, look_ahead, 0.5, SearchParams())[1]


@given(
    found=st.lists(NEURONS, unique=True, max_size=12),
    weights=st.lists(st.integers(0, 5), min_size=12, max_size=12),
    threshold=st.floats(0.05, 1),
)
def test_groups_give_the_same_where_blocking_more_never_brings_the_memory_back(
    found: list[Neuron], weights: list[int], threshold: float
) -> None:
    def score(blocked: Candidates) -> float:
        return 1 - sum(weights[4 * layer + neuron] for layer, neuron in blocked) / 61

    sequential, _ = refine(found, one_by_one(score), threshold, SearchParams())
    group, _ = refine(found, one_by_one(score), threshold, SearchParams(refinement="group"))
    assert group == sequential


def test_groups_need_fewer_checks_when_little_is_needed() -> None:
    found = [(0, neuron) for neuron in range(64)]
    score = one_by_one(needs((0, 17)))
    sequential, many = refine(found, score, 0.4, SearchParams())
    group, few = refine(found, score, 0.4, SearchParams(refinement="group"))
    assert sequential == group == {(0, 17)}
    assert len(many) == 1 + 64
    assert len(few) <= 1 + 2 * 6 + 1


def test_bounds() -> None:
    with pytest.raises(ValidationError, match="must lie below"):
        SearchParams(theta=1, theta_min=2)
    with pytest.raises(ValidationError):
        SearchParams(theta_step=0)
