"""Attacking: adversarial embeddings for training images, and the same budget for images never memorized."""

from collections.abc import Mapping, Sequence
from itertools import product

import numpy as np

from storage import Written, content_key
from tasks.diffusion.sampling import encode
from tasks.dori import DoriParams as DoriParams
from tasks.dori import attack
from tasks.errors import InputError
from tasks.progress import progress
from tasks.subject import Prompt, Subject, shards

VERSION = "dori/2"


def attack_images(
    subject: Subject, variant: str, prompts: Sequence[Prompt], pool: Sequence[str], params: DoriParams, seed: int = 0
) -> dict[str, list[str]]:
    """Searches triggers for the first image of each prompt.

    Budgets that `params.also_at` names are written as attacks of their own: a search of fewer steps is the beginning of
    this one.

    Args:
        variant: as the store knows it. What a mitigation does at inference is not attacked: its triggers are the
            original's, and meet it when images are made.
        pool: prompts that other starts are drawn from and noise is matched to; the same for all shards.

    Returns:
        By prompt id, the ids of its triggers, one a restart.

    Raises:
        InputError: a prompt has no image in the store.
    """
    store, variant = subject.open(), subject.weights_of(variant)
    if without := [prompt.text for prompt in prompts if not prompt.image_ids]:
        raise InputError(f"{len(without)} prompts have no training image, such as {without[0][:60]!r}: give --images")
    names = _names(subject, variant, prompts, pool, params, seed)
    stored = store.read("triggers", columns=["trigger_id"], model_id=subject.model_id, variant=variant)
    known = set(stored["trigger_id"].to_pylist())
    budgets = _budgets(params)
    wanted = [(r, steps) for r in range(params.restarts) for steps in budgets]

    def lacking(prompt: Prompt) -> bool:
        return any(names[prompt.prompt_id, *one] not in known for one in wanted)

    todo = [prompt for prompt in prompts if lacking(prompt)]
    total = len(todo) * params.restarts * params.steps
    of_prompt: dict[str, np.ndarray] = {}
    if todo:
        images = subject.training_images([prompt.image_ids[0] for prompt in todo])
        of_prompt = {prompt.prompt_id: image for prompt, image in zip(todo, images, strict=True)}
    with progress(total, f"attacking {variant} from {params.start}", "step") as done:
        for prompt_id, some in subject.by_model(variant, prompts, lambda one: one.prompt_id):
            blocks = list(shards(some, params.images_at_once, lacking))
            if not blocks:
                continue
            with subject.loaded(variant, prompt_id) as model:
                for block in blocks:
                    latents = encode(model, np.stack([of_prompt[prompt.prompt_id] for prompt in block]))
                    keys = [(prompt.image_ids[0], seed) for prompt in block]
                    found = attack(model, latents, [p.text for p in block], keys, params, pool, done)
                    of = [prompt for prompt in block for _ in range(params.restarts)]
                    for (prompt, it), steps in product(zip(of, found, strict=True), budgets):
                        name = names[prompt.prompt_id, it.restart, steps]
                        if name in known:
                            continue
                        row = {
                            "image_id": prompt.image_ids[0],
                            "trigger_id": name,
                            "start": params.start,
                            "restart": it.restart,
                            "embedding": it.after(steps).flatten().numpy(),
                            "shape": list(it.embedding.shape),
                            "distance": it.distance(steps),
                            "loss": it.losses[:steps],
                        }
                        # A part a trigger: whoever else searches it, in whatever company, writes the same part.
                        store.write("triggers", name, [row], model_id=subject.model_id, variant=variant)
    return _by_prompt(prompts, names, params)


def triggers_of(
    subject: Subject, variant: str, prompts: Sequence[Prompt], pool: Sequence[str], params: DoriParams, seed: int = 0
) -> dict[str, list[str]]:
    """The ids that `attack_images` gives, whether or not it ran yet.

    Args:
        variant: whose weights are attacked: the original's, where a mitigation acts at inference.
    """
    return _by_prompt(prompts, _names(subject, variant, prompts, pool, params, seed), params)


def starts_of(
    subject: Subject, variant: str, prompts: Sequence[Prompt], pool: Sequence[str], params: DoriParams, seed: int = 0
) -> dict[str, list[str]]:
    """The ids of where these searches began, if `params.also_at` asked for 0 steps: triggers like others."""
    return triggers_of(subject, variant, prompts, pool, params.model_copy(update={"steps": 0, "also_at": ()}), seed)


def _budgets(params: DoriParams) -> list[int]:
    """The numbers of steps that a search is written for."""
    return [*sorted({steps for steps in params.also_at if steps < params.steps}), params.steps]


def _by_prompt(
    prompts: Sequence[Prompt], names: Mapping[tuple[str, int, int], str], params: DoriParams
) -> dict[str, list[str]]:
    return {
        p.prompt_id: [names[p.prompt_id, restart, params.steps] for restart in range(params.restarts)] for p in prompts
    }


def _names(
    subject: Subject, variant: str, prompts: Sequence[Prompt], pool: Sequence[str], params: DoriParams, seed: int
) -> dict[tuple[str, int, int], str]:
    """Trigger ids by prompt id, restart and number of steps."""
    settings = params.model_dump(exclude={"images_at_once", "also_at", "restarts"})
    texts, model_id = Written.of(sorted(set(pool))), subject.model_id
    return {
        (prompt.prompt_id, restart, steps): content_key(
            VERSION,
            model_id,
            variant,
            prompt.image_ids[0],
            prompt.text,
            settings | {"steps": steps},
            texts,
            seed,
            restart,
        )
        for prompt in prompts
        for restart in range(params.restarts)
        for steps in _budgets(params)
    }
