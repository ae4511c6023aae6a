"""A whole model in one safetensors file, as it was trained or merged, made into a diffusers pipeline.

diffusers renames the tensors; what the file does not say, the shape of the model and its schedule, is that of a folder
of the same kind, or of the published models (`tasks.diffusion.families.pieces.published`). Nothing is fetched.
"""

import json
from collections.abc import Mapping
from inspect import signature
from pathlib import Path
from typing import Any, Literal

import diffusers
import torch
from diffusers import DDIMScheduler
from safetensors import safe_open

from tasks.diffusion.families.pieces.published import write_configuration
from tasks.diffusion.files import INDEX, files_below, read_json, safetensors_header
from tasks.errors import InputError, first_line

Kind = Literal["sd1", "sd2", "xl"]
PIPELINES: dict[Kind, str] = {
    "sd1": "StableDiffusionPipeline",
    "sd2": "StableDiffusionPipeline",
    "xl": "StableDiffusionXLPipeline",
}
UNET, VAE = "model.diffusion_model.", "first_stage_model."
PREFIXES = {"unet": UNET, "vae": VAE}
TEXT: dict[Kind, tuple[str, ...]] = {
    "sd1": ("cond_stage_model.transformer.",),
    "sd2": ("cond_stage_model.model.",),
    "xl": ("conditioner.embedders.0.transformer.", "conditioner.embedders.1.model."),
}
"""What the names of the text encoders' tensors begin with."""
_OTHERS = {
    "joint_blocks.": "Stable Diffusion 3",
    "double_blocks.": "Flux",
    "context_refiner.": "Lumina",
    "adaLN_modulation.": "a diffusion transformer",
}


def kind_of(path: Path) -> Kind:
    """Which models a checkpoint is one of, by the names and shapes of its tensors; nothing of it is loaded.

    Raises:
        InputError: it is none of a text-to-image model that is known here, or lacks a part.
    """
    header = safetensors_header(path)
    if not any(name.startswith(UNET) for name in header):
        raise InputError(f"{path} holds no denoiser ({UNET}...): it is no whole model")
    for mark, other in _OTHERS.items():
        if any(name.startswith(f"{UNET}{mark}") for name in header):
            raise InputError(f"{path} is a checkpoint of {other}, which no family here knows from one file")
    found = [kind for kind in TEXT if all(any(name.startswith(text) for name in header) for text in TEXT[kind])]
    if not found:
        refiner = any(name.startswith("conditioner.embedders.0.model.") for name in header)
        why = "is an XL refiner, no text-to-image model by itself" if refiner else "lacks its text encoder"
        raise InputError(f"{path} {why}: give the base model, whole")
    channels = header[f"{UNET}input_blocks.0.0.weight"]["shape"][1] if f"{UNET}input_blocks.0.0.weight" in header else 4
    if channels != 4:
        raise InputError(f"{path} takes {channels} channels, as inpainting and editing models do: give its base model")
    return found[0]


def write_published(path: Path, folder: Path) -> None:
    """Writes the configuration of the published model that a checkpoint is shaped like.

    Raises:
        InputError: it is none that is known here, or does not say what it predicts where there are both.
    """
    kind, said = kind_of(path), marks(path)
    if kind == "sd2" and "prediction_type" not in said:
        raise InputError(
            f"{path} is of Stable Diffusion 2.x and does not say whether it predicts noise (512-base) or velocity "
            "(768): give --config with the folder of its base model"
        )
    check_marks(path, None)
    write_configuration(folder, kind, sees_velocity=said.get("prediction_type") == "v_prediction")


def pipeline_of(path: Path, configuration: Path, vae: Any = None) -> Any:
    """A checkpoint as a pipeline of diffusers, on the CPU; in half precision if all of the file is.

    Args:
        configuration: folder of a pipeline with the same shapes, whose configs and tokenizers are taken.
        vae: the autoencoder that is taken in place of the file's.

    Raises:
        InputError: the file is none, or its tensors are not those of the configuration.
    """
    kind, header = kind_of(path), safetensors_header(path)
    if vae is None and not any(name.startswith(VAE) for name in header):
        raise InputError(f"{path} has no autoencoder ({VAE}...): give one with --vae")
    _check(configuration, kind, path)
    check_marks(path, configuration)
    _check_number(path, header, configuration, vae is None)
    more = {} if vae is None else {"vae": vae}
    try:
        pipeline: Any = getattr(diffusers, PIPELINES[kind]).from_single_file(
            str(path),
            config=str(configuration),
            local_files_only=True,
            safety_checker=None,
            **more,
        )
    except Exception as error:  # of names and shapes, in many ways
        raise InputError(f"{path} is no model of the configuration ({first_line(error)}): give --config") from error
    _check_text(pipeline, path)
    for part in pipeline.components.values():
        if isinstance(part, torch.nn.Module) and part is not vae:
            part.to(_dtype(header))
    if said := marks(path):
        pipeline.scheduler = _marked(pipeline.scheduler, said)
    return pipeline


