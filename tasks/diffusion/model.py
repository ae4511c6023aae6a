"""Loading a text-to-image pipeline from disk, and its fingerprint."""

import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from typing import Any

import psutil
import torch
from safetensors import safe_open

from tasks.diffusion.families import Model, family_in
from tasks.diffusion.families.model import settled
from tasks.diffusion.files import (
    INDEX,
    assembly_in,
    class_in,
    read_json,
    scheduler_in,
    stem_of,
    variant_in,
    weight_files,
)
from tasks.diffusion.folder import ADAPTER_TENSORS, OPTIONAL, no_pipeline, problems_of
from tasks.diffusion.precision import Precision
from tasks.errors import InputError, first_line, refuse

_OF_VARIANT = re.compile(r"\.((?!safetensors|index|json)\w+)(-\d+-of-\d+)?\.(safetensors|json)$")
"""Weights, or their index, that are loaded only where there are no plain ones, such as `model.fp16.safetensors`."""

_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
"""Where Linux says how much memory a container may have."""


def load_model(
    source: str | Path, device: str | None = None, precision: Precision = "float32", model_id: str | None = None
) -> Model:
    """Loads a diffusers pipeline folder; safetensors only, no remote code.

    Args:
        device: "cpu", "cuda", "mps", ...; see `device_of`.
        model_id: its `identity`, where that is known.

    Raises:
        InputError: no such folder or device, it is a pipeline of no family that is known here, or something of it is
            broken or would not count, see `problems_of`.
    """
    folder, mixed = Path(source), precision == "mixed"
    if not (folder / INDEX).is_file():
        raise InputError(no_pipeline(folder))
    chosen = usable_device(device)
    # Whether the model's own scheduler samples counts only where it is asked for.
    refuse(problems_of(folder, "ddim"))
    # Convolutions on a GPU would else compute in TensorFloat-32, three digits, whatever the weights are.
    torch.backends.cudnn.allow_tf32 = False
    index = read_json(folder / INDEX)
    family = family_in(index)
    assert family is not None  # else it is refused above
    dtype = torch.float32 if mixed else getattr(torch, precision)
    schedule = family.read_schedule(folder / "scheduler", scheduler_in(index))
    parts: dict[str, Any] = {
        part: _part(folder / part, getattr(import_module(index[part][0]), index[part][1]), dtype)
        if class_in(index, part)
        else None
        for part in family.components
        if part != "scheduler"
    }
    for words, encoder in ((f"tokenizer{end}", f"text_encoder{end}") for end in ("", "_2", "_3")):
        if parts.get(words) is not None and len(parts[words]) > (knows := int(parts[encoder].config.vocab_size)):
            raise InputError(
                f"{folder / words} has {len(parts[words])} tokens, {encoder} knows {knows}: they are not of one model, "
                "or tokens were added to one of them alone; download the model again"
            )
    # The pipeline mends what old configs say; it is not asked for more.
    pipeline = family.assembled(parts, schedule.own, index)
    if precision == "float16" and family.decodes_in_float32(parts["vae"]):
        parts["vae"] = _part(folder / "vae", type(parts["vae"]), torch.float32)
    denoiser = parts.pop(family.denoiser_name)
    for name, part in parts.items():
        if isinstance(part, torch.nn.Module):
            parts[name] = part.to(chosen).eval().requires_grad_(False)
    return family.of(
        index,
        source=str(folder),
        model_id=model_id or identity(folder, precision),
        denoiser=settled(denoiser, chosen, mixed and not family.joint),
        schedule=replace(schedule, own=pipeline.scheduler),
        device=chosen,
        mixed=mixed,
        **parts,
    )


def _part(folder: Path, kind: Any, dtype: torch.dtype) -> Any:
    """A component of a pipeline, all of whose weights are in its files, and finite.

    Raises:
        InputError: it cannot be loaded, its weights are not those that its config asks for, or not finite.
    """
    if folder.name.startswith("tokenizer"):
        try:
            return kind.from_pretrained(folder, local_files_only=True)
        except Exception as error:  # a tokenizer's files fail in many ways
            raise InputError(f"cannot load {folder} ({first_line(error)}): download the model again") from error
    options: dict[str, Any] = {"dtype": dtype} if folder.name.startswith("text_encoder") else {"torch_dtype": dtype}
    if not folder.name.startswith("text_encoder"):
        options["low_cpu_mem_usage"] = False  # what diffusers does without accelerate, after a warning
    try:
        module, loaded = kind.from_pretrained(
            folder,
            use_safetensors=True,
            variant=variant_in(folder, stem_of(folder.name)),
            local_files_only=True,
            output_loading_info=True,
            **options,
        )
    except Exception as error:  # whatever a config or its weights may be
        raise InputError(f"cannot load {folder} ({first_line(error)}): download the model again") from error
    # What a file lacks is filled up with random numbers, and what it has beyond is left out.
    for what, names in (("lack", "missing_keys"), ("have beyond its config", "unexpected_keys")):
        found = sorted(name for name in loaded[names] if not name.endswith("position_ids"))
        if what != "lack" and folder.name.startswith("text_encoder"):
            # Published ones come with what their class does not read, such as a projection; an adapter is none of that.
            found = [name for name in found if ADAPTER_TENSORS.search(name)]
        if found:
            raise InputError(
                f"the weights in {folder} {what} {found[0]}"
                + (f" and {len(found) - 1} more" if len(found) > 1 else "")
                + ": they are not those of config.json; download the model again"
            )
    _refuse_infinite(module, folder, dtype)
    return module


