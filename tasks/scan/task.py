"""Scanning: scores of prompts into the store, and which of them null prompts do not explain.

Scores are kept prompt by prompt, as collections are: a larger scan adds to a smaller one, and one that was interrupted
goes on where it stopped.
"""

from collections.abc import Sequence
from datetime import UTC, datetime
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
from pydantic import ConfigDict, Field

from storage import Store, content_key, csv_line, query, safe_cell
from tasks.detections import detector_scores
from tasks.diffusion.tokens import LongPrompts
from tasks.errors import InputError
from tasks.keys import prompt_id
from tasks.methods import SPEED, Detector, Params, method, methods, named, params_in, with_groups
from tasks.progress import progress
from tasks.prompt_files import PromptEntry
from tasks.scan.conformal import false_alarms as false_alarms
from tasks.scan.conformal import p_values
from tasks.subject import ORIGINAL, Prompt, Subject, shards
from tasks.units import units

SHARD = 64

if TYPE_CHECKING:
    DetectorName = str
else:
    DetectorName = named("detector")


class ScanSettings(Params):
    """Which detectors look at a prompt, and when it is flagged; each detector's own settings are a group beside."""

    model_config = ConfigDict(title="Detection of memorized prompts")

    detectors: Annotated[
        tuple[DetectorName, ...],
        Field(
            min_length=1,
            description="Detectors that look at each prompt; each flags by itself. `engram methods` explains them.",
        ),
    ] = ("norm",)
    alpha: Annotated[
        float, Field(gt=0, lt=1, description="False-alarm rate: the share flagged of prompts that are not memorized.")
    ] = 0.02
    batch: Annotated[
        int, Field(ge=1, le=4096, description="Samples computed at a time; this does not change the result."), SPEED
    ] = 32
    long_prompts: Annotated[
        LongPrompts,
        Field(
            description="What is done with prompts of more tokens than the model reads: truncate reads their beginning,"
            " as training does; refuse names them all and stops; skip leaves them out."
        ),
    ] = "truncate"

    def of(self, chosen: Detector) -> Params:
        """The parameters of a detector."""
        found: Params = params_in(self, chosen)
        return found

    def chosen(self) -> list[Detector]:
        """The detectors that are asked for, each once."""
        return [method("detector", name) for name in dict.fromkeys(self.detectors)]


if TYPE_CHECKING:
    ScanParams = ScanSettings
else:
    ScanParams = with_groups("ScanParams", ScanSettings, methods("detector"))


def different(nulls: Sequence[PromptEntry]) -> list[PromptEntry]:
    """The first of the null prompts that count as one: captions of one image, or one text in several spellings.

    A rate of false alarms rests on null prompts that are as different from each other as from a scanned one. Captions
    of one image score alike, so that five of them would be taken for five chances to score as high. Which one stays
    does not depend on their scores.
    """
    links = [
        (str(n), null.text, [*(f"name {name}" for name in null.images), *(f"number {name}" for name in null.numbers)])
        for n, null in enumerate(nulls)
    ]
    of = units(links)
    first: dict[str, PromptEntry] = {}
    for n, null in enumerate(nulls):
        first.setdefault(of[str(n)], null)
    return list(first.values())


def score_prompts(
    subject: Subject, prompts: Sequence[PromptEntry | Prompt], detector: Detector, params: Params, batch: int = 32
) -> None:
    """One detector's scores of prompts that the store has none of yet, a row of `detections` each.

    Raises:
        InputError: a prediction is not finite.
    """
    model, store, params_id = subject.load(), subject.open(), detector.id(params)
    known = detector_scores(subject, detector, params)

    def lacking(prompt: PromptEntry | Prompt) -> bool:
        return prompt_id(prompt.text) not in known

    with progress(sum(map(lacking, prompts)), f"scanning by {detector.name}", "prompt") as done:
        for block in shards(prompts, SHARD, lacking):
            texts = [prompt.text for prompt in block]
            ids = [prompt_id(text) for text in texts]
            found = detector.score(model, model.encode(texts), ids, params, batch).tolist()
            rows = [
                {"prompt_id": name, "params_id": params_id, "score": score}
                for name, score in zip(ids, found, strict=True)
            ]
            partition = {"model_id": subject.model_id, "variant": ORIGINAL, "detector": detector.name}
            store.write("detections", content_key(*partition.values(), params_id, ids), rows, **partition)
            done(len(block))


