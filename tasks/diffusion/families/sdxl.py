"""Stable Diffusion XL: the UNet reads two text encoders side by side, a pooled vector and the size of the image."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from diffusers import StableDiffusionXLPipeline
from torch.nn.functional import pad

from tasks.diffusion.families.model import Parts, autoencoder_problems
from tasks.diffusion.families.unet import CLIP_TOKENIZERS, StableDiffusion, added_problems, unet_problems
from tasks.diffusion.files import INDEX


@dataclass(frozen=True, kw_only=True)
class StableDiffusionXL(StableDiffusion):
    """Embeddings (n, tokens + 1, width): behind the tokens the pooled vector, filled up with zeros."""

    text_encoder_2: Any
    """The one with a pooled output."""
    tokenizer_2: Any
    zeros_for_empty: bool
    """Whether the half of guidance without text reads zeros, as in training, and not the empty prompt."""

    pipeline_class: ClassVar[Any] = StableDiffusionXLPipeline
    components: ClassVar[Mapping[str, tuple[str, ...]]] = {
        **StableDiffusion.components,
        "text_encoder_2": ("CLIPTextModelWithProjection",),
        "tokenizer_2": CLIP_TOKENIZERS,
    }
    from_first_step: ClassVar[bool] = True

    @classmethod
    def problems(cls, folder: Path, index: Mapping[str, Any], configs: Parts) -> Iterator[str]:
        if "unet" in configs:
            yield from unet_problems(folder, configs, ["text_encoder", "text_encoder_2"])
            yield from added_problems(folder, configs["unet"], "XL", "text_time")
            yield from _beside_problems(folder, configs)
        if "vae" in configs:
            path = folder / "vae" / "config.json"
            yield from autoencoder_problems(path, configs["vae"], index["_class_name"], statistics=True)
        if index.get("requires_aesthetics_score"):
            yield f"{folder / INDEX} asks for an aesthetics score, as SDXL's refiner does: give the base model"

    @classmethod
    def assembled(cls, parts: Parts, scheduler: Any, index: Mapping[str, Any]) -> Any:
        return StableDiffusionXLPipeline(
            **parts, scheduler=scheduler, force_zeros_for_empty_prompt=_zeros_in(index), add_watermarker=False
        )

    @classmethod
    def of(cls, index: Mapping[str, Any], **fields: Any) -> Self:
        return cls(**fields, zeros_for_empty=_zeros_in(index))

    @classmethod
    def decodes_in_float32(cls, vae: Any) -> bool:
        return bool(vae.config.force_upcast)

    def _encoded(self, prompts: list[str]) -> torch.Tensor:
        first = self.text_encoder(self._ids(self.tokenizer, prompts), output_hidden_states=True)
        second = self.text_encoder_2(self._ids(self.tokenizer_2, prompts), output_hidden_states=True)
        # The last layer but one of both encoders, side by side, and the pooled output of the second.
        tokens = torch.cat([first.hidden_states[-2], second.hidden_states[-2]], -1)
        pooled = pad(second[0], (0, tokens.shape[-1] - second[0].shape[-1]))
        return torch.cat([tokens, pooled[:, None]], 1)

    def unconditional(self) -> torch.Tensor:
        empty = super().unconditional()
        return torch.zeros_like(empty) if self.zeros_for_empty else empty

    @property
    def row_groups(self) -> tuple[slice, ...]:
        return slice(0, self.tokens), slice(self.tokens, self.tokens + 1)

    def _text(self, embeddings: torch.Tensor) -> torch.Tensor:
        return embeddings[:, :-1]

    def _beside(self, embeddings: torch.Tensor) -> dict[str, torch.Tensor]:
        _, height, width = (size * self.pixels_of_latent for size in self.latent_shape)
        # Original size, crop and target size: an uncropped image of the model's own size.
        sizes = [height, width, 0, 0, height, width]
        pooled = embeddings[:, -1, : self.text_encoder_2.config.projection_dim]
        return {
            "text_embeds": pooled,
            "time_ids": torch.tensor([sizes], device=embeddings.device, dtype=embeddings.dtype).expand(len(pooled), -1),
        }

    def _unscaled(self, latents: torch.Tensor) -> torch.Tensor:
        if (statistics := self._statistics(latents)) is None:
            return super()._unscaled(latents)
        mean, spread = statistics
        unscaled: torch.Tensor = latents * spread / self.vae.config.scaling_factor + mean
        return unscaled

    def _scaled(self, latents: torch.Tensor) -> torch.Tensor:
        if (statistics := self._statistics(latents)) is not None:
            mean, spread = statistics
            latents = (latents - mean) / spread
        return super()._scaled(latents)

    def _statistics(self, latents: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Mean and spread of each channel of the autoencoder's latents, where its config states them, as some do."""
        mean, spread = self.vae.config.get("latents_mean"), self.vae.config.get("latents_std")
        if mean is None or spread is None:
            return None
        return torch.tensor(mean).to(latents).view(1, -1, 1, 1), torch.tensor(spread).to(latents).view(1, -1, 1, 1)


def _zeros_in(index: Mapping[str, Any]) -> bool:
    return bool(index.get("force_zeros_for_empty_prompt", True))


def _beside_problems(folder: Path, configs: Parts) -> Iterator[str]:
    path, unet = folder / "unet" / "config.json", configs["unet"]
    if unet.get("addition_embed_type") != "text_time" or "text_encoder_2" not in configs:
        return
    pooled = configs["text_encoder_2"].get("projection_dim", 512)
    takes = unet.get("projection_class_embeddings_input_dim")
    gets = 6 * (unet.get("addition_time_embed_dim") or 0) + pooled
    if takes != gets:
        refiner = ", as SDXL's refiner does: give the base model" if takes and takes < gets else ""
        yield f"{path} reads {takes} values beside the text where XL has {gets}{refiner}"
