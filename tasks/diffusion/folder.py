"""Looking at a model before anything of it is loaded: whether a folder is a pipeline that can be audited, and what lies
there where it is none.

Two kinds of things are refused. What cannot be loaded: missing, cut short, pickled. And what would be loaded but not
count as its author meant it, because nothing here or in the pipeline's own text-to-image call reads it.
"""

import re
import shlex
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from tasks.diffusion.families import FAMILIES, Model, family_in
from tasks.diffusion.families.schedule import Choice
from tasks.diffusion.files import (
    INDEX,
    LFS,
    class_in,
    conversion_of,
    damage,
    read_json,
    safetensors_header,
    scheduler_in,
    stem_of,
    variant_in,
    weight_files,
)
from tasks.diffusion.precision import Precision
from tasks.errors import InputError

OPTIONAL = ("safety_checker", "feature_extractor", "image_encoder")
"""Components of a pipeline that nothing here uses: they may be listed, and may lack."""

_ADAPTER = re.compile(
    r"lora|locon|loha|lokr|attn_procs|custom_diffusion|learned_embeds|textual_inversion|ip[-_]?adapter|hypernet"
    r"|control(net|-lora)|t2i[-_]?adapter|^adapter_(config|model)",
    re.IGNORECASE,
)
"""Names of files that change what a model makes, where they are asked for."""

ADAPTER_TENSORS = re.compile(
    r"(^|\.)(lora_|hada_|lokr_|oft_|to_[qkvo]_lora|lora\.)|\.alpha$|^(ip_adapter|image_proj)\b|_lora\.|custom_diffusion"
)
EIGHT_BITS = {"F8_E4M3", "F8_E5M2"}
"""Number formats of stored weights that nothing computes in, as the headers of safetensors call them."""
_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt")
_TOKEN = r"(?P<stem>.+)_\d+"


def problems_of(folder: Path, scheduler: Choice = "model", steps: int | None = None) -> list[str]:
    """Everything wrong with a model folder that can be said without loading weights, a sentence each; [] if nothing.

    Args:
        folder: of a diffusers pipeline.
        scheduler: what is to sample; "ddim" and "dpm" need no more than the noise that the model was trained by.
        steps: of sampling, whether the scheduler can take so many; not looked at without it.
    """
    try:
        index = read_json(folder / INDEX)
    except InputError as error:
        return [str(error) if folder.is_dir() and (folder / INDEX).exists() else no_pipeline(folder)]
    family = family_in(index)
    if family is None:
        return [_no_such_pipeline(folder, index.get("_class_name"))]
    return [
        *_of_components(folder, index, family),
        *_of_configs(folder, index, family),
        *_of_scheduler(folder, index, family, scheduler, steps),
        *_of_strays(folder, family.components),
    ]


def notes_of(folder: Path, precision: Precision) -> list[str]:
    """What is worth a line about a folder that can be audited: weights of eight bits, or of a variant, and what is
    looked at in place of predicted noise.

    Args:
        precision: in which its weights are computed with.
    """
    index = read_json(folder / INDEX)
    family = family_in(index)
    assert family is not None
    by_words: dict[str, list[str]] = {}
    for part in family.components:
        if part == "scheduler" or part.startswith("tokenizer") or class_in(index, part) is None:
            continue
        files = weight_files(folder / part, stem_of(part))
        formats = {entry["dtype"] for path in files for entry in safetensors_header(path).values()}
        if formats & EIGHT_BITS:
            by_words.setdefault("are stored in eight bits (float8)", []).append(part)
        if (variant := variant_in(folder / part, stem_of(part))) is not None:
            by_words.setdefault(f"are the variant {variant}, as there are no others", []).append(part)
    computed = "float32" if precision == "mixed" else precision
    signals = signals_of(folder)
    return [
        *(
            f"weights of {', '.join(parts)} {words}; they are computed with in {computed}"
            for words, parts in by_words.items()
        ),
        *([signals] if signals else []),
    ]


