"""How much of what the original makes is still there after a mitigation."""

import numpy as np

from tasks.conditions import ORDINARY, PROMPT
from tasks.evaluate.estimates import ByUnit, Estimate, filled, gathered, of_prompts, over_units
from tasks.evaluate.seen import Seen, alike
from tasks.methods import Column, NoParams, metric


@metric(
    name="change",
    title="Change by the mitigation",
    paper="Hintersdorf et al., Finding NeMo, NeurIPS 2024, section 4",
    words="SSCD to unmitigated compares with what the original makes of the same prompt and seed, the median over"
    " images.",
    control="The same on ordinary prompts, which a mitigation should leave as they are.",
    applies=lambda condition, variant: variant != "original" and condition in (PROMPT, ORDINARY),
    columns=(Column("sscd_gen", "SSCD to unmitigated", narrow=True, order=30),),
)
def change(seen: Seen, params: NoParams) -> list[Estimate]:
    """The estimate over all prompts, generation by generation."""
    pairs = [(one.id, original) for one, original in zip(seen.generations, seen.originals, strict=True)]
    known = alike(seen, "sscd_gen", pairs)
    return of_prompts(seen.generations, [sscd_gen(gathered(seen.generations, [known[pair] for pair in pairs]))])


def sscd_gen(similarities: ByUnit) -> Estimate:
    """Mitigated against unmitigated generations of the same seed: median over a unit's images, then over units."""
    return over_units("sscd_gen", np.array([np.median(seeds) for seeds in filled(similarities)]), np.median)
