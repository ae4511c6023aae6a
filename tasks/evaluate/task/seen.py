"""What metrics look at, from the store: generations, embeddings and scores, made once and kept."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
import torch
from pydantic import BaseModel

from storage import Store, content_key
from tasks.detections import detection_scores, detector_scores
from tasks.diffusion.model import device_of
from tasks.diffusion.sampling import SamplingParams, fitted, from_bytes, image_size
from tasks.errors import InputError
from tasks.evaluate.seen import Detected, Generation, Pair
from tasks.evaluate.task.generations import Shot, Trial, files_of, generation_ids
from tasks.methods import Detector, Params
from tasks.progress import progress
from tasks.scorers import clip, sscd
from tasks.scorers.clip import ClipParams, ClipScore
from tasks.scorers.sscd import Sscd, SscdParams
from tasks.subject import ORIGINAL, Prompt, Subject, units_of

_CACHE: dict[tuple[str, str, str], np.ndarray] = {}
"""Embeddings by the model that made them, SSCD or CLIP, the audited model, to whose size training images are cropped,
and name of the image; 2 KiB each. Names are hashes, so they cannot go stale."""


@dataclass(frozen=True)
class Scoring:
    """What generations are made and looked at with, the same for all trials of an audit."""

    sampling: SamplingParams
    sscd: SscdParams
    clip: ClipParams
    params: Mapping[str, BaseModel]
    """By name of the metric, its own parameters, of those that have any."""
    detection_id: str
    """Of the detection scores; see `tasks.keys.detection_id`."""
    judged: Sequence[Prompt] = ()
    """Prompts that detectors are to tell apart: memorized ones that are examined, and ordinary ones."""
    detectors: Sequence[tuple[Detector, Params]] = ()
    """Other detectors that scored the same prompts, with their parameters."""
    confirmed: frozenset[str] = frozenset()
    """Ids of the memorized prompts that the model at hand brings an image back from."""
    units: Mapping[str, str] | None = None
    """By prompt id, what counts once; what the prompt set says of it where it is left out."""


def made_for(
    of: Mapping[str, str], shots: Sequence[Shot], ids: Sequence[str], confirmed: Collection[str] = ()
) -> list[Generation]:
    """The generations of these ids, each with what it was made for.

    Args:
        of: by prompt id, what counts once.
        confirmed: ids of the prompts that the original brings an image back from.
    """
    return [
        Generation(
            name,
            shot.prompt.prompt_id,
            shot.prompt.text,
            of[shot.prompt.prompt_id],
            shot.seed,
            shot.trigger_id,
            shot.prompt.image_ids,
            shot.prompt.kind == "memorized",
            shot.prompt.memorization,
            shot.prompt.prompt_id in confirmed,
        )
        for name, shot in zip(ids, shots, strict=True)
    ]


class StoredSeen:
    """One trial as metrics see it; see `tasks.evaluate.seen.Seen`."""

    def __init__(
        self,
        subject: Subject,
        trial: Trial,
        shots: Sequence[Shot],
        scoring: Scoring,
        shared: tuple[float, int] | None = None,
    ) -> None:
        self.subject, self.trial, self.shots, self.scoring, self.shared = subject, trial, shots, scoring, shared
        self.variant, self.condition = trial.name, trial.condition
        self.sscd, self.clip = _SscdVectors(self), _ClipVectors(self)

    @cached_property
    def generations(self) -> list[Generation]:
        of = self._units([shot.prompt for shot in self.shots])
        return made_for(of, self.shots, self._ids(self.trial.variant), self.scoring.confirmed)

    @cached_property
    def originals(self) -> list[str]:
        if self.trial.variant == ORIGINAL or self.condition.start is not None:
            return []
        return self._ids(ORIGINAL)

    @cached_property
    def detected(self) -> list[Detected]:
        every = self.scoring.judged
        of, found = self._units(every), detection_scores(self.subject, every, self.scoring.detection_id)
        return [
            Detected(one.prompt_id, of[one.prompt_id], one.kind == "memorized", found[one.prompt_id]) for one in every
        ]

    @cached_property
    def scanned(self) -> dict[str, list[Detected]]:
        every = self.scoring.judged
        of, found = self._units(every), {}
        for detector, params in self.scoring.detectors:
            scores = detector_scores(self.subject, detector, params)
            if lost := [one.text for one in every if one.prompt_id not in scores]:
                raise InputError(
                    f"{len(lost)} prompts have no score by {detector.name}, such as {lost[0][:60]!r}: run the"
                    " localization first"
                )
            found[detector.name] = [
                Detected(one.prompt_id, of[one.prompt_id], one.kind == "memorized", np.array([scores[one.prompt_id]]))
                for one in every
            ]
        return found

    def pixels(self, names: Sequence[str]) -> dict[str, np.ndarray]:
        files, size = self.files(names), image_size(self.subject.load())
        return {name: fitted(from_bytes(data), size) for name, data in files.items()}

    def scored(
        self, kind: str, scorer: str, pairs: Sequence[Pair], compute: Callable[[Sequence[Pair]], Iterable[float]]
    ) -> dict[Pair, float]:
        store = self.subject.open()
        known = scores_known(store, kind, scorer, [name for name, _ in pairs])
        if todo := [pair for pair in dict.fromkeys(pairs) if pair not in known]:
            found = {pair: float(value) for pair, value in zip(todo, compute(todo), strict=True)}
            rows = [
                {"generation_id": name, "reference_id": other, "scorer": scorer, "value": value}
                for (name, other), value in found.items()
            ]
            store.write("scores", content_key(kind, scorer, todo), rows, metric=kind)
            known |= found
        # The store may hold scores against other images, that a prompt had in an earlier set, and of more seeds.
        return {pair: known[pair] for pair in pairs}

    def files(self, names: Sequence[str]) -> dict[str, bytes]:
        """Generations and training images as they are stored."""
        return files_of(self.subject, self.trial.variant, self.condition, names)

    def _units(self, prompts: Sequence[Prompt]) -> Mapping[str, str]:
        return self.scoring.units or units_of(self.subject, prompts)

    def _ids(self, variant: str) -> list[str]:
        return generation_ids(self.subject, variant, self.condition, self.shots, self.scoring.sampling)


class _SscdVectors:
    """Training images are seen as training and attacks see them: scaled and cropped to the model's size."""

    def __init__(self, seen: StoredSeen) -> None:
        self._seen = seen

    @cached_property
    def name(self) -> str:
        return sscd.scorer_of(self._seen.scoring.sscd)

    def images(self, names: Sequence[str]) -> dict[str, np.ndarray]:
        subject, model = self._seen.subject, _sscd(self._seen.scoring.sscd, device_of(self._seen.subject.device))
        of = subject.model_id
        todo = [name for name in names if (self.name, of, name) not in _CACHE]
        files = self._seen.files(todo)
        size = image_size(subject.load()) if todo else (0, 0)
        what = f"SSCD of {self._seen.trial.variant}, {self._seen.condition.name}"
        with progress(len(todo), what, "image") as done:
            for name in todo:
                image = fitted(from_bytes(files[name]), size)
                _CACHE[self.name, of, name] = model.embed(image[None])[0]
                done(1)
        return {name: _CACHE[self.name, of, name] for name in names}


