"""Evaluating: pictures of every variant under every probe, their scores, and the figures of the audit."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import combinations
from typing import Any

import numpy as np
import torch

from storage import Store, content_key
from tasks.attack.extraction import ExtractionParams, extract, precision_recall, tile_distances
from tasks.diffusion.model import device_of
from tasks.diffusion.sampling import SamplingParams, from_bytes, generate, to_png
from tasks.errors import InputError
from tasks.evaluate import clip_score, figures, quality, sscd
from tasks.evaluate.clip_score import ClipParams, ClipScore, aligned
from tasks.evaluate.figures import Figure
from tasks.evaluate.sscd import Sscd, SscdParams
from tasks.mitigate.inference import defended
from tasks.progress import progress
from tasks.subject import ORIGINAL, Asked, Subject, shards

VERSION = "evaluate/1"


@dataclass(frozen=True)
class Shot:
    """One picture to be made: for a prompt, or for a trigger that was found for the prompt's image."""

    prompt: Asked
    trigger_id: str | None
    seed: int

    @property
    def asker(self) -> str:
        """What seeds the initial noise beside the seed: the prompt, so that variants compare picture by picture."""
        return self.prompt.prompt_id


def shots(asked: Sequence[Asked], seeds: int, triggers: Mapping[str, Sequence[str]] | None = None) -> list[Shot]:
    """Every prompt, or every trigger of it, with every seed."""
    return [
        Shot(prompt, trigger, seed)
        for prompt in asked
        for trigger in (triggers[prompt.prompt_id] if triggers is not None else (None,))
        for seed in range(seeds)
    ]


def generation_ids(
    subject: Subject, variant: str, probe: str, wanted: Sequence[Shot], sampling: SamplingParams
) -> list[str]:
    """The ids that `generate_pictures` gives, whether or not it ran yet."""
    settings, model_id = sampling.model_dump(exclude={"batch"}), subject.model_id
    return [
        content_key(VERSION, model_id, variant, probe, shot.prompt.prompt_id, shot.trigger_id, shot.seed, settings)
        for shot in wanted
    ]


def generate_pictures(
    subject: Subject, variant: str, probe: str, wanted: Sequence[Shot], sampling: SamplingParams
) -> list[str]:
    """Makes the pictures that the store does not have, and returns the ids of all."""
    store = subject.open()
    ids = generation_ids(subject, variant, probe, wanted, sampling)
    place = {"model_id": subject.model_id, "variant": variant, "probe": probe}
    known = set(store.read("generations", columns=["generation_id"], **place)["generation_id"].to_pylist())
    todo = [(name, shot) for name, shot in zip(ids, wanted, strict=True) if name not in known]
    defence = subject.defence(variant)
    names = list(dict.fromkeys(shot.trigger_id for _, shot in todo if shot.trigger_id is not None))
    found = dict(zip(names, subject.triggers(names, variant), strict=True)) if names else {}
    with progress(len(todo), f"generating {variant}, {probe}", "picture") as done:
        for block in shards(todo, sampling.batch):
            model = subject.load(variant)
            texts = [shot.prompt.text for _, shot in block]
            triggers = torch.stack([found[shot.trigger_id] for _, shot in block if shot.trigger_id]) if found else None
            keys = [(shot.asker, shot.seed) for _, shot in block]
            with defended(model, *defence, sampling, texts, keys, triggers) as embeddings:
                pictures = generate(model, embeddings, keys, sampling, done)
            rows = [
                {
                    "prompt_id": shot.prompt.prompt_id,
                    "trigger_id": shot.trigger_id,
                    "seed": shot.seed,
                    "generation_id": name,
                    "bytes": to_png(picture),
                }
                for (name, shot), picture in zip(block, pictures, strict=True)
            ]
            store.write("generations", content_key([name for name, _ in block]), rows, **place)
    return ids


