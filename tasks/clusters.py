"""Clusters: what is alike, directly or through others, is one cluster.

Clusters are the connected components of groups and pairs, so neither the order of the ids nor that of groups and pairs
is of any account, and a cluster is called by the smallest id in it. What links ids is for others to say: a text, an
image, or features that are similar.
"""

import string
import unicodedata
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence

import numpy as np
from scipy.cluster.hierarchy import DisjointSet

BLOCK = 1024
"""Rows of features that are compared with as many others at a time, in 4 MB of float32."""
_SLACK = 1e-4
"""What cosines in float32 may be off by; rounding takes up a hundredth of it."""


def clusters(ids: Sequence[str], groups: Iterable[Collection[str]], pairs: Iterable[tuple[str, str]]) -> dict[str, str]:
    """By id, the name of its cluster: the smallest id in it. Ids that share a group or a pair are of one cluster.

    Memory grows with the ids alone: pairs are taken one by one, so an iterator of very many will do.

    Args:
        ids: all that there are; one that stands there twice counts once.
        groups: ids that belong together.
        pairs: two ids that do.

    Raises:
        ValueError: a group or pair has an id that is none of `ids`.
    """
    found = DisjointSet(ids)
    for group in groups:
        members = list(group)
        for member in members:
            _merge(found, members[0], member)
    for one, other in pairs:
        _merge(found, one, other)
    return {name: least for subset in found.subsets() for least in [min(subset)] for name in subset}


def similar_pairs(
    features: np.ndarray,
    ids: Sequence[str],
    at_least: float,
    block: int = BLOCK,
    done: Callable[[int], None] = lambda n: None,
) -> Iterator[tuple[str, str]]:
    """Every two of the ids whose features have a cosine of `at_least`, the earlier of `ids` first.

    Blocks are compared in float32, and cosines near the bound again in float64, each by itself: what is found does not
    depend on the size of blocks, nor, but for which of two comes first, on the order of rows.

    Args:
        features: float32 (n, width) of unit length.
        ids: of the n rows.
        at_least: from -1 to 1.
        block: rows that are compared with as many others at a time.
        done: called with each number of rows that were compared with all behind them.

    Raises:
        ValueError: there is not one row for each id, or a row is not of unit length.
    """
    if features.ndim != 2 or len(features) != len(ids):
        raise ValueError(f"features of shape {features.shape} are not one row for each of {len(ids)} ids")
    features = np.ascontiguousarray(features, np.float32)
    if not np.allclose(np.linalg.norm(features, axis=1), 1, atol=1e-3):
        raise ValueError("features are not of unit length")
    return _similar(features, ids, at_least, block, done)


def normalised(text: str) -> str:
    """A text without what case, punctuation, spaces and compatible forms of letters (NFKC) add to it.

    Punctuation and spaces become one space between words. A text that has nothing else keeps its punctuation, so that
    two such are not the same.
    """
    folded = unicodedata.normalize("NFKC", text)
    while (again := unicodedata.normalize("NFKC", folded.casefold())) != folded:
        folded = again  # folding may decompose, and composing may give a letter that can be folded
    words = "".join(" " if _is_punctuation(sign) else sign for sign in folded).split()
    return " ".join(words or folded.split())


def _merge(found: DisjointSet, one: str, other: str) -> None:
    try:
        found.merge(one, other)
    except KeyError as error:
        raise ValueError(f"{error.args[0]!r} stands in a group or pair, and is none of the ids") from error


def _similar(
    features: np.ndarray, ids: Sequence[str], at_least: float, block: int, done: Callable[[int], None]
) -> Iterator[tuple[str, str]]:
    for top in range(0, len(features), block):
        above = features[top : top + block]
        for left in range(top, len(features), block):
            beside = features[left : left + block]
            rows, columns = np.nonzero(above @ beside.T >= at_least - _SLACK)
            later = rows + top < columns + left
            rows, columns = rows[later], columns[later]
            for start in range(0, len(rows), block):
                some, others = rows[start : start + block], columns[start : start + block]
                exact = (above[some].astype(np.float64) * beside[others]).sum(1)
                for row, column in zip(some[exact >= at_least], others[exact >= at_least], strict=True):
                    yield ids[top + row], ids[left + column]
        done(len(above))


def _is_punctuation(sign: str) -> bool:
    return sign in string.punctuation or unicodedata.category(sign).startswith("P")