class _ClipVectors:
    def __init__(self, seen: StoredSeen) -> None:
        self._seen = seen

    @cached_property
    def name(self) -> str:
        return clip.scorer_of(self._seen.scoring.clip)

    def images(self, names: Sequence[str]) -> dict[str, np.ndarray]:
        of = self._seen.subject.model_id
        todo = [name for name in names if (self.name, of, name) not in _CACHE]
        files = self._seen.files(todo)
        for name in todo:
            _CACHE[self.name, of, name] = self._model.images(from_bytes(files[name])[None])[0]
        return {name: _CACHE[self.name, of, name] for name in names}

    def texts(self, texts: Sequence[str]) -> np.ndarray:
        return self._model.texts(texts)

    @property
    def _model(self) -> ClipScore:
        return _clip(self._seen.scoring.clip, device_of(self._seen.subject.device))


def scores_known(store: Store, kind: str, scorer: str, ids: Sequence[str]) -> dict[Pair, float]:
    """Scores in the store, made with one model, by generation and reference."""
    columns, wanted = ["generation_id", "reference_id", "value"], sorted(set(ids))
    rows = store.read("scores", columns=columns, metric=kind, scorer=scorer, generation_id=wanted)
    return {(name, other): value for name, other, value in zip(*(c.to_pylist() for c in rows.columns), strict=True)}


@lru_cache(maxsize=1)
def _sscd(params: SscdParams, device: torch.device) -> Sscd:
    return Sscd(params, device)


@lru_cache(maxsize=1)
def _clip(params: ClipParams, device: torch.device) -> ClipScore:
    return ClipScore(params, device)
