"""The magnitude of a weight, |w| (Han et al., 2015)."""

from collections.abc import Iterator

from tasks.diffusion.sites import Site
from tasks.localize.ground import Found, Ground
from tasks.localize.importance import highest, weight_of
from tasks.methods import NoParams, Pruning, localizer


@localizer(
    name="magnitude",
    title="Magnitude",
    paper="Han et al., Learning both Weights and Connections for Efficient Neural Networks, NIPS 2015, section 3",
    words="Takes the largest weights of each layer, whatever was memorized.",
    control="As many weights of each layer as Wanda found, which it is a baseline of.",
    members="weights",
    site=Site.FEED_FORWARD_HIDDEN,
    scopes="all",
    budget="wanda",
    prunings=(
        Pruning(
            name="magnitude",
            over="all",
            card="as many weights of each layer as Wanda found, those of the largest magnitude,",
        ),
    ),
)
def magnitude(ground: Ground, params: NoParams) -> Iterator[Found]:
    """The weights of the largest magnitude, as many of each layer as the budget has.

    Args, Returns: see `tasks.methods.Find`.
    """
    for layer, count in zip(ground.layers, ground.budget, strict=True):
        yield Found(layer, highest(weight_of(layer).abs(), count))
