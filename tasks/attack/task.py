"""Attacking: adversarial embeddings for training images, and the same budget for pictures never memorized."""

from collections.abc import Sequence

import numpy as np

from storage import content_key
from tasks.attack.dori import DoriParams, attack
from tasks.diffusion.sampling import encode, fitted, from_bytes, picture_size
from tasks.errors import InputError
from tasks.subject import Asked, Subject, progress, shards

VERSION = "dori/1"


def attack_images(
    subject: Subject, variant: str, asked: Sequence[Asked], pool: Sequence[str], params: DoriParams, seed: int = 0
) -> dict[str, list[str]]:
    """Searches triggers for the first image of each prompt.

    Args:
        variant: as the store knows it.
        pool: prompts that other starts are drawn from and noise is matched to; the same for all shards.

    Returns:
        By prompt id, the ids of its triggers, one a restart.

    Raises:
        InputError: a prompt has no image in the store.
    """
    store = subject.open()
    if without := [prompt.text for prompt in asked if not prompt.image_ids]:
        raise InputError(f"{len(without)} prompts have no training image, such as {without[0][:60]!r}: give --images")
    settings = params.model_dump(exclude={"images_at_once", "keep_every", "restarts"})
    names = {
        (prompt.prompt_id, restart): content_key(
            VERSION,
            subject.model_id,
            variant,
            prompt.image_ids[0],
            prompt.text,
            settings,
            sorted(set(pool)),
            seed,
            restart,
        )
        for prompt in asked
        for restart in range(params.restarts)
    }
    stored = store.read("triggers", columns=["trigger_id"], model_id=subject.model_id, variant=variant)
    known = set(stored["trigger_id"].to_pylist())
    todo = [p for p in asked if any(names[p.prompt_id, r] not in known for r in range(params.restarts))]
    total = len(todo) * params.restarts * params.steps
    with progress(total, f"attacking {variant} from {params.start}", "step") as done:
        for block in shards(todo, params.images_at_once):
            model = subject.load(variant)
            size = picture_size(model)
            pictures = [fitted(from_bytes(_image(subject, prompt.image_ids[0])), size) for prompt in block]
            latents = encode(model, np.stack(pictures))
            keys = [(prompt.image_ids[0], seed) for prompt in block]
            found = attack(model, latents, [p.text for p in block], keys, params, pool, done)
            of = [prompt for prompt in block for _ in range(params.restarts)]
            rows = [
                {
                    "image_id": prompt.image_ids[0],
                    "trigger_id": names[prompt.prompt_id, it.restart],
                    "start": params.start,
                    "restart": it.restart,
                    "embedding": it.embedding.flatten().numpy(),
                    "shape": list(it.embedding.shape),
                    "loss": it.losses,
                }
                for prompt, it in zip(of, found, strict=True)
            ]
            key = content_key([row["trigger_id"] for row in rows])
            store.write("triggers", key, rows, model_id=subject.model_id, variant=variant)
    return {p.prompt_id: [names[p.prompt_id, restart] for restart in range(params.restarts)] for p in asked}


def _image(subject: Subject, image_id: str) -> bytes:
    rows = subject.open().read("images", columns=["bytes"], image_id=image_id).to_pylist()
    if not rows:
        raise InputError(f"the store has no image {image_id}: import the prompts with their images")
    data: bytes = rows[0]["bytes"]
    return data
