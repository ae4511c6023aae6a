"""Scores for NeMo's search, made by hand."""

from collections.abc import Callable

from tasks.localize.search import Candidates, Score


def one_by_one(score: Callable[[Candidates], float]) -> Score:
    """A plain score function as the search wants it."""
    return lambda chain, failed: [score(chain[0])]
