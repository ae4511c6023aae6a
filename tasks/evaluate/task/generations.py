"""Generations of every variant under every condition, made once and kept."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from storage import content_key
from tasks.conditions import Condition
from tasks.diffusion.sampling import SamplingParams, from_bytes, generate, to_png
from tasks.errors import InputError
from tasks.inference import Request, answered
from tasks.params import determining
from tasks.progress import progress
from tasks.subject import ORIGINAL, Prompt, Subject, shards

VERSION = "evaluate/1"


@dataclass(frozen=True)
class Trial:
    """One variant under one condition, with the prompts it is asked."""

    name: str
    """The variant, by the name that its estimates go by."""
    variant: str
    """The same, as the store knows it."""
    condition: Condition
    prompts: list[Prompt]
    """Asked, or those whose images are attacked."""
    seeds: int
    """Generations of each prompt or trigger."""


@dataclass(frozen=True)
class Shot:
    """One image to be made: for a prompt, or for a trigger that was found for the prompt's image."""

    prompt: Prompt
    trigger_id: str | None
    seed: int

    @property
    def asker(self) -> str:
        """What seeds the initial noise beside the seed: the prompt, so that variants compare image by image."""
        return self.prompt.prompt_id


def shots(prompts: Sequence[Prompt], seeds: int, triggers: Mapping[str, Sequence[str]] | None = None) -> list[Shot]:
    """Every prompt, or every trigger of it, with every seed."""
    return [
        Shot(prompt, trigger, seed)
        for prompt in prompts
        for trigger in (triggers[prompt.prompt_id] if triggers is not None else (None,))
        for seed in range(seeds)
    ]


def generation_ids(
    subject: Subject, variant: str, condition: Condition, wanted: Sequence[Shot], sampling: SamplingParams
) -> list[str]:
    """The ids that `generate_images` gives, whether or not it ran yet."""
    settings, model_id = determining(sampling), subject.model_id
    return [
        content_key(
            VERSION, model_id, variant, condition.name, shot.prompt.prompt_id, shot.trigger_id, shot.seed, settings
        )
        for shot in wanted
    ]


def generate_images(
    subject: Subject, variant: str, condition: Condition, wanted: Sequence[Shot], sampling: SamplingParams
) -> list[str]:
    """Makes the images that the store does not have, and returns the ids of all."""
    store = subject.open()
    ids = generation_ids(subject, variant, condition, wanted, sampling)
    partition = {"model_id": subject.model_id, "variant": variant, "condition": condition.name}
    known = set(store.read("generations", columns=["generation_id"], **partition)["generation_id"].to_pylist())
    every = list(zip(ids, wanted, strict=True))
    todo = [(name, shot) for name, shot in every if name not in known]
    at_inference = subject.at_inference(variant)
    names = list(dict.fromkeys(shot.trigger_id for _, shot in todo if shot.trigger_id is not None))
    found = dict(zip(names, subject.triggers(names, variant), strict=True)) if names else {}
    with progress(len(todo), f"generating {variant}, {condition.name}", "image") as done:
        for prompt_id, some in subject.by_model(variant, every, lambda one: one[1].prompt.prompt_id):
            blocks = list(shards(some, sampling.batch, lambda one: one[0] not in known))
            if not blocks:
                continue
            with subject.loaded(variant, prompt_id) as model:
                for block in blocks:
                    texts = [shot.prompt.text for _, shot in block]
                    triggers = (
                        torch.stack([found[shot.trigger_id] for _, shot in block if shot.trigger_id]) if found else None
                    )
                    keys = [(shot.asker, shot.seed) for _, shot in block]
                    answer = answered(Request(model, texts, keys, sampling, triggers), at_inference)
                    images = generate(model, answer.embeddings, keys, sampling, done, answer.context)
                    rows = [
                        {
                            "prompt_id": shot.prompt.prompt_id,
                            "trigger_id": shot.trigger_id,
                            "seed": shot.seed,
                            "generation_id": name,
                            "bytes": to_png(image),
                        }
                        for (name, shot), image in zip(block, images, strict=True)
                    ]
                    store.write("generations", content_key([name for name, _ in block]), rows, **partition)
    return ids


def images_of(subject: Subject, variant: str, condition: Condition, names: Sequence[str]) -> dict[str, np.ndarray]:
    """Generations of this variant, or of the original, and training images, by name; uint8 (height, width, 3)."""
    return {name: from_bytes(data) for name, data in files_of(subject, variant, condition, names).items()}


def files_of(subject: Subject, variant: str, condition: Condition, names: Sequence[str]) -> dict[str, bytes]:
    """The same as they are stored: where there are thousands, they are decoded one by one.

    Raises:
        InputError: one is not there.
    """
    store, lost = subject.open(), set(names)
    found: dict[str, bytes] = {}

    def find(table: str, name: str, **where: str) -> None:
        if lost:
            wanted: dict[str, Any] = {**where, name: sorted(lost)}
            rows = store.read(table, columns=[name, "bytes"], **wanted)
            found.update(zip(rows[name].to_pylist(), rows["bytes"].to_pylist(), strict=True))
            lost.difference_update(found)

    for of in dict.fromkeys((variant, ORIGINAL)):
        find("generations", "generation_id", model_id=subject.model_id, variant=of, condition=condition.name)
    find("images", "image_id")
    if lost:
        raise InputError(f"the store has no image {min(lost)}: generate first, and import prompts with their images")
    return found
