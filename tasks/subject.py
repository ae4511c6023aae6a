"""What every stage is given: a model, a set of prompts and a store. Small enough to hand to a worker anywhere."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import groupby, zip_longest
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from safetensors import safe_open

from storage import Store, sha256_of
from tasks.diffusion.families import Model, family_in, layers_of
from tasks.diffusion.files import INDEX, read_json
from tasks.diffusion.hub import source_of
from tasks.diffusion.masks import Members, is_changed, with_tensors, without_neurons, without_weights
from tasks.diffusion.model import identity, load_model
from tasks.diffusion.precision import Precision
from tasks.diffusion.sampling import fitted, from_bytes, image_size
from tasks.diffusion.sites import Site
from tasks.errors import InputError
from tasks.methods import Mitigation, Params, method, mitigations
from tasks.sets import read_sets
from tasks.units import units

Kind = Literal["memorized", "null", "ordinary"]
ORIGINAL = "original"
Rule = Literal["neurons", "weights", "prompt-neurons"]
"""What a pruned variant sets to zero: members of its sets, or of the set of the prompt that is asked."""
PER_PROMPT: Rule = "prompt-neurons"
T = TypeVar("T")


class Subject(BaseModel):
    """One model, asked about one set of prompts."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    store: str = Field(description="Address of the store: a folder, or an s3:// URL.")
    model: str = Field(description="Folder of a diffusers pipeline.")
    prompt_set: str = Field(description="Name of the set of prompts in the store.")
    device: str | None = Field(
        None, description="Where it computes: cpu, cuda, mps, ...; CUDA where there is any if empty."
    )
    precision: Precision = Field("float32", description="Number format of weights and of what is computed.")

    def open(self) -> Store:
        return Store.open(self.store)

    @property
    def source(self) -> str:
        """What the model is called, the same for its successive versions."""
        return source_of(self.model)

    @property
    def model_id(self) -> str:
        return identity(Path(self.model), self.precision, sha256_of)

    @property
    def family(self) -> type[Model]:
        """The family of the model, which is not loaded."""
        family = family_in(read_json(Path(self.model) / INDEX))
        assert family is not None  # whoever made a subject has looked
        return family

    def load(self) -> Model:
        """The original model.

        Raises:
            InputError: no such model.
            RuntimeError: a variant of it is applied, see `loaded`.
        """
        model = _loaded(self.model, self.device, self.precision, self.model_id)
        if is_changed(model.denoiser):
            raise RuntimeError("a variant is applied to the model, so the original is not to be had: leave it first")
        return model

    @contextmanager
    def loaded(self, variant: str, prompt_id: str | None = None) -> Iterator[Model]:
        """Within, the model is a variant of it that lies in the store: its weights are changed in place.

        Args:
            prompt_id: the prompt that is asked, or whose image is attacked, where each has neurons of its own, see
                `by_model`. Of a prompt that the variant does not know nothing is pruned.

        Raises:
            InputError: no such model or variant, its sets or weights are gone, or it is another for each prompt and
                none is named.
            RuntimeError: a variant is applied already.
        """
        model = self.load()
        with self._applied(variant, prompt_id, model):
            yield model

    def by_model(
        self, variant: str, work: Sequence[T], prompt_of: Callable[[T], str]
    ) -> Iterator[tuple[str | None, Sequence[T]]]:
        """Work on a variant by the model that does it: all of it, or that of each prompt where each has a model.

        Yields:
            The prompt that `loaded` must be given, and the work.
        """
        if variant != ORIGINAL and self.row(variant)["rule"] == PER_PROMPT:
            for prompt_id, some in groupby(work, prompt_of):
                yield prompt_id, list(some)
        elif work:
            yield None, work

    def embed(self, prompts: Sequence["Prompt"]) -> torch.Tensor:
        """Embeddings (n, rows, width) of prompts, or of triggers of the original model, on its device.

        Raises:
            InputError: a trigger is not in the store.
        """
        model = self.load()
        words = [one for one in prompts if not one.trigger]
        found: dict[str, torch.Tensor] = {}
        if words:
            texts = model.encode([one.text for one in words])
            found = {one.prompt_id: text for one, text in zip(words, texts, strict=True)}
        names = [one.prompt_id for one in prompts if one.trigger]
        if names:
            found |= dict(zip(names, self.triggers(names).to(model.device, model.dtype), strict=True))
        return torch.stack([found[one.prompt_id] for one in prompts])

    def training_images(self, image_ids: Sequence[str]) -> np.ndarray:
        """Training images in the store at the model's size, uint8 (n, height, width, 3).

        Raises:
            InputError: one is not there, or cannot be read.
        """
        size = image_size(self.load())
        rows = self.open().read("images", columns=["image_id", "bytes"], image_id=sorted(set(image_ids)))
        found = dict(zip(rows["image_id"].to_pylist(), rows["bytes"], strict=True))
        if lost := set(image_ids) - found.keys():
            raise InputError(f"the store has no image {min(lost)}: import the prompts with their images")
        return np.stack([fitted(from_bytes(found[name].as_py()), size) for name in image_ids])

    def triggers(self, names: Sequence[str], variant: str = ORIGINAL) -> torch.Tensor:
        """Triggers in the store, float32 (n, rows, width).

        Raises:
            InputError: one is not there.
        """
        rows = self.open().read(
            "triggers",
            columns=["trigger_id", "embedding", "shape"],
            model_id=self.model_id,
            variant=self.weights_of(variant),
            trigger_id=sorted(set(names)),
        )
        found = {
            name: torch.from_numpy(values.values.to_numpy().copy()).view(*shape.as_py())
            for name, values, shape in zip(
                rows["trigger_id"].to_pylist(), rows["embedding"], rows["shape"], strict=True
            )
        }
        if lost := set(names) - found.keys():
            raise InputError(f"the store has no trigger {min(lost)} of {variant}: attack first")
        return torch.stack([found[name] for name in names])

    def at_inference(self, variant: str) -> tuple[Mitigation, Params] | None:
        """The mitigation at inference that a variant is, with its parameters; None of a variant with weights of its
        own.

        Raises:
            InputError: no such variant, or its method is not installed.
        """
        if variant == ORIGINAL or not _acts_at_inference(row := self.row(variant)):
            return None
        mitigation: Mitigation = method("mitigation", row["method"])
        return mitigation, mitigation.params(**self.card(variant)["params"])

    def weights_of(self, variant: str) -> str:
        """The variant whose weights are run: the original where a mitigation acts at inference alone."""
        return ORIGINAL if variant == ORIGINAL or _acts_at_inference(self.row(variant)) else variant

    def row(self, variant: str) -> dict[str, Any]:
        """The row of a variant in the table `variants`.

        Raises:
            InputError: no such variant.
        """
        rows = self.open().read("variants", model_id=self.model_id).to_pylist()
        found = {row["variant"]: row for row in rows if row["variant"] != ORIGINAL}
        if variant not in found:
            known = ", ".join(sorted(found)) or "none"
            raise InputError(
                f"the store has no variant {variant!r} of this model; it has: {known}: run the mitigation first, "
                "or name the model that it was made of"
            )
        return found[variant]

    def card(self, variant: str) -> dict[str, Any]:
        """What the model card of a variant says, see `tasks.mitigate.prune.Card`.

        Raises:
            InputError: no such variant.
        """
        if (text := self.row(variant)["card"]) is None:
            raise InputError(
                f"the files of {variant!r} were gone when the store was migrated: run the mitigation again"
            )
        card: dict[str, Any] = json.loads(text)
        return card

    def _applied(self, variant: str, prompt_id: str | None, model: Model) -> AbstractContextManager[object]:
        """What makes the original the variant."""
        if variant == ORIGINAL or _acts_at_inference(row := self.row(variant)):
            return nullcontext()
        if row["rule"] is None:
            return with_tensors(model.denoiser, _tensors(self.open().get_folder(row["weights"])))
        scope = prompt_id if row["rule"] == PER_PROMPT else row["sets_scopes"][0]
        if scope is None:
            raise InputError(f"{variant!r} is pruned anew for each prompt, so it is no model by itself: name another")
        site = Site(row["site"])
        sets = _sets(self, row["sets_method"], row["sets_id"], site, tuple(row["sets_scopes"]))
        without = without_weights if row["rule"] == "weights" else without_neurons
        return without(model.denoiser, layers_of(model.denoiser, site), sets.get(scope, {}))


