"""What counts once: the unit of every rate, interval and test.

Captions of one training image tell one story: where the image is memorized, all of them bring it back, and where it is
erased, none does. So they are no independent cases, and count together. Two prompts belong to one unit where

- they have a training image in common (the same file, by its sha256), or
- their texts differ at most in case, spaces and whether letters are composed (an e with an accent, or an e and an
  accent), which text encoders of the CLIP kind do not see;

and so do prompts that are linked by others: units are the connected components. A prompt with no image is a unit of its
own, but for its spellings. Near-duplicates, where somebody looked for them, are further links.

The cluster of a template memory is found in the same way: a set declares it by its images, as when one prompt has all
near-identical images of the template, or when several prompts share one of them. The column `subset` declares none: it
says which prompts are localized together, not which are the same memory.
"""

import unicodedata
from collections.abc import Collection, Iterable, Mapping

from tasks.clusters import clusters

PROMPTS = "_prompts"
"""Ends the name of the metric that says how many prompts an estimate rests on, where its n is another number."""

Link = tuple[str, str, Iterable[str]]
"""What links a prompt to others: its id, its text, and its training images."""


def units(prompts: Iterable[Link], near: Iterable[tuple[str, str]] = ()) -> dict[str, str]:
    """By prompt id, the unit that it belongs to: the least prompt id of the component.

    The order of the prompts is of no account. A prompt may stand there several times, as where several sets have it;
    all its images count. The query `copies` mirrors this in SQL.

    Args:
        near: near-duplicates, each a prompt id and that of its cluster, as the table `clusters` has them. Clusters are
            called by a prompt of theirs, so those of several comparisons may stand there together.
    """
    pairs = list(near)
    names = {name for pair in pairs for name in pair}
    together: dict[str, set[str]] = {}
    for name, text, images in prompts:
        names.add(name)
        for link in (f"text {spelling(text)}", *(f"image {image}" for image in images)):
            together.setdefault(link, set()).add(name)
    return clusters(sorted(names), together.values(), pairs)


def spelling(text: str) -> str:
    """A text without what case, spaces and composed or decomposed letters add to it."""
    return " ".join(unicodedata.normalize("NFC", unicodedata.normalize("NFC", text).casefold()).split())


def count(prompt_ids: Iterable[str], of: Mapping[str, str]) -> int:
    """How many units these prompts are."""
    return len({of[name] for name in prompt_ids})


def counted(prompt_ids: Collection[str], of: Mapping[str, str], what: str = "prompts") -> str:
    """How many prompts, and of how many images where that is another number: "8 prompts", or "6 prompts of 2
    images"."""
    prompts, different = len(set(prompt_ids)), count(prompt_ids, of)
    images = f" of {different} image{'' if different == 1 else 's'}"
    return f"{prompts} {what}{'' if prompts == different else images}"
