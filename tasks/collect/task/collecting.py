"""Collecting: prompts and images into the store, then what the network does under each prompt.

Work is kept prompt by prompt, so that a larger audit adds to a smaller one and shards of any size combine.
"""

import hashlib
import io
from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, ImageOps, UnidentifiedImageError

from storage import Store, content_key
from tasks.collect.norms import norms_by_prompt
from tasks.collect.prompt_files import Kind, Prompt, find_images, read_prompts
from tasks.collect.values import value_activations
from tasks.diffusion.sampling import SamplingParams
from tasks.diffusion.sites import Layer, Site, layers_of
from tasks.errors import InputError
from tasks.keys import SEED, norms_id, prompt_id, values_id
from tasks.progress import progress
from tasks.subject import ORIGINAL, Asked, Subject, shards

SHARD = 64


def register_model(subject: Subject) -> str:
    """Writes the model's row and that of its original variant, and returns its fingerprint."""
    model, store = subject.load(), subject.open()
    row = {
        "model_id": model.model_id,
        "source": subject.source,
        "family": f"{type(model.unet).__name__} {model.unet.config.cross_attention_dim}",
        "created_at": datetime.now(UTC),
    }
    store.write("models", model.model_id, [row])
    original = {"model_id": model.model_id, "variant": ORIGINAL, "method": "none", "params_id": content_key("none")}
    store.write("variants", content_key(model.model_id, ORIGINAL), [original], model_id=model.model_id)
    return model.model_id


