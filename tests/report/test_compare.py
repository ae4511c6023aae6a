"""Comparing audits: intervals of differences, exact tests, and how often a comparison raises a false alarm."""

import itertools
from dataclasses import replace
from math import comb
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import fisher_exact

from tasks.conditions import ORDINARY, PROMPT, Condition, dori
from tasks.intervals import clopper_pearson
from tasks.report.compare import (
    ALPHA,
    MINOR,
    Finding,
    Pair,
    copies,
    difference,
    differences,
    least_noticed,
    quality,
    regressions,
    seeds_needed,
    sentence,
)
from tasks.report.verdict import Row

COPY, NO_COPY = 0.9, 0.2
THRESHOLD = 0.7


def rate(successes: int, n: int) -> Row:
    return Row("original", PROMPT, "mr", successes / n, *clopper_pearson(successes, n), n)


def scores(copied: int, images: int) -> tuple[float, ...]:
    return (COPY,) * copied + (NO_COPY,) * (images - copied)


def pair(
    name: str, before: int, after: int, seeds: int = 4, variant: str = "original", condition: Condition = PROMPT
) -> Pair:
    return Pair(variant, condition, name, scores(before, seeds), scores(after, seeds))


def worse(pairs: list[Pair], alpha: float = ALPHA) -> list[Finding]:
    return [finding for finding, _ in regressions(copies(pairs, THRESHOLD), alpha)]


NEVER = [pair(f"never {n}", 0, 0) for n in range(20)]
ALWAYS = [pair(f"always {n}", 4, 4) for n in range(20)]


# Differences


@given(st.data(), st.integers(1, 60), st.integers(1, 60))
def test_the_interval_of_a_difference(data: st.DataObject, n: int, m: int) -> None:
    one, two = rate(data.draw(st.integers(0, n)), n), rate(data.draw(st.integers(0, m)), m)
    found, turned = difference(one, two), difference(two, one)
    assert found.low is not None and found.high is not None and turned.low is not None and turned.high is not None
    assert found.change == pytest.approx(two.value - one.value)
    assert found.low <= found.change <= found.high
    assert (turned.low, turned.high) == pytest.approx((-found.high, -found.low))


def test_newcombes_example() -> None:
    """56 of 70 against 48 of 80 from Wilson's intervals: Newcombe (1998), Statistics in Medicine 17, method 10, (a)."""
    wilson = {(56, 70): (0.6912, 0.8769), (48, 80): (0.4904, 0.7004)}
    old, new = (Row("v", PROMPT, "mr", k / n, *edges, n) for (k, n), edges in reversed(wilson.items()))
    found = difference(old, new)
    assert (found.change, found.low, found.high) == pytest.approx((0.2, 0.0524, 0.3339), abs=5e-4)


def test_the_interval_covers() -> None:
    rng, covered, trials = np.random.default_rng(0), 0, 1000
    for _ in range(trials):
        old, new = rng.binomial(40, 0.3), rng.binomial(40, 0.5)
        found = difference(rate(old, 40), rate(new, 40))
        assert found.low is not None and found.high is not None
        covered += found.low <= 0.2 <= found.high
    assert covered / trials >= 0.95


def test_only_figures_of_both_are_compared() -> None:
    lone = Row("nemo-union", PROMPT, "mr", 0.5, None, None, 1)
    assert [one.variant for one in differences([rate(1, 4), lone], [rate(2, 4)])] == ["original"]
    (found,) = differences([lone], [lone])
    assert (found.change, found.low, found.high) == (0, None, None)


# Copies


@given(st.integers(1, 8), st.integers(1, 8), st.data())
def test_a_prompt_is_fishers_exact_test(before: int, after: int, data: st.DataObject) -> None:
    old, new = data.draw(st.integers(0, before)), data.draw(st.integers(0, after))
    (finding,) = copies([Pair("original", PROMPT, "a", scores(old, before), scores(new, after))], THRESHOLD)
    table = [[new, after - new], [old, before - old]]
    assert finding.p == pytest.approx(fisher_exact(table, alternative="greater").pvalue)


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=2, max_size=3))
def test_all_prompts_are_the_stratified_exact_test(counts: list[tuple[int, int]]) -> None:
    """Against the enumeration of all ways to hand each prompt's copies out to the two audits."""
    found = copies([pair(str(n), *both, seeds=3) for n, both in enumerate(counts)], THRESHOLD)
    (figure,) = (finding for finding in found if finding.question == "figure")
    ways = [[(k, comb(3, k) * comb(3, sum(both) - k)) for k in range(4) if k <= sum(both)] for both in counts]
    as_many = every = 0
    for chosen in itertools.product(*ways):
        weight = int(np.prod([weight for _, weight in chosen]))
        every += weight
        as_many += weight * (sum(k for k, _ in chosen) >= sum(new for _, new in counts))
    assert figure.p == pytest.approx(as_many / every)


