"""Models in pieces, as people have them: one file, another UNet or autoencoder, LoRA adapters.

They are put together once, as the folder of a pipeline in this machine's cache, which is audited like any other.

What such a model goes by follows from what it was made of, not from the sums that a processor made: these differ in
their last digits from machine to machine.
"""

import fcntl
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers.utils import logging
from pydantic import BaseModel, ConfigDict, Field

from tasks.diffusion.families.pieces.checkpoint import (
    PREFIXES,
    check_marks,
    configuration_digest,
    kind_of,
    marks,
    pipeline_of,
    write_published,
)
from tasks.diffusion.families.pieces.lora import Lora, fuse, read_lora, trained_with
from tasks.diffusion.files import (
    ASSEMBLED,
    INDEX,
    conversion_of,
    files_below,
    read_json,
    safetensors_header,
    stem_of,
    variant_in,
    write_whole,
)
from tasks.diffusion.folder import holds_model, no_pipeline, problems_of
from tasks.diffusion.hub import source_of
from tasks.diffusion.model import fingerprint, load_model, loaded_files
from tasks.errors import InputError, first_line, gathered, refuse

DAY = 86400.0
SINGLE = (".safetensors",)
Digest = Callable[[Path], str]


class Pieces(BaseModel):
    """What a model is put together from, beside its folder or file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    config: str | None = Field(
        None,
        description="Folder of a pipeline whose configuration a model in one file has; the published one if empty.",
    )
    denoiser: str | None = Field(None, description="UNet in place of the model's: a folder, or one file.")
    vae: str | None = Field(None, description="Autoencoder in place of the model's: a folder, or one file.")
    lora: tuple[str, ...] = Field((), description="LoRA adapters that are fused, each FILE or FILE=SCALE.")


OPTIONS = {"denoiser": "--unet"}
"""Options of commands that have another name than the piece."""
WHOLE = Pieces()
"""Of a model that is a folder by itself."""


def is_checkpoint(model: Path) -> bool:
    """Whether this is a file that may hold a whole model."""
    return model.suffix in SINGLE and model.is_file()


def assembled(model: Path, pieces: Pieces, cache: Path, sha256: Digest, own: dict[str, Any]) -> Path:
    """The folder of a pipeline that is made of pieces; one that was made before is not made again.

    Args:
        model: folder of a pipeline, or a checkpoint in one file.
        cache: where folders are kept, which nobody else can write to.
        sha256: the digest of a file.
        own: what the model's `engram.json` says of its audit, with paths in full.

    Raises:
        InputError: a piece is not there, is none, or does not fit the others; all that can be said before weights are
            loaded at once.
    """
    adapters = _checked(model, pieces)
    key = _key(model, pieces, adapters, sha256)
    folder = cache / key
    with open(cache / f".lock-{key}", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # of several processes that ask for it one makes it
        if not (folder / ASSEMBLED).is_file():
            _make(folder, model, pieces, adapters, sha256)
        # What it is called, and what its base says of an audit, may change while its weights stay.
        record = read_json(folder / ASSEMBLED) | {"name": _name(model, pieces, adapters)}
        write_whole(folder / ASSEMBLED, record)
        write_whole(folder / "engram.json", own)
    return folder


def _make(folder: Path, model: Path, pieces: Pieces, adapters: list[Lora], sha256: Digest) -> None:
    _clear_away(folder.parent)
    with _silent():
        pipeline = _put_together(model, pieces, adapters)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".new-") as scratch:
        aside = Path(scratch) / folder.name
        pipeline.save_pretrained(aside, safe_serialization=True)
        name = _name(model, pieces, adapters)
        refuse([problem.replace(str(aside), name) for problem in problems_of(aside, "ddim")])
        digests = {str(path.relative_to(aside)): sha256(path) for path in loaded_files(aside)}
        write_whole(aside / ASSEMBLED, {"model_id": folder.name, "name": name, "files": digests})
        shutil.rmtree(folder, ignore_errors=True)
        os.rename(aside, folder)


def _clear_away(cache: Path) -> None:
    """Removes what was left half made, long ago, by processes that were killed."""
    for left in cache.glob(".new-*"):
        with suppress(FileNotFoundError):  # another process has just ended its own
            if time.time() - left.stat().st_mtime > DAY:
                shutil.rmtree(left, ignore_errors=True)


@contextmanager
def _silent() -> Iterator[None]:
    """Within, diffusers shows no bars of its own."""
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.enable_progress_bar()


def _checked(model: Path, pieces: Pieces) -> list[Lora]:
    """The adapters; raises InputError of everything that is wrong with the pieces by themselves."""
    adapters: list[Lora] = []
    problems = gathered(*(lambda text=text: adapters.append(read_lora(text)) for text in pieces.lora))
    single = is_checkpoint(model)
    if single and holds_model(model):
        config = None if pieces.config is None else Path(pieces.config).expanduser()
        problems += gathered(lambda: kind_of(model), lambda: check_marks(model, config))
    elif single or not (model / INDEX).is_file():
        problems.append(no_pipeline(model))
    else:
        problems += problems_of(model, "ddim")
    if pieces.config is not None and not single:
        problems.append("--config is for a model in one file: leave it out")
    for option, given in (("config", pieces.config), ("unet", pieces.denoiser), ("vae", pieces.vae)):
        if given is None:
            continue
        path = Path(given).expanduser()
        if not path.exists():
            problems.append(f"there is no {given}, which was given with --{option}")
        elif option != "config" and path.is_file() and path.suffix not in SINGLE:
            problems.append(
                f"--{option} {given} is no safetensors file, and a pickle can run code: give what this makes of it: "
                f"{conversion_of(path)}"
            )
        elif option != "config" and path.is_file():
            problems += gathered(partial(marks, path))
    if not problems and not single and (pieces.denoiser or pieces.vae or adapters):
        kind = read_json(model / INDEX).get("_class_name")
        if kind not in ("StableDiffusionPipeline", "StableDiffusionXLPipeline"):
            problems.append(f"{model} is a {kind}: pieces can be put into Stable Diffusion and XL alone")
    refuse(problems)
    return adapters


def _put_together(model: Path, pieces: Pieces, adapters: list[Lora]) -> Any:
    """The pipeline, on the CPU; in float32, but of one file of half precision into which no adapter is fused."""
    with tempfile.TemporaryDirectory() as scratch:
        shape = model
        if pieces.config:
            shape = Path(pieces.config).expanduser()
        elif model.is_file():
            shape = Path(scratch)
            write_published(model, shape)
        vae = _part("vae", "AutoencoderKL", Path(pieces.vae).expanduser(), shape) if pieces.vae else None
        if model.is_file():
            pipeline = pipeline_of(model, shape, vae)
        else:
            whole = load_model(model, "cpu")
            pipeline = whole.pipeline(whole.schedule.own)
        if vae is not None:
            pipeline.register_modules(vae=vae)
        if pieces.denoiser:
            path = Path(pieces.denoiser).expanduser()
            _check_denoiser(path, pipeline.scheduler.config)
            pipeline.register_modules(unet=_part("unet", "UNet2DConditionModel", path, shape))
    if adapters:
        pipeline.to(torch.float32)
        fuse(pipeline, adapters)
    return pipeline


def _check_denoiser(path: Path, config: Mapping[str, Any]) -> None:
    """Raises InputError where a UNet's file says that it was trained by another schedule than the model's."""
    said = marks(path) if path.is_file() else {}
    predicts = said.get("prediction_type")
    if predicts and predicts != (wanted := config["prediction_type"]):
        raise InputError(f"--unet {path} predicts {predicts}, and the model's schedule is of one of {wanted}")
    if said.get("rescale_betas_zero_snr") and not config.get("rescale_betas_zero_snr"):
        raise InputError(
            f"--unet {path} was trained down to zero terminal SNR (ztsnr), and the model's schedule does not go so far "
            "(rescale_betas_zero_snr)"
        )


def _part(name: str, kind: str, path: Path, shape: Path) -> Any:
    """A component that replaces the model's, of a folder or of one file.

    Args:
        shape: folder whose subfolder of this name has the configuration of one in a file.
    """
    loads: Any = getattr(diffusers, kind)
    try:
        if path.is_dir():
            place = path / name if (path / name / "config.json").is_file() else path
            variant = variant_in(place, stem_of(name))
            part, loaded = loads.from_pretrained(
                place, use_safetensors=True, local_files_only=True, variant=variant, output_loading_info=True
            )
            lacking = [*loaded["missing_keys"], *loaded["unexpected_keys"]]
        else:
            part = loads.from_single_file(str(path), config=str(shape), subfolder=name, local_files_only=True)
            lacking = [key for key, value in part.named_parameters() if value.is_meta]
            # What the model does not know is left out with no more than a line in a log.
            names = list(safetensors_header(path))
            own = [each for each in names if each.startswith(PREFIXES[name])] or names
            if len(own) != (wanted := len(part.state_dict())):
                lacking.append(f"the number of its tensors, {len(own)} and not {wanted},")
    except Exception as error:  # of names and shapes, in many ways
        raise InputError(f"--{name} {path} cannot be loaded as a {kind} ({first_line(error)})") from error
    if lacking:
        raise InputError(f"--{name} {path} is not what its configuration says, as {min(lacking)} shows")
    return part


def _key(model: Path, pieces: Pieces, adapters: list[Lora], sha256: Digest) -> str:
    """32 hex digits over the contents of everything that the model is made of, and the scales."""

    def content(path: str | None) -> object:
        if path is None:
            return None
        place = Path(path).expanduser()
        if place.is_file():
            return sha256(place)
        files = files_below(place, (".json", ".safetensors"))
        return [(str(found.relative_to(place)), sha256(found)) for found in files]

    recipe = (
        "assembled/1",
        sha256(model) if model.is_file() else fingerprint(model, sha256),
        configuration_digest(Path(pieces.config).expanduser()) if pieces.config else None,
        content(pieces.denoiser),
        content(pieces.vae),
        [(sha256(adapter.path), adapter.scale, json.dumps(trained_with(adapter.path))) for adapter in adapters],
    )
    return hashlib.sha256(json.dumps(recipe).encode()).hexdigest()[:32]


def _name(model: Path, pieces: Pieces, adapters: list[Lora]) -> str:
    """What people call it."""
    others = [f"{name} {Path(path).name}" for name, path in (("UNet", pieces.denoiser), ("VAE", pieces.vae)) if path]
    return " + ".join([source_of(str(model)), *others, *(adapter.words for adapter in adapters)])
