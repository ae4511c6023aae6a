"""A UNet made by hand, in which it is known which neurons and weights hold a memory.

All its weights are zero, save that constants travel along the residual path to the output. A value neuron in `planted`
fires for the letter z and raises channel 0, which the output turns into the same image whatever the noise. One
planted neuron is enough to bring the image back. The letter z also fires neuron 2 of every layer, which leads
nowhere.
"""

from types import SimpleNamespace
from typing import Any

import torch
from diffusers import DDIMScheduler, UNet2DConditionModel

from tasks.diffusion.families import Model, StableDiffusion
from tasks.diffusion.families.schedule import Schedule

TOKENS, WIDTH, CHANNELS = 6, 8, 8
PLANTED = ((0, 5), (2, 3))


class Letters:
    """A tokenizer: each letter a token, start and end around them. What is too long is truncated."""

    model_max_length = TOKENS

    def __call__(self, prompts: list[str], padding: Any = None, max_length: int = 0, **how: Any) -> Any:
        rows = [[30, *(ord(letter) - ord("a") for letter in prompt), 31] for prompt in prompts]
        if how.get("truncation"):
            rows = [row if len(row) <= max_length else [*row[: max_length - 1], 31] for row in rows]
        if padding is None:
            return SimpleNamespace(input_ids=rows)
        return SimpleNamespace(input_ids=torch.tensor([row + [31] * (max_length - len(row)) for row in rows]))


class Table(torch.nn.Module):
    """A text encoder: each token its vector. The letter z alone is strong in coordinates 0 (planted) and 1."""

    config = SimpleNamespace(max_position_embeddings=TOKENS)

    vectors: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        vectors = torch.randn(32, WIDTH, generator=torch.Generator().manual_seed(0))
        vectors[:, :2] *= 0.001
        vectors[25, :2] = 60.0
        self.register_buffer("vectors", vectors)

    def forward(self, ids: torch.Tensor) -> tuple[torch.Tensor]:
        return (self.vectors[ids],)


def random_unet(seed: int = 0, **config: Any) -> UNet2DConditionModel:
    """Two value layers down, one mid; eight channels."""
    torch.manual_seed(seed)
    chosen: dict[str, Any] = {
        "sample_size": 16,
        "layers_per_block": 2,
        "block_out_channels": (CHANNELS, CHANNELS),
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "norm_num_groups": 4,
        "cross_attention_dim": WIDTH,
        "attention_head_dim": 2,
    }
    unet = UNet2DConditionModel(**(chosen | config))
    return unet.eval().requires_grad_(False)


@torch.no_grad()
def planted_unet(planted: tuple[tuple[int, int], ...] = PLANTED) -> UNet2DConditionModel:
    unet = random_unet()
    background = torch.Generator().manual_seed(3)
    for name, parameter in unet.named_parameters():
        parameter.fill_(1.0 if "norm" in name and name.endswith("weight") else 0.0)
    for name, module in unet.named_modules():
        if name.endswith("samplers.0"):
            module.conv.weight[:, :, 1, 1] = torch.eye(CHANNELS)
        elif name.endswith("conv_shortcut"):
            module.weight[:, :CHANNELS, 0, 0] = torch.eye(CHANNELS)
        elif name.endswith("proj_out"):
            module.weight[:, :, 0, 0] = torch.eye(CHANNELS)
        elif name.endswith("attn2"):
            module.to_v.weight[:, 2:] = 0.1 * torch.randn(CHANNELS, WIDTH - 2, generator=background)
            module.to_v.weight[2, 1] = 1.0
    values = [module for name, module in unet.named_modules() if name.endswith("attn2")]
    order = [values[0], values[1], values[-1]]  # modules are listed down, up, mid
    for layer, neuron in planted:
        order[layer].to_v.weight[neuron] = torch.eye(WIDTH)[0]
        order[layer].to_out[0].weight[0, neuron] = 1.0
    unet.conv_norm_out.eps = 1.0  # what is small stays small
    unet.conv_out.weight[:, 0] = 8.0
    return unet


def model_of(unet: UNet2DConditionModel) -> Model:
    return StableDiffusion(
        source="hand-made",
        model_id="hand-made",
        denoiser=unet,
        vae=None,
        text_encoder=Table(),
        tokenizer=Letters(),
        schedule=Schedule(DDIMScheduler()),
        device=torch.device("cpu"),
    )


NULL_PROMPTS = ["abc", "bd", "cafe", "dig", "fee", "gab", "ham", "ink", "jog", "kelp"]
MEMORIZED = "az"
