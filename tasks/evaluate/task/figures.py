"""The figures of an audit, from the scores of its pictures.

All count images, with all their prompts together; see `tasks.units`.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from storage import content_key
from tasks.attack.extraction import ExtractionParams, extract, precision_recall, tile_distances
from tasks.conditions import Condition
from tasks.diffusion.sampling import from_bytes
from tasks.evaluate import clip_score, figures, quality, sscd, ssim
from tasks.evaluate.clip_score import ClipParams
from tasks.evaluate.figures import Estimate
from tasks.evaluate.sscd import COPY_THRESHOLD, SscdParams
from tasks.evaluate.task.pictures import Shot, files_of
from tasks.evaluate.task.scores import clip_vectors, scores_of, sscd_vectors
from tasks.subject import Prompt, Subject, units_of
from tasks.units import PROMPTS


def copy_figures(subject: Subject, wanted: Sequence[Shot], ids: Sequence[str], params: SscdParams) -> list[Estimate]:
    """MR and the similarities to training images, over the prompts that have any, each picture by its nearest image.

    An image counts once, however many prompts it has: the pictures of all of them are its pictures.

    Where prompts are verbatim (VM) and template memories (TM), MR and similarities of each kind follow, under the same
    names with `_vm` and `_tm`: of the prompts of this kind. An image that has both counts in either.
    """
    rows = _to_nearest(subject, "sscd", sscd.scorer_of(params), wanted, ids)
    if not rows:
        return []

    of = units_of(subject, [prompt for prompt, _ in rows])

    def found(kind: str | None = None) -> list[Estimate]:
        mine = [(prompt, value) for prompt, value in rows if kind in (None, prompt.memorization)]
        asked = [prompt for prompt, _ in mine]
        grouped = _by_unit(of, asked, [value for _, value in mine])
        return _of_prompts(asked, [figures.mr(grouped), figures.mr_generations(grouped), *figures.sscd_orig(grouped)])

    every = found()
    kinds = {prompt.memorization for prompt, _ in rows}
    for kind in ("VM", "TM") if {"VM", "TM"} <= kinds else ():
        every += [
            replace(one, metric=f"{one.metric}_{kind.lower()}")
            for one in found(kind)
            if one.metric in ("mr", "sscd_orig_max", "sscd_orig_median")
        ]
    return every


def structure_figures(subject: Subject, wanted: Sequence[Shot], ids: Sequence[str]) -> list[Estimate]:
    """The structural similarities to training images, over the prompts that have any; see `copy_figures`."""
    rows = _to_nearest(subject, "ssim", ssim.SCORER, wanted, ids)
    if not rows:
        return []
    asked = [prompt for prompt, _ in rows]
    grouped = _by_unit(units_of(subject, asked), asked, [value for _, value in rows])
    return _of_prompts(asked, ssim.ssim_orig(grouped))


def triggers_that_copy(subject: Subject, wanted: Sequence[Shot], ids: Sequence[str], params: SscdParams) -> set[str]:
    """The triggers of which any picture is a copy of a training image of the prompt: the searches that succeeded."""
    known = scores_of(subject.open(), "sscd", sscd.scorer_of(params), ids)
    return {
        shot.trigger_id
        for name, shot in zip(ids, wanted, strict=True)
        for image in shot.prompt.image_ids
        if shot.trigger_id is not None and known[name, image] > COPY_THRESHOLD
    }


def seed_similarity_figure(
    subject: Subject, wanted: Sequence[Shot], ids: Sequence[str], params: SscdParams
) -> list[Estimate]:
    """How alike the seeds of a prompt are; nothing where there is one seed.

    Only pairs of one prompt are compared, or of one trigger; those of all prompts of an image count together.
    """
    of = {name: shot.prompt for name, shot in zip(ids, wanted, strict=True)}
    known = scores_of(subject.open(), "sscd_pair", sscd.scorer_of(params), ids)
    known = {pair: value for pair, value in known.items() if pair[1] in of}  # not of seeds beyond this audit's
    if not known:
        return []
    asked = [of[name] for name, _ in known]
    grouped = _by_unit(units_of(subject, asked), asked, list(known.values()))
    return _of_prompts(asked, [figures.seed_similarity(grouped)])


def change_figure(subject: Subject, wanted: Sequence[Shot], ids: Sequence[str], params: SscdParams) -> list[Estimate]:
    """Similarity to what the original model makes of the same prompt and seed."""
    of = {name: shot.prompt for name, shot in zip(ids, wanted, strict=True)}
    known = scores_of(subject.open(), "sscd_gen", sscd.scorer_of(params), ids)
    asked = [of[name] for name, _ in known]
    grouped = _by_unit(units_of(subject, asked), asked, list(known.values()))
    return _of_prompts(asked, [figures.sscd_gen(grouped)])


def alignment_figures(
    subject: Subject, wanted: Sequence[Shot], ids: Sequence[str], originals: Sequence[str], params: ClipParams
) -> list[Estimate]:
    """Mean CLIP score, and what share it is of the original model's.

    Args:
        originals: the original's pictures of the same shots; none where these are they.
    """
    asked = [shot.prompt for shot in wanted]
    known = scores_of(subject.open(), "clip", clip_score.scorer_of(params), [*ids, *originals])
    of = units_of(subject, asked)

    def scores(names: Sequence[str]) -> dict[str, np.ndarray]:
        return _by_unit(of, asked, [known[name, one.prompt_id] for name, one in zip(names, asked, strict=True)])

    found = [figures.clip(scores(ids))]
    found += [figures.clip_kept(scores(ids), scores(originals))] if originals else []
    return _of_prompts(asked, found)


def quality_figures(
    subject: Subject, variant: str, condition: Condition, wanted: Sequence[Shot], ids: Sequence[str], params: ClipParams
) -> list[Estimate]:
    """FID and KID of CLIP image embeddings, generations against their prompts' own pictures; nothing without those, and
    no value of fewer than `quality.LEAST` different ones.

    Of prompts that share an image the first counts, and of several images of a prompt the first: so each image stands
    against as many generations as any other. n counts generations.
    """
    of = units_of(subject, [shot.prompt for shot in wanted])
    first: dict[str, Prompt] = {}
    for shot in wanted:
        if shot.prompt.image_ids:
            first.setdefault(of[shot.prompt.prompt_id], shot.prompt)
    chosen = {prompt.prompt_id: prompt.image_ids[0] for prompt in first.values()}
    real = list(dict.fromkeys(chosen.values()))
    ours = [name for name, shot in zip(ids, wanted, strict=True) if shot.prompt.prompt_id in chosen]
    if not real:
        return []
    if len(real) < quality.LEAST:
        return [Estimate(metric, math.nan, None, None, len(ours)) for metric in ("fid", "kid")]
    vectors = clip_vectors(subject, variant, condition, [*ours, *real], params)
    made, trained = (np.stack([vectors[name] for name in names]) for names in (ours, real))
    return [quality.fid(made, trained), quality.kid(made, trained)]


def extraction_figures(
    subject: Subject,
    variant: str,
    condition: Condition,
    wanted: Sequence[Shot],
    ids: Sequence[str],
    params: ExtractionParams,
    sscd_params: SscdParams,
) -> list[Estimate]:
    """What an attacker without training pictures finds among many generations of each prompt, against the truth.

    A prompt is claimed to be memorized when its generations hold a clique of near copies. The claim is true where the
    picture in the middle of the clique is a copy of a training picture of the prompt: one that always gives the same
    new picture, as surrogates may teach it, gives no memory away. Prompts without training pictures are claimed rightly
    where they are memorized ones. Precision has no figure where nothing is claimed.

    Cliques are looked for prompt by prompt, since the attacker knows no images; what was found is counted by images,
    see `precision_recall`.

    Args:
        wanted: of memorized prompts and of others, many seeds each.
    """
    by_asked: dict[str, list[str]] = {}
    for name, shot in zip(ids, wanted, strict=True):
        by_asked.setdefault(shot.prompt.prompt_id, []).append(name)
    extracted: dict[str, str] = {}
    by_sscd = params.measure == "sscd"
    vectors = sscd_vectors(subject, variant, condition, ids, sscd_params) if by_sscd else {}
    files = {} if by_sscd else files_of(subject, variant, condition, ids)
    for asked, names in by_asked.items():
        if by_sscd:
            rows = np.stack([vectors[name] for name in names])
            distances = 1 - rows @ rows.T
        else:
            distances = tile_distances(np.stack([from_bytes(files[name]) for name in names]), params.tiles)
        if (middle := extract(distances, params).representative) is not None:
            extracted[asked] = names[middle]
    prompts = {shot.prompt.prompt_id: shot.prompt for shot in wanted}
    pictures = [image for asked in extracted for image in prompts[asked].image_ids]
    vectors = sscd_vectors(subject, variant, condition, [*extracted.values(), *pictures], sscd_params)
    claims = {}
    for asked, name in extracted.items():
        alike = [float(vectors[name] @ vectors[image]) for image in prompts[asked].image_ids]
        claims[asked] = max(alike) > COPY_THRESHOLD if alike else prompts[asked].kind == "memorized"
    memorized = [name for name, prompt in prompts.items() if prompt.kind == "memorized"]
    found = precision_recall(claims, memorized, units_of(subject, list(prompts.values())))
    shares = (
        ("extraction_precision", found.precision, found.precision_interval, found.claimed, len(claims)),
        ("extraction_recall", found.recall, found.recall_interval, found.memorized, len(memorized)),
    )
    return [
        Estimate(metric, value, *bounds, n, asked)
        for metric, value, bounds, n, asked in shares
        if value is not None and bounds
    ]


def write_figures(
    subject: Subject, audit_id: str, variant: str, condition: Condition, found: Sequence[Estimate]
) -> None:
    """Rows of `metrics`; a variant goes by the name of its method, so that audits compare.

    A figure of more prompts than images is followed by one that says how many: of `mr` it is `mr_prompts`. One that is
    not a number has no value.
    """
    place = {"variant": variant, "condition": condition.name}
    rows: list[dict[str, Any]] = []
    for one in found:
        value = None if math.isnan(one.value) else one.value
        rows.append(place | {"metric": one.metric, "value": value, "low": one.low, "high": one.high, "n": one.n})
        if one.prompts not in (None, one.n):
            rows.append(place | {"metric": f"{one.metric}{PROMPTS}", "value": float(one.prompts), "n": one.n})
    subject.open().write("metrics", content_key(audit_id, variant, condition.name), rows, audit_id=audit_id)


def _to_nearest(
    subject: Subject, metric: str, scorer: str, wanted: Sequence[Shot], ids: Sequence[str]
) -> list[tuple[Prompt, float]]:
    """Each generation's prompt, and its score against the nearest of the prompt's training images, where it has any."""
    known = scores_of(subject.open(), metric, scorer, ids)
    return [
        # The store may hold scores against other images, that the prompt had in an earlier set.
        (shot.prompt, max(known[name, image] for image in shot.prompt.image_ids))
        for name, shot in zip(ids, wanted, strict=True)
        if shot.prompt.image_ids
    ]


def _by_unit(of: Mapping[str, str], asked: Sequence[Prompt], values: Sequence[float]) -> dict[str, np.ndarray]:
    """Values, one for each of these prompts, by unit."""
    return figures.by_unit([of[prompt.prompt_id] for prompt in asked], np.array(values))


def _of_prompts(asked: Sequence[Prompt], found: Sequence[Estimate]) -> list[Estimate]:
    """The same figures with the number of prompts behind them."""
    return [replace(one, prompts=len({prompt.prompt_id for prompt in asked})) for one in found]
