"""Random weights, the control of every score."""

from collections.abc import Iterator
from typing import Annotated

import torch
from pydantic import Field

from tasks.diffusion.noise import generator
from tasks.diffusion.sites import Site
from tasks.localize.ground import Found, Ground
from tasks.localize.importance import highest, weight_of
from tasks.methods import Params, Pruning, localizer


class RandomParams(Params):
    """Which random weights."""

    seed: Annotated[int, Field(ge=0, description="The seed of the draw.")] = 0


@localizer(
    name="random",
    title="Random weights",
    paper="A convention of this project: what any choice of so many weights does.",
    words="Takes weights of each layer at random.",
    control="As many weights of each layer as Wanda found, which it is a baseline of.",
    params=RandomParams,
    members="weights",
    site=Site.FEED_FORWARD_HIDDEN,
    scopes="all",
    budget="wanda",
    prunings=(
        Pruning(
            name="random",
            over="all",
            card="as many weights of each layer as Wanda found, drawn at random,",
            control_of="wanda",
            words="as many random weights",
        ),
    ),
)
def random(ground: Ground, params: RandomParams) -> Iterator[Found]:
    """Random weights, as many of each layer as the budget has.

    Args, Returns: see `tasks.methods.Find`.
    """
    for layer, count in zip(ground.layers, ground.budget, strict=True):
        draw = generator((f"random score of {layer.name}", params.seed))
        yield Found(layer, highest(torch.rand(weight_of(layer).shape, generator=draw), count))
