"""How far the random control of a pruning is that pruning itself."""

from tasks.conditions import PROMPT
from tasks.evaluate.estimates import Estimate
from tasks.evaluate.seen import Seen
from tasks.methods import NoParams, metric


@metric(
    name="shared",
    title="Members that a random control shares",
    paper="A convention of this project",
    words="Of what a random control prunes, the share that was localized, too.",
    control="None: it says of a control whether it is one.",
    applies=lambda condition, variant: condition == PROMPT,
    kept=("shared",),
)
def shared(seen: Seen, params: NoParams) -> list[Estimate]:
    """The share, which rests on the members that were pruned; nothing of variants that were not pruned at random."""
    if seen.shared is None:
        return []
    share, members = seen.shared
    return [Estimate("shared", share, None, None, members)]
