"""The configuration of the published Stable Diffusion models, for checkpoints that come without one.

Shapes and schedules are those of CompVis' 1.x, Stability's 2.x and XL, as their model cards and papers state them
(Rombach et al., CVPR 2022; Podell et al., 2023). The tokenizer is OpenAI's CLIP's, which open_clip brings along.
"""

import gzip
import json
from pathlib import Path
from typing import Any

import open_clip
from tokenizers import pre_tokenizers
from transformers import CLIPTokenizer

TOKENS = 77
_MERGES = 49152 - 256 - 2
"""Pairs of CLIP's vocabulary, which the file of open_clip has first."""

_UNET: dict[str, Any] = {
    "_class_name": "UNet2DConditionModel",
    "act_fn": "silu",
    "center_input_sample": False,
    "downsample_padding": 1,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "in_channels": 4,
    "layers_per_block": 2,
    "mid_block_scale_factor": 1,
    "norm_eps": 1e-05,
    "norm_num_groups": 32,
    "out_channels": 4,
}
_FOUR_LEVELS: dict[str, Any] = {
    "block_out_channels": [320, 640, 1280, 1280],
    "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
    "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
}
UNETS: dict[str, dict[str, Any]] = {
    "sd1": _UNET | _FOUR_LEVELS | {"attention_head_dim": 8, "cross_attention_dim": 768, "sample_size": 64},
    "sd2": _UNET
    | _FOUR_LEVELS
    | {"attention_head_dim": [5, 10, 20, 20], "cross_attention_dim": 1024, "use_linear_projection": True},
    "xl": _UNET
    | {
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "attention_head_dim": [5, 10, 20],
        "block_out_channels": [320, 640, 1280],
        "cross_attention_dim": 2048,
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
        "projection_class_embeddings_input_dim": 2816,
        "sample_size": 128,
        "transformer_layers_per_block": [1, 2, 10],
        "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
        "use_linear_projection": True,
    },
}
_CLIP: dict[str, Any] = {
    "bos_token_id": 49406,
    "eos_token_id": 49407,
    "layer_norm_eps": 1e-05,
    "max_position_embeddings": TOKENS,
    "model_type": "clip_text_model",
    "vocab_size": 49408,
}
_CLIP_L = _CLIP | {
    "hidden_act": "quick_gelu",
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_attention_heads": 12,
    "num_hidden_layers": 12,
    "pad_token_id": 1,
    "projection_dim": 768,
}
# The last layer of each is not read, and 2.x stores none.
_OPEN_CLIP_H = _CLIP | {
    "hidden_act": "gelu",
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_attention_heads": 16,
    "num_hidden_layers": 23,
    "pad_token_id": 1,
    "projection_dim": 512,
}
_OPEN_CLIP_G = _CLIP | {
    "hidden_act": "gelu",
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_attention_heads": 20,
    "num_hidden_layers": 32,
    "pad_token_id": 1,
    "projection_dim": 1280,
}
TEXT_ENCODERS: dict[str, tuple[dict[str, Any], ...]] = {
    "sd1": (_CLIP_L,),
    "sd2": (_OPEN_CLIP_H,),
    "xl": (_CLIP_L, _OPEN_CLIP_G),
}
_PAD = {"sd1": ("<|endoftext|>",), "sd2": ("!",), "xl": ("<|endoftext|>", "!")}
_VAE: dict[str, Any] = {
    "_class_name": "AutoencoderKL",
    "act_fn": "silu",
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "in_channels": 3,
    "latent_channels": 4,
    "layers_per_block": 2,
    "norm_num_groups": 32,
    "out_channels": 3,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
}
VAES: dict[str, dict[str, Any]] = {
    "sd1": _VAE | {"sample_size": 512, "scaling_factor": 0.18215},
    "sd2": _VAE | {"sample_size": 768, "scaling_factor": 0.18215},
    "xl": _VAE | {"sample_size": 1024, "scaling_factor": 0.13025, "force_upcast": True},
}
_SCHEDULE: dict[str, Any] = {
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "num_train_timesteps": 1000,
    "steps_offset": 1,
}
SCHEDULES: dict[str, dict[str, Any]] = {
    "sd1": _SCHEDULE | {"_class_name": "PNDMScheduler", "set_alpha_to_one": False, "skip_prk_steps": True},
    "sd2": _SCHEDULE | {"_class_name": "DDIMScheduler", "clip_sample": False, "set_alpha_to_one": False},
    "xl": _SCHEDULE | {"_class_name": "EulerDiscreteScheduler", "timestep_spacing": "leading"},
}


def write_configuration(folder: Path, kind: str, sees_velocity: bool = False) -> None:
    """Writes what a pipeline of published shape has beside its weights: configs, tokenizers, schedule, index.

    Args:
        folder: is there already.
        kind: "sd1", "sd2" or "xl".
        sees_velocity: whether the model predicts velocity; in 2.x those of 768 pixels do.
    """
    index: dict[str, Any] = {
        "_class_name": "StableDiffusionXLPipeline" if kind == "xl" else "StableDiffusionPipeline",
        "scheduler": ["diffusers", SCHEDULES[kind]["_class_name"]],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    if kind == "xl":
        index["force_zeros_for_empty_prompt"] = True
    else:
        index |= {"feature_extractor": [None, None], "safety_checker": [None, None], "requires_safety_checker": False}
    unet = UNETS[kind] if kind != "sd2" else UNETS[kind] | {"sample_size": 96 if sees_velocity else 64}
    written: dict[str, Any] = {
        "unet/config.json": unet,
        "vae/config.json": VAES[kind],
        "scheduler/scheduler_config.json": SCHEDULES[kind]
        | {"prediction_type": "v_prediction" if sees_velocity else "epsilon"},
    }
    for number, encoder in enumerate(TEXT_ENCODERS[kind]):
        end = "_2" if number else ""
        pools = kind == "xl" and number == 1
        name = "CLIPTextModelWithProjection" if pools else "CLIPTextModel"
        index[f"text_encoder{end}"] = ["transformers", name]
        index[f"tokenizer{end}"] = ["transformers", "CLIPTokenizer"]
        written[f"text_encoder{end}/config.json"] = encoder | {"architectures": [name]}
        clip_tokenizer(_PAD[kind][number]).save_pretrained(folder / f"tokenizer{end}")
    for name, content in ({"model_index.json": index} | written).items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(json.dumps(content, indent=1) + "\n")


def clip_tokenizer(pad: str) -> CLIPTokenizer:
    """CLIP's tokenizer, from the vocabulary that open_clip brings along.

    Args:
        pad: the token that follows the end of a prompt.
    """
    packed = Path(open_clip.__file__).parent / "bpe_simple_vocab_16e6.txt.gz"
    lines = gzip.decompress(packed.read_bytes()).decode().split("\n")
    merges = [tuple(line.split()) for line in lines[1 : _MERGES + 1]]
    letters = _letters()
    words = [*letters, *(f"{letter}</w>" for letter in letters), *("".join(pair) for pair in merges)]
    every = [*words, "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(
        vocab={word: number for number, word in enumerate(every)},
        merges=merges,
        model_max_length=TOKENS,
        pad_token=pad,
    )


def _letters() -> list[str]:
    """The 256 signs that stand for bytes, in the order of CLIP's vocabulary: first those that print."""
    # Bytes that print stand for themselves; the others follow from 256 on.
    signs = pre_tokenizers.ByteLevel.alphabet()
    return sorted(sign for sign in signs if ord(sign) < 256) + sorted(sign for sign in signs if ord(sign) >= 256)
