"""What a pipeline's configuration says of its shapes, without a single weight loaded."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tasks.diffusion.families import Model, family_in
from tasks.diffusion.files import INDEX
from tasks.diffusion.sites import Layer, Site
from tasks.errors import InputError, first_line


@dataclass(frozen=True)
class Outline:
    """The shapes of a model."""

    family: type[Model]
    denoiser: nn.Module
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
    size = config.get("sample_size")
    latent = (
        (size, size) if isinstance(size, int) else tuple(size) if isinstance(size, list) and len(size) == 2 else None
    )
    blocks = _read(folder / "vae" / "config.json").get("block_out_channels")
    scale = 2 ** (len(blocks) - 1) if isinstance(blocks, list) and blocks else None
    trained = _read(folder / "scheduler" / "scheduler_config.json").get("num_train_timesteps")
    return Outline(
        family=family,
        denoiser=denoiser,
        latent=latent,
        image=(latent[0] * scale, latent[1] * scale) if latent and scale else None,
        trained=trained if isinstance(trained, int) else None,
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
