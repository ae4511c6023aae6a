"""Loading a text-to-image pipeline from disk, and its fingerprint."""

import hashlib
import json
import re
from dataclasses import replace
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from tasks.diffusion.families import Model, family_in
from tasks.diffusion.families.model import settled
from tasks.diffusion.families.schedule import read_schedule
from tasks.diffusion.files import INDEX, read_json, scheduler_in, stem_of, weight_files
from tasks.diffusion.folder import ADAPTER_TENSORS, OPTIONAL, no_pipeline, problems_of
from tasks.diffusion.precision import Precision
from tasks.errors import InputError, first_line, refuse

_OTHER_WEIGHTS = re.compile(r"\.(?!safetensors|index|json)\w+(-\d+-of-\d+)?\.(safetensors|json)$")
"""Weights, or their index, that diffusers loads only where a variant is asked for, such as `model.fp16.safetensors`."""


def load_model(source: str | Path, device: str | None = None, precision: Precision = "float32") -> Model:
    """Loads a diffusers pipeline folder; safetensors only, no remote code.

    Args:
        device: "cpu", "cuda", ...; the GPU where there is one by default.

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
    schedule = read_schedule(folder / "scheduler", scheduler_in(index))
    parts = {
        part: _part(folder / part, getattr(import_module(index[part][0]), index[part][1]), dtype)
        for part in family.components
        if part != "scheduler"
    }
    for words, encoder in (("tokenizer", "text_encoder"), ("tokenizer_2", "text_encoder_2")):
        if words in parts and len(parts[words]) > (knows := int(parts[encoder].config.vocab_size)):
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
        model_id=identity(folder, precision),
        denoiser=settled(denoiser, chosen, mixed),
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
            folder, use_safetensors=True, local_files_only=True, output_loading_info=True, **options
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
    """The device of this name; the GPU where there is one without a name."""
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


def gpus_here() -> int:
    """How many GPUs of this machine torch can use."""
    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def identity(folder: Path, precision: Precision) -> str:
    """What a model goes by in the store: its fingerprint, or one of both where the precision changes results."""
    found = fingerprint(folder)
    return found if precision == "float32" else hashlib.sha256(f"{found} {precision}".encode()).hexdigest()[:32]


def fingerprint(folder: Path) -> str:
    """32 hex digits over the names and contents of a pipeline's weights and configs, in order of name.

    Of what is loaded alone: a folder fetched from the Hub may later hold a safety checker or half-precision files, too.

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
        for pattern in ("*.safetensors", "*.json", "*.txt")
        for path in (folder / part).rglob(pattern)
        if not _OTHER_WEIGHTS.search(path.name)
    ]
    files = sorted([folder / "model_index.json", *found])
    stamp = tuple((str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in files)
    return _fingerprint(folder, stamp)


@lru_cache(maxsize=16)
def _fingerprint(folder: Path, files: tuple[tuple[str, int, int], ...]) -> str:
    digest = hashlib.sha256()
    for name, _, _ in files:
        path = Path(name)
        digest.update(str(path.relative_to(folder)).encode() + b"\0")
        with path.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()[:32]


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
