"""Variants in the store: what they go by, what they lost, and how they get in and out."""

import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Literal, get_args

from diffusers import UNet2DConditionModel

from storage import Store, content_key
from tasks.diffusion.precision import Precision
from tasks.errors import InputError
from tasks.localize.wanda import WandaParams
from tasks.mitigate.finetune import Erasure, FineTuneParams
from tasks.mitigate.inference import Defence, DefenceParams
from tasks.mitigate.prune import (
    Card,
    OwnCuts,
    save_card,
    save_pipeline,
    save_variant,
)
from tasks.subject import ORIGINAL, Subject

VERSION = "prune/2"
DONE: dict[Erasure | Defence | OwnCuts, str] = {
    "nemo": "each prompt is asked with the neurons silenced that NeMo found for it alone",
    "random-nemo": "each prompt is asked with as many random neurons of each layer silenced as NeMo found for it,"
    " a control",
    "adversarial-finetune": "the UNet was trained to answer adversarial embeddings of memorized pictures with others",
    "surrogate-finetune": "the UNet was trained to answer the prompts of memorized pictures with other pictures",
    "ordinary-finetune": "the UNet was trained further on ordinary pictures alone",
    "lora-finetune": "low-rank changes of the UNet's attention were trained to answer adversarial embeddings of"
    " memorized pictures with others",
    "perturbed-embedding": "prompt embeddings are moved until they steer the first step less, at inference",
    "random-tokens": "random words are added to prompts, at inference",
    "reweighted-attention": "cross-attention is kept from what sums a prompt up, at inference",
}
"""What a model card says of a mitigation that leaves no UNet with zeros."""


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


def shares_cut(subject: Subject, variants: Mapping[str, str]) -> dict[str, float]:
    """By name, the share of the searched layers' neurons or weights that a variant in the store has lost."""
    rows = subject.open().read("variants", columns=["variant", "pruned", "total"], model_id=subject.model_id)
    lost = {row["variant"]: row["pruned"] / row["total"] for row in rows.to_pylist() if row["total"]}
    return {name: lost[variant] for name, variant in variants.items() if variant in lost}


def shared_with_found(subject: Subject, variant: str) -> float:
    """Of a random cut in the store, the share that was localized, too; 0 of others."""
    card = json.loads((subject.stored(variant)[1] / "variant.json").read_text())
    return float(card.get("shared", 0.0))


def shared_members(subject: Subject, variant: str) -> tuple[float, int]:
    """That share, and how many neurons or weights the random cut has lost in all."""
    rows = subject.open().read("variants", columns=["pruned"], model_id=subject.model_id, variant=variant)
    return shared_with_found(subject, variant), int(rows["pruned"][0].as_py())


def subject_of(store: Store, model: str, variant: str) -> Subject:
    """The model, at the precision that it was audited with when this variant was made; float32 where there is none."""
    known = set(store.read("variants", columns=["model_id"], variant=variant)["model_id"].to_pylist())
    subjects = [Subject(store=store.url, model=model, prompt_set="", precision=one) for one in get_args(Precision)]
    return next((subject for subject in subjects if subject.model_id in known), subjects[0])


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


def uncut_card(
    subject: Subject,
    method: Erasure | Defence | OwnCuts,
    params: FineTuneParams | DefenceParams | None,
    audit_id: str,
    site: Literal["unet", "inference"],
    shared: float = 0.0,
) -> Card:
    """The card of a variant whose UNet, where it has one of its own, has nothing set to zero."""
    model = subject.load()
    return Card(
        title=f"{Path(subject.source).name}, {method}",
        base=subject.source,
        base_id=model.model_id,
        method=method,
        audit_id=audit_id,
        site=site,
        pruned=0,
        total=sum(weight.numel() for weight in model.unet.parameters()),
        params=params.model_dump(mode="json") if params is not None else {},
        shared=shared,
        done=DONE[method],
    )


def put(
    subject: Subject,
    variant: str,
    params_id: str,
    card: Card,
    unet: UNet2DConditionModel | None = None,
    files: Mapping[str, str] = MappingProxyType({}),
    counts: Mapping[str, int] = MappingProxyType({}),
) -> None:
    """Puts a variant into the store; without a UNet it has the weights of the original.

    Args:
        files: by name, texts that are kept beside the weights.
        counts: `pruned` and `total` of the row in `variants`, where neurons or weights were cut.
    """
    store = subject.open()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / variant
        if unet is not None:
            save_variant(unet, folder, card)
        else:
            save_card(folder, card)
        for name, text in files.items():
            (folder / name).write_text(text)
        address = store.put_folder("variants", content_key(card.base_id, variant), folder)
    put_row(subject, variant, card.method, params_id, address, counts)


def weights_in_store(subject: Subject, variant: str) -> str | None:
    """The address of a variant's files; None where the store has none, though `variants` may still name them."""
    store = subject.open()
    rows = store.read("variants", columns=["weights"], model_id=subject.model_id, variant=variant)
    return next((address for address in rows["weights"].to_pylist() if address and store.has_folder(address)), None)


def put_row(
    subject: Subject, variant: str, method: str, params_id: str, address: str, counts: Mapping[str, int]
) -> None:
    """Says in `variants` that these parameters give this variant, whose files are in the store. Several may."""
    row = {"variant": variant, "method": method, "params_id": params_id, "weights": address}
    key = content_key(subject.model_id, variant, params_id)
    subject.open().write("variants", key, [row | dict(counts)], model_id=subject.model_id)