def write_findings(
    subject: Subject, name: str, prompts: Sequence[PromptEntry], nulls: Sequence[PromptEntry], params: ScanSettings
) -> str:
    """What the scores of prompts say beside those of null prompts, a row of `findings` for each prompt and detector.

    Args:
        name: what the scan's id begins with.
        nulls: those that count as one are one; see `different`.

    Returns:
        The scan's id; it follows from what was asked, so the same scan again changes nothing.

    Raises:
        InputError: a prompt has no score, or there are too few null prompts.
    """
    nulls = different(nulls)
    false_alarms(len(nulls), params.alpha)
    ids, null_ids = ([prompt_id(prompt.text) for prompt in group] for group in (prompts, nulls))
    chosen = params.chosen()
    keys = {one.name: one.id(params.of(one)) for one in chosen}
    content = (subject.model_id, keys, sorted(ids), sorted(null_ids), params.alpha)
    scan_id, rows = f"{name}-{content_key('scan/1', *content)[:8]}", []
    same = {"model_id": subject.model_id, "nulls": len(nulls), "alpha": params.alpha, "found_at": datetime.now(UTC)}
    for one in chosen:
        detector, params_id = one.name, keys[one.name]
        known = detector_scores(subject, one, params.of(one))
        if lost := {*ids, *null_ids} - known.keys():
            raise InputError(f"{len(lost)} prompts have no score by {detector}, such as {min(lost)}: scan them first")
        found = np.array([known[name_of] for name_of in ids])
        chances = p_values(found, np.array([known[name_of] for name_of in null_ids]))
        for prompt, name_of, score, p_value in zip(prompts, ids, found.tolist(), chances.tolist(), strict=True):
            own = {"prompt_id": name_of, "text": prompt.text, "detector": detector, "params_id": params_id}
            rows.append(own | same | {"score": score, "p_value": p_value, "flagged": p_value <= params.alpha})
    subject.open().write("findings", content_key(scan_id), rows, scan_id=scan_id)
    return scan_id


def verdict(store: Store, scan_id: str) -> str:
    """In words, a line for each detector: how many prompts it flags, and how many it would flag by chance.

    Raises:
        InputError: there is no such scan.
    """
    rows = store.read("findings", scan_id=scan_id).to_pylist()
    if not rows:
        raise InputError(f"the store has no scan {scan_id!r}: run `engram scan` first")
    alpha, nulls, prompts = rows[0]["alpha"], rows[0]["nulls"], len({row["prompt_id"] for row in rows})
    expected = prompts * false_alarms(nulls, alpha)
    lines = [
        f"{detector} flags {sum(row['flagged'] for row in rows if row['detector'] == detector)} of {prompts} prompts, "
        f"compared with {nulls} null prompts at a false-alarm rate of {100 * alpha:g} %; if none were memorized, "
        f"it would flag about {round(expected, 1):g}"
        for detector in dict.fromkeys(row["detector"] for row in rows)
    ]
    if len(lines) > 1:
        flagged, bound = len({row["prompt_id"] for row in rows if row["flagged"]}), min(1.0, len(lines) * alpha)
        most = f"of those not memorized at most {100 * bound:g} % are"
        lines.append(f"{flagged} prompts are flagged by one or more: {most}")
    return "\n".join(lines)


def write_flagged(store: Store, scan_id: str, prompts: Sequence[PromptEntry], path: Path) -> int:
    """The flagged prompts as a CSV file, most suspicious first, that `prompt_files.read_file` reads.

    Texts that a spreadsheet would take for formulas stand behind a quote, which the reader takes away again.

    What the prompts' own file said of them is kept, so that an audit finds their images.

    Args:
        prompts: that were scanned.

    Returns:
        How many there are.

    Raises:
        InputError: the file cannot be written.
    """
    known = {prompt.text: prompt for prompt in prompts}
    flagged: dict[str, list[dict[str, object]]] = {}
    for row in query(store, "suspects", scan_id=scan_id).to_pylist():
        if row["flagged"]:
            flagged.setdefault(row["prompt"], []).append(row)
    lines = [csv_line(["caption", "type", "subset", "image", "index", "detectors", "p_value"])]
    for caption, rows in flagged.items():
        prompt = known[caption]
        found = [" ".join(str(row["detector"]) for row in rows), str(rows[0]["p_value"])]
        # A prompt with several images has a row for each.
        for image, number in zip_longest(prompt.images or ("",), prompt.numbers, fillvalue=""):
            named = (caption, prompt.memorization, prompt.subset, image, number)
            lines.append(csv_line([*(safe_cell(str(cell or "")) for cell in named), *found]))
    try:
        aside = path.with_name(f"{path.name}.writing")
        aside.write_text("".join(lines), encoding="utf-8", newline="")
        aside.replace(path)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}") from error
    return len(flagged)
