"""The grounds of a localizer, read from the store: once for all of its scopes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast

import numpy as np
import torch

from tasks.detections import detection_scores
from tasks.diffusion.detection import DetectionParams
from tasks.diffusion.families import Model
from tasks.diffusion.sampling import encode
from tasks.diffusion.sites import Layer
from tasks.errors import InputError
from tasks.keys import detection_id, norms_id, values_id
from tasks.localize.ground import Ground, Norms, NormsParams, Prompted
from tasks.localize.statistics import Moments, Statistics
from tasks.localize.task.given import Given
from tasks.methods import Localizer, Reads
from tasks.subject import ORIGINAL, Prompt, Subject

Values = dict[str, list[torch.Tensor]]
"""By prompt id, activations by layer."""
CONTRAST = None
"""Stands for the scope of the prompts that others are compared with."""


class Grounds:
    """What a localizer reads, whatever scope it looks at."""

    def __init__(
        self,
        subject: Subject,
        localizer: Localizer,
        params: Any,
        prompts: Mapping[str, Sequence[Prompt]],
        given: Given,
    ) -> None:
        """
        Args:
            prompts: by scope id, those of the scopes that are looked at.
        """
        self.subject, self.params, self.prompts, self.given = subject, params, prompts, given
        self.localizer, self.model = localizer, subject.load()
        self.site = localizer.site_of(params)
        self.layers = self.model.layers(self.site)

    def of(self, scope: str) -> Ground:
        """The ground of one scope."""
        return _Scope(self, scope)

    def declared(self, *reads: Reads) -> None:
        """Raises InputError where a localizer reads what its spec does not name, as its ids would not know of it."""
        if lost := set(reads) - set(self.localizer.reads_of(self.params)):
            raise InputError(f"{self.localizer.name} reads {min(lost)!r}: name it among the localizer's reads")

    def with_images(self, prompts: Sequence[Prompt], kind: str) -> list[Prompt]:
        """Those of the prompts that have an image.

        Raises:
            InputError: none has.
        """
        found = [prompt for prompt in prompts if prompt.image_ids]
        if not found:
            raise InputError(f"{self.localizer.name} needs {kind} prompts with training images: give --images")
        return found

    @cached_property
    def values(self) -> Values:
        self.declared("values")
        return self._values([prompt for some in self.prompts.values() for prompt in some])

    @cached_property
    def statistics(self) -> Statistics:
        self.declared("null values")
        nulls = self.given.nulls
        known = self._values(nulls)
        return Moments.of(
            [torch.stack([known[prompt.prompt_id][layer.index] for prompt in nulls]) for layer in self.layers]
        ).statistics()

    @cached_property
    def null_scores(self) -> list[torch.Tensor]:
        self.declared("null scores")
        params = cast(DetectionParams, self.params)
        scores = detection_scores(self.subject, self.given.threshold_nulls, detection_id(params))
        return [torch.from_numpy(one) for one in scores.values()]

    @cached_property
    def norms(self) -> Mapping[str | None, Norms]:
        """By scope, summed layer by layer, so that those of all prompts are in memory for one layer only."""
        self.declared("norms")
        scopes: list[tuple[str | None, Sequence[Prompt]]] = [*self.prompts.items()]
        if "contrast norms" in self.localizer.reads_of(self.params):
            scopes.append((CONTRAST, self.given.contrast))
        wanted = {prompt.prompt_id for _, some in scopes for prompt in some}
        out: dict[str | None, dict[tuple[int, int], torch.Tensor]] = {scope: {} for scope, _ in scopes}
        for layer in self.layers:
            sums = self._norms(layer)
            if lost := wanted - sums.keys():
                raise InputError(
                    f"{len(lost)} prompts have no feature norms at {self.site.value!r}: run the collection first"
                )
            for scope, some in scopes:
                out[scope] |= _summed(sums, some, layer.index)
        return out

    @cached_property
    def ordinary(self) -> list[Prompt]:
        self.declared("ordinary images")
        return self.with_images(self.given.ordinary, "ordinary")

    @cached_property
    def budget(self) -> tuple[int, ...]:
        (members,) = self.given.budgets[self.localizer.budget].members(self.subject).values()
        return tuple(len(members[layer.index]) for layer in self.layers)

    def _values(self, prompts: Sequence[Prompt]) -> Values:
        wanted = {prompt.prompt_id for prompt in prompts}
        out: dict[str, dict[int, torch.Tensor]] = {name: {} for name in wanted}
        for layer in self.layers:
            rows = self._rows(layer, values_id(), "mean_abs")
            for name, values in zip(rows["prompt_id"].to_pylist(), rows["mean_abs"], strict=True):
                if name in wanted:
                    out[name][layer.index] = torch.from_numpy(values.values.to_numpy().copy())
        if lost := [name for name, found in out.items() if len(found) < len(self.layers)]:
            raise InputError(
                f"{len(lost)} prompts have no activations at {self.site.value!r}: run the collection first"
            )
        return {name: [found[index] for index in range(len(self.layers))] for name, found in out.items()}

    def _norms(self, layer: Layer) -> dict[str, dict[tuple[str, int], np.ndarray]]:
        """By prompt id, sums of squares of each half and step of one layer, (inputs,)."""
        params = cast(NormsParams, self.params)
        collection = norms_id(self.given.sampling, params.tau)
        out: dict[str, dict[tuple[str, int], np.ndarray]] = {}
        for half in params.halves:
            rows = self._rows(layer, f"{collection}-{half}", "step", "sum_sq")
            names, steps = rows["prompt_id"].to_pylist(), rows["step"].to_pylist()
            for name, step, sums in zip(names, steps, rows["sum_sq"], strict=True):
                out.setdefault(name, {})[half, step] = sums.values.to_numpy()
        if any(half not in {h for h, _ in next(iter(out.values()), {})} for half in params.halves):
            raise InputError(
                "there is no unconditional half: sample with a guidance above 1, or use the conditional half"
            )
        return out

    def _rows(self, layer: Layer, params_id: str, *columns: str) -> Any:
        return self.subject.open().read(
            "activations",
            columns=["prompt_id", *columns],
            model_id=self.subject.model_id,
            variant=ORIGINAL,
            site=self.site.value,
            layer=layer.name,
            params_id=params_id,
        )


@dataclass(frozen=True)
class _Scope:
    """The ground of one scope; see `Ground`."""

    whole: Grounds
    scope: str

    @property
    def model(self) -> Model:
        return self.whole.model

    @property
    def layers(self) -> tuple[Layer, ...]:
        return self.whole.layers

    @property
    def prompts(self) -> Sequence[Prompt]:
        return self.whole.prompts[self.scope]

    @property
    def with_images(self) -> Sequence[Prompt]:
        self.whole.declared("images")
        return self.whole.with_images(self.prompts, "memorized")

    @property
    def ordinary(self) -> Sequence[Prompt]:
        return self.whole.ordinary

    @property
    def statistics(self) -> Statistics:
        return self.whole.statistics

    @property
    def null_scores(self) -> Sequence[torch.Tensor]:
        return self.whole.null_scores

    @property
    def norms(self) -> Norms:
        return self.whole.norms[self.scope]

    @property
    def contrast_norms(self) -> Norms:
        self.whole.declared("contrast norms")
        return self.whole.norms[CONTRAST]

    @property
    def budget(self) -> tuple[int, ...]:
        return self.whole.budget

    def embed(self, prompts: Sequence[Prompted]) -> torch.Tensor:
        return self.whole.subject.embed(cast(Sequence[Prompt], prompts))

    def values(self, prompt: Prompted) -> Sequence[torch.Tensor]:
        return self.whole.values[prompt.prompt_id]

    def latents(self, prompts: Sequence[Prompted]) -> torch.Tensor:
        return encode(self.model, self.whole.subject.training_images([prompt.image_ids[0] for prompt in prompts]))


def _summed(
    sums: Mapping[str, Mapping[tuple[str, int], np.ndarray]], prompts: Sequence[Prompt], index: int
) -> dict[tuple[int, int], torch.Tensor]:
    """Added up over prompts, in the order of their ids, and halves; by (step, layer index)."""
    out: dict[tuple[int, int], np.ndarray] = {}
    for name in sorted(prompt.prompt_id for prompt in prompts):
        for (_, step), values in sums[name].items():
            out[step, index] = out.get((step, index), 0) + values.astype(np.float64)
    return {key: torch.from_numpy(values) for key, values in out.items()}
