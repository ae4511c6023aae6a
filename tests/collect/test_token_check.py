"""Which prompts are too long for a model, and which are the same to it, by a tokenizer that takes letters."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.collect.token_check import same_prompts, tokenized
from tasks.diffusion.families.tokenizers import Tokenizers
from tasks.diffusion.tokens import LongPrompts
from tasks.prompt_files import Kind, PromptEntry
from tests.support.denoisers import TOKENS, Words

LETTERS = Tokenizers((Words(),), TOKENS)


def prompts(texts: list[str], kind: Kind = "memorized", file: str = "a.txt") -> list[PromptEntry]:
    return [PromptEntry(text, kind, source=f"{file}:{line}") for line, text in enumerate(texts, 1)]


def test_every_prompt_that_is_too_long_is_refused_with_its_line_and_its_tokens() -> None:
    texts = [letter * (TOKENS + n) for n, letter in enumerate("abcdefghijklmnopqrstuvwxy")]
    problems = tokenized([*prompts(texts), PromptEntry("short", "null")], LETTERS, "refuse").problems
    assert len(problems) == 21
    words = " tokens, and the model reads 8: shorten it, or take --long-prompts truncate or skip"
    assert problems[:20] == [f"a.txt:{n + 1}: {TOKENS + n + 2}{words}" for n in range(20)]
    others = ", ".join(f"a.txt:{n + 1} ({TOKENS + n + 2})" for n in range(20, 25))
    assert problems[20] == f"and 5 more that are too long: {others}"


@given(
    texts=st.lists(st.text("abc", min_size=1, max_size=12), min_size=1, max_size=12, unique=True),
    how=st.sampled_from(["truncate", "skip"]),
)
def test_what_fits_is_never_touched(texts: list[str], how: LongPrompts) -> None:
    every = [PromptEntry(text, "memorized") for text in texts]
    found = tokenized(every, LETTERS, how)
    fitting = [prompt for prompt in every if len(prompt.text) + 2 <= TOKENS]
    assert found.problems == []
    assert found.prompts == (every if how == "truncate" else fitting)
    assert bool(found.long) == (len(fitting) < len(every))
    if len(fitting) == len(every):
        assert found.notices == []  # letters: no two of them are the same
    else:
        assert found.notices[0].startswith(f"{len(every) - len(fitting)} prompt")


def test_equal_beginnings_count_as_one_embedding() -> None:
    found = tokenized(prompts(["abcdefg", "abcdefgh", "abcdef", "b"]), LETTERS, "truncate")
    assert found.notices == [
        "2 prompts (2 memorized) have more than the 8 tokens that the model reads: truncated, as captions are in "
        "training (a.txt:1, a.txt:2)",
        "a.txt:1 (memorized), a.txt:2 (memorized), a.txt:3 (memorized) are equal after truncation, so they count as "
        "one embedding: 'abcdefg'",
    ]
    # Left out, they are nobody's likeness.
    assert len(tokenized(prompts(["abcdefg", "abcdefgh", "abcdef"]), LETTERS, "skip").notices) == 1


@pytest.mark.parametrize(
    "other", ["A Cat", "a   cat", "a cat\u200b", "\uff41 cat", "a\u00a0CAT", "a ca\u2060t"], ids=ascii
)
@pytest.mark.parametrize("kind", ["null", "ordinary"])
def test_a_memorized_prompt_that_hardly_differs_from_another_is_named(other: str, kind: Kind) -> None:
    every = [*prompts(["a cat"]), *prompts([other, "a dog"], kind, "b.txt")]
    (notice,) = same_prompts(every, [prompt.text for prompt in every])
    assert notice.startswith(f"a.txt:1 (memorized), b.txt:1 ({kind}) differ by case, spaces or Unicode form only")
    assert same_prompts(every[::2], ["a cat", "a dog"]) == []
    # Of one kind it does not matter, unless the model reads the same.
    of_one = prompts(["a cat", other])
    assert same_prompts(of_one, [prompt.text for prompt in of_one]) == []
    (notice,) = same_prompts(of_one, ["same", "same"])
    assert "are the same tokens to the model, so they count as one embedding" in notice


def test_kinds_are_called_as_asked() -> None:
    kinds: dict[Kind, str] = {"memorized": "scanned", "ordinary": "scanned", "null": "null"}
    every = [PromptEntry("x" * 9, "memorized", source="a:1"), PromptEntry("x" * 10, "null", source="b:1")]
    first, second = tokenized(every, LETTERS, "truncate", kinds).notices
    assert first.startswith("2 prompts (1 scanned, 1 null) have more than the 8 tokens")
    assert second.startswith("a:1 (scanned), b:1 (null) are the same to the model, though one is scanned and another")
