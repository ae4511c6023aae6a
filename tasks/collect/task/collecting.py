"""Collecting what the network does under each prompt.

Work is kept prompt by prompt, so that a larger audit adds to a smaller one and shards of any size combine.
"""

from collections.abc import Collection, Sequence
from datetime import UTC, datetime
from typing import Any

import torch

from storage import Store, content_key
from tasks.collect.norms import norms_by_prompt
from tasks.collect.values import SEEDS, STEPS, seen_activations, value_activations
from tasks.diffusion.batches import in_batches
from tasks.diffusion.check import check_sampling
from tasks.diffusion.detection import detection_timestep
from tasks.diffusion.footprint import fitting
from tasks.diffusion.sampling import SamplingParams, guided
from tasks.diffusion.sites import Layer, Site
from tasks.keys import SEED, norms_id, prompt_id, values_id
from tasks.progress import progress
from tasks.subject import ORIGINAL, Prompt, Subject, shards

SHARD = 64
READ = 256
"""Prompts whose text is read at a time."""


def register_model(subject: Subject, sampling: SamplingParams | None = None) -> str:
    """Writes the model's row and that of its original variant, and returns its fingerprint.

    Before that, once for each model and choice of scheduler, its sampling is compared with that of its own pipeline. A
    part of `models` without rows says that this was done.

    Raises:
        InputError: the model cannot be loaded, or the two part, see `check_sampling`.
    """
    model, store, sampling = subject.load(), subject.open(), sampling or SamplingParams()
    checked = content_key("sampled as by its pipeline", model.model_id, sampling.scheduler)
    if not store.has("models", checked):
        check_sampling(model, sampling)
        store.write("models", checked, [])
    row = {
        "model_id": model.model_id,
        "source": subject.source,
        "family": model.family,
        "created_at": datetime.now(UTC),
    }
    store.write("models", model.model_id, [row])
    original = {"model_id": model.model_id, "variant": ORIGINAL, "method": "none", "params_id": content_key("none")}
    store.write("variants", content_key(model.model_id, ORIGINAL), [original], model_id=model.model_id)
    return model.model_id


def collect_values(subject: Subject, prompts: Sequence[Prompt], site: Site) -> None:
    """Value activations of prompts, all of which are kept. They need the text embedding alone where the model's text
    attends to nothing else; see `tasks.collect.values`."""
    model, store = subject.load(), subject.open()
    layers = model.layers(site)
    params_id = values_id()
    known = _known(store, subject, site, params_id)
    todo = [prompt for prompt in prompts if _lacking(prompt, layers, known)]
    with progress(len(todo), f"activations at {site.value}", "prompt") as done:
        size = 1024 if site in model.text_alone else SHARD
        for block in shards(prompts, size, lambda prompt: _lacking(prompt, layers, known)):
            if site in model.text_alone:

                def read(rows: slice, block: Sequence[Prompt] = block) -> list[torch.Tensor]:
                    embeddings = subject.embed(block[rows])
                    return value_activations(layers, model.text_input(site, embeddings), model.mask(embeddings))

                # Of 1024 prompts of PixArt the embeddings alone take gigabytes.
                pieces = list(in_batches(len(block), fitting(model, "text", READ), read))
                found = [torch.cat(of_layer) for of_layer in zip(*pieces, strict=True)]
                how: dict[str, int] = {"tokens": model.tokens}
            else:
                found = seen_activations(model, layers, subject.embed(block), [prompt.noise for prompt in block])
                how = {"timestep": round(detection_timestep(model, STEPS))}
            rows = [
                {
                    "prompt_id": prompt.prompt_id,
                    "layer": layer.name,
                    "mean_abs": values[row].numpy(),
                    "params_id": params_id,
                }
                | how
                for layer, values in zip(layers, (layer.cpu() for layer in found), strict=True)
                for row, prompt in enumerate(block)
                if (prompt.prompt_id, layer.name) not in known
            ]
            _write(store, subject, site, params_id, block, rows)
            done(len(block))


