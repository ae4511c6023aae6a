"""Mitigations at inference: what each changes, that it ends with the block, and that a batch does not matter."""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from tasks.diffusion import sampling
from tasks.diffusion.families import Model
from tasks.diffusion.noise import Key, initial_noise
from tasks.diffusion.sampling import SamplingParams, first_timestep, generate
from tasks.inference import Answer, Request, answered
from tasks.methods import method
from tasks.mitigate import reweighted_attention as reweighting
from tasks.mitigate.perturbed_embedding import PerturbedEmbeddingParams, with_lower_norm
from tasks.mitigate.random_tokens import RandomTokensParams, with_random_words
from tasks.mitigate.reweighted_attention import reweighted_attention
from tests.support.denoisers import TOKENS, WIDTH, Words, tiny_model

KEYS: list[Key] = [("a", 0), ("a", 1), ("b", 0)]
SAMPLING = SamplingParams(steps=4)
FIRST = 700
"""A timestep to begin with."""


@pytest.fixture(scope="module")
def model() -> Model:
    return tiny_model()


def under(name: str, model: Model, prompts: Sequence[str], keys: Sequence[Key], **changed: Any) -> Answer:
    """What a mitigation makes of these prompts.

    Args:
        changed: its parameters where they are not the published ones, and triggers.
    """
    mitigation, triggers = method("mitigation", name), changed.pop("triggers", None)
    return answered(Request(model, prompts, keys, SAMPLING, triggers), (mitigation, mitigation.params(**changed)))


def norms(model: Model, embeddings: torch.Tensor, keys: Sequence[Key]) -> torch.Tensor:
    start = initial_noise(model, keys)
    plain = model.predict(start, FIRST, model.unconditional().expand_as(embeddings)).noise
    return (model.predict(start, FIRST, embeddings).noise - plain).flatten(1).norm(dim=1)


def test_perturbing_lowers_the_norm_and_no_further_than_asked(model: Model) -> None:
    embeddings = 3 * torch.randn(3, TOKENS, WIDTH, generator=torch.Generator().manual_seed(0))
    before = norms(model, embeddings, KEYS)
    scale = (4 * 8 * 8 / (4 * 64 * 64)) ** 0.5
    target = 0.5 * float(before.median() + before.max())
    params = PerturbedEmbeddingParams(target=target / scale, steps=200)
    after = with_lower_norm(model, embeddings, KEYS, params, FIRST)
    assert (norms(model, after, KEYS) <= 1.0001 * target).all()
    # Who was below the target is left as it was.
    assert [one.equal(other) for one, other in zip(after, embeddings, strict=True)] == (before < target).tolist()
    alone = torch.cat([with_lower_norm(model, embeddings[n : n + 1], KEYS[n : n + 1], params, FIRST) for n in range(3)])
    torch.testing.assert_close(alone, after, atol=1e-4, rtol=1e-4)


class Vocabulary(Words):
    """Words that the model reads letter by letter."""

    def get_vocab(self) -> dict[str, int]:
        return {"x</w>": 0, "y</w>": 1, "piece": 2}


def test_random_words_are_added_as_many_as_fit(model: Model) -> None:
    worded = replace(model, tokenizer=Vocabulary())
    params = RandomTokensParams(tokens=2)
    found = with_random_words(worded, ["a", "abcde", "a"], KEYS, params)
    assert sorted(len(text.split()) for text in found) == [1, 3, 3]
    assert found[1] == "abcde"  # with start and end seven tokens of eight, and a word and its space need two
    assert {word for text in found for word in text.split()} <= {"a", "abcde", "x", "y"}
    assert found == with_random_words(worded, ["a", "abcde", "a"], KEYS, params)
    assert with_random_words(worded, ["a"], KEYS[:1], params) == found[:1]


@pytest.mark.parametrize("prompt", ["ab def", "ab def and far more than eight tokens", "abcdefghijklm"])
def test_random_words_are_put_where_a_full_prompt_is_read(model: Model, prompt: str) -> None:
    worded = replace(model, tokenizer=Vocabulary())
    keys: list[Key] = [("a", seed) for seed in range(20)]
    found = with_random_words(worded, [prompt] * len(keys), keys, RandomTokensParams(tokens=1))
    assert all(sorted({*text.split()} - {*prompt.split()}) in (["x"], ["y"]) for text in found)
    # Each changes what the model reads, and what is added does not lie beyond the end.
    plain = worded.tokenizers.kept([prompt])
    assert all(ids != plain[0] for ids in worded.tokenizers.kept(found))