def signals_of(folder: Path) -> str | None:
    """What an audit of a model looks at in place of predicted noise, in words; None where it looks at that.

    Raises:
        InputError: the folder has no schedule that audits can follow.
    """
    index = read_json(folder / INDEX)
    family = family_in(index)
    assert family is not None
    return family.read_schedule(folder / "scheduler", scheduler_in(index)).words


def no_pipeline(path: Path) -> str:
    """Why a path is no pipeline, by what lies there, and what to do."""
    if not path.exists() and not path.is_symlink():
        return (
            f"no model at {path}: there is no such file or folder; give the folder of a diffusers pipeline, or "
            "OWNER/NAME of the Hugging Face Hub, with --model"
        )
    if not path.exists():
        return f"no model at {path}: it is a link to something that is not there any more; give the folder itself"
    if not path.is_dir():
        return _of_file(path)
    above = next((each for each in list(path.absolute().parents)[:2] if (each / INDEX).is_file()), None)
    if above is not None:
        return f"{path} is a part of the pipeline at {above}: give that folder with --model"
    snapshots = sorted([*path.glob(f"snapshots/*/{INDEX}"), *path.glob(f"*/snapshots/*/{INDEX}")])
    below = [found.parent for found in snapshots or sorted([*path.glob(f"*/{INDEX}"), *path.glob(f"*/*/{INDEX}")])]
    if below:
        what = "the Hub's cache" if snapshots or path.name == "snapshots" else "a folder around a pipeline"
        return f"{path} is {what}: give the pipeline in it, --model {shlex.quote(str(below[0]))}"
    if path.name.startswith("models--") or path.name == "snapshots":
        return f"{path} is of the Hub's cache, and no whole pipeline lies in it: download the model again"
    return _of_folder(path)


def _no_such_pipeline(folder: Path, kind: Any) -> str:
    if isinstance(kind, list | tuple):
        return (
            f"{folder / INDEX} names a pipeline of its own code ({kind[-1] if kind else kind}), and no code of a model "
            f"is run: audits need a {' or '.join(FAMILIES)}"
        )
    if not isinstance(kind, str):
        return f"{folder / INDEX} is no index of a pipeline (no _class_name): save the pipeline anew"
    words = f"{folder} holds a {kind}; audits need a {' or '.join(FAMILIES)} ({INDEX})"
    if kind.startswith("StableDiffusion") and ("Img2Img" in kind or "Safe" in kind):
        return f"{words}: give its text-to-image model"
    if "Inpaint" in kind or "Upscale" in kind or "InstructPix2Pix" in kind or "ControlNet" in kind:
        return f"{words}: it is no text-to-image model by itself, give the one that it was made of"
    return words


def _of_components(folder: Path, index: dict[str, Any], family: type[Model]) -> Iterator[str]:
    """Components that lack, are of other classes, or have no weights that can be loaded."""
    classes = family.components
    lacking = {part for part in family.optional if index.get(part) in (None, [None, None])}
    if lacking != family.optional:
        lacking = set()
    for part, allowed in classes.items():
        if part in lacking:
            continue
        entry = index.get(part)
        kind = class_in(index, part)
        if kind is None:
            if isinstance(entry, list) and len(entry) == 2 and isinstance(entry[1], list | tuple):
                yield f"{folder / INDEX} names code of its own for {part}, and no code of a model is run"
            else:
                yield f"the pipeline at {folder} has no {part}: audits need all of a base model"
            continue
        library = str(index[part][0])
        own = "" if library in ("diffusers", "transformers") else ", and no code of a model is run"
        if part != "scheduler" and (kind not in allowed or own):
            yield f"the {part} of {folder} is a {library}.{kind}; audits need a {' or '.join(allowed)}{own}"
            continue
        if not (folder / part).is_dir():
            yield f"{folder / part} is missing, which {INDEX} lists: download the model again"
            continue
        if part.startswith("tokenizer"):
            yield from _of_tokenizer(folder / part)
        elif part != "scheduler":
            yield from _of_weights(folder / part, stem_of(part), folder)
    known = {*classes, *OPTIONAL}
    for part, entry in index.items():
        if part not in known and isinstance(entry, list) and any(entry):
            yield (
                f"{folder / INDEX} lists {part} ({'.'.join(map(str, entry))}), which a {index['_class_name']} does not "
                "read: an audit would be one of the model without it; save the pipeline without it to audit that"
            )