def cost_of_values(subject: Subject, site: Site) -> float:
    """Evaluations of the denoiser that the value activations of a prompt take; the model is not loaded."""
    return 0.0 if site in subject.family.text_alone else float(SEEDS)


def collect_norms(
    subject: Subject,
    prompts: Sequence[Prompt],
    sampling: SamplingParams,
    steps: int,
    site: Site = Site.FEED_FORWARD_HIDDEN,
) -> str:
    """Feature norms of prompts over the first `steps` of their trajectories, the halves of guidance apart.

    No step beyond them is computed: later ones do not change what is seen before.

    Returns:
        The id of the collection. Rows of the conditional half carry it with "-cond", those of the other with "-uncond".
    """
    model, store = subject.load(), subject.open()
    layers = model.layers(site)
    params_id = norms_id(sampling, steps)
    halves = ("cond", "uncond") if guided(model, sampling) else ("cond",)
    known = {half: _known(store, subject, site, f"{params_id}-{half}") for half in halves}

    def lacking(prompt: Prompt) -> bool:
        return any(_lacking(prompt, layers, known[half]) for half in halves)

    with progress(sum(map(lacking, prompts)), f"feature norms at {site.value}", "prompt") as done:
        for block in shards(prompts, min(SHARD, sampling.batch), lacking):
            keys = [(prompt.noise, SEED) for prompt in block]
            embeddings = subject.embed(block)
            rows: list[dict[str, Any]] = []
            seen = 0
            for norms in norms_by_prompt(model, layers, embeddings, keys, sampling, steps=steps):
                for half, sums in (("cond", norms.conditional), ("uncond", norms.unconditional)):
                    for (step, index), values in sums.items():
                        layer = layers[index].name
                        rows += [
                            {
                                "prompt_id": prompt.prompt_id,
                                "layer": layer,
                                "step": step,
                                "timestep": norms.timesteps[step],
                                "sum_sq": one.float().numpy(),
                                # The squares of a unit vector sum to 1.
                                "tokens": round(float(one.sum())),
                                "params_id": f"{params_id}-{half}",
                            }
                            for prompt, one in zip(block[seen:], values, strict=False)
                            if (prompt.prompt_id, layer) not in known[half]
                        ]
                seen += len(next(iter(norms.conditional.values())))
            _write(store, subject, site, params_id, block, rows)
            done(len(block))
    return params_id


def empty_prompts(count: int) -> list[Prompt]:
    """The published null prompts: the empty text so many times.

    They are no prompts of a set, so they have ids of their own, from which their noise follows. The published code
    gives every prompt, memorized or null, the same initial noise; here each has its own, so that a set does not depend
    on one draw.
    """
    return [Prompt(prompt_id(f"\0{number}"), "", "null", None, None, ()) for number in range(count)]


def _known(store: Store, subject: Subject, site: Site, params_id: str) -> set[tuple[str, str]]:
    """The prompts and layers that are there: a worker may have been killed between them, or a damaged part deleted.

    What is there is not written again beside other prompts: two parts must not hold the same row.
    """
    partition = {"model_id": subject.model_id, "variant": ORIGINAL, "site": site.value, "params_id": params_id}
    rows = store.read("activations", columns=["prompt_id", "layer"], **partition)
    return set(zip(rows["prompt_id"].to_pylist(), rows["layer"].to_pylist(), strict=True))


def _lacking(prompt: Prompt, layers: Sequence[Layer], known: Collection[tuple[str, str]]) -> bool:
    """Whether a layer of this prompt is not there."""
    return any((prompt.prompt_id, layer.name) not in known for layer in layers)


def _write(
    store: Store, subject: Subject, site: Site, params_id: str, block: Sequence[Prompt], rows: list[dict[str, Any]]
) -> None:
    key = content_key(subject.model_id, site.value, params_id, [prompt.prompt_id for prompt in block])
    store.write_parts("activations", key, rows, model_id=subject.model_id, variant=ORIGINAL, site=site.value)
