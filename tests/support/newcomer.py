"""A localizer as somebody else would write it: one file, which says all that an audit needs to know of it."""

from collections.abc import Iterator
from typing import Annotated

import torch
from pydantic import Field

from tasks.diffusion.sites import Site
from tasks.localize.ground import Found, Ground
from tasks.methods import Params, Pruning, localizer


class StrongestParams(Params):
    """How many neurons."""

    count: Annotated[int, Field(ge=1, description="The number of neurons of each layer.")] = 1


@localizer(
    name="strongest",
    title="Strongest neurons",
    paper="A convention of these tests.",
    words="Takes the neurons of each layer that a prompt activates most.",
    control="As many random neurons of the same layers.",
    params=StrongestParams,
    members="neurons",
    site=Site.VALUE,
    scopes="prompts",
    reads=("values",),
    prunings=(Pruning(name="strongest", over="union", card="the neurons that prompts activate most"),),
)
def strongest(ground: Ground, params: StrongestParams) -> Iterator[Found]:
    """The neurons of the highest activation, a few of each layer."""
    (prompt,) = ground.prompts
    for layer, values in zip(ground.layers, ground.values(prompt), strict=True):
        yield Found(layer, values.topk(params.count).indices)


def beyond(ground: Ground, params: StrongestParams) -> Iterator[Found]:
    """A mistake: a neuron that no layer has."""
    yield Found(ground.layers[0], torch.tensor([10_000]))