def score_copies(
    subject: Subject, variant: str, probe: str, wanted: Sequence[Shot], ids: Sequence[str], params: SscdParams
) -> None:
    """SSCD of each picture against every training image of its prompt (metric 'sscd'), and between the seeds of each
    prompt ('sscd_pair')."""
    store, measure = subject.open(), _sscd(params, device_of(subject.device))
    pairs = [("sscd", name, image) for name, shot in zip(ids, wanted, strict=True) for image in shot.prompt.image_ids]
    groups: dict[tuple[str, str | None], list[str]] = {}
    for name, shot in zip(ids, wanted, strict=True):
        groups.setdefault((shot.prompt.prompt_id, shot.trigger_id), []).append(name)
    pairs += [("sscd_pair", a, b) for names in groups.values() for a, b in combinations(names, 2)]
    _score(subject, store, pairs, variant, probe, measure)


def score_change(
    subject: Subject, variant: str, probe: str, ids: Sequence[str], originals: Sequence[str], params: SscdParams
) -> None:
    """SSCD of each picture against the original model's of the same prompt and seed (metric 'sscd_gen')."""
    pairs = [("sscd_gen", name, original) for name, original in zip(ids, originals, strict=True)]
    _score(subject, subject.open(), pairs, variant, probe, _sscd(params, device_of(subject.device)))


def score_alignment(
    subject: Subject, variant: str, probe: str, wanted: Sequence[Shot], ids: Sequence[str], params: ClipParams
) -> None:
    """CLIP score of each picture against its prompt (metric 'clip')."""
    store, scorer = subject.open(), clip_score.scorer_of(params)
    known = _values(store, "clip", scorer, ids)
    todo = [(n, s) for n, s in zip(ids, wanted, strict=True) if (n, s.prompt.prompt_id) not in known]
    if not todo:
        return
    found = _clip_vectors(subject, variant, probe, [name for name, _ in todo], params)
    vectors = np.stack([found[name] for name, _ in todo])
    texts = _clip(params, device_of(subject.device)).texts([shot.prompt.text for _, shot in todo])
    rows = [
        {"generation_id": name, "reference_id": shot.prompt.prompt_id, "scorer": scorer, "value": float(value)}
        for (name, shot), value in zip(todo, aligned(vectors, texts), strict=True)
    ]
    store.write("scores", content_key("clip", scorer, [name for name, _ in todo]), rows, metric="clip")


def copy_figures(subject: Subject, wanted: Sequence[Shot], ids: Sequence[str], params: SscdParams) -> list[Figure]:
    """MR and the similarities to training images, over the prompts that have any, each picture by its nearest image.

    Where prompts are verbatim (VM) and template memories (TM), MR and similarities of each kind follow, under the same
    names with `_vm` and `_tm`.
    """
    known = _values(subject.open(), "sscd", sscd.scorer_of(params), ids)
    rows = [
        # The store may hold scores against other images, that the prompt had in an earlier set.
        (shot.prompt, max(known[name, image] for image in shot.prompt.image_ids))
        for name, shot in zip(ids, wanted, strict=True)
        if shot.prompt.image_ids
    ]
    if not rows:
        return []

    def grouped(kind: str | None = None) -> dict[str, np.ndarray]:
        mine = [(prompt.prompt_id, value) for prompt, value in rows if kind in (None, prompt.memorization)]
        return figures.by_prompt([name for name, _ in mine], np.array([value for _, value in mine]))

    found = [figures.mr(grouped()), *figures.sscd_orig(grouped())]
    kinds = {prompt.memorization for prompt, _ in rows}
    for kind in ("VM", "TM") if {"VM", "TM"} <= kinds else ():
        apart = [figures.mr(grouped(kind)), *figures.sscd_orig(grouped(kind))]
        found += [
            replace(one, metric=f"{one.metric}_{kind.lower()}")
            for one in apart
            if one.metric in ("mr", "sscd_orig_max", "sscd_orig_median")
        ]
    return found


def diversity_figure(subject: Subject, wanted: Sequence[Shot], ids: Sequence[str], params: SscdParams) -> list[Figure]:
    """How alike the seeds of a prompt are; nothing where there is one seed."""
    of = {name: shot.prompt.prompt_id for name, shot in zip(ids, wanted, strict=True)}
    known = _values(subject.open(), "sscd_pair", sscd.scorer_of(params), ids)
    known = {pair: value for pair, value in known.items() if pair[1] in of}  # not of seeds beyond this audit's
    if not known:
        return []
    grouped = figures.by_prompt([of[name] for name, _ in known], np.array(list(known.values())))
    return [figures.similar_seeds(grouped)]