def _refuse_infinite(module: torch.nn.Module, folder: Path, dtype: torch.dtype) -> None:
    """Refuses weights that are not finite, by the name of the tensor and its file."""
    for name, tensor in module.named_parameters():
        # A sum tells of any that is not finite, cheaply; but it may overflow by itself.
        if tensor.sum(dtype=torch.float32).isfinite() or tensor.isfinite().all():
            continue
        path, stored = _stored(folder, name)
        if stored is None or not stored.isfinite().all():
            raise InputError(f"the weights of {path} are broken ({name} is not finite): download the model again")
        raise InputError(f"{name} of {path} is too large for {str(dtype)[6:]}: --set precision=float32 or bfloat16")


def _stored(folder: Path, name: str) -> tuple[Path, torch.Tensor | None]:
    """The file that holds a tensor of a component, and the tensor as it stands there."""
    files = weight_files(folder, stem_of(folder.name))
    for path in files:
        with safe_open(path, framework="pt") as opened:
            for key in opened.keys():  # noqa: SIM118
                if key == name or key.endswith(f".{name}"):
                    return path, opened.get_tensor(key)
    return files[0], None


def device_of(named: str | None) -> torch.device:
    """The device of this name; without one CUDA where there is any, else the processor.

    Apple GPUs are taken only where they are named: nobody has compared what comes out there.
    """
    return torch.device(named or ("cuda" if torch.cuda.is_available() else "cpu"))


def usable_device(named: str | None) -> torch.device:
    """The same, after something was put there.

    Raises:
        InputError: there is no such device here.
    """
    try:
        chosen = device_of(named)
        torch.zeros(1, device=chosen).cpu()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise InputError(f"no device {named!r} here ({first_line(error)}): try cpu") from error
    return chosen


def memory_of(device: torch.device) -> int | None:
    """Bytes of memory that a device has in all, or that this process may have of it; None where nobody knows."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    if device.type == "mps":  # which shares the machine's memory, and should leave some of it
        return int(torch.mps.recommended_max_memory())
    if device.type != "cpu":
        return None
    limits = [limit.read_text().strip() for limit in _LIMITS if limit.is_file()]
    return min([psutil.virtual_memory().total, *(int(limit) for limit in limits if limit.isdecimal())])


def gpus_here() -> int:
    """How many GPUs of this machine torch can use by CUDA."""
    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def identity(folder: Path, precision: Precision, sha256: Callable[[Path], str] | None = None) -> str:
    """What a model goes by in the store: its fingerprint, or one of both where the precision changes results."""
    found = fingerprint(folder, sha256)
    return found if precision == "float32" else hashlib.sha256(f"{found} {precision}".encode()).hexdigest()[:32]


def fingerprint(folder: Path, sha256: Callable[[Path], str] | None = None) -> str:
    """32 hex digits over the names and contents of a pipeline's weights and configs, in order of name.

    Of what is loaded alone: a folder fetched from the Hub may later hold a safety checker or half-precision files, too.

    A model that was put together from pieces goes by these, see `tasks.diffusion.families.pieces.assembly`.

    Args:
        sha256: the digest of a file, where somebody remembers it; `sha256_of` by default.

    Raises:
        InputError: model_index.json is not one, or a model that was put together was changed since.
    """
    digest_of, digest = sha256 or sha256_of, hashlib.sha256()
    files = loaded_files(folder)
    if (record := assembly_in(folder)) is not None:
        if record["files"] != {str(path.relative_to(folder)): digest_of(path) for path in files}:
            raise InputError(f"{folder} was changed since it was put together: remove it, and it is made again")
        return str(record["model_id"])
    for path in files:
        digest.update(str(path.relative_to(folder)).encode() + b"\0")
        digest.update(bytes.fromhex(digest_of(path)))
    return digest.hexdigest()[:32]


def loaded_files(folder: Path) -> list[Path]:
    """The files of a pipeline that are loaded: index, configs, tokenizers and weights, in order of name.

    Raises:
        InputError: model_index.json is not one.
    """
    try:
        index = dict(json.loads((folder / "model_index.json").read_text()))
    except (ValueError, TypeError) as error:
        raise InputError(f"{folder / 'model_index.json'} is no index of a pipeline: save the pipeline anew") from error
    parts = [name for name, kind in index.items() if isinstance(kind, list) and name not in OPTIONAL]
    found = [
        path
        for part in parts
        for variant in {None, variant_in(folder / part, stem_of(part))}
        for pattern in ("*.safetensors", "*.json", "*.txt")
        for path in (folder / part).rglob(pattern)
        if (match[1] if (match := _OF_VARIANT.search(path.name)) else None) == variant
    ]
    return sorted([folder / "model_index.json", *found])


@lru_cache(maxsize=256)
def _digest(path: Path, stamp: tuple[int, ...]) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def sha256_of(path: Path) -> str:
    """The sha256 of a file in hexadecimal digits; one that does not change is read once."""
    status = path.stat()
    return _digest(path, (status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns))


def audit_defaults(folder: str | Path) -> dict[str, Any]:
    """What a model folder says of its own audit in `engram.json`; empty without one.

    "prompts", "images" and "clip" are paths; "settings" count for every profile, "profiles" by their names for one.
    """
    path = Path(folder) / "engram.json"
    if not path.is_file():
        return {}
    try:
        defaults = json.loads(path.read_text())
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not JSON: {error}") from error
    if not isinstance(defaults, dict):
        raise InputError(f"{path} holds no names with their values: it begins with a brace, {{")
    return defaults
