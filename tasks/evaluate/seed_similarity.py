"""How alike the seeds of one prompt are: memories are, whatever the seed."""

from itertools import combinations

import numpy as np

from tasks.conditions import EXTRACTION
from tasks.evaluate.estimates import ByUnit, Estimate, filled, gathered, of_prompts, over_units
from tasks.evaluate.seen import Generation, Seen, alike
from tasks.methods import Column, NoParams, metric


@metric(
    name="seed-similarity",
    title="Similarity between seeds",
    paper="Hintersdorf et al., Finding NeMo, NeurIPS 2024, section 4 (there called diversity)",
    words="Seed similarity is the SSCD between seeds of one prompt, the median over images: lower is more diverse.",
    control="The original model on ordinary prompts.",
    applies=lambda condition, variant: condition != EXTRACTION,
    columns=(Column("seed_similarity", "Seed similarity", better="lower", narrow=True, order=40),),
)
def measured(seen: Seen, params: NoParams) -> list[Estimate]:
    """The estimate over all prompts; nothing where there is one seed.

    Only pairs of one prompt are compared, or of one trigger; those of all prompts of an image count together.
    """
    together: dict[tuple[str, str | None], list[Generation]] = {}
    for one in seen.generations:
        together.setdefault((one.prompt_id, one.trigger), []).append(one)
    pairs = {(one.id, other.id): one for some in together.values() for one, other in combinations(some, 2)}
    known = alike(seen, "sscd_pair", list(pairs))
    generations = list(pairs.values())
    return (
        of_prompts(generations, [seed_similarity(gathered(generations, list(known.values())))]) if generations else []
    )


def seed_similarity(similarities: ByUnit) -> Estimate:
    """How alike the seeds of one prompt are: the median over a unit's pairs, then over units; lower is more diverse.

    Images of different captions of an image differ by more than their seeds, so pairs are taken within each prompt
    (or trigger), and gathered by unit.

    Args:
        similarities: cosines (pairs,) between seeds.
    """
    return over_units("seed_similarity", np.array([np.median(pairs) for pairs in filled(similarities)]), np.median)
