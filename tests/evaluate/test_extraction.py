"""Extraction: a planted clique is found, exactly, and claims are compared with the truth."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.errors import InputError
from tasks.evaluate.extraction import ExtractionParams, extract, precision_recall, tile_distances
from tasks.intervals import clopper_pearson


def test_tile_distance_by_hand() -> None:
    black, corner = np.zeros((8, 8, 3), np.uint8), np.zeros((8, 8, 3), np.uint8)
    corner[:2, :2] = 255  # one whole tile of 4 x 4 tiles: as far as can be there, 1/4 over the whole image
    images = np.stack([black, corner])
    assert tile_distances(images, 4).tolist() == [[0, 1], [1, 0]]
    assert tile_distances(images, 1)[0, 1] == pytest.approx(0.25)
    with pytest.raises(InputError, match="equal tiles"):
        tile_distances(images, 3)


def test_near_copies_of_one_image_are_extracted() -> None:
    rng = np.random.default_rng(0)
    others = rng.integers(0, 256, (40, 16, 16, 3))
    copies = others[:1] + rng.integers(-4, 5, (12, 16, 16, 3))
    images = np.concatenate([others, copies]).clip(0, 255).astype(np.uint8)
    found = extract(tile_distances(images), ExtractionParams())
    assert found.extracted
    assert found.clique == (0, *range(40, 52))
    assert found.representative == 0  # the copies are all made of it, so it lies in their middle
    none = extract(tile_distances(images[:40]), ExtractionParams())
    assert not none.extracted
    assert none.representative is None


@settings(max_examples=60)
@given(st.integers(0, 9), st.integers(2, 5), st.integers(0, 2**32 - 1))
def test_a_clique_is_found_where_there_is_one(n: int, size: int, seed: int) -> None:
    close = np.triu(np.random.default_rng(seed).random((n, n)) < 0.5, 1)
    distances = 1.0 - (close | close.T)

    def mutual(members: tuple[int, ...]) -> bool:
        return all(distances[a, b] == 0 for a, b in itertools.combinations(members, 2))

    found = extract(distances, ExtractionParams(clique=size))
    assert mutual(found.clique)
    assert not found.extracted or len(found.clique) >= size
    assert found.extracted == any(mutual(some) for some in itertools.combinations(range(n), size))


def test_a_wholly_memorized_prompt_of_the_published_size() -> None:
    found = extract(np.zeros((500, 500)), ExtractionParams())
    assert found.extracted
    assert len(found.clique) == 500


def test_precision_and_recall_by_hand() -> None:
    found = precision_recall({"a": True, "b": True, "c": False}, ["a", "b", "d", "e"])
    assert (found.precision, found.recall, found.hits) == (2 / 3, 0.5, 2)
    assert found.precision_interval == clopper_pearson(2, 3)
    assert found.recall_interval == clopper_pearson(2, 4)
    # An image that always comes back and is no training image is no memory; one of an ordinary prompt may be.
    found = precision_recall({"a": False, "x": True}, ["a"])
    assert (found.precision, found.recall, found.hits) == (0.5, 0, 1)
    nothing = precision_recall({}, ["a"])
    assert nothing.precision is None
    assert nothing.recall == 0
