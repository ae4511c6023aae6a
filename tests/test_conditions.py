"""Conditions: their names in the store, and what these say."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.conditions import EXTRACTION, LOCALITY, ORDINARY, PROMPT, Condition, dori, effort
from tasks.errors import InputError

EVERY = [PROMPT, ORDINARY, EXTRACTION, LOCALITY, dori("prompt"), dori("other", "control"), dori("noise", "unseen")]


@pytest.mark.parametrize(
    ("condition", "name"),
    [
        (PROMPT, "prompt"),
        (ORDINARY, "ordinary"),
        (dori("noise"), "dori-noise"),
        (dori("noise", "unseen"), "dori-noise-unseen"),
        (effort(200), "effort-200"),
        (effort(200, "control"), "effort-200-control"),
    ],
)
def test_names_are_those_that_stores_have(condition: Condition, name: str) -> None:
    assert condition.name == name


@given(st.one_of(st.sampled_from(EVERY), st.builds(effort, st.integers(1, 10_000), st.sampled_from(["control"]))))
def test_a_name_says_everything(condition: Condition) -> None:
    assert Condition.parse(condition.name) == condition


@pytest.mark.parametrize(
    "name", ["", "dori", "dori-control", "effort", "effort-x", "effort-5-unseen", "prompt-control"]
)
def test_other_names_are_refused(name: str) -> None:
    with pytest.raises(InputError, match="there is no condition"):
        Condition.parse(name)
