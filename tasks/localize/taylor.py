"""The first-order Taylor score of a weight, |w g| (Molchanov et al., 2019)."""

from collections.abc import Iterator
from functools import partial

from tasks.diffusion.sites import Site
from tasks.localize.ground import Found, Ground
from tasks.localize.importance import GradientParams, by_gradient, check_timesteps, gradient_cost, reads
from tasks.methods import Pruning, localizer


@localizer(
    name="taylor",
    title="First-order Taylor score",
    paper="Molchanov et al., Importance Estimation for Neural Network Pruning, CVPR 2019, section 3",
    words="Takes the weights without which the diffusion loss of memorized images would change most, to first order.",
    control="As many weights of each layer as Wanda found, which it is a baseline of.",
    params=GradientParams,
    members="weights",
    site=Site.FEED_FORWARD_HIDDEN,
    scopes="all",
    reads=reads,
    gradients=True,
    cost=gradient_cost,
    check=partial(check_timesteps, "taylor.timesteps"),
    budget="wanda",
    prunings=(
        Pruning(
            name="taylor",
            over="all",
            card="as many weights of each layer as Wanda found, those of the highest first-order Taylor score,",
        ),
    ),
)
def taylor(ground: Ground, params: GradientParams) -> Iterator[Found]:
    """The weights of the highest |w g|, g the gradient of the diffusion loss of memorized images under their prompts.

    Args, Returns: see `tasks.methods.Find`.
    """
    return by_gradient(ground, params, lambda weight, gradient: weight.abs() * gradient)
