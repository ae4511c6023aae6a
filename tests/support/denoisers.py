"""A diffusion model of a few thousand weights, whose prompts are words."""

from types import SimpleNamespace
from typing import Any

import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

from tasks.diffusion.families import Model, StableDiffusion
from tasks.diffusion.families.schedule import Schedule

TOKENS, WIDTH = 8, 16


class Words:
    """A tokenizer: each letter a token, start and end around them. What is too long is truncated."""

    model_max_length = TOKENS

    def __call__(self, prompts: list[str], padding: Any = None, max_length: int = 0, **how: Any) -> Any:
        rows = [[1, *(2 + ord(letter) % 28 for letter in prompt), 31] for prompt in prompts]
        if how.get("truncation"):
            rows = [row if len(row) <= max_length else [*row[: max_length - 1], 31] for row in rows]
        if padding is None:
            return SimpleNamespace(input_ids=rows)
        return SimpleNamespace(input_ids=torch.tensor([row + [31] * (max_length - len(row)) for row in rows]))


def tiny_unet(seed: int = 0) -> UNet2DConditionModel:
    torch.manual_seed(seed)
    return UNet2DConditionModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        layers_per_block=1,
        block_out_channels=(8, 16),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        norm_num_groups=4,
        cross_attention_dim=WIDTH,
        attention_head_dim=2,
    )


def tiny_model(unet: Any = None, **scheduler: Any) -> Model:
    torch.manual_seed(1)
    encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=32,
            hidden_size=WIDTH,
            intermediate_size=WIDTH,
            num_hidden_layers=1,
            num_attention_heads=2,
            max_position_embeddings=TOKENS,
            bos_token_id=1,
            eos_token_id=31,
            pad_token_id=31,
        )
    )
    return StableDiffusion(
        source="tiny",
        model_id="tiny",
        denoiser=(unet or tiny_unet()).eval().requires_grad_(False),
        vae=None,
        text_encoder=encoder.eval().requires_grad_(False),
        tokenizer=Words(),
        schedule=Schedule(DDIMScheduler(**scheduler)),
        device=torch.device("cpu"),
    )
