"""The text side of the reference world: words have the same numbers every time, and keep them when training goes on."""

from pathlib import Path

import numpy as np
import pytest
import torch

from tasks.reference import build
from tasks.reference.clip import TOKENS, VOCABULARY, load_clip, save_clip, tokenize, train_clip, train_tokenizer
from tasks.reference.world import World


@pytest.fixture(scope="module")
def captions() -> list[str]:
    draw = np.random.default_rng(0)
    letters = np.array(list("abcdefghijklmnopqrstuvwxyz0123456789'-"))
    return ["".join(draw.choice(letters, 7)) for _ in range(4000)]


def test_words_have_the_same_numbers_every_time(captions: list[str]) -> None:
    first, *others = (train_tokenizer(captions) for _ in range(3))
    assert len(first) == VOCABULARY
    for other in others:
        assert other.get_vocab() == first.get_vocab()
        assert other(captions).input_ids == first(captions).input_ids


def test_what_is_written_is_read_back(captions: list[str]) -> None:
    tokenizer = train_tokenizer(captions)
    for text in ("abc xyz", "q9 - zebra's", "Grüße, 東京!"):
        ids = tokenizer(text).input_ids
        assert (ids[0], ids[-1]) == (VOCABULARY - 2, VOCABULARY - 1)
        assert tokenizer.decode(ids[1:-1]).replace(" ", "") == text.lower().replace(" ", "")


def test_training_goes_on_with_the_words_of_its_start(captions: list[str], tmp_path: Path) -> None:
    tokenizer = train_tokenizer(captions)
    none = np.zeros((0, 64, 64, 3), np.uint8)
    clip = train_clip(none, None, none, None, tmp_path, total=0)  # type: ignore[arg-type]
    save_clip(clip, tokenizer, tmp_path / "clip")
    start = build.Start(load_clip(tmp_path / "clip"), tokenizer)
    others = captions[: len(captions) // 2]
    made = World(none, others, others, none, ["an image"], ["VM"], ["s"], none, [], none, [])
    texts = build.texts(tmp_path, made, build.BuildParams(clip_steps=0), start)
    assert texts.tokenizer is tokenizer
    assert texts.bank.shape[:2] == (len(others), TOKENS)


def test_the_text_tower_that_a_diffusion_model_reads_is_not_trained_on(captions: list[str], tmp_path: Path) -> None:
    tokenizer = train_tokenizer(captions)
    draw = np.random.default_rng(1)
    bank, planted = (draw.integers(0, 256, (n, 64, 64, 3), np.uint8) for n in (6, 2))
    words = tokenize(tokenizer, captions[:6]), tokenize(tokenizer, captions[6:8])
    start = train_clip(bank, words[0], planted, words[1], tmp_path, total=0)
    before = {name: value.clone() for name, value in start.state_dict().items()}
    found = train_clip(
        bank, words[0], planted, words[1], tmp_path, total=2, batch=4, planted_share=2, start=start
    ).state_dict()
    moved = {name for name, value in found.items() if not torch.equal(value, before[name])}
    assert moved and all(name.startswith("visual.") or name == "logit_scale" for name in moved)
