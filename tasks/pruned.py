"""What a variant prunes: sets that a localizer left in the store, united as its spec says."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from pydantic import BaseModel

from storage import content_key
from tasks.methods import Localizer, Pruning, prunings
from tasks.params import determining
from tasks.sets import read_sets
from tasks.subject import Subject

ALL = "all"
"""Scope of the sets found for all prompts together."""

Members = Mapping[int, torch.Tensor]
"""By layer index, sorted indices of neurons or of weights."""


def random_controls() -> Iterator[str]:
    """The variants that prune as much at random."""
    return (pruning.control for _, pruning in prunings() if pruning.control)


def per_prompt() -> Iterator[str]:
    """The variants of which each prompt has members of its own that are pruned, and their random controls."""
    return (name for _, one in prunings() if one.over == "each" for name in one.names)


@dataclass(frozen=True)
class Pruned:
    """What one variant prunes. It says nothing of whether the sets are there already."""

    localizer: Localizer
    pruning: Pruning
    """One of the localizer's."""
    params: BaseModel
    """The localizer's, by which it unites sets of several steps."""
    sets_id: str
    prompt_ids: tuple[str, ...]
    """The prompts whose members are pruned."""

    @property
    def method(self) -> str:
        """What the sets go by in `neuron_sets.method`."""
        return self.localizer.sets_name(self.pruning.ordinary)

    @property
    def scopes(self) -> tuple[str, ...]:
        """The scopes whose sets are united, or for each of which its own is pruned."""
        return (ALL,) if self.pruning.over == "all" else self.prompt_ids

    @property
    def id(self) -> str:
        """A key of all that determines which members are pruned."""
        return content_key("pruned/1", self.pruning.name, self.sets_id, sorted(self.scopes), determining(self.params))

    @property
    def as_found(self) -> bool:
        """Whether the sets are pruned as they lie in the store, none of them united."""
        return self.pruning.over != "union" and self.localizer.over_steps is None

    def members(self, subject: Subject) -> dict[str, Members]:
        """The members that are pruned: under "all", or for a pruning of each prompt's own under the prompts' ids.

        Raises:
            InputError: the store lacks sets of a scope.
        """
        layers = subject.load().layers(self.localizer.site_of(self.params))
        sets = read_sets(subject, self.method, self.sets_id, layers[0].site, layers, self.scopes)
        found: dict[str, Members] = {}
        for name in self.scopes:
            if self.localizer.over_steps is None:
                found[name] = {layer.index: sets[name, None, layer.index] for layer in layers}
            else:
                steps = {
                    (step, index): one
                    for (scope, step, index), one in sets.items()
                    if scope == name and step is not None
                }
                universes = {layer.index: self.localizer.universe(layer) for layer in layers}
                found[name] = self.localizer.over_steps(steps, universes, self.params)
        if self.pruning.over != "union":
            return found
        indices = [layer.index for layer in layers]
        return {ALL: {index: torch.unique(torch.cat([one[index] for one in found.values()])) for index in indices}}
