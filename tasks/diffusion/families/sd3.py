"""Stable Diffusion 3 and 3.5: a transformer in which text and image attend to both, trained by flow matching."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from diffusers import SD3Transformer2DModel, StableDiffusion3Pipeline
from torch import nn
from torch.nn.functional import pad

from tasks.diffusion.families.flow import read_flow
from tasks.diffusion.families.joint import Joint, shifted_problems
from tasks.diffusion.families.model import Parts
from tasks.diffusion.families.schedule import Schedule
from tasks.diffusion.families.unet import CLIP_TOKENIZERS
from tasks.diffusion.files import INDEX
from tasks.diffusion.sites import Site

T5_TOKENS = 256
"""Tokens of T5 that the pipeline reads, whatever the model was trained with."""
_T5 = ("text_encoder_3", "tokenizer_3")


@dataclass(frozen=True, kw_only=True)
class StableDiffusion3(Joint):
    """Embeddings (n, tokens + 256 + 1, width): both CLIPs' tokens side by side, filled up with zeros; those of T5, or
    zeros in a pipeline without it; and both CLIPs' pooled vectors, filled up with zeros.

    All tokens are attended to, those that fill up, too. Searches move the pooled vectors with the tokens.
    """

    text_encoder_2: Any
    tokenizer_2: Any
    text_encoder_3: Any
    """T5, or None."""
    tokenizer_3: Any

    pipeline_class: ClassVar[Any] = StableDiffusion3Pipeline
    components: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "transformer": ("SD3Transformer2DModel",),
        "vae": ("AutoencoderKL",),
        "text_encoder": ("CLIPTextModelWithProjection",),
        "tokenizer": CLIP_TOKENIZERS,
        "text_encoder_2": ("CLIPTextModelWithProjection",),
        "tokenizer_2": CLIP_TOKENIZERS,
        "text_encoder_3": ("T5EncoderModel",),
        "tokenizer_3": ("T5Tokenizer", "T5TokenizerFast"),
        "scheduler": (),
    }
    optional: ClassVar[frozenset[str]] = frozenset(_T5)
    denoiser_name: ClassVar[str] = "transformer"
    denoiser_class: ClassVar[Any] = SD3Transformer2DModel
    from_first_step: ClassVar[bool] = False

    @classmethod
    def problems(cls, folder: Path, index: Mapping[str, Any], configs: Parts) -> Iterator[str]:
        lacking = [name for name in _T5 if index.get(name) in (None, [None, None])]
        if len(lacking) == 1:
            yield f"{folder / INDEX} has no {lacking[0]}, and what belongs to it: give both, or neither"
        if cls.denoiser_name in configs:
            yield from _transformer_problems(folder / cls.denoiser_name / "config.json", configs)
        if "vae" in configs:
            path = folder / "vae" / "config.json"
            yield from shifted_problems(path, configs["vae"], index["_class_name"])

    @staticmethod
    def find(denoiser: nn.Module, site: Site) -> Iterator[tuple[str, nn.Module]]:
        blocks: Any = denoiser.transformer_blocks
        for number, block in enumerate(blocks):
            yield from _of_block(site, f"transformer_blocks.{number}", block)

    @classmethod
    def most_tokens(cls, tokenizer: Any, config: Any, denoiser: Mapping[str, Any]) -> int:
        return int(min(tokenizer.model_max_length, config.max_position_embeddings))

    @classmethod
    def token_limits(cls, tokenizers: Sequence[Any], most: int) -> tuple[int, ...]:
        return (most, most, T5_TOKENS)[: len(tokenizers)]

    @staticmethod
    def read_schedule(folder: Path, name: str) -> Schedule:
        return read_flow(folder, name)

    @classmethod
    def assembled(cls, parts: Parts, scheduler: Any, index: Mapping[str, Any]) -> Any:
        return StableDiffusion3Pipeline(**parts, scheduler=scheduler)

    @torch.no_grad()
    def encode(self, prompts: list[str], batch: int = 256) -> torch.Tensor:
        blocks = [self._encoded(prompts[start : start + batch]) for start in range(0, len(prompts), batch)]
        return torch.cat(blocks).to(self.dtype)

    def _encoded(self, prompts: list[str]) -> torch.Tensor:
        pairs = ((self.tokenizer, self.text_encoder), (self.tokenizer_2, self.text_encoder_2))
        found = [
            encoder(self._ids(tokenizer, prompts, self.tokens), output_hidden_states=True)
            for tokenizer, encoder in pairs
        ]
        # The last layer but one of each, side by side, as in XL.
        clip = torch.cat([one.hidden_states[-2] for one in found], -1)
        pooled = torch.cat([one[0] for one in found], -1)
        width = self.token_width
        rows = [clip, self._long(prompts, clip), pooled[:, None]]
        return torch.cat([pad(some, (0, width - some.shape[-1])) for some in rows], 1)

    def _long(self, prompts: list[str], like: torch.Tensor) -> torch.Tensor:
        """What T5 makes of prompts, (n, 256, width); its padding is read, and not masked, as in training."""
        if self.text_encoder_3 is None:
            return like.new_zeros(len(prompts), T5_TOKENS, self.token_width)
        states: torch.Tensor = self.text_encoder_3(self._ids(self.tokenizer_3, prompts, T5_TOKENS))[0]
        return states.to(like)

    @property
    def row_groups(self) -> tuple[slice, ...]:
        ends = self.tokens, self.tokens + T5_TOKENS
        return slice(0, ends[0]), slice(*ends), slice(ends[1], ends[1] + 1)

    def _run(self, latents: torch.Tensor, timesteps: torch.Tensor, embeddings: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = self.denoiser(
            latents,
            encoder_hidden_states=self._text(embeddings),
            pooled_projections=embeddings[:, -1, : self.denoiser.config.pooled_projection_dim],
            timestep=timesteps,
            return_dict=False,
        )[0]
        return output


def _of_block(site: Site, name: str, block: Any) -> Iterator[tuple[str, nn.Module]]:
    """Names and modules of the layers of a site in one block, those of the image before those of the text; the last
    block does nothing more with its text."""
    both = (("ff", block.ff), ("ff_context", block.ff_context))
    if site in (Site.VALUE, Site.VALUE_ALL):
        yield f"{name}.attn.add_v_proj", block.attn.add_v_proj
    elif site is Site.KEY:
        yield f"{name}.attn.add_k_proj", block.attn.add_k_proj
    elif site is Site.FEED_FORWARD_HIDDEN:
        yield from ((f"{name}.{part}.net.2", layer.net[2]) for part, layer in both if layer is not None)
    elif site is Site.FEED_FORWARD_INPUT:
        yield from ((f"{name}.{part}.net.0.proj", layer.net[0].proj) for part, layer in both if layer is not None)


def _transformer_problems(path: Path, configs: Parts) -> Iterator[str]:
    """Settings of a transformer that reads nothing but latents, timestep, tokens and pooled vectors."""
    transformer, vae = configs[path.parent.name], configs.get("vae", {})
    size, patch = transformer.get("sample_size", 128), transformer.get("patch_size", 2)
    if not (isinstance(size, int) and isinstance(patch, int) and size > 0 and patch > 0 and size % patch == 0):
        yield f"{path} has sample_size {size!r} and patch_size {patch!r}: the first must be a multiple of the second"
    elif size // patch > (largest := transformer.get("pos_embed_max_size", 96)):
        yield f"{path} has sample_size {size}, and places for {largest} x {largest} patches alone: write a smaller one"
    takes, gives = transformer.get("in_channels", 16), transformer.get("out_channels", 16)
    latent = vae.get("latent_channels", 4)
    if takes != latent or gives not in (None, takes):
        yield (
            f"{path} takes {takes} channels and gives {gives}, its autoencoder has {latent}: audits need a "
            "text-to-image model"
        )
    reads, pools = transformer.get("joint_attention_dim", 4096), transformer.get("pooled_projection_dim", 2048)
    clips = [configs[name] for name in ("text_encoder", "text_encoder_2") if name in configs]
    if len(clips) == 2:
        width, pooled = (sum(clip.get(name, 512) for clip in clips) for name in ("hidden_size", "projection_dim"))
        if width > reads:
            yield f"{path} reads {reads} values a token, CLIP's encoders give {width}: download the model again"
        if pooled != pools:
            yield f"{path} reads {pools} values beside the tokens, CLIP's encoders give {pooled}: download it again"
    if "text_encoder_3" in configs and (width := configs["text_encoder_3"].get("d_model", 512)) != reads:
        yield f"{path} reads {reads} values a token, T5 gives {width}: download the model again"