def _of_tokenizer(folder: Path) -> Iterator[str]:
    names = {path.name for path in folder.iterdir() if path.is_file()}
    if not {"tokenizer.json", "spiece.model"} & names and not {"vocab.json", "merges.txt"} <= names:
        yield f"{folder} has no tokenizer.json, nor vocab.json and merges.txt: download the model again"
        return
    # Textual inversion by several vectors: pipelines write them all where a prompt has the first.
    try:
        added = {str(name) for name in read_json(folder / "added_tokens.json")}
    except InputError:
        added = set()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        if name in names:
            try:
                words = read_json(folder / name)
            except InputError as error:
                yield str(error)
                continue
            found = words.get("added_tokens") or (words.get("added_tokens_decoder") or {}).values()
            added |= {str(each.get("content")) for each in found if isinstance(each, dict)}
    many = sorted(name for name in added if (match := re.fullmatch(_TOKEN, name)) and match["stem"] in added)
    if many:
        yield (
            f"{folder} has a textual inversion of several vectors ({many[0]}), which audits do not write out in "
            "prompts: give the model without it"
        )


def _of_weights(folder: Path, stem: str, pipeline: Path) -> Iterator[str]:
    try:
        files = weight_files(folder, stem)
    except InputError as error:
        yield str(error)
        return
    if len(files) == 1 and not (files[0].exists() or files[0].is_symlink()):
        yield _no_weights(folder, files[0].name, pipeline)
        return
    yield from filter(None, map(damage, files))


def _no_weights(folder: Path, wanted: str, pipeline: Path) -> str:
    """Why a component has no weights that are loaded, by what lies there in their place."""
    names = sorted(path.name for path in folder.iterdir())
    whole = (
        f"DiffusionPipeline.from_pretrained({str(pipeline)!r}, {{}}).save_pretrained('NEW', safe_serialization=True)"
    )
    command = f'python -c "from diffusers import DiffusionPipeline; {whole}"'
    for name in names:
        if name.endswith((".bin", ".pt", ".pth", ".ckpt", ".pkl")):
            return (
                f"{folder} has its weights as {name} alone, a pickle, which can run code when it is loaded: convert it "
                "where you trust it, " + command.format("use_safetensors=False")
            )
    other = {".msgpack": "of Flax", ".onnx": "of ONNX", ".gguf": "quantized for GGUF", ".h5": "of TensorFlow"}
    for name in names:
        if (suffix := Path(name).suffix) in other:
            return f"{folder} has weights {other[suffix]} alone ({name}): audits need PyTorch's ({wanted})"
    return f"{folder / wanted} is missing: download the model again"


def _of_configs(folder: Path, index: dict[str, Any], family: type[Model]) -> Iterator[str]:
    """Settings that would be ignored, or that audits cannot follow."""
    found: dict[str, dict[str, Any]] = {}
    for part in family.components:
        if part == "scheduler" or part.startswith("tokenizer") or class_in(index, part) is None:
            continue
        if (folder / part).is_dir():
            try:
                found[part] = read_json(folder / part / "config.json")
            except InputError as error:
                yield str(error)
                continue
            if found[part].get("quantization_config"):
                yield f"{folder / part / 'config.json'} says that it is quantized: audits need its full weights"
    yield from family.problems(folder, index, found)


