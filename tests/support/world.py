"""A model folder, prompts and images small enough to audit in seconds; its weights are random."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import open_clip
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from diffusers import AutoencoderTiny, StableDiffusionPipeline, UNet2DConditionModel
from tokenizers import pre_tokenizers
from transformers import CLIPTextConfig, CLIPTokenizer

from tasks.diffusion.sampling import to_png
from tasks.reference.clip import MODEL, TOKENS, WIDTH, save_clip, text_model
from tasks.reference.denoiser import new_scheduler
from tests.support.drawings import drawings

SIDE = 32
DISTINCT = (
    *(
        0,
        2,
        3,
        4,
        6,
        7,
        8,
        9,
        11,
        12,
        15,
        18,
        21,
        30,
        32,
        34,
        43,
        44,
        45,
        46,
        47,
        48,
        50,
        52,
        54,
        56,
        57,
        60,
        70,
        71,
        78,
    ),
    *(88, 96, 105, 111, 112, 117, 124, 126, 128, 131, 135, 139, 140, 147, 150, 153, 154, 158, 160, 162, 164, 176, 183),
)
"""Drawings that SSCD tells apart (cosines below 0.6), also where it looks at 32 pixels alone."""


def tokenizer() -> CLIPTokenizer:
    """Letter by letter; the end of text has the highest number, as CLIP wants it."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={word: n for n, word in enumerate(words)}, merges=[], model_max_length=TOKENS)


def tokenizer_alone(folder: Path) -> Path:
    """Writes of a model's folder what its prompts are tokenized by, and nothing else."""
    tokenizer().save_pretrained(folder / "tokenizer")
    CLIPTextConfig(max_position_embeddings=TOKENS).save_pretrained(folder / "text_encoder")
    (folder / "model_index.json").write_text(
        json.dumps({"_class_name": "StableDiffusionPipeline", "tokenizer": ["transformers", "CLIPTokenizer"]})
    )
    return folder


def tiny_world(folder: Path, write_pipeline: Callable[[Path], object] | None = None, memorized: int = 4) -> Path:
    """Writes model, clip, prompts and images, and returns the folder of the model.

    Args:
        write_pipeline: writes a pipeline of another family into a folder; by default it is one of Stable Diffusion.
        memorized: number of memorized prompts; there are as many null prompts, and two more ordinary ones.
    """
    torch.manual_seed(0)
    clip = open_clip.CLIP(**MODEL).eval()
    save_clip(clip, tokenizer(), folder / "clip")
    if write_pipeline is None:
        _write_pipeline(folder / "model", clip)
    else:
        write_pipeline(folder / "model")
    prompts, images = [], []
    kinds = [
        *(("memorized", "VM", f"subset {n % 2}") for n in range(memorized)),
        *[("null", None, None)] * memorized,
        *[("ordinary", None, None)] * (memorized + 2),
    ]
    looks = drawings(DISTINCT[len(kinds)], SIDE)[list(DISTINCT[: len(kinds)])]
    for number, (kind, memorization, subset) in enumerate(kinds):
        data = to_png(looks[number])
        name = hashlib.sha256(data).hexdigest()
        images.append({"image_id": name, "bytes": data, "width": SIDE, "height": SIDE, "caption": f"picture {number}"})
        text = f"picture {number}"
        prompts.append(
            {
                "prompt_id": hashlib.sha256(text.encode()).hexdigest()[:32],
                "text": text,
                "kind": kind,
                "memorization": memorization,
                "subset": subset,
                "image_ids": [name],
            }
        )
    pq.write_table(pa.Table.from_pylist(prompts), folder / "prompts.parquet")
    pq.write_table(pa.Table.from_pylist(images), folder / "images.parquet")
    own = {"prompts": "../prompts.parquet", "images": "../images.parquet", "clip": "../clip"}
    (folder / "model" / "engram.json").write_text(json.dumps(own))
    return folder / "model"


def _write_pipeline(folder: Path, clip: open_clip.CLIP) -> None:
    unet = UNet2DConditionModel(
        sample_size=8,
        layers_per_block=1,
        block_out_channels=(8, 16, 16),
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        norm_num_groups=4,
        cross_attention_dim=WIDTH,
        attention_head_dim=2,
    )
    vae = AutoencoderTiny(
        encoder_block_out_channels=(8, 8, 8),
        decoder_block_out_channels=(8, 8, 8),
        num_encoder_blocks=(0, 0, 0),
        num_decoder_blocks=(1, 1, 1),
    )
    StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_model(clip),
        tokenizer=tokenizer(),
        unet=unet,
        scheduler=new_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder, safe_serialization=True)
