"""The model trained until its memories are gone, and the rivals of that."""

import json
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from storage import content_key
from tasks.attack.dori import DoriParams, attack
from tasks.diffusion.model import Model
from tasks.diffusion.sampling import SamplingParams, encode, generate
from tasks.errors import InputError
from tasks.evaluate.sscd import COPY_THRESHOLD, Sscd, SscdParams, scorer_of
from tasks.mitigate.finetune import Erasure, FineTuneParams, Memorized, Ordinary, Progress, finetune, steps_of
from tasks.mitigate.task.variants import put, uncut_card, weights_in_store
from tasks.subject import Asked, Subject, progress

ERASE_VERSION = "finetune/2"
ERASURES: dict[Erasure, dict[str, Any]] = {
    "adversarial-finetune": {},
    "surrogate-finetune": {"attack_steps": 0},
    "ordinary-finetune": {"erase_weight": 0.0, "check_every": 0},
    "lora-finetune": {"lora_rank": 4},
}
"""What each training changes in the parameters: the method itself, and its rivals with one thing missing."""
SURROGATE_SEEDS = 4
"""Pictures that the pruned model makes of a prompt; the least like the training picture is the surrogate."""


def erase_id(
    method: Erasure,
    asked: Sequence[Asked],
    ordinary: Sequence[Asked],
    pruned: str,
    params: FineTuneParams,
    sampling: SamplingParams,
    sscd: SscdParams,
) -> str:
    """What a training goes by in `variants.params_id`, whether or not it ran yet. See `erase`."""
    return content_key(
        ERASE_VERSION,
        method,
        _erasing(method, params).model_dump(exclude={"images_at_once", "save_every"}),
        sampling.model_dump(exclude={"batch"}),
        pruned,
        scorer_of(sscd),  # it chooses the surrogates, and stops the training
        [[(prompt.text, prompt.image_ids[0]) for prompt in group] for group in (asked, ordinary)],
    )


def erase(
    subject: Subject,
    method: Erasure,
    asked: Sequence[Asked],
    ordinary: Sequence[Asked],
    pruned: str,
    params: FineTuneParams,
    sampling: SamplingParams,
    sscd: SscdParams,
    audit_id: str,
) -> dict[str, str]:
    """Trains the memories of these prompts away, or a rival of that: by name the variant in the store.

    A checkpoint lies beside the store while it runs: killed and called again, it goes on to the same weights.

    Args:
        asked: memorized prompts, with their training pictures.
        ordinary: prompts with pictures that keep everything else; none that quality is measured on.
        pruned: the variant, as the store knows it, that makes the surrogates.

    Raises:
        InputError: prompts have no pictures, or the training diverged.
    """
    chosen = _erasing(method, params)
    model = subject.load()
    if without := [prompt.text for prompt in (*asked, *ordinary) if not prompt.image_ids]:
        raise InputError(f"{len(without)} prompts have no training image, such as {without[0][:60]!r}: give --images")
    if not asked or not ordinary:
        raise InputError(
            "fine-tuning needs memorized and ordinary prompts with images: give --images, and more prompts"
        )
    params_id = erase_id(method, asked, ordinary, pruned, params, sampling, sscd)
    variant = f"{method}-{params_id[:8]}"
    if weights_in_store(subject, variant) is not None:
        return {method: variant}
    measure = Sscd(sscd)
    pictures = subject.pictures([prompt.image_ids[0] for prompt in asked])
    latents = encode(model, pictures)
    surrogates = _surrogates(subject, pruned, asked, pictures, sampling, measure) if chosen.erase_weight else latents
    memorized = Memorized([p.image_ids[0] for p in asked], [p.text for p in asked], latents, surrogates)
    others = encode(model, subject.pictures([prompt.image_ids[0] for prompt in ordinary]))
    kept = Ordinary(others, model.embed([p.text for p in ordinary]))

    def held_out(unet: Any) -> float:
        return _held_out(model.with_weights(unet), memorized, pictures, chosen, sampling, measure)

    checkpoint = subject.beside("checkpoints") / f"{model.model_id[:8]}-{variant}.pt"
    with progress(steps_of(len(asked), chosen), method, "step") as stepped:
        shown = 0

        def told(now: Progress) -> None:
            nonlocal shown
            losses = {"erase": now.erase, "ordinary": now.ordinary, "attack": now.attack, "held out": now.held_out}
            words = ", ".join(f"{name} {value:.3f}" for name, value in losses.items() if value is not None)
            stepped(now.step - shown)
            shown = now.step
            tqdm.write(f"{method}, step {now.step}: {words}", file=sys.stderr)

        done = finetune(model, memorized, kept, chosen, checkpoint, told, held_out if chosen.check_every else None)
    history = [vars(step) for step in done.history]
    files = {"history.json": json.dumps(history)}
    card = uncut_card(subject, method, chosen, audit_id, "unet")
    put(subject, variant, params_id, card, done.unet, files)
    checkpoint.unlink(missing_ok=True)
    return {method: variant}


def history_of(subject: Subject, variant: str) -> list[dict[str, Any]]:
    """How the training of a variant went, a row a step: see `tasks.mitigate.finetune.Progress`.

    Raises:
        InputError: no such variant, or it was not trained.
    """
    file = subject.stored(variant)[1] / "history.json"
    if not file.is_file():
        raise InputError(f"{variant!r} was not trained, so it has no losses")
    history: list[dict[str, Any]] = json.loads(file.read_text())
    return history


def _erasing(method: Erasure, params: FineTuneParams) -> FineTuneParams:
    return FineTuneParams.model_validate(params.model_dump() | ERASURES[method])


def _surrogates(
    subject: Subject,
    pruned: str,
    asked: Sequence[Asked],
    pictures: np.ndarray,
    sampling: SamplingParams,
    measure: Sscd,
) -> torch.Tensor:
    """Latents of what the pruned model makes of each prompt, of several seeds the least like the training picture."""
    model = subject.load(pruned)
    out = []
    with progress(len(asked) * SURROGATE_SEEDS, f"surrogates by {pruned}", "picture") as done:
        for prompt, picture in zip(asked, pictures, strict=True):
            keys = [(prompt.prompt_id, seed) for seed in range(SURROGATE_SEEDS)]
            text = model.embed([prompt.text]).expand(SURROGATE_SEEDS, -1, -1)
            made = generate(model, text, keys, sampling, done)
            out.append(made[int((measure.embed(made) @ measure.embed(picture[None])[0]).argmin())])
    return encode(model, np.stack(out))


def _held_out(
    model: Model,
    memorized: Memorized,
    pictures: np.ndarray,
    params: FineTuneParams,
    sampling: SamplingParams,
    measure: Sscd,
) -> float:
    """The share of pictures that an attack with other seeds and other starts than the inner one brings back."""
    seed = params.seed + 1
    budget = DoriParams(start="other", images_at_once=params.images_at_once)
    keys = [(name, seed) for name in memorized.ids]
    found = attack(model, memorized.latents, memorized.prompts, keys, budget)
    asked = [(f"{name}/held out", seed) for name in memorized.ids]
    made = generate(model, torch.stack([trigger.embedding for trigger in found]), asked, sampling)
    return float(((measure.embed(made) * measure.embed(pictures)).sum(1) > COPY_THRESHOLD).mean())
