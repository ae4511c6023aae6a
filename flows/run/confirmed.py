"""Which of the prompts that are said to be memorized bring an image back from the model at hand.

Lists of memorized prompts are of one model; others, and even fine-tunes of it, forgot many of them. So a prompt is
confirmed where one of the audit's own generations of it is a copy of a training image of it, or where it has no image
and detection flags it. All of it is read from the store: whoever looks, wherever, finds the same.
"""

from collections.abc import Callable

from flows.selection import Known, Selection
from tasks.collect import task as collecting
from tasks.evaluate import task as evaluating
from tasks.localize import task as localizing
from tasks.methods import method
from tasks.scorers.clip import ClipParams
from tasks.scorers.sscd import COPY_THRESHOLD
from tasks.subject import Prompt, Subject


def known_of(subject: Subject, chosen: Selection, clip: Callable[[], ClipParams]) -> Known | None:
    """Which memorized prompts are confirmed, and which prompts are near-duplicates; None while a part of it is not
    known.

    Args:
        clip: names the model that compares the captions of prompts without images; not called where there are none.
    """
    settings, (with_images, without) = chosen.settings, by_images(chosen)
    clusters = collecting.clusters_known(subject, chosen.compared, settings.sscd, clip)
    found = evaluating.nearest(subject, with_images, settings.seeds, settings.sampling, settings.sscd)
    nemo = settings.of(method("localizer", "nemo"))
    flagged = localizing.flagged(subject, without, chosen.threshold_nulls, nemo)
    if clusters is None or len(found) < len(with_images) or flagged is None:
        return None
    copied = {name for name, similarity in found.items() if similarity > COPY_THRESHOLD}
    return Known(flagged | copied, clusters)


def by_images(chosen: Selection) -> tuple[list[Prompt], list[Prompt]]:
    """The memorized prompts that have training images, and those that only detection can confirm."""
    with_images = [prompt for prompt in chosen.memorized if prompt.image_ids]
    return with_images, [prompt for prompt in chosen.memorized if not prompt.image_ids]
