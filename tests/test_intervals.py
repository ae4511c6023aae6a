"""Intervals: against scipy's own, by their defining property, and by how often they cover."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom, binomtest, quantile_test, ttest_1samp

from tasks.intervals import (
    Statistic,
    bootstrap,
    clopper_pearson,
    interval,
    of_auc,
    of_mean,
    of_median,
    of_ratio,
)


@given(st.integers(1, 500), st.data())
def test_clopper_pearson_is_scipys_exact_interval(trials: int, data: st.DataObject) -> None:
    successes = data.draw(st.integers(0, trials))
    wanted = binomtest(successes, trials).proportion_ci(0.95, "exact")
    assert clopper_pearson(successes, trials) == pytest.approx((wanted.low, wanted.high), abs=1e-9)


def test_clopper_pearson_by_hand() -> None:
    # No success in n trials: the high edge solves (1 - p)^n = 0.025.
    low, high = clopper_pearson(0, 24)
    assert low == 0
    assert (1 - high) ** 24 == pytest.approx(0.025)
    low, high = clopper_pearson(24, 24)
    assert high == 1
    assert low**24 == pytest.approx(0.025)


@given(st.integers(1, 60), st.data())
def test_successes_in_part_lie_between_whole_ones(trials: int, data: st.DataObject) -> None:
    below = data.draw(st.integers(0, trials - 1))
    part = data.draw(st.sampled_from([1 / 100, 1 / 4, 1 / 2, 3 / 4, 99 / 100]))
    intervals = [clopper_pearson(successes, trials) for successes in (below, below + part, below + 1)]
    for edges in zip(*intervals, strict=True):
        assert list(edges) == pytest.approx(sorted(edges), abs=1e-9)


@settings(max_examples=30)
@given(st.integers(1, 60), st.integers(0, 1000))
def test_clopper_pearson_covers(trials: int, thousandths: int) -> None:
    rate = thousandths / 1000
    inside = [low <= rate <= high for low, high in (clopper_pearson(k, trials) for k in range(trials + 1))]
    assert binom.pmf(np.arange(trials + 1), trials, rate)[inside].sum() >= 0.95 - 1e-9


@pytest.mark.parametrize(("successes", "trials"), [(0, 0), (-1, 5), (6, 5)])
def test_clopper_pearson_refuses_what_is_no_rate(successes: int, trials: int) -> None:
    with pytest.raises(ValueError, match="no rate"):
        clopper_pearson(successes, trials)


def test_bootstrap_of_a_mean_is_near_the_normal_interval() -> None:
    values = np.random.default_rng(0).normal(3, 2, 400)
    low, high = bootstrap(values)
    half = 1.96 * values.std() / 20
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.03)
    assert bootstrap(values) == (low, high)


def test_bootstrap_covers() -> None:
    rng = np.random.default_rng(1)
    edges = [bootstrap(rng.exponential(1, 50), resamples=200) for _ in range(200)]
    assert np.mean([low <= 1 <= high for low, high in edges]) > 0.87


@settings(max_examples=25)
@given(st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=30))
def test_bootstrap_stays_among_the_values(values: list[float]) -> None:
    low, high = bootstrap(np.array(values), np.median, resamples=50)
    assert min(values) <= low <= high <= max(values)


@pytest.mark.parametrize("values", [[], [1.0], [1.0, float("nan")]])
def test_bootstrap_refuses(values: list[float]) -> None:
    with pytest.raises(ValueError, match="two finite values"):
        bootstrap(np.array(values))


@settings(max_examples=25)
@given(st.lists(st.integers(-1000, 1000), min_size=2, max_size=30))
def test_the_interval_of_a_mean_is_scipys(values: list[int]) -> None:
    wanted = ttest_1samp(values, 0).confidence_interval(0.95)
    low, high = of_mean(np.array(values))
    if len(set(values)) > 1:
        assert (low, high) == pytest.approx((wanted.low, wanted.high))


@pytest.mark.parametrize("n", [6, 7, 24, 25, 56, 100])
def test_the_interval_of_a_median_is_scipys(n: int) -> None:
    values = np.random.default_rng(n).normal(size=n)
    wanted = quantile_test(values, p=0.5).confidence_interval(0.95)
    assert of_median(values) == (wanted.low, wanted.high)


def test_five_values_do_not_enclose_their_median_surely_enough() -> None:
    # All five lie on one side of it once in sixteen times.
    assert of_median(np.arange(5.0)) is None
    assert of_median(np.arange(6.0)) == (0, 5)


@pytest.mark.parametrize("statistic", [np.mean, np.median, np.std])
@pytest.mark.parametrize("n", [6, 24])
def test_intervals_cover(statistic: Statistic, n: int) -> None:
    rng = np.random.default_rng(n)
    truth = 1.0 if statistic is np.std else 0.0
    edges = [interval(rng.normal(size=n), statistic) for _ in range(400)]
    share = np.mean([edge is not None and edge[0] <= truth <= edge[1] for edge in edges])
    assert share > (0.92 if statistic is not np.std else 0.6)  # a bootstrap of a spread claims too much from few values


def test_too_few_values_have_no_interval() -> None:
    assert interval(np.array([1.0]), np.mean) is None
    assert interval(np.array([1.0, 2.0]), np.mean) is not None
    assert interval(np.arange(5.0), np.std) is None


def test_an_area_without_overlap_is_as_sure_as_its_groups_are_large() -> None:
    few, many = of_auc(1.0, 3, 3), of_auc(1.0, 56, 24)
    assert few[1] == many[1] == 1.0
    assert few[0] < 0.7 < 0.9 < many[0]


@settings(max_examples=50)
@given(st.integers(1, 60), st.integers(1, 60), st.data())
def test_the_interval_of_an_area_encloses_it_and_mirrors(positives: int, negatives: int, data: st.DataObject) -> None:
    pairs = positives * negatives  # an area is a number of half pairs
    value = data.draw(st.integers(0, 2 * pairs)) / (2 * pairs)
    low, high = of_auc(value, positives, negatives)
    assert 0 <= low <= value <= high <= 1
    mirrored = of_auc(1 - value, negatives, positives)
    assert (1 - mirrored[1], 1 - mirrored[0]) == pytest.approx((low, high), abs=1e-6)


def test_the_interval_of_an_area_covers() -> None:
    rng = np.random.default_rng(0)
    inside = 0
    for _ in range(300):
        a, b = rng.normal(1.2, 1, 15), rng.normal(0, 1, 12)
        low, high = of_auc(float((a[:, None] > b).mean()), 15, 12)
        inside += low <= 0.80193 <= high  # the normal distribution's value at 1.2 over the root of 2
    assert inside / 300 > 0.92


@settings(max_examples=50)
@given(st.integers(0, 10_000), st.integers(3, 40), st.floats(0.05, 3))
def test_a_ratio_at_the_edge_of_its_interval_is_just_rejected(seed: int, n: int, ratio: float) -> None:
    rng = np.random.default_rng(seed)
    below = rng.normal(1, 0.1, n)
    above = ratio * below + rng.normal(0, 0.05, n)
    edges = of_ratio(above, below)
    assert edges is not None and edges[0] <= above.mean() / below.mean() <= edges[1]
    for edge in edges:
        assert ttest_1samp(above - edge * below, 0).pvalue == pytest.approx(0.05, abs=1e-6)


def test_a_ratio_to_nothing_has_no_interval() -> None:
    assert of_ratio(np.array([1.0, 2, 3]), np.array([-1.0, 0, 1.1])) is None
    with pytest.raises(ValueError, match="two finite values"):
        of_ratio(np.ones(1), np.ones(1))
