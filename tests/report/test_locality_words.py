"""The diagnosis of locality in words."""

import numpy as np

from tasks.report.locality import Locality
from tasks.report.locality_words import Diagnosed, Overlap, render_locality

PLACES = {"triggers": np.zeros((2, 2)), "starts": np.ones((2, 2)), "prompts": np.full((3, 2), 2.0)}


def spread(embeddings: float, moved: float, activations: float) -> Locality:
    return Locality(embeddings, 1.5, moved, {"a": activations, "b": activations}, {"a": 1.25, "b": 1.25}, PLACES)


def test_spread_out_memory() -> None:
    weights = {"wanda": {name: Overlap(iou, 0.05) for name, iou in {"a": 0.5, "b": 0.4, "c": 0.9}.items()}}
    text = render_locality([(Diagnosed("i", "A caption", 8, 6, spread(0.98, 0.3, 1.1)), weights)])
    assert "Of 8 attacks, each from another random point, 6 bring this image back." in text
    assert "0.98 times as far apart as the points they began from" in text and "spread out, not in one place" in text
    assert "Each lies 0.30 times that distance from where it began: there is one to be found near any point." in text
    assert "1.10 times as far apart as those of prompts of different images, a mean over layers" in text
    assert "the points they began from 1.25 times: they are spread out" in text
    assert "wanda finds sets with an IOU of 0.60 (random sets: 0.05)" in text
    assert "in 2 of 3 layers it is below 0.6: different triggers find different ones." in text
    assert "| `a` | 1.10 | 0.50 |" in text and "| `c` |  | 0.90 |" in text


def test_local_memory() -> None:
    weights = {"nemo": {"a": Overlap(0.9, 0.1)}}
    text = render_locality([(Diagnosed("i", "A caption", 8, 8, spread(0.1, 0.9, 0.2)), weights)])
    assert text.count("they lie together") == 2
    assert "there was none near that" in text
    assert "they are largely the same" in text


def test_weights_that_any_noise_finds_are_no_sign_of_memory() -> None:
    def words(starts: float) -> str:
        weights = {"wanda": {"a": Overlap(0.9, 0.1, starts), "b": Overlap(0.7, 0.1, starts)}}
        return render_locality([(Diagnosed("i", "A caption", 8, 8, spread(1, 1, 1)), weights)])

    assert "IOU of 0.80 (random sets: 0.10; from two of the points they began from: 0.75)" in words(0.75)
    assert "largely the same, but so were those before the search" in words(0.75)
    assert "in 0 of 2 layers it is below 0.6: they are largely the same." in words(0.2)


def test_activations_of_any_noise_are_no_sign_of_memory() -> None:
    alike = Locality(1.2, 1.2, 0.7, {"a": 0.4}, {"a": 0.35}, PLACES)
    text = render_locality([(Diagnosed("i", "A caption", 8, 8, alike), {})])
    assert "so did those points before the search, so this says nothing of the memory" in text


def test_too_few_triggers_answer_nothing() -> None:
    text = render_locality([(Diagnosed("i", "A caption", 8, 1, None), {})])
    assert "1 bring this image back" in text and "nothing can be said" in text
    assert "Embeddings" not in text
    assert "no method found any" in render_locality(
        [(Diagnosed("i", "A caption", 8, 2, spread(1, 1, float("nan"))), {})]
    )
