"""Looking at a model before anything of it is loaded: whether a folder is a pipeline that can be audited, and what lies
there where it is none.

Two kinds of things are refused. What cannot be loaded: missing, cut short, pickled. And what would be loaded but not
count as its author meant it, because nothing here or in the pipeline's own text-to-image call reads it.
"""

import json
import re
import shlex
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tasks.diffusion.schedulers import Choice, read_json, read_scheduler, sampler
from tasks.errors import InputError

INDEX = "model_index.json"

OPTIONAL = ("safety_checker", "feature_extractor", "image_encoder")
"""Components of a pipeline that nothing here uses: they may be listed, and may lack."""

_CLIP_TOKENIZERS = ("CLIPTokenizer", "CLIPTokenizerFast")
_SD = {
    "unet": ("UNet2DConditionModel",),
    "vae": ("AutoencoderKL", "AutoencoderTiny"),
    "text_encoder": ("CLIPTextModel",),
    "tokenizer": _CLIP_TOKENIZERS,
    "scheduler": (),
}
PIPELINES: dict[str, dict[str, tuple[str, ...]]] = {
    "StableDiffusionPipeline": _SD,
    "StableDiffusionXLPipeline": _SD
    | {"text_encoder_2": ("CLIPTextModelWithProjection",), "tokenizer_2": _CLIP_TOKENIZERS},
}
"""The pipelines that can be audited: by component the classes that it may be of; any scheduler."""

_BLOCKS = {
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D", "AttnDownBlock2D"),
    "mid_block_type": ("UNetMidBlock2DCrossAttn", "UNetMidBlock2D", None),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D", "AttnUpBlock2D"),
}
"""Blocks whose attention to text is found by `sites`."""

_READ_WHERE = {
    "time_cond_proj_dim": "guidance is given to the UNet itself: it is distilled, such as LCM, and samples otherwise",
    "class_embed_type": "it reads a class or a noise level beside the prompt, as upscalers and unCLIP do",
    "num_class_embeds": "it reads a class or a noise level beside the prompt, as upscalers do",
    "encoder_hid_dim_type": "what it reads of the text goes through layers of its own (IP-Adapter, Kandinsky)",
    "encoder_hid_dim": "what it reads of the text goes through layers of its own (IP-Adapter, Kandinsky)",
    "cross_attention_norm": "its attention normalizes the text first",
    "dual_cross_attention": "it attends to two prompts at once",
}
"""Settings of a UNet that must be empty, and what they mean."""

_ADAPTER = re.compile(
    r"lora|locon|loha|lokr|attn_procs|custom_diffusion|learned_embeds|textual_inversion|ip[-_]?adapter|hypernet"
    r"|control(net|-lora)|t2i[-_]?adapter|^adapter_(config|model)",
    re.IGNORECASE,
)
"""Names of files that change what a model makes, where they are asked for."""

ADAPTER_TENSORS = re.compile(
    r"(^|\.)(lora_|hada_|lokr_|oft_|to_[qkvo]_lora|lora\.)|\.alpha$|^(ip_adapter|image_proj)\b|_lora\.|custom_diffusion"
)
_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt")
_MOST_HEADER = 100_000_000
_LFS = b"version https://git-lfs"
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
    kind = index.get("_class_name")
    if not isinstance(kind, str) or kind not in PIPELINES:
        return [_no_such_pipeline(folder, kind)]
    return [
        *_of_components(folder, index, PIPELINES[kind]),
        *_of_configs(folder, kind, index),
        *_of_scheduler(folder, index, scheduler, steps),
        *_of_strays(folder, PIPELINES[kind]),
    ]


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


def damage(path: Path) -> str | None:
    """What is wrong with a safetensors file, by its header and its size; None if nothing."""
    try:
        safetensors_header(path)
    except InputError as error:
        return str(error)
    return None


