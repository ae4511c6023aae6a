"""The false-alarm rate that is promised holds exactly, whatever the scores are."""

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.errors import InputError
from tasks.scan.conformal import false_alarms, p_values

RATES = st.one_of(st.floats(0.01, 0.99), st.integers(2, 100).map(lambda n: 1 / n))
SCORES = st.one_of(st.floats(-1e6, 1e6), st.integers(0, 3).map(float))


def left_out(scores: list[float]) -> np.ndarray:
    """The p-value of each score compared with the others: as likely cases of one that is not memorized."""
    every = np.array(scores)
    return np.array([p_values(every[[n]], np.delete(every, n))[0] for n in range(len(every))])


def test_captions_of_one_image_promise_more_than_they_hold() -> None:
    """Sixty null prompts of six images flag far more than the 1 in 61 that they seem to afford; one of each image does
    not afford it, and flags 1 in 7 as it says."""
    rng, trials, alpha = np.random.default_rng(0), 2000, 1 / 61
    captions_flag = images_flag = 0
    for _ in range(trials):
        score, images = rng.normal(size=1), rng.normal(size=6)
        captions = (images[:, None] + rng.normal(0, 0.01, (6, 10))).ravel()
        captions_flag += int(p_values(score, captions)[0] <= alpha)
        images_flag += int(p_values(score, captions[::10])[0] <= 1 / 7)
    assert captions_flag / trials > 5 * alpha
    assert images_flag / trials == pytest.approx(1 / 7, abs=0.03)
    with pytest.raises(InputError, match="too few"):
        false_alarms(6, alpha)


def test_by_hand() -> None:
    found = p_values(np.array([9.0, 4.0, 2.5, 0.0]), np.array([3.0, 1.0, 4.0, 2.0]))
    assert found.tolist() == [1 / 5, 2 / 5, 3 / 5, 5 / 5]
    assert p_values(np.array([1.0]), np.array([])).tolist() == [1.0]


@given(scores=st.lists(SCORES, min_size=2, max_size=40), alpha=RATES)
def test_of_exchangeable_prompts_no_more_are_flagged_than_promised(scores: list[float], alpha: float) -> None:
    assert np.mean(left_out(scores) <= alpha) <= alpha


@given(scores=st.lists(SCORES, min_size=2, max_size=40, unique=True), alpha=RATES)
def test_without_ties_the_chance_of_a_false_alarm_is_known(scores: list[float], alpha: float) -> None:
    flagged, nulls = np.mean(left_out(scores) <= alpha), len(scores) - 1
    if flagged:
        assert flagged == pytest.approx(false_alarms(nulls, alpha))
    else:
        with pytest.raises(InputError, match="too few"):
            false_alarms(nulls, alpha)


@given(scores=st.lists(SCORES, min_size=1, max_size=40), others=st.lists(SCORES, min_size=1, max_size=10))
def test_only_the_order_of_scores_counts(scores: list[float], others: list[float]) -> None:
    both = np.concatenate([scores, others])
    ranks = np.unique(both, return_inverse=True)[1].astype(float)
    found = p_values(np.array(others), np.array(scores))
    assert found.tolist() == p_values(ranks[len(scores) :], ranks[: len(scores)]).tolist()
    assert found[np.argsort(others)].tolist() == sorted(found, reverse=True)


@given(alpha=st.floats(0.001, 0.5))
def test_a_refusal_says_how_many_null_prompts_suffice(alpha: float) -> None:
    with pytest.raises(InputError, match="too few") as refused:
        false_alarms(0, alpha)
    needed = int(re.findall(r"needs (\d+)", str(refused.value))[0])
    assert 0 < false_alarms(needed, alpha) <= alpha
    with pytest.raises(InputError):
        false_alarms(needed - 1, alpha)


def test_the_default_needs_forty_nine() -> None:
    assert false_alarms(49, 0.02) == 0.02
    with pytest.raises(InputError, match=r"48 null prompts are too few .* 2 %, which needs 49: .*--nulls.*--alpha"):
        false_alarms(48, 0.02)
