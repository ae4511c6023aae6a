"""Mitigating: variants of the model with what was localized set to zero, each beside a random cut of the same size;
the model trained until its memories are gone, and the rivals of both."""

import json
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
import torch
from diffusers import UNet2DConditionModel
from tqdm import tqdm

from storage import Store, content_key
from tasks.attack.dori import DoriParams, attack
from tasks.diffusion.model import Model
from tasks.diffusion.sampling import SamplingParams, encode, fitted, from_bytes, generate, picture_size
from tasks.diffusion.sites import Layer, Site, layers_of
from tasks.errors import InputError
from tasks.evaluate.sscd import COPY_THRESHOLD, Sscd, SscdParams
from tasks.localize.importance import Importance
from tasks.localize.wanda import WandaParams, over_steps
from tasks.mitigate.finetune import FineTuneParams, Memorized, Ordinary, Progress, finetune, steps_of
from tasks.mitigate.inference import Defence, DefenceParams
from tasks.mitigate.prune import (
    Card,
    Members,
    count_zeroed,
    has_control,
    random_like,
    save_card,
    save_pipeline,
    save_variant,
    without_neurons,
    without_weights,
)
from tasks.subject import ORIGINAL, Asked, Subject, progress

VERSION = "prune/2"
ERASE_VERSION = "finetune/1"
Erasure = Literal["adversarial-finetune", "surrogate-finetune", "ordinary-finetune", "lora-finetune"]
ERASURES: dict[Erasure, dict[str, Any]] = {
    "adversarial-finetune": {},
    "surrogate-finetune": {"attack_steps": 0},
    "ordinary-finetune": {"erase_weight": 0.0, "check_every": 0},
    "lora-finetune": {"lora_rank": 4},
}
"""What each training changes in the parameters: the method itself, and its rivals with one thing missing."""
SURROGATE_SEEDS = 4
"""Pictures that the pruned model makes of a prompt; the least like the training picture is the surrogate."""
Sets = dict[tuple[str, int | None, int], torch.Tensor]
Cut = Callable[[UNet2DConditionModel, Site, Members], UNet2DConditionModel]
WORDS = {
    "nemo": "the neurons that NeMo found to hold memorized training images",
    "random-nemo": "as many random neurons of each layer as NeMo found, a control,",
    "wanda": "the weights that Wanda found to hold memorized training images",
    "random-wanda": "as many random weights of each layer as Wanda found, a control,",
    "wanda-control": "the weights that Wanda finds when it takes ordinary prompts for memorized ones, a control,",
    "magnitude": "as many weights of each layer as Wanda found, those of the largest magnitude,",
    "taylor": "as many weights of each layer as Wanda found, those of the highest first-order Taylor score,",
    "gradient": "as many weights of each layer as Wanda found, those of the largest gradient,",
    "random": "as many weights of each layer as Wanda found, drawn at random,",
}
"""What a model card says of the cut, by method."""
DONE: dict[Erasure | Defence, str] = {
    "adversarial-finetune": "the UNet was trained to answer adversarial embeddings of memorized pictures with others",
    "surrogate-finetune": "the UNet was trained to answer the prompts of memorized pictures with other pictures",
    "ordinary-finetune": "the UNet was trained further on ordinary pictures alone",
    "lora-finetune": "low-rank changes of the UNet's attention were trained to answer adversarial embeddings of"
    " memorized pictures with others",
    "perturbed-embedding": "prompt embeddings are moved until they steer the first step less, at inference",
    "random-tokens": "random words are added to prompts, at inference",
    "reweighted-attention": "cross-attention is kept from what sums a prompt up, at inference",
}
"""What a model card says of a mitigation that cuts nothing."""


def cut_id(found_id: str, scopes: Sequence[str], params: WandaParams | None = None, seed: int = 0) -> str:
    """What the variants of a cut go by in `variants.params_id`, whether or not they were made yet.

    Args:
        found_id: the id of the sets.
        scopes: whose sets are cut together.
        params: Wanda's, for how sets of several steps are united.
    """
    return content_key(VERSION, found_id, sorted(scopes), params.model_dump() if params else None, seed)