def marks(path: Path) -> dict[str, Any]:
    """What a checkpoint says of its own schedule, as settings of a scheduler: `prediction_type`, which is "epsilon" or
    "v_prediction", and of one that was trained down to zero terminal SNR `rescale_betas_zero_snr`.

    Marks are entries of the metadata (modelspec's and kohya's) or empty tensors of a known name.

    Raises:
        InputError: the file cannot be read.
    """
    names = safetensors_header(path)
    with safe_open(path, framework="pt") as opened:
        metadata: Mapping[str, str] = opened.metadata() or {}
    found: dict[str, Any] = {}
    spec = metadata.get("modelspec.prediction_type", "").lower()
    if "v_pred" in names or spec in ("v", "v_prediction") or metadata.get("ss_v_parameterization") == "True":
        found["prediction_type"] = "v_prediction"
    elif spec == "epsilon" or metadata.get("ss_v_parameterization") == "False":
        found["prediction_type"] = "epsilon"
    if {"ztsnr", "ss_zero_terminal_snr"} & names.keys() or metadata.get("ss_zero_terminal_snr") == "True":
        found["rescale_betas_zero_snr"] = True
    return found


def check_marks(path: Path, configuration: Path | None) -> None:
    """Raises InputError where a checkpoint was trained down to zero terminal SNR, and predicts noise.

    Args:
        configuration: folder of a pipeline, which says what the model predicts where its file does not; the published
            one without it.
    """
    said = marks(path)
    if not said.get("rescale_betas_zero_snr"):
        return
    of_folder = configuration / "scheduler" / "scheduler_config.json" if configuration is not None else None
    config = read_json(of_folder) if of_folder is not None and of_folder.is_file() else {}
    if said.get("prediction_type", config.get("prediction_type")) != "v_prediction":
        raise InputError(
            f"{path} says that it was trained down to zero terminal SNR (ztsnr), and not that it predicts velocity "
            "(v_pred), without which no image follows at its first step: give --config with a folder whose scheduler "
            "has prediction_type v_prediction, if that is what it predicts"
        )


def _marked(scheduler: Any, said: Mapping[str, Any]) -> Any:
    """The scheduler as a checkpoint's own marks say. Where no signal is left at the last timestep, sampling begins
    there, as in training; of schedulers that do not know such a schedule DDIM takes the place."""
    if not said.get("rescale_betas_zero_snr"):
        return type(scheduler).from_config(scheduler.config, **said)
    options = dict(said) | {"timestep_spacing": "trailing"}
    if "rescale_betas_zero_snr" in signature(type(scheduler)).parameters:
        return type(scheduler).from_config(scheduler.config, **options)
    return DDIMScheduler.from_config(scheduler.config, clip_sample=False, set_alpha_to_one=False, **options)


def _dtype(header: Mapping[str, Any]) -> torch.dtype:
    """The number format of a file of half precision; float32 of any other."""
    formats = {entry["dtype"] for entry in header.values() if "F" in entry["dtype"]}
    return {("F16",): torch.float16, ("BF16",): torch.bfloat16}.get(tuple(formats), torch.float32)


def _check(configuration: Path, kind: Kind, path: Path) -> None:
    """Raises InputError where a folder has no configuration for a checkpoint of this kind."""
    if not (configuration / INDEX).is_file():
        raise InputError(f"--config {configuration} is no folder of a pipeline (no {INDEX})")
    if (found := read_json(configuration / INDEX).get("_class_name")) != PIPELINES[kind]:
        raise InputError(f"--config {configuration} is that of a {found}, and {path} is of a {PIPELINES[kind]}")


def _check_number(path: Path, header: Mapping[str, Any], configuration: Path, own_vae: bool) -> None:
    """Raises InputError where the file has not as many tensors of a part as its configuration asks for."""
    parts = {"unet": (UNET, diffusers.UNet2DConditionModel)}
    if own_vae:
        parts["vae"] = (VAE, diffusers.AutoencoderKL)
    for name, (prefix, kind) in parts.items():
        with torch.device("meta"):
            wanted = len(kind.from_config(kind.load_config(configuration, subfolder=name)).state_dict())
        if (there := sum(key.startswith(prefix) for key in header)) != wanted:
            raise InputError(
                f"{path} has {there} tensors of the {name}, and its configuration asks for {wanted}: it is cut down, "
                "or of another shape, whose folder --config takes"
            )


def _check_text(pipeline: Any, path: Path) -> None:
    """Raises InputError where a text encoder lacks tensors."""
    for name in ("text_encoder", "text_encoder_2"):
        module = getattr(pipeline, name, None)
        lacking = [key for key, value in module.named_parameters() if value.is_meta] if module is not None else []
        if lacking:
            more = f" and {len(lacking) - 1} more" if len(lacking) > 1 else ""
            raise InputError(f"{path} lacks {lacking[0]}{more} of the {name}: it is cut down, or of another shape")


def configuration_digest(configuration: Path) -> str:
    """What of a folder's configuration a checkpoint is made with, as text."""
    files = files_below(configuration, (".json", ".txt", ".model"))
    return json.dumps([(str(path.relative_to(configuration)), path.read_text(errors="replace")) for path in files])