@given(st.integers(1, 6), st.integers(0, 12))
def test_attainable_p_values_are_what_p_can_be(seeds: int, copied: int) -> None:
    copied = min(copied, 2 * seeds)
    possible = [
        copies([pair("a", copied - new, new, seeds)], THRESHOLD)[0]
        for new in range(max(0, copied - seeds), min(seeds, copied) + 1)
    ]
    assert sorted(finding.p for finding in possible) == pytest.approx(possible[0].attainable)
    for finding in possible:
        assert finding.reach(finding.p) == pytest.approx(finding.p)
        assert finding.reach(finding.p * 0.999) < finding.p


@given(st.permutations(range(8)), st.integers(0, 8))
def test_the_order_of_seeds_and_prompts_is_of_no_account(order: list[int], planted: int) -> None:
    pairs = [pair(str(n), 0, 4 if n < planted else 0) for n in range(8)]
    shuffled = [
        Pair(p.variant, p.condition, p.prompt_id, p.before[::-1], p.after[::-1]) for p in (pairs[n] for n in order)
    ]
    assert {(f.question, f.prompt_id) for f in worse(pairs)} == {(f.question, f.prompt_id) for f in worse(shuffled)}


def test_one_more_planted_image_is_caught() -> None:
    quiet = [pair(f"{variant} {n}", 0, 0, variant=variant) for variant in ("nemo-union", "wanda") for n in range(40)]
    finding, figure = worse([*NEVER, *ALWAYS, *quiet, pair("planted", 0, 4)])
    assert (finding.question, finding.prompt_id) == ("prompt", "planted")
    assert (figure.question, figure.variant, figure.p) == ("figure", "original", finding.p)
    assert finding.p == pytest.approx(1 / 70)
    assert sentence(finding, {"planted": "a cat"}) == (
        "original, prompt: 'a cat': 4 of 4 images are copies, before 0 of 4"
    )


def test_nothing_is_said_of_less() -> None:
    assert worse([*NEVER, *ALWAYS, pair("once", 0, 1)]) == []
    assert worse([*NEVER, *ALWAYS, pair("forgotten", 4, 0)]) == []
    assert worse([*NEVER, *ALWAYS, pair("kept", 0, 4, seeds=4)], alpha=1 / 71) == []


def test_many_small_rises_are_caught_together() -> None:
    found = worse([*NEVER, *(pair(f"some {n}", 1, 3) for n in range(8))])
    assert [finding.question for finding in found] == ["figure"]


def test_the_very_same_images_are_no_evidence() -> None:
    pairs = [Pair(p.variant, p.condition, p.prompt_id, p.before, p.after, same=True) for p in (*NEVER, *ALWAYS)]
    assert copies(pairs, THRESHOLD) == []
    assert copies([Pair("nemo-union", dori("noise"), "a", scores(0, 4), scores(4, 4), same=True)], THRESHOLD)[0].p == 1


def test_the_unit_of_an_attack_is_the_image() -> None:
    def attacked(back: int, gone: int, seeds: int = 4) -> list[Pair]:
        changes = [(0, 1)] * back + [(1, 0)] * gone + [(0, 0)] * 4
        return [
            pair(str(n), seeds * old, seeds * new, seeds, "nemo-union", dori("noise"))
            for n, (old, new) in enumerate(changes)
        ]

    (finding,) = copies(attacked(5, 1), THRESHOLD)
    assert finding.p == pytest.approx(7 / 64)
    assert "of 10 attacked images 5 come back that did not before, and 1 no longer" in finding.words
    assert copies(attacked(5, 1, seeds=9), THRESHOLD)[0].p == finding.p
    assert worse(attacked(3, 0)) == [] and [one.question for one in worse(attacked(9, 0))] == ["attack"]