def known(subject: Subject, ids: Mapping[str, str]) -> dict[str, str]:
    """Of variants given by method and params_id, those that are in the store: by method, the variant."""
    rows = subject.open().read("variants", columns=["variant", "method", "params_id"], model_id=subject.model_id)
    found = {(row["method"], row["params_id"]): row["variant"] for row in rows.to_pylist()}
    return {method: found[method, key] for method, key in ids.items() if (method, key) in found}


def cut_neurons(
    subject: Subject, params_id: str, prompt_ids: Sequence[str], audit_id: str, site: Site = Site.VALUE, seed: int = 0
) -> dict[str, str]:
    """Cuts NeMo's neurons of all these prompts together: "nemo" and "random-nemo", by name the variant in the store.

    Nothing where the search found nothing; no random cut where most of a layer was found.
    """
    model = subject.load()
    layers = layers_of(model.unet, site)
    sets = _sets(subject, "nemo", params_id, prompt_ids, layers, site)
    members = {
        layer.index: torch.unique(torch.cat([sets[name, None, layer.index] for name in prompt_ids])) for layer in layers
    }
    if not any(len(found) for found in members.values()):
        return {}
    universes = {layer.index: layer.outputs for layer in layers}
    chosen = {"nemo": members}
    if has_control(members, universes):
        chosen["random-nemo"] = random_like(members, universes, seed)
    key = cut_id(params_id, prompt_ids, seed=seed)
    return {
        name: _save(subject, model, name, found, without_neurons, site, key, audit_id, universes)
        for name, found in chosen.items()
    }


def cut_weights(
    subject: Subject,
    params_id: str,
    scope_id: str,
    params: WandaParams,
    audit_id: str,
    site: Site = Site.FEED_FORWARD_HIDDEN,
    seed: int = 0,
    method: Literal["wanda", "wanda-control"] = "wanda",
) -> dict[str, str]:
    """Cuts Wanda's weights of a scope: "wanda" and "random-wanda", by name the variant in the store.

    Nothing where no weight scored higher for memorized prompts than for null prompts; no random cut where most of a
    layer was found. What was found for ordinary prompts, "wanda-control", is cut alone: it is a control itself.

    Args:
        params: how the sets of the steps are united; fewer steps than were localized may be.
    """
    model = subject.load()
    layers = layers_of(model.unet, site)
    sets = _sets(subject, method, params_id, [scope_id], layers, site)
    universes = {layer.index: layer.outputs * layer.inputs for layer in layers}
    by_step = {(step, index): found for (_, step, index), found in sets.items() if step is not None}
    members = over_steps(by_step, universes, params)
    if not any(len(found) for found in members.values()):
        return {}
    chosen: dict[str, dict[int, torch.Tensor]] = {method: members}
    if method == "wanda" and has_control(members, universes):
        chosen["random-wanda"] = random_like(members, universes, seed)
    key = cut_id(params_id, [scope_id], params, seed)
    return {
        name: _save(subject, model, name, found, without_weights, site, key, audit_id, universes, params)
        for name, found in chosen.items()
    }


def cut_scored(
    subject: Subject,
    method: Importance,
    params_id: str,
    scope_id: str,
    audit_id: str,
    site: Site = Site.FEED_FORWARD_HIDDEN,
) -> dict[str, str]:
    """Cuts the weights that another importance score chose for a scope: by the score's name the variant in the store.

    Nothing where Wanda, whose numbers they follow, found nothing.
    """
    model = subject.load()
    layers = layers_of(model.unet, site)
    sets = _sets(subject, method, params_id, [scope_id], layers, site)
    members = {index: found for (_, _, index), found in sets.items()}
    if not any(len(found) for found in members.values()):
        return {}
    universes = {layer.index: layer.outputs * layer.inputs for layer in layers}
    key = cut_id(params_id, [scope_id])
    return {method: _save(subject, model, method, members, without_weights, site, key, audit_id, universes)}


