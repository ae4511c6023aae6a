"""What stands for a memorized image: one that the pruned model makes of the same prompt, and that is no copy."""

from collections.abc import Iterator, Sequence
from itertools import chain, cycle, islice

import numpy as np

from storage import content_key
from tasks.diffusion.sampling import SamplingParams, from_bytes, generate, to_png
from tasks.mitigate.random_tokens import RandomTokensParams, with_random_words
from tasks.params import determining
from tasks.progress import progress
from tasks.scorers.sscd import COPY_THRESHOLD, Sscd
from tasks.subject import Prompt, Subject, shards

VERSION = "surrogate/1"
CONDITION = "surrogate"
SEEDS = 4
"""Images made of a prompt at a time."""
ROUNDS = 4
"""Times that so many are made, where too few are unlike the training images yet; of copied prompts twice as often."""
UNLIKE = 0.5
"""SSCD up to which a surrogate is unlike an image without doubt. Just under the limit of copies, what is learned from
it would often come out above."""


def surrogates(
    subject: Subject, pruned: str, prompts: Sequence[Prompt], sampling: SamplingParams, measure: Sscd
) -> list[list[np.ndarray]]:
    """For each training image of each prompt one, those that are least like any of the prompt's.

    Where all that the pruned model makes of a prompt is copies, random words are added to it (Somepalli et al., NeurIPS
    2023, section 6). Where fewer are no copies than a prompt has images, they stand for several; where there are
    none, even with words, the prompt's list is empty.

    All that is made lies in `generations`, condition `surrogate`.

    Returns:
        For each prompt uint8 images (height, width, 3).
    """
    images = [image for prompt in prompts for image in prompt.image_ids]
    trained = dict(zip(images, measure.embed(subject.training_images(images)), strict=True))
    found: dict[str, dict[str, float]] = {prompt.prompt_id: {} for prompt in prompts}

    def enough(prompt: Prompt, worded: bool) -> bool:
        alike = np.array(list(found[prompt.prompt_id].values()))
        unlike, no_copies = int((alike <= UNLIKE).sum()), int((alike <= COPY_THRESHOLD).sum())
        return unlike >= len(prompt.image_ids) or (worded and no_copies > 0)

    for first, worded in [(first, worded) for worded in (False, True) for first in range(0, ROUNDS * SEEDS, SEEDS)]:
        lacking = [prompt for prompt in prompts if not enough(prompt, worded)]
        if not lacking:
            break
        wanted = [(prompt, seed) for prompt in lacking for seed in range(first, first + SEEDS)]
        names = _made(subject, pruned, wanted, worded, sampling)
        files = _files(subject, pruned, names)
        for (prompt, _), name in zip(wanted, names, strict=True):
            made = measure.embed(from_bytes(files[name])[None])[0]
            found[prompt.prompt_id][name] = max(float(made @ trained[image]) for image in prompt.image_ids)
    chosen = [list(_chosen(found[prompt.prompt_id], len(prompt.image_ids))) for prompt in prompts]
    files = _files(subject, pruned, sorted(set(chain(*chosen))))
    return [[from_bytes(files[name]) for name in names] for names in chosen]


def _chosen(alike: dict[str, float], count: int) -> Iterator[str]:
    """So many of these images, those that are least alike first, and over again where too few are no copies."""
    fit = sorted((likeness, n, name) for n, (name, likeness) in enumerate(alike.items()) if likeness <= COPY_THRESHOLD)
    return islice(cycle(name for _, _, name in fit), count)


def _made(
    subject: Subject, pruned: str, wanted: Sequence[tuple[Prompt, int]], worded: bool, sampling: SamplingParams
) -> list[str]:
    """Makes the images of these prompts and seeds that the store does not have, and returns the ids of all."""
    store, partition = subject.open(), {"model_id": subject.model_id, "variant": pruned, "condition": CONDITION}
    how = determining(sampling)
    names = [content_key(VERSION, *partition.values(), prompt.prompt_id, seed, worded, how) for prompt, seed in wanted]
    known = set(store.read("generations", columns=["generation_id"], **partition)["generation_id"].to_pylist())
    every = [(name, *one) for name, one in zip(names, wanted, strict=True)]
    blocks = list(shards(every, sampling.batch, lambda one: one[0] not in known))
    words = f"surrogates by {pruned}{', more words' if worded else ''}"
    with progress(sum(map(len, blocks)), words, "image") as done, subject.loaded(pruned) as model:
        for block in blocks:
            texts = [prompt.text for _, prompt, _ in block]
            keys = [(prompt.prompt_id, seed) for _, prompt, seed in block]
            if worded:
                texts = with_random_words(model, texts, keys, RandomTokensParams())
            generated = generate(model, model.encode(texts), keys, sampling, done)
            rows = [
                {
                    "prompt_id": prompt.prompt_id,
                    "trigger_id": None,
                    "seed": seed,
                    "generation_id": name,
                    "bytes": to_png(image),
                }
                for (name, prompt, seed), image in zip(block, generated, strict=True)
            ]
            store.write("generations", content_key([name for name, *_ in block]), rows, **partition)
    return names


def _files(subject: Subject, pruned: str, names: Sequence[str]) -> dict[str, bytes]:
    partition = {"model_id": subject.model_id, "variant": pruned, "condition": CONDITION}
    columns = ["generation_id", "bytes"]
    rows = subject.open().read("generations", columns=columns, generation_id=list(names), **partition)
    return dict(zip(rows["generation_id"].to_pylist(), rows["bytes"].to_pylist(), strict=True))
