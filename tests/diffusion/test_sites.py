"""Layers are found by role in any UNet, in the order in which a forward pass meets them."""

from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel

from tasks.diffusion.families import layers_of
from tasks.diffusion.hooks import observed
from tasks.diffusion.sites import Site
from tasks.errors import InputError
from tests.support.hand_made import WIDTH, random_unet

SD_1_4: dict[str, Any] = {"cross_attention_dim": 768, "attention_head_dim": 8}
SD_2_1: dict[str, Any] = {
    "cross_attention_dim": 1024,
    "attention_head_dim": [5, 10, 20, 20],
    "use_linear_projection": True,
}
SDXL: dict[str, Any] = {
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": [1, 2, 10],
    "attention_head_dim": [5, 10, 20],
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}


def on_meta(config: dict[str, Any]) -> UNet2DConditionModel:
    with torch.device("meta"):
        return UNet2DConditionModel(sample_size=64, **config)


@pytest.mark.parametrize("config", [SD_1_4, SD_2_1], ids=["1.4", "2.1"])
def test_stable_diffusion_has_seven_value_and_sixteen_feed_forward_layers(config: dict[str, Any]) -> None:
    unet = on_meta(config)
    values = layers_of(unet, Site.VALUE)
    assert [layer.outputs for layer in values] == [320, 320, 640, 640, 1280, 1280, 1280]
    assert {layer.inputs for layer in values} == {config["cross_attention_dim"]}
    assert [layer.index for layer in values] == list(range(7))
    assert values[1].name == "down_blocks.0.attentions.1.transformer_blocks.0.attn2.to_v"
    assert values[6].name == "mid_block.attentions.0.transformer_blocks.0.attn2.to_v"
    hidden = layers_of(unet, Site.FEED_FORWARD_HIDDEN)
    assert [layer.outputs for layer in hidden] == [320] * 2 + [640] * 2 + [1280] * 6 + [640] * 3 + [320] * 3
    assert all(layer.inputs == 4 * layer.outputs for layer in hidden)
    assert [layer.outputs for layer in layers_of(unet, Site.FEED_FORWARD_INPUT)] == [8 * h.outputs for h in hidden]
    assert len(layers_of(unet, Site.KEY)) == 7
    assert len(layers_of(unet, Site.VALUE_ALL)) == 16
    assert len(layers_of(unet, Site.CONVOLUTION)) == 2 * (8 + 2 + 12)


def test_stable_diffusion_xl_has_many_transformer_blocks_an_attention() -> None:
    unet = on_meta(SDXL)
    values = layers_of(unet, Site.VALUE)
    assert [layer.outputs for layer in values] == [640] * 4 + [1280] * 20 + [1280] * 10
    assert len(layers_of(unet, Site.FEED_FORWARD_HIDDEN)) == 34 + 36


@pytest.mark.parametrize("site", Site)
@pytest.mark.parametrize("deep", [False, True])
def test_the_order_is_that_of_execution(site: Site, deep: bool) -> None:
    config: dict[str, Any] = {"transformer_layers_per_block": [1, 2]} if deep else {}
    if deep:
        config["down_block_types"] = ("CrossAttnDownBlock2D",) * 2
        config["up_block_types"] = ("CrossAttnUpBlock2D",) * 2
    unet = random_unet(**config)
    layers = layers_of(unet, site)
    seen: list[int] = []
    with observed(layers, lambda layer, inputs, output: seen.append(layer.index)):
        unet(torch.randn(1, 4, 16, 16), 3, torch.randn(1, 2, WIDTH))
    assert seen == list(range(len(layers)))
    modules = dict(unet.named_modules())
    assert all(modules[layer.name] is layer.module for layer in layers)


def test_names_are_stable() -> None:
    first, second = (layers_of(random_unet(seed), Site.FEED_FORWARD_HIDDEN) for seed in (0, 1))
    assert [(layer.index, layer.name) for layer in first] == [(layer.index, layer.name) for layer in second]


def test_a_unet_without_the_site_is_refused_in_a_line() -> None:
    unet = random_unet(down_block_types=("DownBlock2D",) * 2, mid_block_type=None, up_block_types=("UpBlock2D",) * 2)
    with pytest.raises(InputError, match="no layers at site 'value'"):
        layers_of(unet, Site.VALUE)


def test_attention_without_text_is_no_site() -> None:
    unet = random_unet(
        down_block_types=("AttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "AttnUpBlock2D"),
    )
    assert len(layers_of(unet, Site.VALUE)) == 2 + 1  # those of the one block with text, and of the mid block
    assert len(layers_of(unet, Site.FEED_FORWARD_HIDDEN)) == 2 + 1 + 3
