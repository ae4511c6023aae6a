"""Tokens of prompts by a model's tokenizers, without its weights."""

import json
import os
import shutil
from pathlib import Path

import pytest
from transformers import CLIPTokenizer

from tasks.diffusion.families.tokenizers import Tokenizers
from tasks.diffusion.tokens import tokenizers_of
from tasks.errors import InputError
from tests.support.world import tokenizer, tokenizer_alone

MOST = 32


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tokenizer_alone(tmp_path_factory.mktemp("model"))


def test_a_prompt_is_cut_between_its_start_and_its_end(folder: Path) -> None:
    found = tokenizers_of(folder)
    assert found.most == MOST and found is tokenizers_of(folder)
    letters = "x" * (MOST - 2)
    texts = ["", letters[:-1], letters, letters + "y", letters + "z" * 100]
    assert found.counts(texts) == [2, MOST - 1, MOST, MOST + 1, MOST + 100]
    kept = found.kept(texts)
    assert kept[3] == kept[4] and len(set(kept)) == 4
    (tokens,) = found.each
    start, end = tokens.bos_token_id, tokens.eos_token_id
    ids = tokens(texts[4], truncation=True, max_length=MOST).input_ids
    assert (len(ids), ids[0], ids[-1]) == (MOST, start, end) and set(ids[1:-1]) == set(tokens("xx").input_ids[1:2])


def test_what_any_tokenizer_tells_apart_is_apart_and_the_longest_counts() -> None:
    first = tokenizer()
    rank = {word: n for n, word in enumerate(sorted(first.get_vocab(), key=first.get_vocab().get))}
    joined = CLIPTokenizer(vocab=rank | {"aa</w>": len(rank)}, merges=[("a", "a</w>")], model_max_length=MOST)
    both = Tokenizers((first, joined), MOST)
    assert joined(["aa"]).input_ids[0] != first(["aa"]).input_ids[0]
    assert both.counts(["aa"]) == [4] and Tokenizers((joined,), MOST).counts(["aa"]) == [3]
    assert both.kept(["A  b"]) == both.kept(["a b"]) != both.kept(["a c"])


def test_a_changed_tokenizer_is_loaded_anew(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "model")
    known = tokenizers_of(tmp_path / "model")
    config = tmp_path / "model" / "tokenizer" / "tokenizer_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"model_max_length": 16}))
    os.utime(config, ns=(1, 1))
    assert known.most == MOST and tokenizers_of(tmp_path / "model").most == 16


@pytest.mark.parametrize(
    ("index", "words"),
    [
        ({"tokenizer": ["mine", "CLIPTokenizer"]}, "of class mine.CLIPTokenizer: only those of transformers"),
        ({"tokenizer": ["transformers", "CLIPTextModel"]}, "of class transformers.CLIPTextModel"),
        ({"tokenizer": [None, None]}, "has no tokenizer"),
        ({}, "has no tokenizer"),
        ([], "cannot load the tokenizer"),
        ({"_class_name": "StableDiffusionXLPipeline", "tokenizer_2": ["transformers", "CLIPTokenizer"]}, "cannot"),
        ({"_class_name": "OtherPipeline"}, r"of no family that audits know \(OtherPipeline\)"),
    ],
)
def test_what_is_no_tokenizer_is_one_line(folder: Path, tmp_path: Path, index: object, words: str) -> None:
    shutil.copytree(folder, tmp_path / "model")
    if isinstance(index, dict):
        index = {"_class_name": "StableDiffusionPipeline"} | index
    (tmp_path / "model" / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(InputError, match=words) as refusal:
        tokenizers_of(tmp_path / "model")
    assert "\n" not in str(refusal.value)