def _acts_at_inference(row: Mapping[str, Any]) -> bool:
    """Whether the variant of this row has the weights of the original: neither pruned nor trained."""
    # Earlier releases kept a folder of each variant, which held no weights of these.
    known = {one.name for one in mitigations() if one.acts == "inference"}
    return row["rule"] is None and (row["weights"] is None or row["method"] in known)


@dataclass(frozen=True)
class Prompt:
    """One prompt of the set."""

    prompt_id: str
    text: str
    kind: Kind
    memorization: str | None
    subset: str | None
    image_ids: tuple[str, ...]
    trigger: bool = False
    """Whether it is an adversarial embedding, found on the original model, that is asked in place of a prompt."""

    @property
    def noise(self) -> str:
        """What seeds the initial noise under which it is localized: the prompt, but not as its images are seeded,
        since a variant must not be judged by the noise it was found with. Triggers of one image share theirs, so that
        what is found for two of them differs by the triggers alone."""
        return f"localize/{self.image_ids[0] if self.trigger else self.prompt_id}"


def as_prompts(triggers: Mapping[str, Sequence[str]], prompts: Sequence[Prompt]) -> list[Prompt]:
    """Triggers of these prompts' images, to be collected and localized like prompts.

    Args:
        triggers: by prompt id, the ids of its triggers.
    """
    return [
        replace(prompt, prompt_id=name, subset=None, trigger=True)
        for prompt in prompts
        for name in triggers[prompt.prompt_id]
    ]


