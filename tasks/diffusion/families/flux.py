"""Flux.1: a transformer of double blocks, in which text and image attend to both, and of single ones, which they pass
through as one sequence; trained by flow matching, and distilled (Black Forest Labs, 2024).

dev is distilled from guidance, whose strength it reads as a number, and schnell from steps and guidance, so it reads
none. Neither is asked twice a step.
"""

from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
from diffusers import FluxPipeline, FluxTransformer2DModel
from diffusers.pipelines.flux.pipeline_flux import calculate_shift
from torch import nn
from torch.nn.functional import pad, pixel_shuffle, pixel_unshuffle

from tasks.diffusion.batches import in_batches
from tasks.diffusion.families.flow import FLOW, FlowSchedule, read_flow
from tasks.diffusion.families.joint import Joint, shifted_problems
from tasks.diffusion.families.model import Parts
from tasks.diffusion.families.schedule import Schedule
from tasks.diffusion.families.unet import CLIP_TOKENIZERS
from tasks.diffusion.files import read_json
from tasks.diffusion.footprint import fitting
from tasks.diffusion.sites import Site
from tasks.errors import InputError, gathered

GUIDANCE = 1.0
"""What the denoiser is told wherever nothing is sampled. Its teacher's guided prediction is at 1 that of the prompt
alone, which losses and signals are defined by; and dev is trained on at 1, lest its distillation is lost."""
PUBLISHED_GUIDANCE = 3.5
"""What dev is told in sampling, by its pipeline's default."""
DEV_TOKENS, SCHNELL_TOKENS = 512, 256
"""Tokens of T5 that are read: as many as the pipeline allows, and as schnell was trained with."""
PATCH = 2
"""Rows and columns of latents that are one token of the image."""


@dataclass(frozen=True, kw_only=True)
class FluxSchedule(FlowSchedule):
    """Flow matching whose steps are as the pipeline spaces them: shifted by the size of images, where the scheduler
    says so."""

    image_tokens: int

    @property
    def words(self) -> str:
        return (
            f"{FLOW}; guidance is distilled into the model, so where a prompt is compared with none, its answer to the "
            "empty prompt stands in for that of a model without guidance"
        )

    def timing(self, steps: int) -> dict[str, Hashable]:
        config = self.own.config
        shift: float = calculate_shift(
            self.image_tokens,
            config.get("base_image_seq_len", 256),
            config.get("max_image_seq_len", 4096),
            config.get("base_shift", 0.5),
            config.get("max_shift", 1.15),
        )
        if config.get("use_flow_sigmas"):
            return {"mu": shift}
        return {"mu": shift, "sigmas": tuple(np.linspace(1.0, 1 / steps, steps).tolist())}