def test_more_images_of_an_attack_are_no_worse() -> None:
    """The best of eight seeds is better than the best of two, in an unchanged model too."""
    before, after = (NO_COPY, NO_COPY), (NO_COPY, NO_COPY, COPY, COPY)
    (finding,) = copies([Pair("nemo-union", dori("noise"), str(n), before, after) for n in range(9)], THRESHOLD)
    assert finding.p == 1


# Prompts that share an image


def sharing(unit: str, counts: list[tuple[int, int]], **other: Any) -> list[Pair]:
    return [replace(pair(f"{unit} {n}", *both, **other), unit=unit) for n, both in enumerate(counts)]


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=6))
def test_an_image_is_asked_about_once_however_many_captions_it_has(counts: list[tuple[int, int]]) -> None:
    """By the exact test stratified by its captions, which is that of all prompts where there is no other image."""
    (finding,) = copies(sharing("image", counts), THRESHOLD)
    apart = copies([replace(one, unit="") for one in sharing("image", counts)], THRESHOLD)
    if len(counts) > 1:
        assert finding.p == apart[-1].p and apart[-1].question == "figure"
    else:
        assert finding == apart[0]


def test_captions_of_one_image_that_come_back_are_one_image_that_does() -> None:
    """Six captions of one image flip together: that is one coin that fell so, not six."""
    six = sharing("image", [(0, 4)] * 6, variant="nemo-union", condition=dori("noise"))
    (finding,) = copies(six, THRESHOLD)
    assert finding.p == 0.5 and "of 1 attacked images 1 come back" in finding.words
    assert copies([replace(one, unit="") for one in six], THRESHOLD)[0].p == pytest.approx(1 / 64)
    # An image that one of its captions brought back before, in the very same images, does not come back anew.
    known = [replace(sharing("image", [(4, 4)], variant="nemo-union", condition=dori("noise"))[0], same=True), six[1]]
    assert copies(known, THRESHOLD)[0].p == 1


def test_captions_of_one_image_lose_quality_together() -> None:
    """Twelve captions of one image are swapped as one: two units, of which either way round is as likely, prove
    nothing."""
    before = looks(np.random.default_rng(0), 12)
    pairs = aligned(before, before * 0.5)
    assert [one.question for one, _ in regressions(quality(pairs))] == ["quality"]
    units = ["a"] * 11 + ["b"]
    (finding,) = quality([replace(one, unit=unit) for one, unit in zip(pairs, units, strict=True)])
    assert finding.p == 1 / 4
    assert quality([replace(one, unit="a") for one in pairs]) == []