def prompts_of(subject: Subject, kind: Kind, limit: int | None = None) -> list[Prompt]:
    """Prompts of one kind, the first of each subset first, then the second of each, so that a few speak for all.

    Args:
        limit: how many at most; all without it.

    Raises:
        InputError: the set has none of this kind.
    """
    rows = subject.open().read("prompts", prompt_set=subject.prompt_set, kind=kind).to_pylist()
    if not rows:
        raise InputError(f"the prompt set {subject.prompt_set!r} has no {kind} prompts: add some to its file")
    return in_turns(rows)[:limit]


def by_kind(rows: Sequence[Mapping[str, Any]]) -> dict[Kind, list[Prompt]]:
    """Prompts of rows of the table `prompts`, of each kind, see `in_turns`."""
    return {kind: in_turns([row for row in rows if row["kind"] == kind]) for kind in get_args(Kind)}


def in_turns(rows: Sequence[Mapping[str, Any]]) -> list[Prompt]:
    """Prompts of rows of the table `prompts`, the first of each subset first, then the second of each."""
    by_subset: dict[str | None, list[Prompt]] = {}
    for row in rows:
        prompt = Prompt(
            row["prompt_id"],
            row["text"],
            row["kind"],
            row["memorization"],
            row["subset"],
            tuple(row["image_ids"] or ()),
        )
        by_subset.setdefault(prompt.subset, []).append(prompt)
    return [prompt for turn in zip_longest(*by_subset.values()) for prompt in turn if prompt is not None]


def units_of(subject: Subject, prompts: Sequence[Prompt]) -> dict[str, str]:
    """By prompt id, what counts once; see `tasks.units`. What links two prompts may be a third one of the set, of any
    kind, whether or not it is asked, so that n of a small audit is part of that of a large one."""
    columns = ["prompt_id", "text", "image_ids"]
    rows = subject.open().read("prompts", columns=columns, prompt_set=subject.prompt_set).to_pylist()
    links = [(row["prompt_id"], row["text"], row["image_ids"] or ()) for row in rows]
    return units([*links, *((one.prompt_id, one.text, one.image_ids) for one in prompts)])


def shards(items: Sequence[T], size: int, lacking: Callable[[T], bool] = lambda item: True) -> Iterator[Sequence[T]]:
    """Consecutive pieces of at most `size`: what is written at once, so the most that an interruption costs.

    Args:
        lacking: whether an item is to be done; pieces hold only such items. Where pieces begin does not follow from it,
            so work that is taken up again is done in the same batches, which round alike.
    """
    for start in range(0, len(items), size):
        if piece := [item for item in items[start : start + size] if lacking(item)]:
            yield piece


@lru_cache(maxsize=1)
def _loaded(source: str, device: str | None, precision: Precision, model_id: str) -> Model:
    # The identity is part of the key, so a model that changed on disk is loaded anew.
    return load_model(source, device, precision, model_id)


@lru_cache(maxsize=1)
def _sets(subject: Subject, method: str, params_id: str, site: Site, scopes: tuple[str, ...]) -> dict[str, Members]:
    """By scope, what a pruned variant sets to zero; kept, since some variants change with every prompt."""
    layers = layers_of(subject.load().denoiser, site)
    found = read_sets(subject, method, params_id, site, layers, scopes)
    return {scope: {layer.index: found[scope, None, layer.index] for layer in layers} for scope in scopes}


def _tensors(folder: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """The changed parameters of a variant that was trained, or all of one of an earlier release, one at a time.

    Raises:
        InputError: the folder holds none.
    """
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise InputError(f"{folder} holds no weights: an earlier release made this variant, run the mitigation again")
    for path in files:
        with safe_open(path, framework="pt") as opened:
            for name in opened.keys():  # noqa: SIM118
                yield name, opened.get_tensor(name)