def _of_scheduler(
    folder: Path, index: dict[str, Any], family: type[Model], choice: Choice, steps: int | None
) -> Iterator[str]:
    below = folder / "scheduler"
    if class_in(index, "scheduler") is None or not below.is_dir():
        return  # refused with the components
    try:
        schedule = family.read_schedule(below, scheduler_in(index))
        if choice == "model" and schedule.unsampled is not None:
            yield schedule.unsampled
        elif steps is not None:
            schedule.sampler(choice, steps)
    except InputError as error:
        yield str(error)


def _of_strays(folder: Path, parts: Iterable[str]) -> Iterator[str]:
    """Files that change what the model makes, and that nothing reads."""
    known = [folder, *(folder / part for part in parts)]
    others = [path for path in sorted(folder.iterdir()) if path.is_dir() and _ADAPTER.search(path.name)]
    for below in filter(Path.is_dir, [*known, *others]):
        for path in sorted(filter(Path.is_file, below.iterdir())):
            weights = path.suffix in _WEIGHTS and (below in others or _changes(path))
            if weights and path.name == f"{stem_of(below.name)}.safetensors" and below in known[1:]:
                yield f"{path} has layers of {_kind_of_adapter(path)} that was not fused: fuse it and save the model"
            elif weights or path.name == "adapter_config.json":
                kind = _kind_of_adapter(path)
                count = (
                    "move it out of the folder, and give it with --lora if it is to count"
                    if kind == "a LoRA"
                    else "fuse it into the model and save that, or move it away to audit the model without it"
                )
                yield f"{path} is {kind}, which an audit of this folder would leave out: {count}"


def holds_model(path: Path) -> bool:
    """Whether a safetensors file is a checkpoint, by the names of its tensors."""
    return damage(path) is None and _holds(path) == "checkpoint"


def _changes(path: Path) -> bool:
    """Whether weights are an adapter, by their name or by the names of their tensors."""
    if _ADAPTER.search(path.name):
        return True
    return path.suffix == ".safetensors" and _holds(path) not in ("checkpoint", "part", "")


def _kind_of_adapter(path: Path) -> str:
    holds = _holds(path) if path.suffix == ".safetensors" else ""
    name = (path if _ADAPTER.search(path.name) else path.parent).name.lower().replace("-", "_")
    if holds in ("a LoRA", "a textual inversion", "an IP-Adapter"):
        return holds
    for word, kind in (
        ("lora", "a LoRA"),
        ("embed", "a textual inversion"),
        ("textual", "a textual inversion"),
        ("ip_adapter", "an IP-Adapter"),
        ("control", "a ControlNet"),
    ):
        if word in name:
            return kind
    return "an adapter"


def _holds(path: Path) -> str:
    """What a safetensors file holds, by the names of its tensors; "" where that cannot be said."""
    try:
        names = list(safetensors_header(path))
    except InputError:
        return ""
    if any(name.startswith(("ip_adapter.", "image_proj.")) for name in names):
        return "an IP-Adapter"
    if any(ADAPTER_TENSORS.search(name) for name in names):
        return "a LoRA"
    if any(name.startswith(("control_model.", "controlnet_", "input_hint_block.")) for name in names):
        return "a ControlNet"
    if any(name.startswith(("model.diffusion_model.", "conditioner.", "cond_stage_model.")) for name in names):
        return "checkpoint"
    if names and len(names) <= 3 and (names[0].startswith("<") or set(names) & {"emb_params", "clip_l", "clip_g"}):
        return "a textual inversion"
    return "part"