def test_of_a_long_prompt_the_end_of_the_text_is_masked_too(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[torch.Tensor] = []

    def noted(model: Model, lengths: torch.Tensor, rescale: float) -> Any:
        seen.append(lengths)
        return nullcontext()

    monkeypatch.setattr(reweighting, "reweighted_attention", noted)
    words = ["a", "abcdef", "abcdefghijklm"]
    around = under("reweighted-attention", model, words, KEYS).context
    around(slice(0, 3))
    assert seen[0].tolist() == [2, TOKENS - 1, TOKENS - 1]


def test_masked_tokens_have_no_say_and_the_half_without_text_is_left_alone(model: Model) -> None:
    latents = torch.randn(2, 4, 8, 8)
    text = torch.randn(2, TOKENS, WIDTH)
    changed = text.clone()
    changed[1, 3:] = torch.randn(TOKENS - 3, WIDTH)
    plain = model.predict(latents, 10, text).noise
    with reweighted_attention(model, torch.tensor([3]), 1.25):
        first, second = (model.predict(latents, 10, it).noise for it in (text, changed))
    torch.testing.assert_close(first[1], second[1])
    torch.testing.assert_close(first[0], plain[0])
    assert not torch.allclose(first[1], plain[1])
    assert model.predict(latents, 10, text).noise.equal(plain)


def test_nothing_masked_and_nothing_rescaled_changes_nothing(model: Model) -> None:
    latents, text = torch.randn(2, 4, 8, 8), torch.randn(2, TOKENS, WIDTH)
    plain = model.predict(latents, 10, text).noise
    with reweighted_attention(model, torch.tensor([TOKENS, TOKENS]), 1.0):
        torch.testing.assert_close(model.predict(latents, 10, text).noise, plain)


def test_an_error_within_ends_the_mitigation(model: Model) -> None:
    latents, text = torch.randn(1, 4, 8, 8), torch.randn(1, TOKENS, WIDTH)
    plain = model.predict(latents, 10, text).noise
    around = under("reweighted-attention", model, ["a"], KEYS[:1]).context
    with pytest.raises(ZeroDivisionError), around(slice(0, 1)):
        raise ZeroDivisionError
    assert model.predict(latents, 10, text).noise.equal(plain)


def test_triggers_are_changed_too(model: Model) -> None:
    triggers = 3 * torch.randn(1, TOKENS, WIDTH)
    params = PerturbedEmbeddingParams(target=1e-3, steps=5)
    moved = under("perturbed-embedding", model, ["a"], KEYS[:1], triggers=triggers, **dict(params)).embeddings
    assert moved.equal(with_lower_norm(model, triggers, KEYS[:1], params, first_timestep(model, SAMPLING)))
    assert not moved.equal(triggers)
    assert under("random-tokens", model, ["a"], KEYS[:1], triggers=triggers).embeddings.equal(triggers)
    plain = answered(Request(model, ["a"], KEYS[:1], SAMPLING), None)
    assert plain.embeddings.equal(model.encode(["a"]))


def test_a_batch_that_is_halved_keeps_each_prompt_its_own_attention(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["a", "abc", "ab", "abcde"]
    keys = [(word, 0) for word in words]
    monkeypatch.setattr(sampling, "decode", lambda model, latents: latents.numpy())
    answer = under("reweighted-attention", model, words, keys)
    whole = generate(model, answer.embeddings, keys, SAMPLING, around=answer.context)
    denoise, sizes = sampling.denoise, []

    def short_of_memory(model: Model, text: torch.Tensor, *rest: Any) -> torch.Tensor:
        sizes.append(len(text))
        if len(text) > 2:
            raise torch.OutOfMemoryError
        return denoise(model, text, *rest)

    monkeypatch.setattr(sampling, "denoise", short_of_memory)
    halved = generate(model, answer.embeddings, keys, SAMPLING, around=answer.context)
    assert sizes == [4, 2, 2]
    np.testing.assert_allclose(halved, whole, rtol=1e-4, atol=1e-4)
    with reweighted_attention(model, torch.tensor([2, 2, 2]), 1.25), pytest.raises(ValueError, match="2 rows"):
        model.predict(torch.randn(2, 4, 8, 8), 10, torch.randn(2, TOKENS, WIDTH))