def safetensors_header(path: Path) -> dict[str, Any]:
    """By tensor, its dtype, shape and place in a safetensors file; nothing of it is loaded.

    Raises:
        InputError: the file is cut short, or none.
    """
    if not path.exists():
        what = "is a link to a file that is not there" if path.is_symlink() else "is missing"
        raise InputError(f"{path} {what}: download it again")
    size = path.stat().st_size
    with path.open("rb") as stream:
        begin = stream.read(8)
        if (begin + stream.read(len(_LFS) - 8)).startswith(_LFS):
            raise InputError(f"{path} is a pointer of Git LFS, not the weights: fetch them with git lfs pull")
        length = int.from_bytes(begin, "little")
        if size < 8 or (length <= _MOST_HEADER and 8 + length > size):
            raise InputError(f"{path} is cut short ({size:,} bytes, not even its header is whole): download it again")
        stream.seek(8)
        words = stream.read(length) if length <= _MOST_HEADER else b""
    try:
        header = {name: entry for name, entry in json.loads(words).items() if name != "__metadata__"}
        needed = 8 + length + max((int(entry["data_offsets"][1]) for entry in header.values()), default=0)
    except (ValueError, TypeError, KeyError, AttributeError, IndexError) as error:
        raise InputError(f"{path} is no safetensors file, or its header is broken: download it again") from error
    if size < needed:
        raise InputError(f"{path} is cut short ({size:,} of {needed:,} bytes): download it again")
    if size > needed:
        raise InputError(f"{path} is longer than its header says ({size:,}, not {needed:,} bytes): download it again")
    return header


def weight_files(folder: Path, stem: str) -> list[Path]:
    """The safetensors files of a component, several where its weights are split.

    Args:
        stem: what they are called, "diffusion_pytorch_model" or "model".

    Raises:
        InputError: their index cannot be read.
    """
    whole, index = folder / f"{stem}.safetensors", folder / f"{stem}.safetensors.index.json"
    if not index.is_file():
        return [whole]
    named = read_json(index).get("weight_map")
    if not isinstance(named, dict) or not named:
        raise InputError(f"{index} names no files of weights: download it again")
    names = sorted({str(name) for name in named.values()})
    if outside := [name for name in names if Path(name).name != name]:
        raise InputError(f"{index} names {outside[0]!r}, which is no file beside it: download it again")
    return [folder / name for name in names]


def stem_of(part: str) -> str:
    """What the weights of a component are called."""
    return "model" if part.startswith("text_encoder") else "diffusion_pytorch_model"


def class_in(index: dict[str, Any], part: str) -> str | None:
    """The class of a component, as model_index.json has it; None where it has none."""
    entry = index.get(part)
    return entry[1] if isinstance(entry, list) and len(entry) == 2 and isinstance(entry[1], str) else None


def scheduler_in(index: dict[str, Any]) -> str:
    """The class of the scheduler; with its module where that is not diffusers, whose class it is not."""
    name = str(class_in(index, "scheduler"))
    return name if index["scheduler"][0] == "diffusers" else f"{index['scheduler'][0]}.{name}"


def _no_such_pipeline(folder: Path, kind: Any) -> str:
    if isinstance(kind, list | tuple):
        return (
            f"{folder / INDEX} names a pipeline of its own code ({kind[-1] if kind else kind}), and no code of a model "
            f"is run: audits need a {' or '.join(PIPELINES)}"
        )
    if not isinstance(kind, str):
        return f"{folder / INDEX} is no index of a pipeline (no _class_name): save the pipeline anew"
    words = f"{folder} holds a {kind}; audits need a {' or '.join(PIPELINES)} ({INDEX})"
    if kind.startswith("StableDiffusion") and ("Img2Img" in kind or "Safe" in kind):
        return f"{words}: give its text-to-image model"
    if "Inpaint" in kind or "Upscale" in kind or "InstructPix2Pix" in kind or "ControlNet" in kind:
        return f"{words}: it is no text-to-image model by itself, give the one that it was made of"
    return words


def _of_components(folder: Path, index: dict[str, Any], classes: dict[str, tuple[str, ...]]) -> Iterator[str]:
    """Components that lack, are of other classes, or have no weights that can be loaded."""
    for part, allowed in classes.items():
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
    if "tokenizer.json" not in names and not {"vocab.json", "merges.txt"} <= names:
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
    stem = wanted.removesuffix(".safetensors")
    whole = (
        f"DiffusionPipeline.from_pretrained({str(pipeline)!r}, {{}}).save_pretrained('NEW', safe_serialization=True)"
    )
    command = f'python -c "from diffusers import DiffusionPipeline; {whole}"'
    for name in names:
        if variant := re.fullmatch(rf"{re.escape(stem)}\.(\w+?)(-\d+-of-\d+)?\.safetensors", name):
            return (
                f"{folder} has its weights as {name} alone, a variant ({variant[1]}): save them under the plain name, "
                + command.format(f"variant={variant[1]!r}")
            )
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


