from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage import Written, content_key

plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


def exact(value: object) -> str:
    """A text that is equal for two values exactly when their keys should be."""
    return json.dumps(value, sort_keys=True)


@given(plain, plain)
def test_equal_keys_mean_equal_values(one: object, two: object) -> None:
    assert (content_key(one) == content_key(two)) == (exact(one) == exact(two))


@given(st.dictionaries(st.text(), plain))
def test_order_of_a_dict_does_not_matter(value: dict[str, object]) -> None:
    assert content_key(value) == content_key(dict(reversed(value.items())))


@given(st.lists(plain))
def test_tuples_are_lists_and_arguments_are_not_flattened(value: list[object]) -> None:
    assert content_key(value) == content_key(tuple(value))
    assert content_key([value]) != content_key(value)


def test_different_things_have_different_keys() -> None:
    array = np.arange(6, dtype=np.float32)
    values = [
        1, 1.0, True, "1", b"1", None, [], {}, "", b"", 0.1 + 0.2, 0.3, float("nan"), [1], [[1]], ["list", 1],
        array, array.reshape(2, 3), array.astype(np.float64), array + 1,
    ]  # fmt: skip
    assert len({content_key(value) for value in values}) == len(values)
    assert len(content_key()) == 32


def test_arrays_count_by_content_not_by_layout() -> None:
    array = np.arange(6, dtype=np.int32).reshape(2, 3)
    assert content_key(array) == content_key(np.asfortranarray(array)) == content_key(array.astype(">i4"))
    assert content_key(np.float32(0.5), np.int64(3)) == content_key(0.5, 3)


def test_another_process_finds_the_same_key() -> None:
    code = "from storage import content_key; print(content_key({'b': [1.5, None], 'a': b'x'}))"
    root = Path(__file__).parents[2]
    other = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert other.stdout.strip() == content_key({"a": b"x", "b": [1.5, None]})


@pytest.mark.parametrize("value", [object(), {1, 2}, {1: 2}, Path("x"), np.array([None]), 1j])
def test_what_has_no_stable_form_is_refused(value: object) -> None:
    with pytest.raises(TypeError):
        content_key([value])


@given(plain, plain, plain)
def test_what_is_written_before_counts_as_itself(one: object, two: object, three: object) -> None:
    assert content_key(one, Written.of(two), three) == content_key(one, two, three)
