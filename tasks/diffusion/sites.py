"""Sites: the roles that layers play in their blocks, whatever the family of the model; each family finds its own."""

from dataclasses import dataclass
from enum import StrEnum

from torch import nn


class Site(StrEnum):
    """Where in a block neurons are looked at."""

    VALUE = "value"
    """Cross-attention values, in a UNet those of the down blocks and the mid block: NeMo's site (Hintersdorf et al.,
    section 3)."""
    VALUE_ALL = "value-all"
    """Cross-attention values of all blocks."""
    KEY = "key"
    """Cross-attention keys, in a UNet those of the down blocks and the mid block."""
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
    """Name of the module in the denoiser."""
    module: nn.Module

    @property
    def outputs(self) -> int:
        return int(self.module.weight.shape[0])  # type: ignore[union-attr, index]

    @property
    def inputs(self) -> int:
        return int(self.module.weight.shape[1])  # type: ignore[union-attr, index]
