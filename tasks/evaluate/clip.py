"""CLIP score: does a generation show what its prompt says?"""

from collections.abc import Sequence

import numpy as np

from tasks.conditions import ORDINARY
from tasks.evaluate.estimates import ByUnit, Estimate, filled, gathered, of_prompts, over_units
from tasks.evaluate.seen import Pair, Seen
from tasks.intervals import of_ratio
from tasks.methods import Column, NoParams, metric
from tasks.scorers.clip import aligned


@metric(
    name="clip",
    title="CLIP score",
    paper="Hessel et al., CLIPScore, EMNLP 2021; Radford et al., ICML 2021",
    words="CLIP is the cosine between embeddings of a generation and its prompt, the mean over images, and as a share"
    " of the original's.",
    control="The original model, prompt by prompt and seed by seed.",
    applies=lambda condition, variant: condition == ORDINARY,
    columns=(
        Column("clip", "CLIP", ".3f", "higher", narrow=True, order=50),
        Column("clip_kept", "CLIP, share kept", ".1%", "higher", order=51),
    ),
)
def measured(seen: Seen, params: NoParams) -> list[Estimate]:
    """The mean score, and what share it is of the original model's."""
    texts = {one.prompt_id: one.text for one in seen.generations}

    def cosines(missing: Sequence[Pair]) -> list[float]:
        vectors = seen.clip.images([name for name, _ in missing])
        made = np.stack([vectors[name] for name, _ in missing])
        return [float(value) for value in aligned(made, seen.clip.texts([texts[prompt] for _, prompt in missing]))]

    def scores(names: Sequence[str]) -> dict[str, np.ndarray]:
        pairs = [(name, one.prompt_id) for name, one in zip(names, seen.generations, strict=True)]
        known = seen.scored("clip", seen.clip.name, pairs, cosines)
        return gathered(seen.generations, [known[pair] for pair in pairs])

    own = scores([one.id for one in seen.generations])
    found = [clip(own)]
    if seen.originals:
        found.append(clip_kept(own, scores(seen.originals)))
    return of_prompts(seen.generations, found)


def clip(scores: ByUnit) -> Estimate:
    """Mean CLIP cosine of image and prompt: mean over a unit's images, then over units."""
    return over_units("clip", np.array([seeds.mean() for seeds in filled(scores)]), np.mean)


def clip_kept(scores: ByUnit, originals: ByUnit) -> Estimate:
    """Mean CLIP cosine as a share of the original model's, of the same prompts; the interval knows them for pairs."""
    if scores.keys() != originals.keys():
        raise ValueError("images of the same prompts are compared with each other")
    own = np.array([seeds.mean() for seeds in filled(scores)])
    others = np.array([originals[name].mean() for name in scores])
    low, high = (of_ratio(own, others) if len(own) > 1 else None) or (None, None)
    return Estimate("clip_kept", float(own.mean() / others.mean()), low, high, len(own))
