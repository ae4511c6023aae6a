"""The published shapes of models, and random weights for them: what an audit takes does not depend on what they are.

A model is a folder that can be audited once weights are written into it.
"""

import json
import math
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import diffusers
import torch
from safetensors.torch import save_file
from torch import nn

from tasks.diffusion.families import Model
from tasks.diffusion.families.pieces.published import TEXT_ENCODERS, VAES, clip_tokenizer, write_configuration
from tasks.diffusion.files import stem_of
from tasks.diffusion.footprint import bytes_of
from tests.support.pipelines import t5_tokenizer

SHARD = 2 * 10**9
"""Bytes of a file of weights, about: no more of them is held in memory."""

T5_XXL: dict[str, Any] = {
    "d_ff": 10240,
    "d_kv": 64,
    "d_model": 4096,
    "feed_forward_proj": "gated-gelu",
    "is_encoder_decoder": False,
    "model_type": "t5",
    "num_heads": 64,
    "num_layers": 24,
    "relative_attention_num_buckets": 32,
    "vocab_size": 32128,
}
PIXART: dict[str, Any] = {
    "attention_head_dim": 72,
    "caption_channels": 4096,
    "cross_attention_dim": 1152,
    "in_channels": 4,
    "norm_type": "ada_norm_single",
    "num_attention_heads": 16,
    "num_layers": 28,
    "out_channels": 8,
    "patch_size": 2,
    "sample_size": 128,
}
SD3_MEDIUM: dict[str, Any] = {
    "attention_head_dim": 64,
    "caption_projection_dim": 1536,
    "in_channels": 16,
    "joint_attention_dim": 4096,
    "num_attention_heads": 24,
    "num_layers": 24,
    "out_channels": 16,
    "patch_size": 2,
    "pooled_projection_dim": 2048,
    "pos_embed_max_size": 192,
    "sample_size": 128,
}
FLUX: dict[str, Any] = {
    "attention_head_dim": 128,
    "guidance_embeds": True,
    "in_channels": 64,
    "joint_attention_dim": 4096,
    "num_attention_heads": 24,
    "num_layers": 19,
    "num_single_layers": 38,
    "pooled_projection_dim": 768,
}
SIXTEEN_CHANNELS = VAES["xl"] | {"latent_channels": 16, "use_quant_conv": False, "use_post_quant_conv": False}
CLIP_L, CLIP_G = TEXT_ENCODERS["xl"]
END = "<|endoftext|>"
"""What follows the end of a prompt in CLIP's tokenizers, but for the larger ones."""


Parts = Mapping[str, tuple[str, Mapping[str, Any]]]
"""By component, its class and its config."""


def write_pixart(folder: Path) -> None:
    """Writes what PixArt-alpha of 1024 pixels has beside its weights; its tokenizer knows letters alone."""
    betas = {"beta_start": 0.0001, "beta_end": 0.02, "beta_schedule": "linear", "num_train_timesteps": 1000}
    parts: Parts = {
        "scheduler": ("DPMSolverMultistepScheduler", {"solver_order": 2, "prediction_type": "epsilon"} | betas),
        "text_encoder": ("T5EncoderModel", T5_XXL),
        "transformer": ("PixArtTransformer2DModel", PIXART),
        "vae": ("AutoencoderKL", VAES["sd1"]),
    }
    _write(folder, "PixArtAlphaPipeline", parts, {"tokenizer": t5_tokenizer()})


def write_sd3(folder: Path) -> None:
    """The same of Stable Diffusion 3 Medium, with T5."""
    parts: Parts = {
        "scheduler": ("FlowMatchEulerDiscreteScheduler", {"num_train_timesteps": 1000, "shift": 3.0}),
        "text_encoder": ("CLIPTextModelWithProjection", CLIP_L),
        "text_encoder_2": ("CLIPTextModelWithProjection", CLIP_G),
        "text_encoder_3": ("T5EncoderModel", T5_XXL),
        "transformer": ("SD3Transformer2DModel", SD3_MEDIUM),
        "vae": ("AutoencoderKL", SIXTEEN_CHANNELS | {"scaling_factor": 1.5305, "shift_factor": 0.0609}),
    }
    tokenizers = {"tokenizer": clip_tokenizer(END), "tokenizer_2": clip_tokenizer("!"), "tokenizer_3": t5_tokenizer()}
    _write(folder, "StableDiffusion3Pipeline", parts, tokenizers)


