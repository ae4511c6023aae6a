"""NeMo finds exactly the planted neurons, with fewer UNet calls and the same answers as the plain procedure."""

import pytest
import torch

from tasks.collect.values import value_activations
from tasks.diffusion.detection import DetectionParams, detection_timestep, noise_differences, prompt_differences
from tasks.diffusion.families import layers_of
from tasks.diffusion.hooks import scaled
from tasks.diffusion.sites import Site
from tasks.diffusion.ssim import similarity
from tasks.errors import InputError
from tasks.localize.curve import best_first, memorization_curve, stand_ins
from tasks.localize.nemo import NemoParams, NemoResult, gate, nemo
from tasks.localize.scorer import BlockedScore
from tasks.localize.search import TIE, Candidates, Neuron, SearchParams, refine
from tasks.localize.statistics import Moments, Statistics
from tests.support.hand_made import MEMORIZED, NULL_PROMPTS, model_of, planted_unet, random_unet
from tests.support.search import one_by_one


def search(
    planted: tuple[Neuron, ...],
    prompt: str = MEMORIZED,
    params: NemoParams | None = None,
    dtype: torch.dtype = torch.float32,
    threshold: float = 0.428,
) -> NemoResult:
    model = model_of(planted_unet(planted).to(dtype))
    layers = layers_of(model.denoiser, Site.VALUE)
    statistics = Moments.of(value_activations(layers, model.encode(NULL_PROMPTS))).statistics()
    text = model.encode([prompt])
    activations = [layer[0] for layer in value_activations(layers, text)]
    return nemo(model, layers, text[0], prompt, activations, statistics, threshold, params or NemoParams())


@pytest.mark.parametrize("planted", [((0, 5), (2, 3)), ((1, 7),), ((0, 0), (0, 1), (1, 4), (2, 6))])
@pytest.mark.parametrize("refinement", ["sequential", "chain", "group"])
def test_it_finds_exactly_the_planted_neurons(planted: tuple[Neuron, ...], refinement: str) -> None:
    found = search(planted, params=NemoParams.model_validate({"refinement": refinement}))
    assert found.memorized
    assert {(layer, neuron) for layer, members in found.neurons.items() for neuron in members.tolist()} == set(planted)
    assert any(2 in members.tolist() for members in found.candidates.values())  # what fires but leads nowhere
    assert found.refinement_threshold == found.threshold == 0.428
    assert found.watched == tuple(range(10))
    assert found.trace[0].phase == "select" and found.trace[-1].phase == "neuron"
    assert found.pairwise.shape == (45,)


def test_it_finds_them_in_half_the_precision_too() -> None:
    found = search(((0, 5), (2, 3)), dtype=torch.bfloat16)
    assert {layer: neurons.tolist() for layer, neurons in found.neurons.items()} == {0: [5], 2: [3]}


def test_a_give_up_keeps_the_score_that_it_reached() -> None:
    """No blocking brings the score to nothing; so it is refined to what the selection ended with, less a tie."""
    found = search(((1, 7),), threshold=1e-6)
    *_, end = (check for check in found.trace if check.phase == "select")
    assert not end.kept and end.theta == 1.25
    assert found.refinement_threshold == end.score - TIE
    assert 7 in found.neurons[1].tolist()


def test_the_batch_does_not_matter() -> None:
    whole = search(((0, 5), (2, 3)))
    one = search(((0, 5), (2, 3)), params=NemoParams(batch=1))
    assert whole.neurons.keys() == one.neurons.keys()
    assert [(c.phase, c.layer, c.neuron, c.kept) for c in whole.trace] == [
        (c.phase, c.layer, c.neuron, c.kept) for c in one.trace
    ]


def test_a_prompt_that_is_not_memorized_is_not_searched() -> None:
    found = search(((0, 5),), prompt="abc")
    assert not found.memorized
    assert (found.neurons, found.trace, found.watched, found.evaluations) == ({}, (), (), 10)


def test_checks_are_decided_by_as_few_seeds_as_it_takes() -> None:
    found = search(((1, 7),), params=NemoParams(batch=10))
    passed = [check for check in found.trace if check.kept == (check.phase == "select")]
    failed = [check for check in found.trace if check not in passed]
    # A check that passes needs all ten seeds; one that fails takes one, or none when nothing is left blocked.
    assert found.evaluations <= 10 + 10 * len(passed) + len(failed)


def blocked_score(batch: int, thorough: bool = True) -> tuple[BlockedScore, object]:
    """Scores on a random UNet, and the plain ones: every seed alone."""
    model = model_of(random_unet())
    with torch.no_grad():
        model.denoiser.conv_out.weight.mul_(30)
    layers = layers_of(model.denoiser, Site.VALUE)
    (text,) = model.encode(["maz"])
    params = DetectionParams(seeds=5)
    noise, unblocked = prompt_differences(model, text, "maz", params)
    timestep = detection_timestep(model, params.steps)

    def plain(blocked: Candidates) -> float:
        factors = {layer.index: torch.ones(layer.outputs) for layer in layers}
        for layer, neuron in blocked:
            factors[layer][neuron] = 0
        found = [
            similarity(
                unblocked[i : i + 1],
                noise_differences(model, text[None], noise[i : i + 1], timestep, scaled(layers, factors)),
            ).item()
            for i in range(len(noise))
        ]
        return max(found)

    return BlockedScore(model, layers, text, noise, unblocked, timestep, batch, thorough), plain


