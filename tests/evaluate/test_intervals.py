"""Intervals: against scipy's own, by their defining property, and by how often they cover."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom, binomtest

from tasks.evaluate.intervals import bootstrap, clopper_pearson


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
