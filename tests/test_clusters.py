"""Clusters: connected components in any order, pairs of similar features in blocks of any size, and normalised text."""

import random
import tracemalloc
import unicodedata

import networkx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.clusters import clusters, normalised, similar_pairs

IDS = st.integers(0, 14).map(lambda number: f"id {number}")
GROUPS = st.lists(st.lists(IDS, max_size=4), max_size=5)
PAIRS = st.lists(st.tuples(IDS, IDS), max_size=8)


def unit(rows: np.ndarray) -> np.ndarray:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


@given(st.lists(IDS, max_size=15), GROUPS, PAIRS, st.randoms())
def test_clusters_are_connected_components_in_any_order(
    alone: list[str], groups: list[list[str]], pairs: list[tuple[str, str]], order: random.Random
) -> None:
    graph = networkx.Graph(pairs)
    graph.add_nodes_from(alone)
    for group in groups:
        networkx.add_path(graph, group)
    ids = list(graph)
    wanted = {name: min(part) for part in networkx.connected_components(graph) for name in part}
    assert clusters(ids, groups, pairs) == wanted
    turned = [(other, one) for one, other in pairs]
    for some in (ids, groups, turned, *groups):
        order.shuffle(some)  # type: ignore[arg-type]
    assert clusters([*ids, *alone], groups, turned) == wanted


def test_groups_link_through_pairs_and_pairs_through_groups() -> None:
    found = clusters(["e", "d", "c", "b", "a", "f"], [{"e", "c"}, {"d", "b"}, {"f"}, set()], iter([("c", "d")]))
    assert found == {"b": "b", "c": "b", "d": "b", "e": "b", "a": "a", "f": "f"}
    assert clusters([], [], []) == {}


@pytest.mark.parametrize(
    ("groups", "pairs"), [([["a", "x"]], []), ([["x"]], []), ([], [("x", "a")]), ([], [("a", "x")])]
)
def test_an_id_that_is_none_is_refused(groups: list[list[str]], pairs: list[tuple[str, str]]) -> None:
    with pytest.raises(ValueError, match="'x' stands in a group or pair"):
        clusters(["a", "b"], groups, pairs)


def test_similar_pairs_by_hand() -> None:
    """Cosines of 0.8 between a and b, 0.6 between a and c, and 0.96 between b and c."""
    features = np.array([[1, 0], [0.8, 0.6], [0.6, 0.8]], np.float32)
    assert list(similar_pairs(features, "abc", 0.9)) == [("b", "c")]
    assert list(similar_pairs(features, "abc", 0.7)) == [("a", "b"), ("b", "c")]
    assert list(similar_pairs(features, "abc", 0.5)) == [("a", "b"), ("a", "c"), ("b", "c")]
    assert clusters("abc", [], similar_pairs(features, "abc", 0.7)) == dict.fromkeys("abc", "a")
    assert list(similar_pairs(np.zeros((0, 2), np.float32), [], 0.5)) == []
    rows: list[int] = []
    assert len(list(similar_pairs(features, "abc", 0.5, 2, rows.append))) == 3 and rows == [2, 1]


@given(st.integers(0, 2**32 - 1), st.integers(1, 40), st.integers(1, 45), st.floats(-1, 1))
def test_neither_blocks_nor_order_change_what_is_similar(seed: int, count: int, block: int, bound: float) -> None:
    """Also where the bound is itself the cosine of a pair."""
    drawn = np.random.default_rng(seed)
    features = unit(drawn.normal(size=(count, 8)))
    ids = [f"id {number}" for number in range(count)]
    cosines = (features[:, None].astype(np.float64) * features[None]).sum(2)
    for at_least in (bound, float(cosines[0, -1])):
        wanted = {(ids[i], ids[j]) for i in range(count) for j in range(i + 1, count) if cosines[i, j] >= at_least}
        found = list(similar_pairs(features, ids, at_least, block))
        assert set(found) == wanted and len(found) == len(wanted)
        order = drawn.permutation(count)
        moved = similar_pairs(features[order], [ids[i] for i in order], at_least, block)
        assert {frozenset(pair) for pair in moved} == {frozenset(pair) for pair in wanted}


def test_ten_thousand_embeddings_are_compared_in_little_memory() -> None:
    """A matrix of them all would take 400 MB."""
    drawn = np.random.default_rng(0)
    features = unit(drawn.normal(size=(10_000, 512)))
    features[9_000:] = unit(features[:1_000] + 0.01 * drawn.normal(size=(1_000, 512)))
    ids = [str(number) for number in range(10_000)]
    tracemalloc.start()
    try:
        found = clusters(ids, [], similar_pairs(features, ids, 0.9))
        assert tracemalloc.get_traced_memory()[1] < 60e6
    finally:
        tracemalloc.stop()
    assert len(set(found.values())) == 9_000
    assert all(found[str(9_000 + number)] == found[str(number)] for number in range(1_000))


def test_features_that_are_none_are_refused() -> None:
    with pytest.raises(ValueError, match="not one row for each"):
        similar_pairs(np.eye(2, dtype=np.float32), ["a"], 0.5)
    for wrong in (2 * np.eye(2, dtype=np.float32), np.full((2, 2), np.nan, np.float32)):
        with pytest.raises(ValueError, match="unit length"):
            similar_pairs(wrong, ["a", "b"], 0.5)


@given(st.text())
def test_normalising_twice_is_normalising_once(text: str) -> None:
    once = normalised(text)
    assert normalised(once) == once == normalised(f"  {text}\n") == normalised(unicodedata.normalize("NFD", text))
    assert once or not text.split()


@pytest.mark.parametrize(
    ("text", "same"),
    [
        ("A cat, on a mat.", "a  CAT on a mat"),
        ("The “Mona Lisa” – painted", 'the "mona-lisa": painted'),
        ("Ｃａｆé ﬁgure", "cafe\u0301 figure"),
        ("Straße|Berlin", "STRASSE Berlin"),
        ("a\u00a0b\tc", "a b c"),
    ],
)
def test_punctuation_case_and_forms_make_no_other_text(text: str, same: str) -> None:
    assert normalised(text) == normalised(same)


def test_words_numbers_and_bare_punctuation_stay_apart() -> None:
    texts = ["a cat", "a cats", "cat a", "a cat 2", "café", "cafe", "!!!", "???", "😀", "🙁", "日本", "日"]
    assert len({normalised(text) for text in texts}) == len(texts)
