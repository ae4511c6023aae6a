"""Stable Diffusion 1.x and 2.x: a UNet that attends to CLIP's tokens and predicts noise or velocity."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.resnet import ResnetBlock2D
from torch import nn

from tasks.diffusion.batches import in_batches
from tasks.diffusion.families.model import Model, Parts, autoencoder_problems
from tasks.diffusion.footprint import fitting
from tasks.diffusion.sites import Site

CLIP_TOKENIZERS = ("CLIPTokenizer", "CLIPTokenizerFast")


@dataclass(frozen=True, kw_only=True)
class StableDiffusion(Model):
    """Embeddings (n, tokens, width) are the tokens alone: all of them are attended to, those that fill up, too."""

    pipeline_class: ClassVar[Any] = StableDiffusionPipeline
    components: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "unet": ("UNet2DConditionModel",),
        "vae": ("AutoencoderKL", "AutoencoderTiny"),
        "text_encoder": ("CLIPTextModel",),
        "tokenizer": CLIP_TOKENIZERS,
        "scheduler": (),
    }
    denoiser_name: ClassVar[str] = "unet"
    denoiser_class: ClassVar[Any] = UNet2DConditionModel
    text_alone: ClassVar[frozenset[Site]] = frozenset({Site.VALUE, Site.VALUE_ALL, Site.KEY})
    start_token: ClassVar[bool] = True
    from_first_step: ClassVar[bool] = False

    @classmethod
    def problems(cls, folder: Path, index: Mapping[str, Any], configs: Parts) -> Iterator[str]:
        if "unet" in configs:
            yield from unet_problems(folder, configs, ["text_encoder"])
            yield from added_problems(folder, configs["unet"], "Stable Diffusion", None)
        if "vae" in configs:
            yield from autoencoder_problems(folder / "vae" / "config.json", configs["vae"], index["_class_name"])
        if configs.get("text_encoder", {}).get("use_attention_mask"):
            path = folder / "text_encoder" / "config.json"
            yield f"{path} asks for a mask of prompts (use_attention_mask), which no Stable Diffusion was trained with"

    @staticmethod
    def find(denoiser: nn.Module, site: Site) -> Iterator[tuple[str, nn.Module]]:
        for part, prefix, block in _blocks(denoiser):
            yield from _of_block(site, part, prefix, block)

    @classmethod
    def most_tokens(cls, tokenizer: Any, config: Any, denoiser: Mapping[str, Any]) -> int:
        return int(min(tokenizer.model_max_length, config.max_position_embeddings))

    @classmethod
    def assembled(cls, parts: Parts, scheduler: Any, index: Mapping[str, Any]) -> Any:
        return StableDiffusionPipeline(
            **parts, scheduler=scheduler, safety_checker=None, feature_extractor=None, requires_safety_checker=False
        )

    @torch.no_grad()
    def encode(self, prompts: list[str], batch: int = 256) -> torch.Tensor:
        blocks = in_batches(len(prompts), fitting(self, "text", batch), lambda rows: self._encoded(prompts[rows]))
        return torch.cat(list(blocks)).to(self.dtype)

    def _encoded(self, prompts: list[str]) -> torch.Tensor:
        states: torch.Tensor = self.text_encoder(self._ids(self.tokenizer, prompts))[0]
        return states

    def _ids(self, tokenizer: Any, prompts: list[str]) -> torch.Tensor:
        how = {"padding": "max_length", "truncation": True, "max_length": self.tokens, "return_tensors": "pt"}
        ids: torch.Tensor = tokenizer(prompts, **how).input_ids
        return ids.to(self.device)

    @property
    def token_width(self) -> int:
        width: int = self.denoiser.config.cross_attention_dim
        return width

    def _text(self, embeddings: torch.Tensor) -> torch.Tensor:
        return embeddings

    def _run(self, latents: torch.Tensor, timesteps: torch.Tensor, embeddings: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = self.denoiser(
            latents, timesteps, self._text(embeddings), added_cond_kwargs=self._beside(embeddings), return_dict=False
        )[0]
        return output

    def _beside(self, embeddings: torch.Tensor) -> dict[str, torch.Tensor] | None:
        """What the UNet reads beside the tokens."""
        return None


# Layers, in order of execution. They are found by the type of the module that holds them, never by position in a list,
# so the same code addresses any UNet of these blocks.


def _blocks(unet: Any) -> Iterator[tuple[str, str, nn.Module]]:
    """Part ("down", "mid", "up"), name and module of every residual and transformer block."""
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


def _of_block(site: Site, part: str, name: str, block: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    if isinstance(block, ResnetBlock2D) and site is Site.CONVOLUTION:
        yield from ((f"{name}.conv1", block.conv1), (f"{name}.conv2", block.conv2))
    elif isinstance(block, BasicTransformerBlock) and not (part == "up" and site in (Site.VALUE, Site.KEY)):
        yield from transformer_layers(site, name, block)


def transformer_layers(site: Site, name: str, block: Any) -> Iterator[tuple[str, nn.Module]]:
    """Names and modules of the layers of a site in one transformer block."""
    if site is Site.FEED_FORWARD_HIDDEN:
        yield f"{name}.ff.net.2", block.ff.net[2]
    elif site is Site.FEED_FORWARD_INPUT:
        yield f"{name}.ff.net.0.proj", block.ff.net[0].proj
    elif block.attn2 is not None and site in (Site.VALUE, Site.VALUE_ALL):
        yield f"{name}.attn2.to_v", block.attn2.to_v
    elif block.attn2 is not None and site is Site.KEY:
        yield f"{name}.attn2.to_k", block.attn2.to_k


# Configs

_BLOCKS = {
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D", "AttnDownBlock2D"),
    "mid_block_type": ("UNetMidBlock2DCrossAttn", "UNetMidBlock2D", None),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D", "AttnUpBlock2D"),
}
"""Blocks whose layers are found."""

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

_CHANNELS = {
    9: "an inpainting model",
    8: "InstructPix2Pix, an upscaler or a refiner of images",
    5: "a depth-to-image model",
    7: "an upscaler",
}
"""Whose UNets take so many channels."""


def unet_problems(folder: Path, configs: Parts, encoders: Sequence[str]) -> Iterator[str]:
    """Settings of a UNet that reads nothing but latents, timestep and the tokens of these encoders."""
    path, unet, vae = folder / "unet" / "config.json", configs["unet"], configs.get("vae")
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
        guess = f", as {_CHANNELS[takes]} does" if takes in _CHANNELS and gives == latent else ""
        yield (
            f"{path} takes {takes} channels and gives {gives}{guess}, its autoencoder has {latent}: audits need a "
            "text-to-image model"
        )
    widths = [_width(configs[name]) for name in encoders if name in configs]
    reads = unet.get("cross_attention_dim", 1280)
    if (
        len(widths) == len(encoders)
        and all(widths)
        and {sum(widths)} != set(reads if isinstance(reads, list) else [reads])
    ):
        given = sum(widths)
        yield f"{path} reads {reads} values a token, its text encoders give {given}: download the model again"


def added_problems(folder: Path, unet: Mapping[str, Any], title: str, wanted: str | None) -> Iterator[str]:
    """What a UNet reads beside the tokens, where that is not what its family's does."""
    if (added := unet.get("addition_embed_type")) != wanted:
        path = folder / "unet" / "config.json"
        yield f"{path} has addition_embed_type {added!r}, a {title} model has {wanted!r}"


def _width(encoder: Mapping[str, Any]) -> int:
    inner = encoder.get("text_config") if "hidden_size" not in encoder else None
    return int((inner if isinstance(inner, dict) else encoder).get("hidden_size", 512))
