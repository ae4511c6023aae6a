"""CLIP scores: cosines of image and own prompt, from a local folder of safetensors, whatever the batch."""

import json
import shutil
from collections.abc import Callable
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
from tasks.scorers import clip as clip_score
from tasks.scorers.clip import ClipParams, ClipScore, check_clip, clip_named

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
    images = np.random.default_rng(0).integers(0, 256, (2, 20, 30, 3), dtype=np.uint8)
    prompts = ["a red cat", "two green birds"]
    model = open_clip.CLIP(**MODEL).eval()
    model.load_state_dict(load_file(folder / "open_clip_model.safetensors"))
    small = [np.asarray(Image.fromarray(image).resize((32, 32), Image.Resampling.BICUBIC)) for image in images]
    pixels = torch.tensor(np.stack(small)).permute(0, 3, 1, 2) / 255
    mean, std = (torch.tensor(three)[:, None, None] for three in (OPENAI_DATASET_MEAN, OPENAI_DATASET_STD))
    number = {letter: 2 * n for n, letter in enumerate(ascii_lowercase)}
    ids = torch.zeros(2, 20, dtype=torch.long)
    for row, prompt in enumerate(prompts):
        letters = [number[letter] + (n == len(word) - 1) for word in prompt.split() for n, letter in enumerate(word)]
        numbers = [52, *letters, 53]
        ids[row, : len(numbers)] = torch.tensor(numbers)
    with torch.no_grad():
        shown, texts = model.encode_image((pixels - mean) / std), model.encode_text(ids)
    expected = torch.nn.functional.cosine_similarity(shown, texts)
    found = ClipScore(ClipParams(model=f"local-dir:{folder}")).score(images, prompts)
    assert np.allclose(found, expected, atol=1e-5)
    assert abs(found[0] - found[1]) > 1e-3


def test_batches_do_not_matter(folder: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (5, 20, 20, 3), dtype=np.uint8)
    prompts = CAPTIONS
    done: list[int] = []
    scorer = ClipScore(ClipParams(model=f"local-dir:{folder}", batch=2))
    scores = scorer.score(images, prompts, done.append)
    assert done == [2, 2, 1]
    alone = ClipScore(ClipParams(model=f"local-dir:{folder}", batch=1)).score(images[::-1], prompts[::-1])[::-1]
    assert np.allclose(scores, alone, atol=1e-6)
    with pytest.raises(ValueError, match="5 images but 1 prompts"):
        scorer.score(images, prompts[:1])


def test_refuses_what_it_cannot_load(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no open_clip model at"):
        ClipScore(ClipParams(model=f"local-dir:{tmp_path}"))
    (tmp_path / "open_clip_config.json").write_text("{}")
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(InputError, match="open_clip_model"):
        ClipScore(ClipParams(model=f"local-dir:{tmp_path}"))
    (tmp_path / "open_clip_model.safetensors").write_bytes(b"")
    with pytest.raises(InputError, match="damaged or not whole"):
        ClipScore(ClipParams(model=f"local-dir:{tmp_path}"))
    with pytest.raises(InputError, match=r"weights\.pt is no \.safetensors file"):
        ClipScore(ClipParams(model="ViT-B-32", weights="weights.pt"))
    with pytest.raises(InputError, match="list_models"):
        ClipScore(ClipParams(model="hf-hub:someone/else"))


def test_what_people_type_for_a_model_is_taken(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(folder.parent))
    whole = f"local-dir:{folder}"
    for typed in (whole, str(folder), f"~/{folder.name}", f"local-dir:~/{folder.name}"):
        assert clip_named(typed).model == whole
    weights = tmp_path / "some.safetensors"
    shutil.copy(folder / "open_clip_model.safetensors", weights)
    for name in ("ViT-B-32", "vit-b-32", "ViT-B/32", " ViT-B-32 "):
        assert clip_named(f"{name}={weights}") == ClipParams(model="ViT-B-32", weights=str(weights))
    assert clip_named("ViT-B-32=~/x.safetensors").weights == f"{folder.parent}/x.safetensors"
    monkeypatch.setattr(clip_score, "try_to_load_from_cache", lambda name, file: str(folder / file))
    for typed in ("laion/some", "hf-hub:laion/some"):
        assert clip_named(typed).model == whole


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("ViT-B-32", "needs its weights: --clip ViT-B-32=FILE.safetensors"),
        ("ViT-B-33", "there is no folder and no CLIP model 'ViT-B-33'.* such as ViT-B-32"),
        ("laion/none", "`hf download laion/none --local-dir clip`, then --clip clip"),
        ("hf-hub:laion/none", "`hf download laion/none --local-dir clip`, then --clip clip"),
        ("./nowhere", "nowhere is not there: --clip takes the folder"),
        ("", "there is no folder and no CLIP model"),
        ("\x1b[31mred", r"\\x1b\[31mred"),
    ],
)
def test_what_is_no_model_is_refused_with_what_to_type(
    typed: str, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(clip_score, "try_to_load_from_cache", lambda name, file: None)
    with pytest.raises(InputError, match=expected) as refusal:
        clip_named(typed)
    assert "\n" not in str(refusal.value) and "\x1b" not in str(refusal.value)


def truncated(place: Path) -> None:
    file = place / "open_clip_model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def other_architecture(place: Path) -> None:
    config = json.loads((place / "open_clip_config.json").read_text())
    config["model_cfg"]["text_cfg"]["width"] = 32
    (place / "open_clip_config.json").write_text(json.dumps(config))


def no_tokenizer(place: Path) -> None:
    for file in place.glob("*token*"):
        file.unlink()


def other_tokenizer(place: Path) -> None:
    """Of more words than the text tower has."""
    tokens = [f"{letter}{n}" for letter in ascii_lowercase for n in range(9)] + [*ascii_lowercase]
    tokens += [f"{letter}</w>" for letter in ascii_lowercase] + ["<|startoftext|>", "<|endoftext|>"]
    no_tokenizer(place)
    CLIPTokenizer(vocab={token: n for n, token in enumerate(tokens)}, merges=[]).save_pretrained(place)


def broken_weights(place: Path) -> None:
    file = place / "open_clip_model.safetensors"
    save_file({name: torch.full_like(one, torch.nan) for name, one in load_file(file).items()}, file)


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (truncated, "open_clip_model.safetensors is damaged or not whole"),
        (lambda place: (place / "open_clip_model.safetensors").write_text("<html>"), "is damaged or not whole"),
        (lambda place: save_file({}, place / "open_clip_model.safetensors"), "holds no weights"),
        (lambda place: (place / "open_clip_config.json").write_text("{"), "open_clip_config.json is not JSON"),
        (lambda place: (place / "open_clip_config.json").write_text("[]"), "describes no open_clip model"),
        (lambda place: (place / "open_clip_config.json").write_text('{"model_cfg": {"embed_dim": 3}}'), "cannot load"),
        (other_architecture, "of the same model"),
        (no_tokenizer, "has no tokenizer"),
        (lambda place: (place / "tokenizer.json").write_text("{"), "cannot load the CLIP model"),
        (other_tokenizer, "cannot be used"),
        (broken_weights, "its weights are broken"),
    ],
)
def test_a_damaged_model_is_found_by_the_check(
    folder: Path, tmp_path: Path, damage: Callable[[Path], object], expected: str
) -> None:
    shutil.copytree(folder, tmp_path / "clip")
    check_clip(clip_named(str(tmp_path / "clip")))
    damage(tmp_path / "clip")
    with pytest.raises(InputError, match=expected) as refusal:
        check_clip(clip_named(str(tmp_path / "clip")))
    assert "\n" not in str(refusal.value)