def _of_configs(folder: Path, kind: str, index: dict[str, Any]) -> Iterator[str]:
    """Settings that would be ignored, or that audits cannot follow."""
    found: dict[str, dict[str, Any]] = {}
    for part in PIPELINES[kind]:
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
    xl = kind == "StableDiffusionXLPipeline"
    if "unet" in found:
        yield from _of_unet(folder, found, xl)
    if "vae" in found:
        yield from _of_autoencoder(folder / "vae" / "config.json", found["vae"], xl, kind)
    if not xl and found.get("text_encoder", {}).get("use_attention_mask"):
        path = folder / "text_encoder" / "config.json"
        yield f"{path} asks for a mask of the prompt (use_attention_mask), which no Stable Diffusion was trained with"
    if index.get("requires_aesthetics_score"):
        yield f"{folder / INDEX} asks for an aesthetics score, as SDXL's refiner does: give the base model"


def _of_unet(folder: Path, found: dict[str, dict[str, Any]], xl: bool) -> Iterator[str]:
    path, unet, vae = folder / "unet" / "config.json", found["unet"], found.get("vae")
    for name, meaning in _READ_WHERE.items():
        if unet.get(name):
            yield f"{path} has {name}: {meaning}; give the model that it was made of"
    if unet.get("attention_type", "default") != "default":
        kind = unet["attention_type"]
        yield f"{path} has attention_type {kind!r}: it reads places of things beside the prompt (GLIGEN)"
    if unet.get("num_attention_heads") is not None:
        yield f"{path} has num_attention_heads, which diffusers refuses: name them attention_head_dim"
    for name, allowed in _BLOCKS.items():
        given = unet.get(name, allowed[0])
        given = given if isinstance(given, list) else [given]
        if other := [each for each in given if each not in allowed]:
            yield f"{path} has a block {other[0]!r}, whose layers audits do not know: give an SD 1.x, 2.x or XL"
    size = unet.get("sample_size")
    if not all(isinstance(each, int) and each > 0 for each in (size if isinstance(size, list) else [size])) or (
        isinstance(size, list) and len(size) != 2
    ):
        yield (
            f"{path} has no sample_size: write the height of the model's images there, divided by 8 (64 for SD 1.x, "
            "96 for the larger SD 2.x, 128 for XL)"
        )
    takes, gives = unet.get("in_channels", 4), unet.get("out_channels", 4)
    latent = vae.get("latent_channels", 4) if vae else gives
    if takes != gives or takes != latent:
        what = {
            9: "an inpainting model",
            8: "InstructPix2Pix, an upscaler or a refiner of pictures",
            5: "a depth-to-image model",
            7: "an upscaler",
        }
        guess = f", as {what[takes]} does" if takes in what and gives == latent else ""
        yield (
            f"{path} takes {takes} channels and gives {gives}{guess}, its autoencoder has {latent}: audits need a "
            "text-to-image model"
        )
    asked, added = ("text_time", unet.get("addition_embed_type"))
    if added != (asked if xl else None):
        wanted = asked if xl else None
        yield f"{path} has addition_embed_type {added!r}, a {'XL' if xl else 'Stable Diffusion'} model has {wanted!r}"
    widths = [_width(found[part]) for part in ("text_encoder", "text_encoder_2") if part in found]
    reads = unet.get("cross_attention_dim", 1280)
    if len(widths) == 1 + xl and all(widths) and {sum(widths)} != set(reads if isinstance(reads, list) else [reads]):
        gives = sum(widths)
        yield f"{path} reads {reads} values a token, its text encoders give {gives}: download the model again"
    if xl and added == asked and "text_encoder_2" in found:
        pooled = found["text_encoder_2"].get("projection_dim", 512)
        takes_beside = unet.get("projection_class_embeddings_input_dim")
        gets = 6 * (unet.get("addition_time_embed_dim") or 0) + pooled
        if takes_beside != gets:
            refiner = ", as SDXL's refiner does: give the base model" if takes_beside and takes_beside < gets else ""
            yield f"{path} reads {takes_beside} values beside the text where XL has {gets}{refiner}"


def _width(encoder: dict[str, Any]) -> int:
    inner = encoder.get("text_config") if "hidden_size" not in encoder else None
    return int((inner if isinstance(inner, dict) else encoder).get("hidden_size", 512))


