"""CLIP scores: cosines of picture and own prompt, from a local folder of safetensors, whatever the batch."""

import json
from pathlib import Path
from string import ascii_lowercase
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from open_clip.constants import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import CLIPTokenizer

from tasks.errors import InputError
from tasks.evaluate.clip_score import ClipParams, ClipScore

CAPTIONS = ["a red cat", "a blue dog", "two green birds", "nothing at all", "the sun"]
MODEL: dict[str, Any] = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 8},
    "text_cfg": {
        "context_length": 20,
        "vocab_size": 54,
        "hf_tokenizer_name": "own",
        "width": 16,
        "heads": 2,
        "layers": 1,
    },
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CLIP of random weights that reads letter by letter, as an open_clip folder."""
    place = tmp_path_factory.mktemp("clip")
    tokens = [letter + end for letter in ascii_lowercase for end in ("", "</w>")] + ["<|startoftext|>", "<|endoftext|>"]
    tokenizer = CLIPTokenizer(vocab={token: n for n, token in enumerate(tokens)}, merges=[], model_max_length=20)
    tokenizer.save_pretrained(place)
    torch.manual_seed(0)
    save_file(open_clip.CLIP(**MODEL).state_dict(), place / "open_clip_model.safetensors")
    config = {"model_cfg": MODEL, "preprocess_cfg": {"resize_mode": "squash"}}
    (place / "open_clip_config.json").write_text(json.dumps(config))
    return place


def test_score_is_the_cosine_of_what_clip_makes_of_both(folder: Path) -> None:
    """Step by step, as Radford et al. describe it: squashed to the model's size, normalized, letters to numbers."""
    pictures = np.random.default_rng(0).integers(0, 256, (2, 20, 30, 3), dtype=np.uint8)
    prompts = ["a red cat", "two green birds"]
    model = open_clip.CLIP(**MODEL).eval()
    model.load_state_dict(load_file(folder / "open_clip_model.safetensors"))
    small = [Image.fromarray(picture).resize((32, 32), Image.Resampling.BICUBIC) for picture in pictures]
    pixels = torch.tensor(np.stack(small)).permute(0, 3, 1, 2) / 255
    mean, std = (torch.tensor(three)[:, None, None] for three in (OPENAI_DATASET_MEAN, OPENAI_DATASET_STD))
    number = {letter: 2 * n for n, letter in enumerate(ascii_lowercase)}
    ids = torch.zeros(2, 20, dtype=torch.long)
    for row, prompt in enumerate(prompts):
        letters = [number[letter] + (n == len(word) - 1) for word in prompt.split() for n, letter in enumerate(word)]
        told = [52, *letters, 53]
        ids[row, : len(told)] = torch.tensor(told)
    with torch.no_grad():
        images, texts = model.encode_image((pixels - mean) / std), model.encode_text(ids)
    expected = torch.nn.functional.cosine_similarity(images, texts)
    found = ClipScore(ClipParams(model=f"local-dir:{folder}")).score(pictures, prompts)
    assert np.allclose(found, expected, atol=1e-5)
    assert abs(found[0] - found[1]) > 1e-3


def test_batches_do_not_matter(folder: Path) -> None:
    pictures = np.random.default_rng(0).integers(0, 256, (5, 20, 20, 3), dtype=np.uint8)
    prompts = CAPTIONS
    told: list[int] = []
    scorer = ClipScore(ClipParams(model=f"local-dir:{folder}", batch=2))
    scores = scorer.score(pictures, prompts, told.append)
    assert told == [2, 2, 1]
    alone = ClipScore(ClipParams(model=f"local-dir:{folder}", batch=1)).score(pictures[::-1], prompts[::-1])[::-1]
    assert np.allclose(scores, alone, atol=1e-6)
    with pytest.raises(ValueError, match="5 pictures but 1 prompts"):
        scorer.score(pictures, prompts[:1])


def test_refuses_what_it_cannot_load(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no open_clip model at"):
        ClipScore(ClipParams(model=f"local-dir:{tmp_path}"))
    (tmp_path / "open_clip_config.json").write_text("{}")
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(InputError, match="open_clip_model"):
        ClipScore(ClipParams(model=f"local-dir:{tmp_path}"))
    (tmp_path / "open_clip_model.safetensors").write_bytes(b"")
    with pytest.raises(InputError, match="cannot load"):
        ClipScore(ClipParams(model=f"local-dir:{tmp_path}"))
    with pytest.raises(InputError, match="path of a local"):
        ClipScore(ClipParams(model="ViT-B-32", weights="weights.pt"))
    with pytest.raises(InputError, match="list_models"):
        ClipScore(ClipParams(model="hf-hub:someone/else"))
