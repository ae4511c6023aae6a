"""How many of the prompts that are said to be memorized are memorized by the model at hand."""

from tasks.conditions import PROMPT
from tasks.evaluate.estimates import Estimate, of_prompts
from tasks.evaluate.seen import Seen
from tasks.intervals import clopper_pearson
from tasks.methods import NoParams, metric


@metric(
    name="confirmation",
    title="Confirmed prompts",
    paper="A convention of this project",
    words="A memorized prompt is confirmed where one of its generations is a copy or, if it has no training image,"
    " where its noise differences are alike. Copy rates of confirmed prompts and of others stand apart; on the original"
    " that of confirmed ones is 100 % by definition.",
    control="The prompts that are not confirmed.",
    applies=lambda condition, variant: variant == "original" and condition == PROMPT,
    kept=("confirmed",),
)
def confirmation(seen: Seen, params: NoParams) -> list[Estimate]:
    """The share of images of which any prompt is confirmed; of prompts where they have no image."""
    by_unit: dict[str, bool] = {}
    for one in seen.generations:
        by_unit[one.unit] = by_unit.get(one.unit, False) or one.confirmed
    found, many = sum(by_unit.values()), len(by_unit)
    return of_prompts(seen.generations, [Estimate("confirmed", found / many, *clopper_pearson(found, many), many)])