def _of_autoencoder(path: Path, vae: dict[str, Any], xl: bool, kind: str) -> Iterator[str]:
    if vae.get("shift_factor"):
        yield f"{path} has shift_factor {vae['shift_factor']}, which {kind} does not apply: its pictures would be off"
    given = [name for name in ("latents_mean", "latents_std") if vae.get(name) is not None]
    if given and not xl:
        yield f"{path} has {' and '.join(given)}, which {kind} does not apply: its pictures would be off"
    elif len(given) == 1:
        yield f"{path} has {given[0]} alone, which {kind} does not apply: give latents_mean and latents_std"
    channels = vae.get("latent_channels", 4)
    for name in given if len(given) == 2 and xl else ():
        if not isinstance(vae[name], list) or len(vae[name]) != channels:
            yield f"{path} has a {name} that is no list of {channels} numbers, one a channel of latents"
    if "scaling_factor" in vae and not (isinstance(vae["scaling_factor"], int | float) and vae["scaling_factor"] > 0):
        yield f"{path} has scaling_factor {vae['scaling_factor']!r}: it must be a number above 0"
    if vae.get("in_channels", 3) != 3 or vae.get("out_channels", 3) != 3:
        yield f"{path} makes no pictures of 3 channels: audits need red, green and blue"


def _of_scheduler(folder: Path, index: dict[str, Any], choice: Choice, steps: int | None) -> Iterator[str]:
    place = folder / "scheduler"
    if class_in(index, "scheduler") is None or not place.is_dir():
        return  # told with the components
    try:
        own, why = read_scheduler(place, scheduler_in(index))
        if choice == "model" and why is not None:
            yield why
        elif steps is not None:
            sampler(own, choice, steps, why)
    except InputError as error:
        yield str(error)


def _of_strays(folder: Path, parts: dict[str, Any]) -> Iterator[str]:
    """Files that change what the model makes, and that nothing reads."""
    known = [folder, *(folder / part for part in parts)]
    others = [path for path in sorted(folder.iterdir()) if path.is_dir() and _ADAPTER.search(path.name)]
    for place in filter(Path.is_dir, [*known, *others]):
        for path in sorted(filter(Path.is_file, place.iterdir())):
            weights = path.suffix in _WEIGHTS and (place in others or _changes(path))
            if weights and path.name == f"{stem_of(place.name)}.safetensors" and place in known[1:]:
                yield f"{path} has layers of {_kind_of_adapter(path)} that was not fused: fuse it and save the model"
            elif weights or path.name == "adapter_config.json":
                yield (
                    f"{path} is {_kind_of_adapter(path)}, which an audit of this folder would leave out: fuse it "
                    "into the model and save that (load_lora_weights, fuse_lora, save_pretrained), or move it away to "
                    "audit the model without it"
                )


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
    convert = (
        'python -c "from diffusers import StableDiffusionPipeline; '
        f"StableDiffusionPipeline.from_single_file({str(path)!r}).save_pretrained('FOLDER')\" "
        "(StableDiffusionXLPipeline for XL), and give FOLDER"
    )
    if not begin:
        return f"{path} is an empty file: download it again"
    if begin.startswith(_LFS):
        return f"{path} is a pointer of Git LFS, not the weights: fetch them with git lfs pull"
    if begin.startswith(b"GGUF") or path.suffix == ".gguf":
        return f"{path} is a GGUF file, whose weights are quantized: audits need the unquantized pipeline, as a folder"
    if path.suffix in (".safetensors", ".sft"):
        if (problem := damage(path)) is not None:
            return problem
        holds = _holds(path)
        if holds == "checkpoint":
            return f"{path} is a whole model in one file: make a folder of it, {convert}"
        if holds != "part":
            return f"{path} is {holds}, no whole model: fuse it into its base model, save that, and give its folder"
        return f"{path} holds weights of a part of a model alone: give the folder of a whole diffusers pipeline"
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
                f"{path} looks like an adapter, no whole model: fuse it into its base model, save that, give its folder"
            )
        return f"{path} is a pickle, which can run code when it is loaded: convert it where you trust it, {convert}"
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
    parts = sorted({"unet", "vae", "text_encoder", "scheduler"} & names)
    if "adapter_config.json" in names or any(_ADAPTER.search(each.name) and each.is_file() for each in files):
        return (
            f"{path} holds an adapter such as a LoRA, no whole model: fuse it into its base model, save that, give that"
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