def change_figure(subject: Subject, wanted: Sequence[Shot], ids: Sequence[str], params: SscdParams) -> list[Figure]:
    """Similarity to what the original model makes of the same prompt and seed."""
    of = {name: shot.prompt.prompt_id for name, shot in zip(ids, wanted, strict=True)}
    known = _values(subject.open(), "sscd_gen", sscd.scorer_of(params), ids)
    grouped = figures.by_prompt([of[name] for name, _ in known], np.array(list(known.values())))
    return [figures.sscd_gen(grouped)]


def alignment_figures(
    subject: Subject, wanted: Sequence[Shot], ids: Sequence[str], originals: Sequence[str], params: ClipParams
) -> list[Figure]:
    """Mean CLIP score, and what share it is of the original model's.

    Args:
        originals: the original's pictures of the same shots; none where these are they.
    """
    asked = [shot.prompt.prompt_id for shot in wanted]
    known = _values(subject.open(), "clip", clip_score.scorer_of(params), [*ids, *originals])

    def scores(names: Sequence[str]) -> dict[str, np.ndarray]:
        return figures.by_prompt(asked, np.array([known[pair] for pair in zip(names, asked, strict=True)]))

    found = [figures.clip(scores(ids))]
    return [*found, figures.clip_kept(scores(ids), scores(originals))] if originals else found


def quality_figures(
    subject: Subject, variant: str, probe: str, wanted: Sequence[Shot], ids: Sequence[str], params: ClipParams
) -> list[Figure]:
    """FID and KID of CLIP image embeddings, generations against the prompts' own pictures; nothing without those."""
    real = list(dict.fromkeys(image for shot in wanted for image in shot.prompt.image_ids[:1]))
    if len(real) < 2 or len(ids) < 2:
        return []
    vectors = _clip_vectors(subject, variant, probe, [*ids, *real], params)
    made, trained = (np.stack([vectors[name] for name in names]) for names in (ids, real))
    return [quality.fid(made, trained), quality.kid(made, trained)]


def extraction_figures(
    subject: Subject,
    variant: str,
    probe: str,
    wanted: Sequence[Shot],
    ids: Sequence[str],
    params: ExtractionParams,
    sscd_params: SscdParams,
) -> list[Figure]:
    """What an attacker without training pictures finds among many generations of each prompt, against the truth.

    A prompt is claimed to be memorized when its generations hold a clique of near copies. Precision has no figure where
    nothing is claimed.

    Args:
        wanted: of memorized prompts and of others, many seeds each.
    """
    by_asked: dict[str, list[str]] = {}
    for name, shot in zip(ids, wanted, strict=True):
        by_asked.setdefault(shot.prompt.prompt_id, []).append(name)
    claimed = []
    by_sscd = params.measure == "sscd"
    vectors = _vectors(subject, variant, probe, ids, _sscd(sscd_params, device_of(subject.device))) if by_sscd else {}
    files = {} if by_sscd else files_of(subject, variant, probe, ids)
    for asked, names in by_asked.items():
        if by_sscd:
            rows = np.stack([vectors[name] for name in names])
            distances = 1 - rows @ rows.T
        else:
            distances = tile_distances(np.stack([from_bytes(files[name]) for name in names]), params.tiles)
        if extract(distances, params).extracted:
            claimed.append(asked)
    truth = {shot.prompt.prompt_id for shot in wanted if shot.prompt.kind == "memorized"}
    found = precision_recall(claimed, truth)
    shares = (
        ("extraction_precision", found.precision, found.precision_interval, found.claimed),
        ("extraction_recall", found.recall, found.recall_interval, found.memorized),
    )
    return [Figure(metric, value, *bounds, n) for metric, value, bounds, n in shares if value is not None and bounds]


def write_figures(subject: Subject, audit_id: str, variant: str, probe: str, found: Sequence[Figure]) -> None:
    """Rows of `metrics`; a variant goes by the name of its method, so that audits compare."""
    rows = [
        {
            "variant": variant,
            "probe": probe,
            "metric": figure.metric,
            "value": figure.value,
            "low": figure.low,
            "high": figure.high,
            "n": figure.n,
        }
        for figure in found
    ]
    subject.open().write("metrics", content_key(audit_id, variant, probe), rows, audit_id=audit_id)