@pytest.mark.parametrize("batch", [1, 4, 64])
def test_scores_are_those_of_every_seed_alone(batch: int) -> None:
    score, plain = blocked_score(batch)
    found = [(layer, neuron) for layer in range(3) for neuron in (0, 3)]
    full = frozenset(found)
    assert score.exact(full) == pytest.approx(plain(full), abs=1e-5)  # type: ignore[operator]
    ranked = sorted(plain(full - {neuron}) for neuron in found)  # type: ignore[operator]
    assert ranked[-1] - ranked[0] > 1e-3
    for threshold in ((ranked[1] + ranked[2]) / 2, (ranked[3] + ranked[4]) / 2, 0.9999):
        kept, trace = refine(found, score, threshold, SearchParams())
        expected, plain_trace = refine(found, one_by_one(plain), threshold, SearchParams())  # type: ignore[arg-type]
        assert kept == expected
        assert [(c.layer, c.neuron, c.kept) for c in trace] == [(c.layer, c.neuron, c.kept) for c in plain_trace]
        for check, other in zip(trace, plain_trace, strict=True):
            if not check.kept:
                assert check.score == pytest.approx(other.score, abs=1e-5)


def test_a_run_of_drops_is_checked_by_the_other_seeds_at_its_end() -> None:
    found = [(layer, neuron) for layer in range(3) for neuron in range(8)]
    thorough, chained = blocked_score(32)[0], blocked_score(32, thorough=False)[0]
    assert refine(found, thorough, 1.0, SearchParams())[0] == refine(found, chained, 1.0, SearchParams())[0]
    assert chained.evaluations < thorough.evaluations
    full = frozenset(found)
    assert chained.exact(full) == pytest.approx(thorough.exact(full), abs=1e-5)


@pytest.mark.parametrize("at", range(1, 6))
def test_the_batch_does_not_change_a_search_in_chains(at: int) -> None:
    found = [(layer, neuron) for layer in range(3) for neuron in range(8)]
    searches = []
    for batch in (1, 3, 64):
        score, _ = blocked_score(batch, thorough=False)
        full = score.exact(frozenset(found))
        searches.append(refine(found, score, full + at * (1 - full) / 6, SearchParams(refinement="chain")))
    (kept, trace), *others = searches
    for other, checks in others:
        assert other == kept
        assert [(check.unblocked, check.kept) for check in checks] == [(check.unblocked, check.kept) for check in trace]


def test_what_is_known_is_not_asked_again() -> None:
    score, _ = blocked_score(8)
    some = frozenset({(0, 1), (2, 2)})
    first = score.exact(some)
    assert score.evaluations == 5
    assert score.exact(some) == first
    assert score.exact(frozenset()) == 1.0
    assert score.evaluations == 5


def test_the_curve_falls_when_the_last_of_the_planted_neurons_goes() -> None:
    model = model_of(planted_unet(((0, 5), (2, 3))))
    layers = layers_of(model.denoiser, Site.VALUE)
    _, watched, score = gate(model, layers, model.encode([MEMORIZED])[0], MEMORIZED, 0.428, NemoParams())
    assert len(watched) == 10
    curve = memorization_curve(score, [(0, 5), (2, 3)])
    assert [size for size, _ in curve] == [0, 1, 2]
    assert curve[0][1] == 1.0
    assert curve[1][1] > 0.9
    assert curve[2][1] < 0.428
    assert [size for size, _ in memorization_curve(score, [(0, n) for n in range(6)])] == [0, 1, 2, 4, 6]
    control = memorization_curve(score, stand_ins([(0, 5), (2, 3)], [8, 8, 8], 0))
    assert min(left for _, left in control) > 0.9


def test_the_best_neuron_takes_most_away_alone() -> None:
    model = model_of(planted_unet(((1, 7),)))
    layers = layers_of(model.denoiser, Site.VALUE)
    _, _, score = gate(model, layers, model.encode([MEMORIZED])[0], MEMORIZED, 0.428, NemoParams())
    assert best_first(score, [(0, 2), (1, 2), (1, 7), (2, 2)])[0] == (1, 7)


def test_statistics_of_another_model_are_refused() -> None:
    model = model_of(planted_unet())
    layers = layers_of(model.denoiser, Site.VALUE)
    text = model.encode(["a"])
    activations = [layer[0] for layer in value_activations(layers, text)]
    other = Statistics((torch.zeros(4),), (torch.ones(4),))
    with pytest.raises(InputError, match=r"means have shapes \[\(4,\)\]"):
        nemo(model, layers, text[0], "a", activations, other, 0.4, NemoParams())
