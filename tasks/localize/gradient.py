"""The gradient of a weight, |g|."""

from collections.abc import Iterator
from functools import partial

from tasks.diffusion.sites import Site
from tasks.localize.ground import Found, Ground
from tasks.localize.importance import GradientParams, by_gradient, check_timesteps, gradient_cost, reads
from tasks.methods import Pruning, localizer


@localizer(
    name="gradient",
    title="Gradient",
    paper="A convention of this project: the first-order Taylor score without the weight.",
    words="Takes the weights by which the diffusion loss of memorized images is steepest.",
    control="As many weights of each layer as Wanda found, which it is a baseline of.",
    params=GradientParams,
    members="weights",
    site=Site.FEED_FORWARD_HIDDEN,
    scopes="all",
    reads=reads,
    gradients=True,
    cost=gradient_cost,
    check=partial(check_timesteps, "gradient.timesteps"),
    budget="wanda",
    prunings=(
        Pruning(
            name="gradient",
            over="all",
            card="as many weights of each layer as Wanda found, those of the largest gradient,",
        ),
    ),
)
def gradient(ground: Ground, params: GradientParams) -> Iterator[Found]:
    """The weights of the largest |g|, g the gradient of the diffusion loss of memorized images under their prompts.

    Args, Returns: see `tasks.methods.Find`.
    """
    return by_gradient(ground, params, lambda weight, gradient: gradient)