def _score(
    subject: Subject, store: Store, pairs: Sequence[tuple[str, str, str]], variant: str, probe: str, measure: Sscd
) -> None:
    """Cosines of SSCD embeddings: (metric, generation, generation or image)."""
    for metric in dict.fromkeys(metric for metric, _, _ in pairs):
        wanted = [(name, other) for kind, name, other in pairs if kind == metric]
        known = _values(store, metric, measure.scorer, [name for name, _ in wanted])
        todo = [pair for pair in wanted if pair not in known]
        names = list(dict.fromkeys(name for pair in todo for name in pair))
        if not todo:
            continue
        vectors = _vectors(subject, variant, probe, names, measure)
        rows = [
            {"generation_id": a, "reference_id": b, "scorer": measure.scorer, "value": float(vectors[a] @ vectors[b])}
            for a, b in todo
        ]
        store.write("scores", content_key(metric, measure.scorer, todo), rows, metric=metric)


_CACHE: dict[tuple[str, str], np.ndarray] = {}
"""Embeddings by model, SSCD or CLIP, and name of the picture; 2 KiB each. Names are hashes, so they cannot go stale."""


def _vectors(subject: Subject, variant: str, probe: str, names: Sequence[str], measure: Sscd) -> dict[str, np.ndarray]:
    todo = [name for name in names if (measure.scorer, name) not in _CACHE]
    files = files_of(subject, variant, probe, todo)
    with progress(len(todo), f"SSCD of {variant}, {probe}", "picture") as done:
        for name in todo:
            _CACHE[measure.scorer, name] = measure.embed(from_bytes(files[name])[None])[0]
            done(1)
    return {name: _CACHE[measure.scorer, name] for name in names}


def _clip_vectors(
    subject: Subject, variant: str, probe: str, names: Sequence[str], params: ClipParams
) -> dict[str, np.ndarray]:
    scorer = clip_score.scorer_of(params)
    todo = [name for name in names if (scorer, name) not in _CACHE]
    files = files_of(subject, variant, probe, todo)
    for name in todo:
        _CACHE[scorer, name] = _clip(params, device_of(subject.device)).images(from_bytes(files[name])[None])[0]
    return {name: _CACHE[scorer, name] for name in names}


def pictures_of(subject: Subject, variant: str, probe: str, names: Sequence[str]) -> dict[str, np.ndarray]:
    """Generations of this variant, or of the original, and training images, by name; uint8 (height, width, 3)."""
    return {name: from_bytes(data) for name, data in files_of(subject, variant, probe, names).items()}


def files_of(subject: Subject, variant: str, probe: str, names: Sequence[str]) -> dict[str, bytes]:
    """The same as they are stored: where there are thousands, they are decoded one by one.

    Raises:
        InputError: one is not there.
    """
    store, lost = subject.open(), set(names)
    found: dict[str, bytes] = {}

    def find(table: str, name: str, **where: str) -> None:
        if lost:
            wanted: dict[str, Any] = {**where, name: sorted(lost)}
            rows = store.read(table, columns=[name, "bytes"], **wanted)
            found.update(zip(rows[name].to_pylist(), rows["bytes"].to_pylist(), strict=True))
            lost.difference_update(found)

    for of in dict.fromkeys((variant, ORIGINAL)):
        find("generations", "generation_id", model_id=subject.model_id, variant=of, probe=probe)
    find("images", "image_id")
    if lost:
        raise InputError(f"the store has no picture {min(lost)}: generate first, and import prompts with their images")
    return found


def _values(store: Store, metric: str, scorer: str, ids: Sequence[str]) -> dict[tuple[str, str], float]:
    """Scores in the store, made with one model, by generation and reference."""
    columns, wanted = ["generation_id", "reference_id", "value"], sorted(set(ids))
    rows = store.read("scores", columns=columns, metric=metric, scorer=scorer, generation_id=wanted)
    return {(name, other): value for name, other, value in zip(*(c.to_pylist() for c in rows.columns), strict=True)}


@lru_cache(maxsize=1)
def _sscd(params: SscdParams, device: torch.device) -> Sscd:
    return Sscd(params, device)


@lru_cache(maxsize=1)
def _clip(params: ClipParams, device: torch.device) -> ClipScore:
    return ClipScore(params, device)