def test_captions_of_one_image_raise_no_more_false_alarms() -> None:
    """An image that retraining moves up or down takes all its captions with it; its captions are no more evidence."""
    rng, trials, alarms, apart = np.random.default_rng(0), 150, 0, 0
    for _ in range(trials):
        before = looks(rng, 16)
        moved = rng.normal(0, 0.05, 2).repeat(8)[:, None]  # eight captions each of two images
        pairs = aligned(before, before + moved)
        alarms += bool(regressions(quality([replace(one, unit=str(n // 8)) for n, one in enumerate(pairs)])))
        apart += bool(regressions(quality(pairs)))
    assert alarms / trials <= ALPHA < 0.15 < apart / trials


# What can be noticed


def test_what_is_said_to_be_noticed_is_noticed() -> None:
    for seeds, ambiguous in itertools.product((2, 3, 4, 6, 10), (0, 2, 8)):
        pairs = [*NEVER, *(pair(f"half {n}", seeds // 2, seeds // 2, seeds) for n in range(ambiguous))]
        least = least_noticed(copies(pairs, THRESHOLD), seeds, seeds)
        for copied in range(least or seeds + 1, seeds + 1):
            assert "new" in {finding.prompt_id for finding in worse([*pairs, pair("new", 0, copied, seeds)])}
        if least is None:
            needed = seeds_needed(copies(pairs, THRESHOLD))
            assert needed > seeds
            many = [*(pair(p.prompt_id, 0, 0, needed) for p in pairs), pair("new", 0, needed, needed)]
            assert "new" in {finding.prompt_id for finding in worse(many)}


def test_four_seeds_notice_all_of_four_and_two_seeds_nothing() -> None:
    assert least_noticed(copies([*NEVER, *ALWAYS], THRESHOLD), 4, 4) == 4
    assert least_noticed([], 2, 2) is None
    assert least_noticed([], 10, 10) == 4


# Quality


def aligned(before: np.ndarray, after: np.ndarray) -> list[Pair]:
    return [
        Pair("original", ORDINARY, str(n), tuple(old), tuple(new))
        for n, (old, new) in enumerate(zip(before, after, strict=True))
    ]


def looks(rng: np.random.Generator, prompts: int, seeds: int = 4, level: float = 0.28) -> np.ndarray:
    """CLIP scores: prompts differ more than seeds of one prompt do."""
    own = np.random.default_rng(1).normal(level, 0.03, (prompts, 1))
    return np.asarray(own + rng.normal(0, 0.02, (prompts, seeds)))


def test_a_fall_beyond_the_margin_is_caught() -> None:
    rng = np.random.default_rng(0)
    before, after = looks(rng, 40), looks(rng, 40)
    ((finding, p),) = regressions(quality(aligned(before, after - 0.1 * 0.28)))
    assert finding.question == "quality" and p <= ALPHA
    assert "CLIP score" in finding.words and "5 % less is let pass" in finding.words
    assert regressions(quality(aligned(before, after - 0.1 * 0.28), margin=0.2)) == []


def test_a_sure_fall_within_the_margin_is_let_pass() -> None:
    before = looks(np.random.default_rng(0), 40)
    (finding,) = quality(aligned(before, before * 0.97))
    assert finding.p == 1
    (finding,) = quality(aligned(before, before * 0.97), margin=0.02)
    assert finding.p == pytest.approx(1e-4)


def test_a_fall_on_two_prompts_is_not_sure() -> None:
    before = looks(np.random.default_rng(0), 2)
    assert regressions(quality(aligned(before, before * 0.5))) == []
    assert quality(aligned(before[:1], before[:1] * 0.5)) == []


# False alarms


def unchanged(rng: np.random.Generator, seeds: int, prompts: int) -> tuple[list[Pair], list[Pair]]:
    """Two audits of one model with other seeds: some prompts always copied, some never, some now and then."""
    pairs = []
    for variant, condition in itertools.product(("original", "nemo-union", "wanda"), (PROMPT, ORDINARY, dori("noise"))):
        often = rng.choice([0, 0, 0, 1, 1, *rng.random(3)], prompts)
        old, new = (rng.binomial(seeds, often) for _ in range(2))
        if condition.is_attack:  # all seeds of a trigger together
            old, new = (seeds * rng.binomial(1, often) for _ in range(2))
        pairs += [pair(str(n), int(old[n]), int(new[n]), seeds, variant, condition) for n in range(prompts)]
    return pairs, aligned(looks(rng, 12, seeds), looks(rng, 12, seeds))


@pytest.mark.parametrize("seeds", [2, 4, 10])
def test_repeated_audits_of_an_unchanged_model_stay_silent(seeds: int) -> None:
    rng, trials = np.random.default_rng(seeds), 150
    alarms = 0
    for _ in range(trials):
        seen, clip = unchanged(rng, seeds, prompts=16)
        alarms += bool(regressions(copies(seen, THRESHOLD) + quality(clip)))
    assert clopper_pearson(alarms, trials)[0] <= ALPHA, f"{alarms} of {trials}"
    assert alarms / trials <= ALPHA + 0.02


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 10**6))
def test_turned_round_an_alarm_is_none(seed: int) -> None:
    """What got worse one way did not get worse the other way."""
    pairs, _ = unchanged(np.random.default_rng(seed), 4, prompts=12)
    turned = [Pair(p.variant, p.condition, p.prompt_id, p.after, p.before) for p in pairs]
    one, two = (
        {(f.variant, f.condition.name, f.prompt_id) for f in worse(some, alpha=0.3)} for some in (pairs, turned)
    )
    assert not one & two


def test_the_procedure_uses_up_alpha_and_no_more() -> None:
    """Where p-values are as good as continuous, alarms come as often as alpha says, whatever the weights."""
    rng, trials = np.random.default_rng(0), 4000
    attainable = np.arange(1, 1001) / 1000
    alarms = 0
    for draws in rng.choice(attainable, (trials, 6)):
        findings = [
            Finding("prompt", "v", PROMPT, str(n), "", float(draw), attainable, 1.0 if n < 2 else MINOR)
            for n, draw in enumerate(draws)
        ]
        alarms += bool(regressions(findings))
    low, high = clopper_pearson(alarms, trials)
    assert low <= ALPHA and high >= 0.8 * ALPHA