def import_prompts(
    store: Store, prompts: Path, nulls: Path | None = None, ordinary: Path | None = None, images: Path | None = None
) -> str:
    """Reads prompts and their training images into the store.

    Args:
        prompts: a CSV, JSONL or text file of memorized prompts, or a Parquet file of the table `prompts`, which holds
            all kinds.
        nulls, ordinary: files of prompts that are not memorized: what memorized ones are held against, and what
            quality is measured on. Without `ordinary`, the second half of the nulls.
        images: a folder of the prompts' training images, or a Parquet file of the table `images`, which prompts name
            by their sha256.

    Returns:
        The name of the set: the file's name and a digest of the content, so a changed file is another set.

    Raises:
        InputError: a file cannot be used, files contradict each other, or there are no null prompts.
    """
    pictures = _image_rows(images) if images is not None and images.suffix == ".parquet" else []
    if prompts.suffix == ".parquet":
        if nulls is not None or ordinary is not None:
            raise InputError(f"{prompts} holds prompts of all kinds: give no other file of them, or give all as CSV")
        if images is not None and images.suffix != ".parquet":
            raise InputError(f"{prompts} names images by their sha256: give a Parquet file of the table images, too")
        rows = _prompt_rows(prompts)
    else:
        told = read_prompts(prompts, "memorized")
        others = read_prompts(nulls, "null") if nulls is not None else []
        others += read_prompts(ordinary, "ordinary") if ordinary is not None else []
        if images is not None and images.suffix != ".parquet":
            found = find_images(told, images, others)
            files = _identified({path for paths in found.values() for path in paths})
            pictures = list(files.values())
            named = {text: [files[path]["image_id"] for path in paths] for text, paths in found.items()}
        else:
            known = {picture["image_id"] for picture in pictures}
            named = {prompt.text: [name for name in prompt.images if name in known] for prompt in (*told, *others)}
            if pictures and not any(named.values()):
                raise InputError(f"no prompt names an image of {images} by its sha256: give a folder of pictures")
        rows = [_prompt_row(prompt, named.get(prompt.text, [])) for prompt in (*told, *others)]
    kinds = {row["kind"] for row in rows}
    by_text = {row["text"]: row["kind"] for row in rows}
    if twice := [row for row in rows if by_text[row["text"]] != row["kind"]]:
        both = f"{twice[0]['text'][:60]!r} as {twice[0]['kind']} and as {by_text[twice[0]['text']]}"
        raise InputError(f"{len(twice)} prompts stand under two kinds, such as {both}: leave each in one file")
    if "memorized" not in kinds:
        raise InputError(f"{prompts} has no memorized prompts: an audit needs at least one")
    if "null" not in kinds:
        raise InputError("there are no null prompts to hold memorized ones against: give a file of them with --nulls")
    if "ordinary" not in kinds:
        # Quality is measured on other prompts than those that thresholds and statistics are estimated from.
        free = [row for row in rows if row["kind"] == "null"]
        for row in free[len(free) // 2 :]:
            row["kind"] = "ordinary"
    return _keep(store, prompts.stem, rows, pictures)


def told_prompts(path: Path, kind: Kind = "memorized") -> list[Prompt]:
    """The prompts of a file as `import_prompts` reads it, without bringing them into the store.

    Args:
        kind: what prompts are taken for that do not say; those of a Parquet file all do.

    Raises:
        InputError: the file cannot be used.
    """
    if path.suffix != ".parquet":
        return read_prompts(path, kind)
    return [
        Prompt(row["text"], row["kind"], row["memorization"], row["subset"], tuple(row["image_ids"] or ()))
        for row in _prompt_rows(path)
    ]


def import_set(store: Store, prompts: Path, images: Path) -> str:
    """Reads a set as the tables have it, Parquet files of `prompts` and `images`; see `import_prompts`."""
    return _keep(store, prompts.stem, _prompt_rows(prompts), _image_rows(images))


def _keep(store: Store, stem: str, rows: list[dict[str, Any]], pictures: list[dict[str, Any]]) -> str:
    known = {picture["image_id"] for picture in pictures}
    if lost := [row["text"] for row in rows if set(row["image_ids"] or ()) - known]:
        raise InputError(f"{len(lost)} prompts name images that are not given, such as {lost[0][:60]!r}: give --images")
    name = f"{stem}-{content_key(rows, sorted(known))[:8]}"
    if pictures:
        stored = set(store.read("images", columns=["image_id"])["image_id"].to_pylist())
        unseen = [picture for picture in pictures if picture["image_id"] not in stored]
        for block in shards(unseen, 64):
            whole = [picture if "bytes" in picture else _with_bytes(picture) for picture in block]
            store.write("images", content_key([picture["image_id"] for picture in block]), whole)
    store.write("prompts", content_key(name), rows, prompt_set=name)
    return name


def collect_values(subject: Subject, asked: Sequence[Asked], site: Site) -> None:
    """Value activations of prompts; they need the text embedding alone, so they are cheap and all are kept."""
    model, store = subject.load(), subject.open()
    layers = layers_of(model.unet, site)
    params_id = values_id()
    known = _known(store, subject, site, params_id)
    todo = [prompt for prompt in asked if _lacking(prompt, layers, known)]
    with progress(len(todo), f"activations at {site.value}", "prompt") as done:
        for block in shards(todo, 1024):
            tokens, _ = model.conditions(subject.embed(block))
            found = value_activations(layers, tokens)
            rows = [
                {
                    "prompt_id": prompt.prompt_id,
                    "layer": layer.name,
                    "mean_abs": values[row].numpy(),
                    "tokens": model.tokens,
                    "params_id": params_id,
                }
                for layer, values in zip(layers, (layer.cpu() for layer in found), strict=True)
                for row, prompt in enumerate(block)
                if (prompt.prompt_id, layer.name) not in known
            ]
            _write(store, subject, site, params_id, block, rows)
            done(len(block))


def collect_norms(
    subject: Subject,
    asked: Sequence[Asked],
    sampling: SamplingParams,
    steps: int,
    site: Site = Site.FEED_FORWARD_HIDDEN,
) -> str:
    """Feature norms of prompts over the first `steps` of their trajectories, the halves of guidance apart.

    No step beyond them is computed: later ones do not change what is seen before.

    Returns:
        The id of the collection. Rows of the conditional half carry it with "-cond", those of the other with "-uncond".
    """
    model, store = subject.load(), subject.open()
    layers = layers_of(model.unet, site)
    params_id = norms_id(sampling, steps)
    halves = ("cond", "uncond") if sampling.guidance > 1 else ("cond",)
    known = {half: _known(store, subject, site, f"{params_id}-{half}") for half in halves}
    todo = [prompt for prompt in asked if any(_lacking(prompt, layers, known[half]) for half in halves)]
    with progress(len(todo), f"feature norms at {site.value}", "prompt") as done:
        for block in shards(todo, min(SHARD, sampling.batch)):
            keys = [(prompt.noise, SEED) for prompt in block]
            embeddings = subject.embed(block)
            rows: list[dict[str, Any]] = []
            seen = 0
            for norms in norms_by_prompt(model, layers, embeddings, keys, sampling, steps=steps):
                for half, sums in (("cond", norms.conditional), ("uncond", norms.unconditional)):
                    for (step, index), values in sums.items():
                        layer = layers[index].name
                        rows += [
                            {
                                "prompt_id": prompt.prompt_id,
                                "layer": layer,
                                "step": step,
                                "timestep": norms.timesteps[step],
                                "sum_sq": one.float().numpy(),
                                # The squares of a unit vector sum to 1.
                                "tokens": round(float(one.sum())),
                                "params_id": f"{params_id}-{half}",
                            }
                            for prompt, one in zip(block[seen:], values, strict=False)
                            if (prompt.prompt_id, layer) not in known[half]
                        ]
                seen += len(next(iter(norms.conditional.values())))
            _write(store, subject, site, params_id, block, rows)
            done(len(block))
    return params_id


def empty_prompts(count: int) -> list[Asked]:
    """The published null prompts: the empty text so many times.

    They are no prompts of a set, so they have ids of their own, from which their noise follows. The published code
    gives every prompt, memorized or null, the same initial noise; here each has its own, so that a set does not depend
    on one draw.
    """
    return [Asked(prompt_id(f"\0{number}"), "", "null", None, None, ()) for number in range(count)]


def _known(store: Store, subject: Subject, site: Site, params_id: str) -> set[tuple[str, str]]:
    """The prompts and layers that are there: a worker may have been killed between them, or a damaged part deleted.

    What is there is not written again beside other prompts: two parts must not hold the same row.
    """
    place = {"model_id": subject.model_id, "variant": ORIGINAL, "site": site.value, "params_id": params_id}
    rows = store.read("activations", columns=["prompt_id", "layer"], **place)
    return set(zip(rows["prompt_id"].to_pylist(), rows["layer"].to_pylist(), strict=True))


def _lacking(prompt: Asked, layers: Sequence[Layer], known: Collection[tuple[str, str]]) -> bool:
    """Whether a layer of this prompt is not there."""
    return any((prompt.prompt_id, layer.name) not in known for layer in layers)


def _write(
    store: Store, subject: Subject, site: Site, params_id: str, block: Sequence[Asked], rows: list[dict[str, Any]]
) -> None:
    key = content_key(subject.model_id, site.value, params_id, [prompt.prompt_id for prompt in block])
    store.write_parts("activations", key, rows, model_id=subject.model_id, variant=ORIGINAL, site=site.value)


def _prompt_row(prompt: Prompt, image_ids: list[str]) -> dict[str, Any]:
    return {
        "prompt_id": prompt_id(prompt.text),
        "text": prompt.text,
        "kind": prompt.kind,
        "memorization": prompt.memorization,
        "subset": prompt.subset,
        "image_ids": image_ids,
    }


def _identified(paths: Collection[Path]) -> dict[Path, dict[str, Any]]:
    """Rows of `images` of these files, but for the bytes, which all together need not fit into memory."""
    out = {}
    with progress(len(paths), "reading pictures", "picture") as done:
        for path in sorted(paths):
            stamp = path.stat()
            out[path] = _image_row(path, stamp.st_size, stamp.st_mtime_ns) | {"path": path}
            done(1)
    return out


@cache
def _image_row(path: Path, size: int, changed: int) -> dict[str, Any]:
    """What a file is called by its content, and its width and height the right way up. Once a process for each file:
    every stage asks."""
    try:
        data = path.read_bytes()
        with Image.open(io.BytesIO(data)) as picture:
            picture.load()
            upright = ImageOps.exif_transpose(picture)
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError) as error:
        raise InputError(f"{path} cannot be read as a picture: replace it or remove it") from error
    if upright.mode not in _MODES:
        raise InputError(f"{path} has pixels of kind {upright.mode}: save it with 8 bits a channel")
    return {"image_id": hashlib.sha256(data).hexdigest(), "width": upright.width, "height": upright.height}


