"""What a pipeline's configuration says of its shapes, without a single weight loaded."""

import json
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tasks.diffusion.families import Model, family_in
from tasks.diffusion.files import INDEX, scheduler_in
from tasks.diffusion.footprint import META
from tasks.diffusion.precision import Precision
from tasks.diffusion.sites import Layer, Site
from tasks.errors import InputError, first_line


@dataclass(frozen=True)
class Outline:
    """The shapes of a model."""

    family: type[Model]
    denoiser: Any
    """On the meta device: layers with their shapes, and no numbers."""
    latent: tuple[int, int] | None
    """Height and width of a latent, where the configuration says so."""
    image: tuple[int, int] | None
    """Height and width of an image."""
    trained: int | None
    """Timesteps that the model was trained with."""

    def layers(self, site: Site) -> tuple[Layer, ...]:
        """The layers of a site, see `Model.layers`."""
        return self.family.layers_of(self.denoiser, site)


def outline_of(folder: Path) -> Outline:
    """The outline of a pipeline's folder.

    Raises:
        InputError: it is of no family that is known here, or its denoiser's configuration describes none.
    """
    if (family := family_in(_read(folder / INDEX))) is None:
        raise InputError(f"{folder / INDEX} names a pipeline of no family that audits know")
    file = folder / family.denoiser_name / "config.json"
    config = _read(file)
    try:
        with torch.device("meta"):
            denoiser = family.denoiser_class.from_config(config)
    except Exception as error:  # whatever a layer makes of a number that does not fit
        raise InputError(f"{file} describes no {family.denoiser_class.__name__}: {first_line(error)}") from error
    vae = _read(folder / "vae" / "config.json")
    latent, blocks = family.latent_size(config, vae), vae.get("block_out_channels")
    scale = 2 ** (len(blocks) - 1) if isinstance(blocks, list) and blocks else None
    trained = _read(folder / "scheduler" / "scheduler_config.json").get("num_train_timesteps")
    return Outline(
        family=family,
        denoiser=denoiser,
        latent=latent,
        image=(latent[0] * scale, latent[1] * scale) if latent and scale else None,
        trained=trained if isinstance(trained, int) else None,
    )


def weightless(folder: Path, precision: Precision = "float32") -> Model:
    """The model of a pipeline's folder with all its modules on the meta device; no weights need to lie there.

    Raises:
        InputError: it is of no family that is known here, or a configuration describes no component.
    """
    index = _read(folder / INDEX)
    if (family := family_in(index)) is None:
        raise InputError(f"{folder / INDEX} names a pipeline of no family that audits know")
    dtype = torch.float32 if precision == "mixed" else getattr(torch, precision)
    parts: dict[str, Any] = {}
    for name in family.components:
        if name == "scheduler":
            continue
        entry = index.get(name) or [None, None]
        if entry[0] is None:  # as a pipeline says that it has none
            parts[name] = None
            continue
        kind = getattr(import_module(entry[0]), entry[1])
        try:
            if name.startswith("tokenizer"):
                parts[name] = kind.from_pretrained(folder / name, local_files_only=True)
                continue
            with META:
                made = (
                    kind(kind.config_class.from_pretrained(folder / name, local_files_only=True))
                    if name.startswith("text_encoder")
                    else kind.from_config(kind.load_config(folder / name, local_files_only=True))
                )
        except Exception as error:  # whatever a layer makes of a number that does not fit
            raise InputError(f"{folder / name} describes no {kind.__name__}: {first_line(error)}") from error
        parts[name] = nn.Module.to(made, dtype).eval().requires_grad_(False)  # diffusers' own warns of nothing
    return family.of(
        index,
        source=str(folder),
        model_id="",
        denoiser=parts.pop(family.denoiser_name),
        schedule=family.read_schedule(folder / "scheduler", scheduler_in(index)),
        device=META,
        **parts,
    )


def enough_timesteps(steps: int, trained: int | None, setting: str) -> None:
    """Raises InputError where a schedule has more steps than timesteps that the model was trained with.

    Args:
        setting: what the number of steps is called by.
    """
    if trained is not None and steps > trained:
        raise InputError(f"{setting} is {steps}, and the model was trained with {trained} timesteps: set it lower")


def _read(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text())
    except (OSError, ValueError, RecursionError) as error:
        why = error.strerror if isinstance(error, OSError) else f"not JSON: {error}"
        raise InputError(f"cannot read {file}: {why}") from error
    if not isinstance(found, dict):
        raise InputError(f"{file} is no configuration: save the pipeline anew")
    return found
