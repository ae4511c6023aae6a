"""The model trained until its memories are gone, and the baselines of that."""

import json
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from tqdm import tqdm

from storage import content_key
from tasks.diffusion.families import Model
from tasks.diffusion.footprint import without_weights
from tasks.diffusion.sampling import SamplingParams, encode, generate
from tasks.dori import DoriParams, attack
from tasks.errors import InputError, TooLarge, out_of_memory
from tasks.methods import Mitigation, Params
from tasks.mitigate.task.checkpoints import StoredCheckpoint
from tasks.mitigate.task.memory import too_large
from tasks.mitigate.task.surrogates import surrogates
from tasks.mitigate.task.variants import put, unpruned_card, variant_of
from tasks.mitigate.training import Lesson, Memorized, Ordinary, Progress, Trained
from tasks.params import determining
from tasks.progress import progress
from tasks.scorers.sscd import COPY_THRESHOLD, Sscd, SscdParams, scorer_of
from tasks.subject import Prompt, Subject

HELD_OUT_IMAGES = 48
"""Images that the attack by which a training may stop is made on, at most."""


def erase_id(
    mitigation: Mitigation,
    prompts: Sequence[Prompt],
    ordinary: Sequence[Prompt],
    pruned: str | None,
    params: Params,
    sampling: SamplingParams,
    sscd: SscdParams,
) -> str:
    """What a training goes by in `variants.params_id`, whether or not it ran yet. See `erase`."""
    return mitigation.id(
        mitigation.changed(params),
        determining(sampling),
        pruned,
        scorer_of(sscd),  # it chooses the surrogates, and says what a held-out attack brings back
        [(prompt.text, prompt.image_ids) for prompt in prompts],
        [(prompt.text, prompt.image_ids[0]) for prompt in ordinary],
    )


def erase(
    subject: Subject,
    mitigation: Mitigation,
    prompts: Sequence[Prompt],
    ordinary: Sequence[Prompt],
    pruned: str | None,
    params: Params,
    sampling: SamplingParams,
    sscd: SscdParams,
    audit_id: str,
) -> dict[str, str]:
    """Trains the memories of these prompts away, or a baseline of that: by name the variant in the store.

    Every image of a prompt is erased: of a template's near copies each one keeps up the memory of all. A checkpoint
    lies in the store while it runs: killed and called again, here or on another machine, it goes on to the same
    weights.

    A prompt of which the pruned model makes nothing but copies has no surrogate: it is left out, since training would
    teach the memory to every trigger. See `not_erased`.

    Args:
        prompts: memorized prompts, with their training images.
        ordinary: prompts with images that keep everything else; none that quality is measured on.
        pruned: the variant, as the store knows it, that makes the surrogates; None where none are read.
        params: those of the mitigation's group of settings.

    Raises:
        InputError: prompts have no images, or none has a surrogate.
        Diverged: the loss is not finite.
        TooLarge: the training does not fit into the device's memory.
    """
    own, name = mitigation.changed(params), mitigation.name
    model = subject.load()
    if without := [prompt.text for prompt in (*prompts, *ordinary) if not prompt.image_ids]:
        raise InputError(f"{len(without)} prompts have no training image, such as {without[0][:60]!r}: give --images")
    if not prompts or not ordinary:
        raise InputError(
            "fine-tuning needs memorized and ordinary prompts with images: give --images, and more prompts"
        )
    params_id = erase_id(mitigation, prompts, ordinary, pruned, params, sampling, sscd)
    variant = variant_of(name, params_id)
    if _in_store(subject, variant):
        return {name: variant}
    # Before surrogates are made, which takes long.
    if problems := too_large([(mitigation, params)], without_weights(model), model.device):
        raise TooLarge(*problems)
    measure = Sscd(sscd, model.device)
    kept_out: list[str] = []
    stand_ins: list[np.ndarray] = []
    if mitigation.reads_surrogates(own):
        assert pruned is not None
        made = surrogates(subject, pruned, prompts, sampling, measure)
        kept_out = [prompt.text for prompt, some in zip(prompts, made, strict=True) if not some]
        prompts = [prompt for prompt, some in zip(prompts, made, strict=True) if some]
        stand_ins = [surrogate for some in made for surrogate in some]
        if not prompts:
            raise InputError(f"{pruned} copies every memorized image still, so nothing can stand for them: prune more")
    rows = [(image, prompt.text) for prompt in prompts for image in prompt.image_ids]
    images, texts = [image for image, _ in rows], [text for _, text in rows]
    originals = subject.training_images(images)
    latents = encode(model, originals)
    memorized = Memorized(images, texts, latents, encode(model, np.stack(stand_ins)) if stand_ins else latents)
    captions = [prompt.text for prompt in ordinary]
    others = encode(model, subject.training_images([prompt.image_ids[0] for prompt in ordinary]))

    def held_out(denoiser: Any, seed: int, seeds: int, images_at_once: int = 4) -> float:
        attacked, budget = model.with_denoiser(denoiser), DoriParams(start="other", images_at_once=images_at_once)
        return _held_out(attacked, memorized, captions, originals, budget, seed, seeds, sampling, measure)

    checkpoint = StoredCheckpoint(subject.open(), f"{model.model_id[:8]}-{variant}")
    with _shown(name) as on_progress:
        lesson = Lesson(model, memorized, Ordinary(others, model.encode(captions)), checkpoint, held_out, on_progress)
        try:
            done: Trained = mitigation.function(lesson, own)
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
            raise TooLarge(
                f"{name} does not fit into the device's memory: it takes a second denoiser in float32, and five times"
                " what of it is trained"
            ) from error
    history = [vars(step) for step in done.history]
    files = {"history.json": json.dumps(history), "not_erased.json": json.dumps(kept_out)}
    card = unpruned_card(subject, name, own, audit_id, "denoiser", mitigation.done)
    put(subject, name, params_id, card, weights=_put_weights(subject, variant, model.denoiser, done.denoiser, files))
    checkpoint.remove()
    return {name: variant}


