"""What families share whose text and image attend to both: their tokens, and a pooled vector as the last row."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch

from tasks.diffusion.families.model import Model, autoencoder_problems
from tasks.diffusion.sites import Site


class Joint(Model):
    """Such a model, trained by flow matching, whose autoencoder shifts and scales latents."""

    # Even before text has attended to the image, it is modulated by the timestep.
    text_alone: ClassVar[frozenset[Site]] = frozenset()
    start_token: ClassVar[bool] = False
    joint: ClassVar[bool] = True

    @property
    def token_width(self) -> int:
        width: int = self.denoiser.config.joint_attention_dim
        return width

    def _ids(self, tokenizer: Any, prompts: list[str], most: int) -> torch.Tensor:
        how = {"padding": "max_length", "truncation": True, "max_length": most, "return_tensors": "pt"}
        ids: torch.Tensor = tokenizer(prompts, **how).input_ids
        return ids.to(self.device)

    def _text(self, embeddings: torch.Tensor) -> torch.Tensor:
        return embeddings[:, :-1]

    def _unscaled(self, latents: torch.Tensor) -> torch.Tensor:
        unscaled: torch.Tensor = latents / self.vae.config.scaling_factor + self.vae.config.shift_factor
        return unscaled

    def _scaled(self, latents: torch.Tensor) -> torch.Tensor:
        scaled: torch.Tensor = (latents - self.vae.config.shift_factor) * self.vae.config.scaling_factor
        return scaled


def shifted_problems(path: Path, vae: Mapping[str, Any], pipeline: str) -> Iterator[str]:
    """Settings of an autoencoder that would be ignored, or that shifts latents by nothing that it states.

    Args:
        path: of its config.
        vae: its config.
        pipeline: class of the pipeline.
    """
    yield from autoencoder_problems(path, vae, pipeline, shift=True)
    if not isinstance(vae.get("shift_factor"), int | float):
        yield f"{path} has no shift_factor, which {pipeline} adds to latents: write 0.0 for none"
