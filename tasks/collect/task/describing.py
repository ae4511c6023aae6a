"""A set of prompts as an audit would read it, described before there is any audit."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks.collect.duplicates import DuplicatesParams, caption_clusters, image_clusters, prompt_clusters
from tasks.collect.summary import Listed, Summary, summarized
from tasks.collect.task.importing import Inputs, looked_at, set_name
from tasks.diffusion.sampling import from_bytes
from tasks.diffusion.tokens import tokenizers_of
from tasks.errors import noting
from tasks.prompt_files import few
from tasks.scorers.clip import ClipParams
from tasks.subject import by_kind


@dataclass(frozen=True)
class Described:
    """What a set of prompts is."""

    prompt_set: str
    """What it is called in a store."""
    prompts: list[Listed]
    """By kind, each kind in the order that audits take them in."""
    files: dict[str, list[str]]
    """By image id, its files; the id itself where it lies in a table."""
    summary: Summary
    problems: list[str]
    """For which an audit would refuse it."""
    notices: list[str]


def described(
    inputs: Inputs, folder: Path | None, near: DuplicatesParams | None, clip: ClipParams | None = None
) -> Described:
    """Reads images whole, counts tokens, and looks for near-duplicates, unless something is wrong with the set already.

    Args:
        inputs: what the files hold; with problems, all that can be read is described.
        folder: of the model whose tokenizers count tokens.
        near: what counts as nearly the same; without it no image and no caption is embedded.
        clip: embeds captions.

    Raises:
        InputError: SSCD or CLIP cannot be loaded.
    """
    rows, image_rows, broken = looked_at(inputs)
    problems = [*inputs.problems, *few(broken, "of such images")]
    entries = {prompt.text: prompt for prompt in inputs.prompts}
    in_order = [one for some in by_kind(rows).values() for one in some]
    files: dict[str, list[str]] = {}
    for row in image_rows:
        files.setdefault(row["image_id"], []).append(str(row.get("path", row["image_id"])))
    links = list({one.prompt_id: (one.prompt_id, one.text, one.image_ids) for one in in_order}.values())
    images: dict[str, str] | None = None
    captions: dict[str, str] | None = None
    if near is not None and not problems:
        images = _image_clusters(image_rows, near)
        if clip is not None:
            captions = caption_clusters({name: text for name, text, _ in links}, clip, near)
    of = prompt_clusters(links, images or {}, captions or {})
    counts, most = _tokens([one.text for one in in_order], folder)
    prompts = [
        Listed(
            one.prompt_id,
            one.text,
            one.kind,
            one.memorization,
            one.subset,
            one.image_ids,
            entries[one.text].place,
            of[one.prompt_id],
            entries[one.text].exposures,
            tokens,
        )
        for one, tokens in zip(in_order, counts, strict=True)
    ]
    unreadable = inputs.unreadable + len(broken)
    summary = summarized(prompts, files, most, inputs.again, unreadable, images, captions)
    return Described(set_name(inputs.stem, rows, image_rows), prompts, files, summary, problems, list(inputs.notices))


def _image_clusters(image_rows: Sequence[Mapping[str, Any]], near: DuplicatesParams) -> dict[str, str]:
    by_id = {row["image_id"]: row for row in image_rows}

    def pixels(image: str) -> Any:
        row = by_id[image]
        return from_bytes(row["bytes"] if "bytes" in row else row["path"].read_bytes())

    return image_clusters(sorted(by_id), pixels, near)


def _tokens(texts: Sequence[str], folder: Path | None) -> tuple[Sequence[int | None], int | None]:
    """Of each text its number of tokens, and how many the model reads; nothing where it has no tokenizer, which is a
    problem of the set already."""
    if folder is not None and texts:
        with noting([]):
            tokenizers = tokenizers_of(folder)
            return tokenizers.counts(texts), tokenizers.most
    return [None] * len(texts), None