def _of_file(path: Path) -> str:
    """What a file is, given as a model, and what to do."""
    above = next((each for each in list(path.absolute().parents)[:2] if (each / INDEX).is_file()), None)
    if above is not None:
        return f"{path} is a file of a pipeline: give its folder, --model {shlex.quote(str(above))}"
    with path.open("rb") as stream:
        begin = stream.read(64)
    if not begin:
        return f"{path} is an empty file: download it again"
    if begin.startswith(LFS):
        return f"{path} is a pointer of Git LFS, not the weights: fetch them with git lfs pull"
    if begin.startswith(b"GGUF") or path.suffix == ".gguf":
        return f"{path} is a GGUF file, whose weights are quantized: audits need the unquantized pipeline, as a folder"
    if path.suffix == ".safetensors":
        if (problem := damage(path)) is not None:
            return problem
        holds = _holds(path)
        if holds == "checkpoint":
            return f"{path} is a whole model in one file: give the file itself, --model {shlex.quote(str(path))}"
        if holds == "a LoRA":
            return f"{path} is a LoRA, no whole model: give its base with --model, and the LoRA with --lora"
        if holds != "part":
            return f"{path} is {holds}, no whole model: fuse it into its base model, save that, and give its folder"
        return (
            f"{path} holds weights of a part of a model alone: give the folder of a whole diffusers pipeline, and a "
            "UNet or an autoencoder in place of its own with --unet or --vae"
        )
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
        if not any(name.endswith("data.pkl") for name in names):
            what = "a pipeline in a zip file" if any(name.endswith(INDEX) for name in names) else "a zip file"
            return f"{path} is {what}: unpack it, and give the folder with {INDEX}"
    elif begin.startswith(b"\x1f\x8b") or path.suffix in (".tar", ".gz", ".7z", ".rar", ".xz", ".zst", ".bz2"):
        return f"{path} is an archive: unpack it, and give the folder with {INDEX}"
    if path.suffix in (".ckpt", ".pt", ".pth", ".bin", ".pkl") or begin.startswith(b"\x80") or zipfile.is_zipfile(path):
        if _ADAPTER.search(path.name):
            return (
                f"{path} looks like an adapter, no whole model, and is a pickle: of a LoRA give the base with --model, "
                f"and with --lora what this makes of it: {conversion_of(path)}"
            )
        return (
            f"{path} is a pickle, which can run code when it is loaded: give the file that this makes of it: "
            f"{conversion_of(path)}"
        )
    if path.suffix in (".onnx", ".msgpack", ".h5", ".engine", ".mlmodel", ".tflite"):
        return f"{path} is a model of another framework: audits need PyTorch's, the folder of a diffusers pipeline"
    return f"{path} is a file, and no model that is known here: give the folder of a diffusers pipeline with --model"


def _of_folder(path: Path) -> str:
    """What a folder is that has no index of a pipeline, and what to do."""
    whole = f"give the folder of a whole pipeline, the one with {INDEX}"
    files = sorted(each for each in path.iterdir() if not each.name.startswith("."))
    names = {each.name for each in files}
    if not names:
        return f"no model at {path}: the folder is empty; {whole}"
    parts = sorted({part for family in FAMILIES.values() for part in family.components} & names)
    if "adapter_config.json" in names or any(_ADAPTER.search(each.name) and each.is_file() for each in files):
        return (
            f"{path} holds an adapter, no whole model: of a LoRA give the base with --model and its file with --lora; "
            "fuse any other into the base, save that, and give that"
        )
    if "config.json" in names:
        try:
            config = read_json(path / "config.json")
        except InputError as error:
            return str(error)
        if kind := config.get("_class_name"):
            return f"{path} holds a {kind} alone: {whole}"
        kind = (config.get("architectures") or [config.get("model_type", "model")])[0]
        return f"{path} holds a {kind} of transformers, no text-to-image pipeline: {whole}"
    if len(parts) > 1:
        return f"{path} has {', '.join(parts)} but no {INDEX}: download the model again"
    if parts:
        return f"{path} has {parts[0]} alone, and no {INDEX}: {whole}"
    if single := next((each for each in files if each.suffix in (*_WEIGHTS, ".gguf", ".onnx", ".msgpack")), None):
        return f"no {INDEX} in {path}; {_of_file(single)}"
    return f"no model at {path} (no {INDEX}): give the folder of a diffusers pipeline with --model"
