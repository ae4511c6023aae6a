"""PixArt-alpha and -sigma: a transformer that attends to T5's tokens and predicts noise, and its spread beside."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from diffusers import PixArtAlphaPipeline, PixArtSigmaPipeline, PixArtTransformer2DModel
from torch import nn

from tasks.diffusion.batches import in_batches
from tasks.diffusion.families.model import Model, Parts, autoencoder_problems
from tasks.diffusion.families.unet import transformer_layers
from tasks.diffusion.footprint import fitting
from tasks.diffusion.sites import Site


@dataclass(frozen=True, kw_only=True)
class PixArtAlpha(Model):
    """Embeddings (n, tokens, width + 1): a token's last number says whether it is one of the prompt, 1, or fills it up.

    Only tokens of the prompt are attended to. That number takes no gradient, so searches leave it as it is.
    """

    pipeline_class: ClassVar[Any] = PixArtAlphaPipeline
    components: ClassVar[Mapping[str, tuple[str, ...]]] = {
        # Published models go by the name that the transformer had at first.
        "transformer": ("PixArtTransformer2DModel", "Transformer2DModel"),
        "vae": ("AutoencoderKL", "AutoencoderTiny"),
        "text_encoder": ("T5EncoderModel",),
        "tokenizer": ("T5Tokenizer", "T5TokenizerFast"),
        "scheduler": (),
    }
    denoiser_name: ClassVar[str] = "transformer"
    denoiser_class: ClassVar[Any] = PixArtTransformer2DModel
    text_alone: ClassVar[frozenset[Site]] = frozenset({Site.VALUE, Site.VALUE_ALL, Site.KEY})
    start_token: ClassVar[bool] = False
    from_first_step: ClassVar[bool] = True
    trained_tokens: ClassVar[int] = 120

    @classmethod
    def problems(cls, folder: Path, index: Mapping[str, Any], configs: Parts) -> Iterator[str]:
        if cls.denoiser_name in configs:
            yield from _transformer_problems(folder / cls.denoiser_name / "config.json", configs)
        if "vae" in configs:
            yield from autoencoder_problems(folder / "vae" / "config.json", configs["vae"], index["_class_name"])

    @staticmethod
    def find(denoiser: nn.Module, site: Site) -> Iterator[tuple[str, nn.Module]]:
        blocks: Any = denoiser.transformer_blocks
        for number, block in enumerate(blocks):
            yield from transformer_layers(site, f"transformer_blocks.{number}", block)

    @classmethod
    def most_tokens(cls, tokenizer: Any, config: Any, denoiser: Mapping[str, Any]) -> int:
        return cls.trained_tokens

    @staticmethod
    def as_read(text: str) -> str:
        return text.lower().strip()

    @classmethod
    def assembled(cls, parts: Parts, scheduler: Any, index: Mapping[str, Any]) -> Any:
        return cls.pipeline_class(**parts, scheduler=scheduler)

    @torch.no_grad()
    def encode(self, prompts: list[str], batch: int = 256) -> torch.Tensor:
        blocks = in_batches(len(prompts), fitting(self, "text", batch), lambda rows: self._encoded(prompts[rows]))
        return torch.cat(list(blocks)).to(self.dtype)

    def _encoded(self, prompts: list[str]) -> torch.Tensor:
        how = {"padding": "max_length", "truncation": True, "max_length": self.tokens, "return_tensors": "pt"}
        read = self.tokenizer([self.as_read(prompt) for prompt in prompts], **how).to(self.device)
        states = self.text_encoder(read.input_ids, attention_mask=read.attention_mask)[0]
        return torch.cat([states, read.attention_mask[:, :, None].to(states)], -1)

    @property
    def token_width(self) -> int:
        width: int = self.denoiser.config.caption_channels
        return width

    @property
    def asked_of_pipeline(self) -> Mapping[str, Any]:
        # Images of the model's own size, and captions as they are: to clean them takes packages that may not be there.
        return {"use_resolution_binning": False, "clean_caption": False}

    def mask(self, embeddings: torch.Tensor) -> torch.Tensor:
        return embeddings[:, :, -1] > 0.5

    def unmasked(self, embeddings: torch.Tensor) -> torch.Tensor:
        return torch.cat([embeddings[:, :, :-1], torch.ones_like(embeddings[:, :, -1:])], -1)

    def _text(self, embeddings: torch.Tensor) -> torch.Tensor:
        projected: torch.Tensor = self.denoiser.caption_projection(embeddings[:, :, :-1])
        return projected

    def _run(self, latents: torch.Tensor, timesteps: torch.Tensor, embeddings: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = self.denoiser(
            latents,
            encoder_hidden_states=embeddings[:, :, :-1],
            encoder_attention_mask=self.mask(embeddings).to(latents.dtype),
            timestep=timesteps,
            added_cond_kwargs=self._beside(embeddings),
            return_dict=False,
        )[0]
        # Beside the noise most of these models predict its spread, which no sampler reads.
        return output[:, : latents.shape[1]]

    def _beside(self, embeddings: torch.Tensor) -> dict[str, torch.Tensor | None]:
        """Size and shape of the image, where the transformer reads them."""
        if not self.denoiser.use_additional_conditions:
            return {"resolution": None, "aspect_ratio": None}
        _, height, width = (size * self.pixels_of_latent for size in self.latent_shape)
        n = len(embeddings)
        return {
            "resolution": torch.tensor([height, width]).to(embeddings).expand(n, -1),
            "aspect_ratio": torch.tensor([height / width]).to(embeddings).expand(n, -1),
        }


@dataclass(frozen=True, kw_only=True)
class PixArtSigma(PixArtAlpha):
    """The same transformer, trained on longer prompts."""

    pipeline_class: ClassVar[Any] = PixArtSigmaPipeline
    from_first_step: ClassVar[bool] = False
    trained_tokens: ClassVar[int] = 300

    @classmethod
    def problems(cls, folder: Path, index: Mapping[str, Any], configs: Parts) -> Iterator[str]:
        yield from super().problems(folder, index, configs)
        transformer = configs.get(cls.denoiser_name, {})
        sized = transformer.get("use_additional_conditions")
        if sized or (sized is None and transformer.get("sample_size") == 128):
            path = folder / cls.denoiser_name / "config.json"
            yield (
                f"{path} reads the size of images (use_additional_conditions), which {index['_class_name']} does not "
                "give it: give the model under PixArtAlphaPipeline, or set it to false"
            )


def _transformer_problems(path: Path, configs: Parts) -> Iterator[str]:
    """Settings of a transformer that reads nothing but latents, timestep, size and the tokens of T5."""
    transformer, vae = configs[path.parent.name], configs.get("vae", {})
    if transformer.get("norm_type", "ada_norm_single") != "ada_norm_single":
        yield f"{path} has norm_type {transformer['norm_type']!r}, PixArt has 'ada_norm_single': give a PixArt model"
    if transformer.get("attention_type", "default") != "default":
        kind = transformer["attention_type"]
        yield f"{path} has attention_type {kind!r}: it reads places of things beside the prompt (GLIGEN)"
    size, patch = transformer.get("sample_size", 128), transformer.get("patch_size", 2)
    if not (isinstance(size, int) and isinstance(patch, int) and size > 0 and patch > 0 and size % patch == 0):
        yield f"{path} has sample_size {size!r} and patch_size {patch!r}: the first must be a multiple of the second"
    takes, gives = transformer.get("in_channels", 4), transformer.get("out_channels", 8)
    latent = vae.get("latent_channels", 4)
    if takes != latent or gives not in (None, takes, 2 * takes):
        yield (
            f"{path} takes {takes} channels and gives {gives}, its autoencoder has {latent}: audits need a "
            "text-to-image model"
        )
    reads, width = transformer.get("caption_channels"), configs.get("text_encoder", {}).get("d_model", 512)
    if "text_encoder" in configs and reads != width:
        yield f"{path} reads {reads} values a token, its text encoder gives {width}: download the model again"
