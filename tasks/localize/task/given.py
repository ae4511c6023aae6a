"""What localization is given, and the ids that follow: pure, so that they are known before anything has run."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import BaseModel

from tasks.diffusion.sampling import SamplingParams
from tasks.errors import InputError
from tasks.keys import norms_id
from tasks.localize.subsets import control_subsets, subsets_of
from tasks.methods import Localizer
from tasks.pruned import ALL, Pruned
from tasks.subject import Prompt


@dataclass(frozen=True)
class Groups:
    """Prompts whose sets are looked for together."""

    prompts: Mapping[str, Sequence[Prompt]]
    """By scope id."""
    scope: Literal["prompt", "subset", "trigger"]
    ordinary: bool = False
    """Whether ordinary prompts are taken for memorized ones, as a control."""


@dataclass(frozen=True)
class Given:
    """What an audit gives to localizers beside the prompts whose sets they look for."""

    nulls: Sequence[Prompt] = ()
    """Null prompts that statistics of activations are taken over."""
    threshold_nulls: Sequence[Prompt] = ()
    """Null prompts whose detection scores say above which similarity a memory is there."""
    contrast: Sequence[Prompt] = ()
    """Prompts that feature norms are compared with: null prompts, or empty ones as published."""
    ordinary: Sequence[Prompt] = ()
    """Ordinary prompts with images."""
    sampling: SamplingParams = field(default_factory=SamplingParams)
    """How the trajectories are sampled that feature norms are taken along."""
    budgets: Mapping[str, Pruned] = field(default_factory=dict)
    """By name, the prunings that others choose as many members as."""


def groups_of(localizer: Localizer, prompts: Sequence[Prompt]) -> Groups:
    """What a localizer finds sets for: each prompt; each subset (see `subsets_of`) and all together; or the latter."""
    if localizer.scopes == "prompts":
        return one_by_one(prompts)
    subsets = subsets_of(prompts) if localizer.scopes == "subsets" else {}
    return Groups({ALL: list(prompts)} | subsets, "subset")


def control_of(localizer: Localizer, prompts: Sequence[Prompt], ordinary: Sequence[Prompt]) -> Groups:
    """The control: ordinary prompts taken for memorized ones, in groups of the same sizes.

    How far the sets of these subsets overlap is what has nothing to do with memorization.

    Args:
        prompts: the memorized ones.
        ordinary: as many of them as there are memorized prompts are used.

    Raises:
        InputError: there are no ordinary prompts.
    """
    chosen = list(ordinary[: len(prompts)])
    if not chosen:
        raise InputError("the control needs ordinary prompts: give a file of them with --ordinary")
    if localizer.scopes == "prompts":
        return Groups(one_by_one(chosen).prompts, "prompt", ordinary=True)
    sizes = list(subsets_of(prompts).values()) if localizer.scopes == "subsets" else []
    return Groups({ALL: chosen} | control_subsets(sizes, chosen), "subset", ordinary=True)


def one_by_one(prompts: Sequence[Prompt]) -> Groups:
    """Each prompt, or each trigger (see `tasks.subject.as_prompts`), by itself."""
    scope: Literal["prompt", "trigger"] = "trigger" if any(prompt.trigger for prompt in prompts) else "prompt"
    return Groups({prompt.prompt_id: [prompt] for prompt in prompts}, scope)


def sets_id(localizer: Localizer, params: BaseModel, groups: Groups, given: Given) -> str:
    """What the sets of these groups go by, whether or not they were found yet.

    Which prompts are in which group is part of it, but for a prompt by itself: its own id says that. So more prompts
    add to the sets of fewer.
    """
    together = {name: _ids(some) for name, some in groups.prompts.items() if _ids(some) != [name]}
    read: dict[str, Any] = {one: _determining(one, params, groups, given) for one in localizer.reads_of(params)}
    budget = given.budgets[localizer.budget].id if localizer.budget else None
    return localizer.id(params, groups.ordinary, together, read, budget)


def _determining(read: str, params: Any, groups: Groups, given: Given) -> Any:
    """What determines something that a localizer reads."""
    match read:
        case "null values":
            return _ids(given.nulls)
        case "null scores":
            return _ids(given.threshold_nulls)
        case "norms":
            return norms_id(given.sampling, params.tau)
        case "contrast norms":
            return _ids(given.contrast)
        case "images":
            return {name: _images(some) for name, some in groups.prompts.items()}
        case "ordinary images":
            return _images(given.ordinary)
    return None


def _ids(prompts: Sequence[Prompt]) -> list[str]:
    return sorted(prompt.prompt_id for prompt in prompts)


def _images(prompts: Sequence[Prompt]) -> list[tuple[str, str]]:
    """In their order, in which gradients are added up."""
    return [(prompt.prompt_id, prompt.image_ids[0]) for prompt in prompts if prompt.image_ids]