def erase_id(
    method: Erasure,
    asked: Sequence[Asked],
    ordinary: Sequence[Asked],
    pruned: str,
    params: FineTuneParams,
    sampling: SamplingParams,
) -> str:
    """What a training goes by in `variants.params_id`, whether or not it ran yet. See `erase`."""
    return content_key(
        ERASE_VERSION,
        method,
        _erasing(method, params).model_dump(exclude={"images_at_once", "save_every"}),
        sampling.model_dump(exclude={"batch"}),
        pruned,
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
    store, model = subject.open(), subject.load()
    if without := [prompt.text for prompt in (*asked, *ordinary) if not prompt.image_ids]:
        raise InputError(f"{len(without)} prompts have no training image, such as {without[0][:60]!r}: give --images")
    if not asked or not ordinary:
        raise InputError(
            "fine-tuning needs memorized and ordinary prompts with images: give --images, and more prompts"
        )
    params_id = erase_id(method, asked, ordinary, pruned, params, sampling)
    variant = f"{method}-{params_id[:8]}"
    key = content_key(model.model_id, variant)
    if store.has("variants", key, model_id=model.model_id):
        return {method: variant}
    measure = Sscd(sscd)
    pictures = _pictures(store, model, asked)
    latents = encode(model, pictures)
    surrogates = _surrogates(subject, pruned, asked, pictures, sampling, measure) if chosen.erase_weight else latents
    memorized = Memorized([p.image_ids[0] for p in asked], [p.text for p in asked], latents, surrogates)
    kept = Ordinary(encode(model, _pictures(store, model, ordinary)), model.embed([p.text for p in ordinary]))

    def held_out(unet: Any) -> float:
        return _held_out(model.with_weights(unet), memorized, pictures, chosen, sampling, measure)

    checkpoint = subject.beside("checkpoints") / f"{variant}.pt"
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
    _put(subject, model, variant, method, params_id, key, chosen, audit_id, done.unet, files)
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


def defend_id(method: Defence, params: DefenceParams) -> str:
    """What a mitigation at inference goes by in `variants.params_id`."""
    return content_key(VERSION, method, params.model_dump())


def defend(subject: Subject, method: Defence, params: DefenceParams, audit_id: str) -> dict[str, str]:
    """The model under a mitigation at inference, its weights untouched: by name the variant in the store."""
    store, model = subject.open(), subject.load()
    params_id = defend_id(method, params)
    variant = f"{method}-{params_id[:8]}"
    key = content_key(model.model_id, variant)
    if not store.has("variants", key, model_id=model.model_id):
        _put(subject, model, variant, method, params_id, key, params, audit_id)
    return {method: variant}


def export_variant(subject: Subject, variant: str, folder: Path, changed_only: bool = False) -> None:
    """Writes a variant that lies in the store as a folder that diffusers loads anywhere, with its model card.

    Args:
        folder: must not be there yet.
        changed_only: only the UNet, with a reference to the base; else the whole pipeline.

    Raises:
        InputError: there is no such variant, the model is gone, or the folder is there already.
    """
    if subject.weights_of(variant) == ORIGINAL:
        raise InputError(f"{variant!r} has the weights of the model at {subject.model} itself: name another variant")
    card = Card(**json.loads((subject.stored(variant)[1] / "variant.json").read_text()))
    unet = subject.load(variant).unet
    if changed_only:
        save_variant(unet, folder, card)
    else:
        save_pipeline(subject.model, unet, folder, card)


def shares_cut(subject: Subject, variants: Mapping[str, str]) -> dict[str, float]:
    """By name, the share of the searched layers' neurons or weights that a variant in the store has lost."""
    rows = subject.open().read("variants", columns=["variant", "pruned", "total"], model_id=subject.model_id)
    lost = {row["variant"]: row["pruned"] / row["total"] for row in rows.to_pylist() if row["total"]}
    return {name: lost[variant] for name, variant in variants.items() if variant in lost}


def _save(
    subject: Subject,
    model: Model,
    method: str,
    members: dict[int, torch.Tensor],
    cut: Cut,
    site: Site,
    params_id: str,
    audit_id: str,
    universes: dict[int, int],
    params: WandaParams | None = None,
) -> str:
    """Puts the pruned UNet into the store under a name that its content determines."""
    store = subject.open()
    digest = content_key(VERSION, model.model_id, site.value, {str(k): v.long().numpy() for k, v in members.items()})
    variant = f"{method}-{digest[:8]}"
    key = content_key(model.model_id, variant)
    if store.has("variants", key, model_id=model.model_id):
        return variant
    unet = cut(model.unet, site, members)
    zeroed, total = count_zeroed(model.unet, unet)
    names = {layer.index: layer.name for layer in layers_of(model.unet, site)}
    card = Card(
        title=f"{Path(subject.model).name}, {method}",
        base=subject.model,
        base_id=model.model_id,
        method=method,
        audit_id=audit_id,
        site=site.value,
        pruned=zeroed,
        total=total,
        members={names[index]: len(found) for index, found in members.items()},
        params=params.model_dump() if params is not None else {},
        cut=WORDS[method],
    )
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / variant
        save_variant(unet, folder, card)
        address = store.put_folder("variants", key, folder)
    row = {
        "variant": variant,
        "method": method,
        "params_id": params_id,
        "weights": address,
        "pruned": sum(len(found) for found in members.values()),
        "total": sum(universes.values()),
    }
    store.write("variants", key, [row], model_id=model.model_id)
    return variant


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


def _pictures(store: Store, model: Model, asked: Sequence[Asked]) -> np.ndarray:
    """The first training picture of each prompt at the model's size, uint8 (n, height, width, 3)."""
    wanted = [prompt.image_ids[0] for prompt in asked]
    rows = store.read("images", columns=["image_id", "bytes"])
    data = {
        name: one.as_py()
        for name, one in zip(rows["image_id"].to_pylist(), rows["bytes"], strict=True)
        if name in set(wanted)
    }
    if lost := set(wanted) - data.keys():
        raise InputError(f"the store has no image {min(lost)}: import the prompts with their images")
    size = picture_size(model)
    return np.stack([fitted(from_bytes(data[name]), size) for name in wanted])


def _put(
    subject: Subject,
    model: Model,
    variant: str,
    method: Erasure | Defence,
    params_id: str,
    key: str,
    params: FineTuneParams | DefenceParams,
    audit_id: str,
    unet: UNet2DConditionModel | None = None,
    files: Mapping[str, str] = MappingProxyType({}),
) -> None:
    """Puts a variant that cuts nothing into the store; without a UNet it has the weights of the original."""
    store = subject.open()
    card = Card(
        title=f"{Path(subject.model).name}, {method}",
        base=subject.model,
        base_id=model.model_id,
        method=method,
        audit_id=audit_id,
        site="inference" if unet is None else "unet",
        pruned=0,
        total=sum(weight.numel() for weight in model.unet.parameters()),
        params=params.model_dump(mode="json"),
        done=DONE[method],
    )
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / variant
        if unet is not None:
            save_variant(unet, folder, card)
        else:
            save_card(folder, card)
        for name, text in files.items():
            (folder / name).write_text(text)
        address = store.put_folder("variants", key, folder)
    row = {"variant": variant, "method": method, "params_id": params_id, "weights": address}
    store.write("variants", key, [row], model_id=model.model_id)


def _sets(
    subject: Subject, method: str, params_id: str, scope_ids: Sequence[str], layers: tuple[Layer, ...], site: Site
) -> Sets:
    """Sets in the store: by scope id, step and layer index, sorted members."""
    numbers = {layer.name: layer.index for layer in layers}
    rows = subject.open().read(
        "neuron_sets",
        columns=["scope_id", "step", "layer", "members"],
        model_id=subject.model_id,
        method=method,
        site=site.value,
        params_id=params_id,
    )
    wanted, found = set(scope_ids), {}
    scopes, steps, names = (rows[column].to_pylist() for column in ("scope_id", "step", "layer"))
    for scope, step, name, members in zip(scopes, steps, names, rows["members"], strict=True):
        if scope in wanted:
            found[scope, step, numbers[name]] = torch.from_numpy(members.values.to_numpy().astype("int64"))
    if lost := wanted - {scope for scope, _, _ in found}:
        raise InputError(f"the store has no {method} sets of {min(lost)!r}: run the localization first")
    return found