@dataclass(frozen=True, kw_only=True)
class Flux(Joint):
    """Embeddings (n, tokens + 1, width): T5's tokens, and CLIP's pooled vector, filled up with zeros.

    All tokens are attended to, those that fill up, too. Searches move the pooled vector with the tokens. Latents are
    (n, channels, height, width) as elsewhere; what the denoiser reads of them, four a token, is packed for it alone.
    """

    text_encoder_2: Any
    """T5."""
    tokenizer_2: Any
    guidance: float = GUIDANCE
    """What the denoiser is told, where it reads guidance at all; see `with_guidance`."""

    pipeline_class: ClassVar[Any] = FluxPipeline
    components: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "transformer": ("FluxTransformer2DModel",),
        "vae": ("AutoencoderKL",),
        "text_encoder": ("CLIPTextModel",),
        "tokenizer": CLIP_TOKENIZERS,
        "text_encoder_2": ("T5EncoderModel",),
        "tokenizer_2": ("T5Tokenizer", "T5TokenizerFast"),
        "scheduler": (),
    }
    denoiser_name: ClassVar[str] = "transformer"
    denoiser_class: ClassVar[Any] = FluxTransformer2DModel
    from_first_step: ClassVar[bool] = True
    distilled: ClassVar[bool] = True

    @classmethod
    def problems(cls, folder: Path, index: Mapping[str, Any], configs: Parts) -> Iterator[str]:
        if cls.denoiser_name in configs:
            yield from _transformer_problems(folder / cls.denoiser_name / "config.json", configs)
        if "vae" in configs:
            path = folder / "vae" / "config.json"
            yield from shifted_problems(path, configs["vae"], index["_class_name"])
            yield from gathered(lambda: _side(path, configs["vae"]))

    @staticmethod
    def find(denoiser: nn.Module, site: Site) -> Iterator[tuple[str, nn.Module]]:
        blocks: Any = denoiser
        for number, block in enumerate(blocks.transformer_blocks):
            yield from _of_double(site, f"transformer_blocks.{number}", block)
        for number, block in enumerate(blocks.single_transformer_blocks):
            yield from _of_single(site, f"single_transformer_blocks.{number}", block)

    @classmethod
    def most_tokens(cls, tokenizer: Any, config: Any, denoiser: Mapping[str, Any]) -> int:
        # Of CLIP the pooled vector alone is read, so it is T5 that a prompt can be too long for.
        return DEV_TOKENS if denoiser.get("guidance_embeds", False) else SCHNELL_TOKENS

    @classmethod
    def token_limits(cls, tokenizers: Sequence[Any], most: int) -> tuple[int, ...]:
        return (tokenizers[0].model_max_length, most)

    @staticmethod
    def read_schedule(folder: Path, name: str) -> Schedule:
        path = folder.parent / "vae" / "config.json"
        tokens = (_side(path, read_json(path)) // PATCH) ** 2
        return FluxSchedule(read_flow(folder, name, followed=("use_dynamic_shifting",)).own, image_tokens=tokens)

    @classmethod
    def assembled(cls, parts: Parts, scheduler: Any, index: Mapping[str, Any]) -> Any:
        return FluxPipeline(**parts, scheduler=scheduler)

    @classmethod
    def latent_size(cls, denoiser: Mapping[str, Any], vae: Mapping[str, Any]) -> tuple[int, int] | None:
        side = _side(Path("vae", "config.json"), vae)
        return side, side

    @classmethod
    def sampling_notes(cls, denoiser: Mapping[str, Any], guidance: float) -> Iterator[str]:
        if not denoiser.get("guidance_embeds", False):
            yield "the model reads no guidance, as FLUX.1 schnell: sampling.guidance changes nothing"
        elif guidance != PUBLISHED_GUIDANCE:
            yield (
                f"the model is told a guidance of {guidance:g} in sampling, where its pipeline's own is "
                f"{PUBLISHED_GUIDANCE}: --set sampling.guidance={PUBLISHED_GUIDANCE} for that"
            )

    # Text

    @torch.no_grad()
    def encode(self, prompts: list[str], batch: int = 256) -> torch.Tensor:
        blocks = in_batches(len(prompts), fitting(self, "text", batch), lambda rows: self._encoded(prompts[rows]))
        return torch.cat(list(blocks)).to(self.dtype)

    def _encoded(self, prompts: list[str]) -> torch.Tensor:
        most, _ = self.token_limits((self.tokenizer, self.tokenizer_2), self.tokens)
        pooled = self.text_encoder(self._ids(self.tokenizer, prompts, most)).pooler_output
        # T5's padding is read, and not masked, as in training.
        tokens = self.text_encoder_2(self._ids(self.tokenizer_2, prompts, self.tokens))[0]
        return torch.cat([tokens, pad(pooled, (0, self.token_width - pooled.shape[-1]))[:, None].to(tokens)], 1)

    @property
    def row_groups(self) -> tuple[slice, ...]:
        return slice(0, self.tokens), slice(self.tokens, self.tokens + 1)

    def of_text(self, output: torch.Tensor) -> torch.Tensor:
        return output[:, : self.tokens]  # in single blocks the image's tokens follow

    # Predictions

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        side = _side(Path(self.source) / "vae" / "config.json", self.vae.config)
        return self.denoiser.config.in_channels // PATCH**2, side, side

    def with_guidance(self, guidance: float) -> Self:
        return replace(self, guidance=guidance)

    def _run(self, latents: torch.Tensor, timesteps: torch.Tensor, embeddings: torch.Tensor) -> torch.Tensor:
        text = self._text(embeddings)
        strength = torch.full((len(latents),), self.guidance, device=latents.device)
        output: torch.Tensor = self.denoiser(
            self.packed(latents),
            encoder_hidden_states=text,
            pooled_projections=embeddings[:, -1, : self.denoiser.config.pooled_projection_dim],
            timestep=timesteps.to(latents.dtype) / 1000,  # by which the transformer multiplies it
            guidance=strength if self.denoiser.config.guidance_embeds else None,
            txt_ids=text.new_zeros(text.shape[1], 3),
            img_ids=self.places(latents),
            return_dict=False,
        )[0]
        return self.unpacked(output)

    def places(self, latents: torch.Tensor) -> torch.Tensor:
        """Where each token of an image lies in it, (tokens, 3): 0, row and column."""
        sizes = 1, *(size // PATCH for size in latents.shape[2:])
        return torch.cartesian_prod(*(torch.arange(size, device=latents.device).to(latents) for size in sizes))

    def packed(self, latents: torch.Tensor) -> torch.Tensor:
        """Latents as the transformer reads them, (n, tokens, 4 * channels), row by row."""
        return pixel_unshuffle(latents, PATCH).flatten(2).transpose(1, 2)

    def unpacked(self, packed: torch.Tensor) -> torch.Tensor:
        side = self.latent_shape[1] // PATCH
        return pixel_shuffle(packed.transpose(1, 2).unflatten(2, (side, side)), PATCH)

    @property
    def asked_of_pipeline(self) -> Mapping[str, Any]:
        return {"max_sequence_length": self.tokens}


def _of_double(site: Site, name: str, block: Any) -> Iterator[tuple[str, nn.Module]]:
    """Names and modules of the layers of a site in a double block, those of the image before those of the text."""
    both = (("ff", block.ff), ("ff_context", block.ff_context))
    if site in (Site.VALUE, Site.VALUE_ALL):
        yield f"{name}.attn.add_v_proj", block.attn.add_v_proj
    elif site is Site.KEY:
        yield f"{name}.attn.add_k_proj", block.attn.add_k_proj
    elif site is Site.FEED_FORWARD_HIDDEN:
        yield from ((f"{name}.{part}.net.2", layer.net[2]) for part, layer in both)
    elif site is Site.FEED_FORWARD_INPUT:
        yield from ((f"{name}.{part}.net.0.proj", layer.net[0].proj) for part, layer in both)


def _of_single(site: Site, name: str, block: Any) -> Iterator[tuple[str, nn.Module]]:
    """The same of a single block, whose layers are of text and image at once.

    Its second linear layer reads what attention gives together with the hidden neurons, so it is none of a feed-forward
    block's.
    """
    if site is Site.VALUE_ALL:
        yield f"{name}.attn.to_v", block.attn.to_v
    elif site is Site.FEED_FORWARD_INPUT:
        yield f"{name}.proj_mlp", block.proj_mlp


def _side(path: Path, vae: Mapping[str, Any]) -> int:
    """Height and width of a latent: images are of the size that the autoencoder's config states.

    The pipeline has no other word of it than its default, 1024 pixels, which published models have there, too.

    Args:
        path: of that config.

    Raises:
        InputError: it states none, or one that is no whole number of the image's tokens.
    """
    size, blocks = vae.get("sample_size"), vae.get("block_out_channels") or (64,)
    token = PATCH * 2 ** (len(blocks) - 1)
    if not (isinstance(size, int) and size > 0 and size % token == 0):
        raise InputError(
            f"{path} has sample_size {size!r}: write how large images are, in pixels, a multiple of {token}; 1024 in "
            "published models"
        )
    return size // token * PATCH


def _transformer_problems(path: Path, configs: Parts) -> Iterator[str]:
    """Settings of a transformer that reads nothing but latents, timestep, guidance, tokens and pooled vector."""
    transformer, vae = configs[path.parent.name], configs.get("vae", {})
    if (patch := transformer.get("patch_size", 1)) != 1:
        yield f"{path} has patch_size {patch!r}: Flux has 1, as its latents are packed before"
    takes, gives = transformer.get("in_channels", 64), transformer.get("out_channels")
    latent = vae.get("latent_channels", 4)
    if takes != PATCH**2 * latent or gives not in (None, takes):
        yield (
            f"{path} takes {takes} channels and gives {gives or takes}, its autoencoder has {latent}, so {PATCH**2} "
            f"times as many are needed: audits need a text-to-image model"
        )
    reads, pools = transformer.get("joint_attention_dim", 4096), transformer.get("pooled_projection_dim", 768)
    if pools > reads:
        yield f"{path} reads {pools} values beside the tokens, more than the {reads} of a token, which no Flux does"
    if "text_encoder" in configs and (width := configs["text_encoder"].get("hidden_size", 512)) != pools:
        yield f"{path} reads {pools} values beside the tokens, CLIP gives {width}: download the model again"
    if "text_encoder_2" in configs and (width := configs["text_encoder_2"].get("d_model", 512)) != reads:
        yield f"{path} reads {reads} values a token, T5 gives {width}: download the model again"
