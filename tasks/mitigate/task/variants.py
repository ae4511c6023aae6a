"""Variants in the store: what they go by, what they lost, and how they get in and out."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import BaseModel

from storage import Store, content_key
from tasks.diffusion.precision import Precision
from tasks.errors import InputError
from tasks.mitigate.prune import Card, save_pipeline, save_variant
from tasks.pruned import Pruned
from tasks.subject import ORIGINAL, Subject

VERSION = "prune/3"


def prune_id(pruned: Pruned, seed: int | None = None) -> str:
    """What a pruned variant goes by in `variants.params_id`, whether or not it was made yet.

    Args:
        seed: of its random control.
    """
    return content_key(VERSION, pruned.id, seed)


def variant_of(method: str, params_id: str) -> str:
    """The name of a variant in the store."""
    return f"{method}-{params_id[:8]}"


def known(subject: Subject, ids: Mapping[str, str]) -> dict[str, str]:
    """Of variants given by method and params_id, those that are in the store: by method, the variant."""
    rows = subject.open().read("variants", columns=["variant", "method", "params_id"], model_id=subject.model_id)
    found = {(row["method"], row["params_id"]): row["variant"] for row in rows.to_pylist()}
    return {method: found[method, key] for method, key in ids.items() if (method, key) in found}


def shares_pruned(subject: Subject, variants: Mapping[str, str]) -> dict[str, float]:
    """By name, the share of the searched layers' neurons or weights that a variant in the store has lost."""
    rows = subject.open().read("variants", columns=["variant", "pruned", "total"], model_id=subject.model_id)
    lost = {row["variant"]: row["pruned"] / row["total"] for row in rows.to_pylist() if row["total"]}
    return {name: lost[variant] for name, variant in variants.items() if variant in lost}


def shared_with_found(subject: Subject, variant: str) -> float:
    """Of what a random control in the store prunes, the share that was localized, too; 0 of others."""
    return float(subject.card(variant).get("shared", 0.0))


def shared_members(subject: Subject, variant: str) -> tuple[float, int]:
    """That share, and how many neurons or weights the control prunes in all."""
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
        changed_only: only the denoiser, with a reference to the base; else the whole pipeline.

    Raises:
        InputError: there is no such variant, the model is gone, or the folder is there already.
    """
    if subject.weights_of(variant) == ORIGINAL:
        raise InputError(f"{variant!r} has the weights of the model at {subject.model} itself: name another variant")
    card = Card(**subject.card(variant))
    with subject.loaded(variant) as model:
        if changed_only:
            save_variant(model.denoiser, folder, card)
        else:
            save_pipeline(subject.model, model.denoiser, folder, card)


def unpruned_card(
    subject: Subject,
    method: str,
    params: BaseModel,
    audit_id: str,
    site: Literal["denoiser", "inference"],
    done: str,
    shared: float = 0.0,
) -> Card:
    """The card of a variant that is not one denoiser with zeros: it was trained, or what is done is done at inference.

    Args:
        done: what is done, as the end of "in which ...".
    """
    model = subject.load()
    return Card(
        title=f"{Path(subject.source).name}, {method}",
        base=subject.source,
        base_id=model.model_id,
        method=method,
        audit_id=audit_id,
        site=site,
        pruned=0,
        total=sum(weight.numel() for weight in model.denoiser.parameters()),
        params=params.model_dump(mode="json"),
        shared=shared,
        done=done,
    )


def put(subject: Subject, method: str, params_id: str, card: Card, **columns: Any) -> str:
    """Writes the row of a variant, unless it is there, and returns the variant's name.

    Args:
        columns: of `variants`, what this one has: its sets, its weights, how many members were pruned.
    """
    variant = variant_of(method, params_id)
    row = {"variant": variant, "method": method, "params_id": params_id, "card": json.dumps(asdict(card))}
    key = content_key(subject.model_id, variant, params_id)
    subject.open().write("variants", key, [row | columns], model_id=subject.model_id)
    return variant