@contextmanager
def _shown(name: str) -> Iterator[Callable[[Progress], None]]:
    """A bar for a training, whose number of steps its first one says, and a line for each step."""
    with ExitStack() as stack:
        stepped: Callable[[int], None] | None = None
        shown = 0

        def on_progress(now: Progress) -> None:
            nonlocal stepped, shown
            stepped = stepped or stack.enter_context(progress(now.total, name, "step"))
            losses = {"erase": now.erase, "ordinary": now.ordinary, "attack": now.attack, "held out": now.held_out}
            words = ", ".join(f"{name} {value:.3f}" for name, value in losses.items() if value is not None)
            stepped(now.step - shown)
            shown = now.step
            tqdm.write(f"{name}, step {now.step}: {words}", file=sys.stderr)

        yield on_progress


def history_of(subject: Subject, variant: str) -> list[dict[str, Any]]:
    """How the training of a variant went, a row a step: see `tasks.mitigate.training.Progress`.

    Raises:
        InputError: no such variant, or it was not trained.
    """
    history: list[dict[str, Any]] = json.loads(_file(subject, variant, "history.json"))
    return history


def not_erased(subject: Subject, variant: str) -> list[str]:
    """Prompts that a training left out because the pruned model made nothing but copies of them.

    Raises:
        InputError: no such variant, or it was not trained.
    """
    left_out: list[str] = json.loads(_file(subject, variant, "not_erased.json"))
    return left_out


def _in_store(subject: Subject, variant: str) -> bool:
    """Whether a trained variant is there with its weights: the row may still name a folder that was removed."""
    store = subject.open()
    rows = store.read("variants", columns=["weights"], model_id=subject.model_id, variant=variant)
    return any(store.has_folder(address) for address in rows["weights"].to_pylist())


def _put_weights(subject: Subject, variant: str, before: Any, after: Any, files: Mapping[str, str]) -> str:
    """Puts the parameters that training changed into the store, at the model's precision, and returns their address.

    Args:
        before, after: the denoiser.
        files: by name, texts that are kept beside them.
    """
    trained = {name: after.get_parameter(name).detach().to(old) for name, old in before.named_parameters()}
    changed = {
        name: new.contiguous() for name, new in trained.items() if not torch.equal(new, before.get_parameter(name))
    }
    with tempfile.TemporaryDirectory() as scratch:
        save_file(changed, Path(scratch) / "changed.safetensors")
        for name, text in files.items():
            (Path(scratch) / name).write_text(text)
        return subject.open().put_folder("variants", content_key(subject.model_id, variant), Path(scratch))


def _file(subject: Subject, variant: str, name: str) -> str:
    """A text that lies beside the weights of a trained variant."""
    weights = subject.row(variant)["weights"]
    file = subject.open().get_folder(weights) / name if weights else None
    if file is None or not file.is_file():
        raise InputError(f"{variant!r} was not trained, so it has no {name}")
    return file.read_text()


def _held_out(
    model: Model,
    memorized: Memorized,
    captions: Sequence[str],
    originals: np.ndarray,
    budget: DoriParams,
    seed: int,
    seeds: int,
    sampling: SamplingParams,
    measure: Sscd,
) -> float:
    """The share of images that an attack brings back.

    As in an audit, a copy of any image of the prompt counts: of a template another may come back. Of many images
    `HELD_OUT_IMAGES` are attacked, evenly spread, the same at each check.

    Args:
        captions: ordinary ones, at which it begins.
        originals: uint8 (n, height, width, 3), those that are erased.
        seed: of the attack, and the first of its generations.
        seeds: generations of each trigger.
    """
    rows = np.linspace(0, len(originals) - 1, min(len(originals), HELD_OUT_IMAGES)).round().astype(int).tolist()
    names = [memorized.ids[row] for row in rows]
    keys, prompts = [(name, seed) for name in names], [memorized.prompts[row] for row in rows]
    found = attack(model, memorized.latents[rows], prompts, keys, budget, captions)
    keyed = [(f"{name}/held out", seed + shot) for name in names for shot in range(seeds)]
    triggers = torch.stack([trigger.embedding for trigger in found]).repeat_interleave(seeds, 0)
    made = measure.embed(generate(model, triggers, keyed, sampling)).reshape(len(rows), seeds, -1)
    trained = measure.embed(originals)
    alike = [
        float((made[n] @ trained[[text == memorized.prompts[row] for text in memorized.prompts]].T).max())
        for n, row in enumerate(rows)
    ]
    return float(np.mean(np.array(alike) > COPY_THRESHOLD))
