"""The figures of an audit, from the scores of its pictures."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from storage import content_key
from tasks.attack.extraction import ExtractionParams, extract, precision_recall, tile_distances
from tasks.diffusion.sampling import from_bytes
from tasks.evaluate import clip_score, figures, quality, sscd
from tasks.evaluate.clip_score import ClipParams
from tasks.evaluate.figures import Figure
from tasks.evaluate.sscd import COPY_THRESHOLD, SscdParams
from tasks.evaluate.task.pictures import Shot, files_of
from tasks.evaluate.task.scores import clip_vectors, scores_of, sscd_vectors
from tasks.subject import Subject


def copy_figures(subject: Subject, wanted: Sequence[Shot], ids: Sequence[str], params: SscdParams) -> list[Figure]:
    """MR and the similarities to training images, over the prompts that have any, each picture by its nearest image.

    Where prompts are verbatim (VM) and template memories (TM), MR and similarities of each kind follow, under the same
    names with `_vm` and `_tm`.
    """
    known = scores_of(subject.open(), "sscd", sscd.scorer_of(params), ids)
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

    found = [figures.mr(grouped()), figures.mr_generations(grouped()), *figures.sscd_orig(grouped())]
    kinds = {prompt.memorization for prompt, _ in rows}
    for kind in ("VM", "TM") if {"VM", "TM"} <= kinds else ():
        apart = [figures.mr(grouped(kind)), *figures.sscd_orig(grouped(kind))]
        found += [
            replace(one, metric=f"{one.metric}_{kind.lower()}")
            for one in apart
            if one.metric in ("mr", "sscd_orig_max", "sscd_orig_median")
        ]
    return found


def triggers_that_copy(subject: Subject, wanted: Sequence[Shot], ids: Sequence[str], params: SscdParams) -> set[str]:
    """The triggers of which any picture is a copy of a training image of the prompt: the searches that succeeded."""
    known = scores_of(subject.open(), "sscd", sscd.scorer_of(params), ids)
    return {
        shot.trigger_id
        for name, shot in zip(ids, wanted, strict=True)
        for image in shot.prompt.image_ids
        if shot.trigger_id is not None and known[name, image] > COPY_THRESHOLD
    }


def diversity_figure(subject: Subject, wanted: Sequence[Shot], ids: Sequence[str], params: SscdParams) -> list[Figure]:
    """How alike the seeds of a prompt are; nothing where there is one seed."""
    of = {name: shot.prompt.prompt_id for name, shot in zip(ids, wanted, strict=True)}
    known = scores_of(subject.open(), "sscd_pair", sscd.scorer_of(params), ids)
    known = {pair: value for pair, value in known.items() if pair[1] in of}  # not of seeds beyond this audit's
    if not known:
        return []
    grouped = figures.by_prompt([of[name] for name, _ in known], np.array(list(known.values())))
    return [figures.similar_seeds(grouped)]


def change_figure(subject: Subject, wanted: Sequence[Shot], ids: Sequence[str], params: SscdParams) -> list[Figure]:
    """Similarity to what the original model makes of the same prompt and seed."""
    of = {name: shot.prompt.prompt_id for name, shot in zip(ids, wanted, strict=True)}
    known = scores_of(subject.open(), "sscd_gen", sscd.scorer_of(params), ids)
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
    known = scores_of(subject.open(), "clip", clip_score.scorer_of(params), [*ids, *originals])

    def scores(names: Sequence[str]) -> dict[str, np.ndarray]:
        return figures.by_prompt(asked, np.array([known[pair] for pair in zip(names, asked, strict=True)]))

    found = [figures.clip(scores(ids))]
    return [*found, figures.clip_kept(scores(ids), scores(originals))] if originals else found


def quality_figures(
    subject: Subject, variant: str, probe: str, wanted: Sequence[Shot], ids: Sequence[str], params: ClipParams
) -> list[Figure]:
    """FID and KID of CLIP image embeddings, generations against their prompts' own pictures; nothing without those."""
    real = list(dict.fromkeys(image for shot in wanted for image in shot.prompt.image_ids[:1]))
    ours = [name for name, shot in zip(ids, wanted, strict=True) if shot.prompt.image_ids]
    if len(real) < 2 or len(ours) < 2:
        return []
    vectors = clip_vectors(subject, variant, probe, [*ours, *real], params)
    made, trained = (np.stack([vectors[name] for name in names]) for names in (ours, real))
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

    A prompt is claimed to be memorized when its generations hold a clique of near copies. The claim is true where the
    picture in the middle of the clique is a copy of a training picture of the prompt: one that always gives the same
    new picture, as surrogates may teach it, gives no memory away. Prompts without training pictures are claimed rightly
    where they are memorized ones. Precision has no figure where nothing is claimed.

    Args:
        wanted: of memorized prompts and of others, many seeds each.
    """
    by_asked: dict[str, list[str]] = {}
    for name, shot in zip(ids, wanted, strict=True):
        by_asked.setdefault(shot.prompt.prompt_id, []).append(name)
    extracted: dict[str, str] = {}
    by_sscd = params.measure == "sscd"
    vectors = sscd_vectors(subject, variant, probe, ids, sscd_params) if by_sscd else {}
    files = {} if by_sscd else files_of(subject, variant, probe, ids)
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
    vectors = sscd_vectors(subject, variant, probe, [*extracted.values(), *pictures], sscd_params)
    claims = {}
    for asked, name in extracted.items():
        alike = [float(vectors[name] @ vectors[image]) for image in prompts[asked].image_ids]
        claims[asked] = max(alike) > COPY_THRESHOLD if alike else prompts[asked].kind == "memorized"
    found = precision_recall(claims, [name for name, prompt in prompts.items() if prompt.kind == "memorized"])
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
