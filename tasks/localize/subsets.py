"""Subsets of prompts whose sets are compared with each other, and the control subsets beside them.

Chavhan et al. (2024, section 4) split memorized prompts into subsets and find that their sets overlap far more than
chance. What overlap has nothing to do with memorization is seen by subsets of ordinary prompts of the same sizes.
"""

from collections.abc import Sequence
from typing import Protocol, TypeVar

PARTS = 5
"""Parts that prompts of no named subset are split into."""


class Labelled(Protocol):
    """What is asked of a prompt here."""

    @property
    def prompt_id(self) -> str: ...
    @property
    def memorization(self) -> str | None: ...
    @property
    def subset(self) -> str | None: ...


P = TypeVar("P", bound=Labelled)
Q = TypeVar("Q")


def subsets_of(prompts: Sequence[P]) -> dict[str, list[P]]:
    """Prompts by the subset that their file names; prompts without are in none.

    Where no prompt names one, verbatim and template prompts apart, each in up to five parts of like size and at least
    two prompts: "VM 1", "VM 2", ... Which prompt is in which part follows from its id, not from what it is about; for
    subsets of unrelated categories name them in the file.
    """
    named: dict[str, list[P]] = {}
    kinds: dict[str, list[P]] = {}
    for prompt in prompts:
        if prompt.subset is not None:
            named.setdefault(prompt.subset, []).append(prompt)
    for prompt in sorted(prompts, key=lambda prompt: prompt.prompt_id):
        kinds.setdefault(prompt.memorization or "part", []).append(prompt)
    parts = {kind: min(PARTS, len(members) // 2) for kind, members in kinds.items()}
    return named or {
        f"{kind} {number + 1}": members[number :: parts[kind]]
        for kind, members in kinds.items()
        for number in range(parts[kind])
    }


def control_subsets(subsets: Sequence[Sequence[object]], ordinary: Sequence[Q]) -> dict[str, list[Q]]:
    """Ordinary prompts in subsets of the same sizes, as far as there are enough of them: "control 1", ..."""
    left, out = list(ordinary), {}
    for number, subset in enumerate(subsets, 1):
        if len(subset) <= len(left):
            out[f"control {number}"], left = left[: len(subset)], left[len(subset) :]
    return out
