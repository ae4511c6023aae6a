"""What a model is: one file a family, behind one interface, chosen by the pipeline that model_index.json names."""

from collections.abc import Mapping
from typing import Any

from torch import nn

from tasks.diffusion.families.flux import Flux
from tasks.diffusion.families.model import Model
from tasks.diffusion.families.pixart import PixArtAlpha, PixArtSigma
from tasks.diffusion.families.sd3 import StableDiffusion3
from tasks.diffusion.families.sdxl import StableDiffusionXL
from tasks.diffusion.families.unet import StableDiffusion
from tasks.diffusion.sites import Layer, Site

__all__ = ["FAMILIES", "Model", "StableDiffusion", "family_in", "family_of", "layers_of"]

FAMILIES: Mapping[str, type[Model]] = {
    family.pipeline_class.__name__: family
    for family in (StableDiffusion, StableDiffusionXL, PixArtAlpha, PixArtSigma, StableDiffusion3, Flux)
}
"""By pipeline, its family."""


def family_in(index: Mapping[str, Any]) -> type[Model] | None:
    """The family that a model_index.json names; None where audits know none of that name."""
    name = index.get("_class_name")
    return FAMILIES.get(name) if isinstance(name, str) else None


def family_of(denoiser: nn.Module) -> type[Model]:
    """A family whose denoisers are of this class; which layers they have does not differ between such families."""
    return next(family for family in FAMILIES.values() if isinstance(denoiser, family.denoiser_class))


def layers_of(denoiser: nn.Module, site: Site) -> tuple[Layer, ...]:
    """The layers of a site of a denoiser, whose model need not be loaded, see `Model.layers`.

    Raises:
        InputError: the denoiser has none.
    """
    return family_of(denoiser).layers_of(denoiser, site)
