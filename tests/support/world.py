"""A model folder, prompts and images small enough to audit in seconds; its weights are random."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
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

SIDE = 32


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


def tiny_world(folder: Path, write_pipeline: Callable[[Path], object] | None = None) -> Path:
    """Writes model, clip, prompts and images, and returns the folder of the model.

    Args:
        write_pipeline: writes a pipeline of another family into a folder; by default it is one of Stable Diffusion.
    """
    torch.manual_seed(0)
    clip = open_clip.CLIP(**MODEL).eval()
    save_clip(clip, tokenizer(), folder / "clip")
    if write_pipeline is None:
        _write_pipeline(folder / "model", clip)
    else:
        write_pipeline(folder / "model")
    prompts, images = [], []
    rng = np.random.default_rng(0)
    kinds = [
        *(("memorized", "VM", f"subset {n % 2}") for n in range(4)),
        *[("null", None, None)] * 4,
        *[("ordinary", None, None)] * 6,
    ]
    for number, (kind, memorization, subset) in enumerate(kinds):
        data = to_png(rng.integers(0, 256, (SIDE, SIDE, 3), np.uint8))
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