def write_flux(folder: Path) -> None:
    """The same of FLUX.1 dev."""
    shift = {"num_train_timesteps": 1000, "shift": 3.0, "use_dynamic_shifting": True}
    parts: Parts = {
        "scheduler": ("FlowMatchEulerDiscreteScheduler", shift),
        "text_encoder": ("CLIPTextModel", CLIP_L),
        "text_encoder_2": ("T5EncoderModel", T5_XXL),
        "transformer": ("FluxTransformer2DModel", FLUX),
        "vae": ("AutoencoderKL", SIXTEEN_CHANNELS | {"scaling_factor": 0.3611, "shift_factor": 0.1159}),
    }
    _write(folder, "FluxPipeline", parts, {"tokenizer": clip_tokenizer(END), "tokenizer_2": t5_tokenizer()})


def _write(folder: Path, pipeline: str, parts: Parts, tokenizers: Mapping[str, Any]) -> None:
    """Writes the index of a pipeline, the configs of its components, and its tokenizers."""
    index: dict[str, Any] = {"_class_name": pipeline}
    written: dict[str, dict[str, Any]] = {"model_index.json": index}
    for name, (kind, config) in parts.items():
        ours = hasattr(diffusers, kind)
        index[name] = ["diffusers" if ours else "transformers", kind]
        file = "scheduler_config.json" if name == "scheduler" else "config.json"
        written[f"{name}/{file}"] = {**config} | ({"_class_name": kind} if ours else {"architectures": [kind]})
    for name, tokenizer in tokenizers.items():
        index[name] = ["transformers", type(tokenizer).__name__]
        tokenizer.save_pretrained(folder / name)
    for name, content in written.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(json.dumps(content, indent=1) + "\n")


SHAPES: Mapping[str, Callable[[Path], None]] = {
    "sd1.4": partial(write_configuration, kind="sd1"),
    "sd2.1": partial(write_configuration, kind="sd2", sees_velocity=True),
    "sdxl": partial(write_configuration, kind="xl"),
    "pixart": write_pixart,
    "sd3-medium": write_sd3,
    "flux.1": write_flux,
}
"""By name, what writes a model's configuration into a folder that is there."""


def components(model: Model) -> dict[str, nn.Module]:
    """The modules of a model by the names of their folders."""
    parts = {name: one for name, one in vars(model).items() if isinstance(one, nn.Module)}
    return {model.denoiser_name if name == "denoiser" else name: one for name, one in parts.items()}


def write_weights(folder: Path, model: Model, dtype: torch.dtype, seed: int = 0) -> None:
    """Writes random weights of a model's shapes as from_pretrained reads them, a few gigabytes at a time.

    Args:
        model: on the meta device, of this folder's configuration.
    """
    draw = torch.Generator().manual_seed(seed)
    for part, module in components(model).items():
        stem = stem_of(part)
        shapes = {name: one.shape for name, one in module.named_parameters()}  # those that are shared once
        shards = list(_shards(shapes, dtype.itemsize))
        files = [f"{stem}-{number:05}-of-{len(shards):05}.safetensors" for number in range(1, len(shards) + 1)]
        for file, names in zip(files, shards, strict=True):
            save_file({name: _random(name, shapes[name], draw).to(dtype) for name in names}, folder / part / file)
        where = {name: file for file, names in zip(files, shards, strict=True) for name in names}
        index = {"metadata": {"total_size": bytes_of(module)}, "weight_map": where}
        (folder / part / f"{stem}.safetensors.index.json").write_text(json.dumps(index) + "\n")


def _shards(shapes: Mapping[str, torch.Size], size: int) -> Iterator[list[str]]:
    names: list[str] = []
    held = 0
    for name, shape in shapes.items():
        if names and held + math.prod(shape) * size > SHARD:
            yield names
            names, held = [], 0
        names.append(name)
        held += math.prod(shape) * size
    yield names


def _random(name: str, shape: torch.Size, draw: torch.Generator) -> torch.Tensor:
    """Weights that keep what passes through them of a like size."""
    if len(shape) < 2:
        return torch.zeros(shape) if name.endswith("bias") else torch.ones(shape)
    bound = math.sqrt(3 / math.prod(shape[1:]))
    return torch.empty(shape).uniform_(-bound, bound, generator=draw)
