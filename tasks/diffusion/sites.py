"""Addressing the layers of a UNet2DConditionModel by role, in order of execution.

A site is a role that a layer plays in its block. Layers are found by the type of the module that holds them, never by
position in a list, so the same code addresses SD 1.x, 2.x, SDXL and any other UNet of these blocks.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

from diffusers import UNet2DConditionModel
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.resnet import ResnetBlock2D
from torch import nn

from tasks.errors import InputError


class Site(StrEnum):
    """Where in a block neurons are looked at."""

    VALUE = "value"
    """Cross-attention values of the down blocks and the mid block: NeMo's site (Hintersdorf et al., section 3)."""
    VALUE_ALL = "value-all"
    """Cross-attention values of all blocks."""
    KEY = "key"
    """Cross-attention keys of the down blocks and the mid block."""
    FEED_FORWARD_HIDDEN = "ff-hidden"
    """The second linear layer of each feed-forward block, read at its input (Chavhan et al.)."""
    FEED_FORWARD_INPUT = "ff-input"
    """The first linear layer of each feed-forward block, read at its input."""
    CONVOLUTION = "conv"
    """Both convolutions of each residual block."""


@dataclass(frozen=True)
class Layer:
    """One layer of a site."""

    site: Site
    index: int
    """Number within the site, in order of execution."""
    name: str
    """Name of the module in the UNet."""
    module: nn.Module

    @property
    def outputs(self) -> int:
        return int(self.module.weight.shape[0])  # type: ignore[union-attr, index]

    @property
    def inputs(self) -> int:
        return int(self.module.weight.shape[1])  # type: ignore[union-attr, index]


def layers_of(unet: UNet2DConditionModel, site: Site) -> tuple[Layer, ...]:
    """The layers of a site.

    Raises:
        InputError: the UNet has none.
    """
    found = [pair for part, prefix, block in _blocks(unet) for pair in _of_block(site, part, prefix, block)]
    if not found:
        raise InputError(f"this UNet has no layers at site {site.value!r}")
    return tuple(Layer(site, index, name, module) for index, (name, module) in enumerate(found))


def _blocks(unet: UNet2DConditionModel) -> Iterator[tuple[str, str, nn.Module]]:
    """Part ("down", "mid", "up"), name and module of every residual and transformer block, in order of execution."""
    stages = [("down", f"down_blocks.{i}", block) for i, block in enumerate(unet.down_blocks)]
    stages += [("mid", "mid_block", unet.mid_block)] if unet.mid_block is not None else []
    stages += [("up", f"up_blocks.{i}", block) for i, block in enumerate(unet.up_blocks)]
    for part, stage, module in stages:
        resnets = list(enumerate(module.resnets))
        attentions = list(enumerate(getattr(module, "attentions", None) or ()))
        # A mid block runs one residual block ahead of its attentions; the others run them in pairs.
        ahead = 1 if part == "mid" else 0
        for number, resnet in resnets[:ahead]:
            yield part, f"{stage}.resnets.{number}", resnet
        for number, resnet in resnets[ahead:]:
            if part != "mid":
                yield part, f"{stage}.resnets.{number}", resnet
            for k, attention in attentions:
                if k == number - ahead:
                    # Attention without text, in unconditional blocks, has no transformer blocks.
                    for inner, block in enumerate(getattr(attention, "transformer_blocks", ())):
                        yield part, f"{stage}.attentions.{k}.transformer_blocks.{inner}", block
            if part == "mid":
                yield part, f"{stage}.resnets.{number}", resnet


def _of_block(site: Site, part: str, name: str, block: nn.Module) -> list[tuple[str, nn.Module]]:
    if isinstance(block, ResnetBlock2D):
        convolutions = [(f"{name}.conv1", block.conv1), (f"{name}.conv2", block.conv2)]
        return convolutions if site is Site.CONVOLUTION else []
    if not isinstance(block, BasicTransformerBlock):
        return []
    if site is Site.FEED_FORWARD_HIDDEN:
        return [(f"{name}.ff.net.2", block.ff.net[2])]
    if site is Site.FEED_FORWARD_INPUT:
        return [(f"{name}.ff.net.0.proj", block.ff.net[0].proj)]
    if block.attn2 is None or (site is not Site.VALUE_ALL and part == "up"):
        return []
    if site in (Site.VALUE, Site.VALUE_ALL):
        return [(f"{name}.attn2.to_v", block.attn2.to_v)]
    if site is Site.KEY:
        return [(f"{name}.attn2.to_k", block.attn2.to_k)]
    return []