_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "HSV")
"""Kinds of pixels that have a look of their own in 8 bits; 16-bit grey, for one, would turn white."""


def _with_bytes(row: Mapping[str, Any]) -> dict[str, Any]:
    data = row["path"].read_bytes()
    if hashlib.sha256(data).hexdigest() != row["image_id"]:
        raise InputError(f"{row['path']} changed while it was imported: run it again")
    return {"image_id": row["image_id"], "bytes": data, "width": row["width"], "height": row["height"]}


def _prompt_rows(path: Path) -> list[dict[str, Any]]:
    """Each prompt once: rows of one text, as where a file has one for each picture, are one prompt of all pictures."""
    rows = _parquet(path, ("prompt_id", "text", "kind", "memorization", "subset", "image_ids"))
    _checked(path, rows, "prompt_id", lambda row: prompt_id(row["text"]))
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for row in rows:
        known = found.setdefault((row["text"], row["kind"]), row | {"image_ids": []})
        known["image_ids"] = list(dict.fromkeys([*known["image_ids"], *(row["image_ids"] or ())]))
    return list(found.values())


def _image_rows(path: Path) -> list[dict[str, Any]]:
    rows = _parquet(path, ("image_id", "bytes", "width", "height", "caption"))
    _checked(path, rows, "image_id", lambda row: hashlib.sha256(row["bytes"]).hexdigest())
    return rows


def _parquet(path: Path, columns: tuple[str, ...]) -> list[dict[str, Any]]:
    try:
        rows = pq.read_table(path)
    except (OSError, pa.ArrowException) as error:
        raise InputError(f"cannot read {path}: {str(error).splitlines()[0]}") from error
    if missing := sorted(set(columns) - set(rows.column_names)):
        raise InputError(f"{path} has no column {', '.join(missing)}: it needs {', '.join(columns)}")
    found: list[dict[str, Any]] = rows.select(list(columns)).to_pylist()
    return found


def _checked(path: Path, rows: list[dict[str, Any]], column: str, right: Callable[[dict[str, Any]], str]) -> None:
    """Refuses ids that do not follow from what they name: results are kept by them, and would outlive a change."""
    wrong = next((row for row in rows if row[column] != right(row)), None)
    if wrong is not None:
        raise InputError(
            f"{path}: {column} {wrong[column]!r} should be {right(wrong)!r}, which follows from its content"
        )
