"""Figures on cases worked by hand."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.errors import InputError
from tasks.evaluate import change, clip, copying, detection, estimates, seed_similarity
from tasks.intervals import clopper_pearson

SIMILARITIES = {
    "a": np.array([0.9, 0.1, 0.2]),
    "b": np.array([0.7, 0.7, 0.7]),
    "c": np.array([0.0, 0.3, 0.6]),
    "d": np.array([0.8, 0.9, 1.0]),
}


def test_gathering() -> None:
    gathered = estimates.by_unit(["b", "a", "b"], np.array([1.0, 2.0, 3.0]))
    assert list(gathered) == ["b", "a"]
    assert gathered["b"].tolist() == [1, 3]
    with pytest.raises(ValueError, match="1 units but 2 rows"):
        estimates.by_unit(["a"], np.zeros(2))


def test_mr_counts_prompts_with_any_seed_above_the_threshold() -> None:
    figure = copying.mr(SIMILARITIES)
    low, high = clopper_pearson(2, 4)
    assert figure == estimates.Estimate("mr", 0.5, low, high, 4)


def test_mr_of_generations_averages_the_share_of_each_prompts_seeds() -> None:
    figure = copying.mr_generations(SIMILARITIES)
    # One of three, none (0.7 is not above 0.7), none, and three of three.
    low, high = clopper_pearson(4 / 3, 4)
    assert (figure.metric, figure.n) == ("mr_generations", 4)
    assert (figure.value, figure.low, figure.high) == pytest.approx((1 / 3, low, high))


@pytest.mark.parametrize("rate", [0.003, 0.02, 0.1, 0.5, 0.9, 0.99])
@pytest.mark.parametrize("agreement", [0.0, 0.5, 1.0])
def test_the_interval_of_copies_among_generations_covers(rate: float, agreement: float) -> None:
    draw = np.random.default_rng(0)
    prompts, seeds, times = 24, 4, 400
    alike = draw.random((times, prompts, 1)) < agreement
    copied = np.where(alike, draw.random((times, prompts, 1)) < rate, draw.random((times, prompts, seeds)) < rate)
    found = [copying.mr_generations({str(n): row for n, row in enumerate(one.astype(float))}) for one in copied]
    covered = [figure.low <= rate <= figure.high for figure in found if figure.low is not None and figure.high]
    assert len(covered) == times
    assert np.mean(covered) >= 0.95 - 3 * np.sqrt(0.95 * 0.05 / times)


def test_similarity_to_the_original() -> None:
    found = {figure.metric: figure for figure in copying.sscd_orig(SIMILARITIES)}
    # maxima: 0.9, 0.7, 0.6, 1.0; medians: 0.2, 0.7, 0.3, 0.9
    wanted = {
        "sscd_orig_max": 0.8,
        "sscd_orig_max_mad": 0.15,
        "sscd_orig_max_mean": 0.8,
        "sscd_orig_max_std": np.sqrt(0.1 / 4),
        "sscd_orig_median": 0.5,
        "sscd_orig_median_mad": 0.25,
        "sscd_orig_median_mean": 0.525,
        "sscd_orig_median_std": np.std([0.2, 0.7, 0.3, 0.9]),
    }
    assert {name: figure.value for name, figure in found.items()} == pytest.approx(wanted)
    assert all(figure.n == 4 for figure in found.values())
    # Four values tell how sure their mean is, but not their median or their spread.
    assert {name for name, figure in found.items() if figure.low is not None} == {
        "sscd_orig_max_mean",
        "sscd_orig_median_mean",
    }


def test_a_single_prompt_has_no_interval() -> None:
    figure = change.sscd_gen({"a": np.array([0.1, 0.3, 0.2])})
    assert figure == estimates.Estimate("sscd_gen", 0.2, None, None, 1)


def test_the_deviation_of_a_single_value_is_unknown_rather_than_nothing() -> None:
    found = {figure.metric: figure.value for figure in copying.sscd_orig({"a": np.array([0.1, 0.3])})}
    unknown = {metric for metric, value in found.items() if np.isnan(value)}
    assert unknown == {f"sscd_orig_{of}_{spread}" for of in ("max", "median") for spread in ("mad", "std")}
    assert found["sscd_orig_max_mean"] == 0.3


def test_seed_similarity_is_the_median_pair_of_a_unit_then_the_median_unit() -> None:
    figure = seed_similarity.seed_similarity(
        {"a": np.array([0.6, 0.0, 0.8]), "b": np.array([0.2]), "c": np.array([0.1, 0.9])}
    )
    assert (figure.metric, figure.n) == ("seed_similarity", 3)
    assert figure.value == pytest.approx(0.5)


def test_clip_is_a_mean_over_prompts() -> None:
    figure = clip.clip({"a": np.array([0.2, 0.4]), "b": np.array([0.1])})
    assert figure.value == pytest.approx(0.2)
    assert figure.n == 2


def test_what_is_kept_of_the_clip_score_is_told_by_pairs() -> None:
    before = {"a": np.array([0.4, 0.4]), "b": np.array([0.8]), "c": np.array([0.6])}
    after = {name: 0.9 * seeds for name, seeds in before.items()}
    figure = clip.clip_kept(after, before)
    assert (figure.metric, figure.n) == ("clip_kept", 3)
    # Every prompt keeps the same share, however different they are: nothing is left to doubt.
    assert (figure.value, figure.low, figure.high) == pytest.approx((0.9, 0.9, 0.9))
    assert clip.clip_kept({"a": np.array([0.2])}, {"a": np.array([0.4])}).low is None
    with pytest.raises(ValueError, match="the same prompts"):
        clip.clip_kept(after, {"a": np.array([0.4])})


def test_no_generations() -> None:
    for figure in (copying.mr, copying.mr_generations, change.sscd_gen, seed_similarity.seed_similarity, clip.clip):
        with pytest.raises(InputError, match="generate first"):
            figure({})


def test_auc_by_hand() -> None:
    # pairs won: 3 > 1, 3 > 2, 2 > 1; tied: 2 = 2
    assert detection.auc(np.array([3.0, 2.0]), np.array([1.0, 2.0])).value == pytest.approx(3.5 / 4)
    assert detection.auc(np.array([2.0, 3.0]), np.array([0.0, 1.0])).value == 1
    with pytest.raises(InputError, match="empty"):
        detection.auc(np.array([1.0]), np.array([]))


def test_an_auc_of_one_prompt_on_a_side_has_no_interval() -> None:
    """It is 1 half of the time for a detector that half of the memorized prompts escape, whatever the others."""
    many = np.arange(100.0)
    for one, other in (([200.0], many), (many, [-1.0]), ([1.0], [0.0])):
        figure = detection.auc(np.array(one), np.array(other))
        assert (figure.value, figure.low, figure.high) == (1, None, None)
    assert detection.auc(np.array([2.0, 3.0]), np.array([0.0, 1.0])).low is not None


@given(st.lists(st.integers(-5, 5), min_size=1, max_size=20), st.lists(st.integers(-5, 5), min_size=1, max_size=20))
def test_auc_is_the_share_of_pairs_won(memorized: list[int], others: list[int]) -> None:
    a, b = np.array(memorized, float), np.array(others, float)
    wanted = ((a[:, None] > b).mean() + (a[:, None] >= b).mean()) / 2
    assert detection.auc(a, b).value == pytest.approx(wanted)


@given(st.lists(st.floats(-5, 5), min_size=1, max_size=300))
def test_the_threshold_lets_one_in_a_hundred_pass(others: list[float]) -> None:
    b = np.array(others)
    figure = detection.tpr_at_1fpr(b, b)  # scored on the others themselves, it is the false positive rate
    assert figure.value <= 0.01


SCORES = st.lists(st.integers(0, 30), min_size=1, max_size=320)


@given(memorized=SCORES, others=SCORES)
def test_tpr_is_the_share_above_the_lowest_threshold_that_one_in_a_hundred_exceeds(
    memorized: list[int], others: list[int]
) -> None:
    threshold = min(score for score in others if sum(other > score for other in others) <= len(others) / 100)
    wanted = sum(score > threshold for score in memorized)
    figure = detection.tpr_at_1fpr(np.array(memorized, float), np.array(others, float))
    assert figure.value == wanted / len(memorized)
    assert (figure.low, figure.high) == clopper_pearson(wanted, len(memorized))


def test_tpr_by_hand() -> None:
    others = np.arange(200.0)  # two of 200 may exceed the threshold: it is 197
    figure = detection.tpr_at_1fpr(np.array([197.0, 197.5, 300.0, 0.0]), others)
    assert figure.value == 0.5
    assert figure.n == 4
