"""What a model's tokenizers say of prompts before any work begins: which are too long, and which are the same to it."""

import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from tasks.diffusion.families.tokenizers import Tokenizers
from tasks.diffusion.tokens import LongPrompts
from tasks.prompt_files import SHOWN, Kind, PromptEntry, few, shortened

KINDS: dict[Kind, str] = {"memorized": "memorized", "null": "null", "ordinary": "ordinary"}
"""What prompts of each kind are called."""


@dataclass(frozen=True)
class Tokenized:
    """Prompts as a model reads them."""

    prompts: list[PromptEntry]
    """Those that stay: all, but for long ones that are left out."""
    problems: list[str]
    notices: list[str]
    long: str = ""
    """How many of which kind are longer than the model reads, and what became of them; empty where none is."""


def tokenized(
    prompts: Sequence[PromptEntry],
    tokenizers: Tokenizers,
    long_prompts: LongPrompts,
    kinds: Mapping[Kind, str] = KINDS,
) -> Tokenized:
    """Looks for prompts that the model does not read to their end, and for those that are the same to it.

    Args:
        prompts: of all kinds.
        long_prompts: whether those of too many tokens are truncated as in training, refused, or left out.
        kinds: what prompts of each kind are called.
    """
    counts, kept = _read(tokenizers, tuple(prompt.text for prompt in prompts))
    most = tokenizers.most
    long = [(prompt, count) for prompt, count in zip(prompts, counts, strict=True) if count > most]
    if long and long_prompts == "refuse":
        return Tokenized(list(prompts), _refused(long, most), [])
    notices, words = [], ""
    stay = list(zip(prompts, kept, strict=True))
    if long:
        became = "truncated, as captions are in training" if long_prompts == "truncate" else "left out"
        words = f"{_of_kinds(long, kinds)} more than the {most} tokens that the model reads: {became}"
        notices.append(f"{words} ({shortened([prompt.place for prompt, _ in long])})")
        if long_prompts == "skip":
            out = {id(prompt) for prompt, _ in long}
            stay = [(prompt, ids) for prompt, ids in stay if id(prompt) not in out]
    left, ids_left = [prompt for prompt, _ in stay], [ids for _, ids in stay]
    notices += same_prompts(left, ids_left, {prompt.text for prompt, _ in long}, kinds)
    return Tokenized(left, [], notices, words)


def same_prompts(
    prompts: Sequence[PromptEntry],
    kept: Sequence[bytes | str],
    long: Iterable[str] = frozenset(),
    kinds: Mapping[Kind, str] = KINDS,
) -> list[str]:
    """A line for each group of prompts of different texts that are one prompt to the model.

    Args:
        kept: what the model reads of each prompt.
        long: texts of those that it does not read to their end.
    """
    groups: dict[bytes | str, list[PromptEntry]] = {}
    for prompt, ids in zip(prompts, kept, strict=True):
        groups.setdefault(ids, []).append(prompt)
    # Where a tokenizer tells capitals or forms of a letter apart, a reader hardly does.
    folded: dict[bytes | str, list[PromptEntry]] = {}
    for prompt in prompts:
        folded.setdefault(_folded(prompt.text), []).append(prompt)
    ids_of = {prompt.text: ids for prompt, ids in zip(prompts, kept, strict=True)}
    seen: set[tuple[str, ...]] = set()
    cut, apart, alike = set(long), [], []
    for same in (*groups.values(), *folded.values()):
        texts = tuple(sorted({prompt.text for prompt in same}))
        if len(texts) < 2 or texts in seen:
            continue
        seen.add(texts)
        names = {kinds[prompt.kind] for prompt in same}
        one = len({ids_of[text] for text in texts}) == 1
        places = [f"{prompt.place} ({kinds[prompt.kind]})" for prompt in same]
        if kinds["memorized"] in names and len(names) > 1:
            how = "are the same to the model" if one else "differ by case, spaces or Unicode form only"
            apart.append(
                f"{shortened(places)} {how}, though one is {kinds['memorized']} and another is not: leave one, "
                f"{same[0].text[:60]!r} or {same[-1].text[:60]!r}"
            )
        elif one:
            how = "are equal after truncation" if cut & set(texts) else "are the same tokens to the model"
            alike.append(f"{shortened(places)} {how}, so they count as one embedding: {same[0].text[:60]!r}")
    return [*few(apart, "of such pairs"), *few(alike, "of such groups")]


def _refused(long: Sequence[tuple[PromptEntry, int]], most: int) -> list[str]:
    """Every prompt that is too long, with its line and its tokens; those behind the first on one line."""
    what = f"tokens, and the model reads {most}: shorten it, or take --long-prompts truncate or skip"
    lines = [f"{prompt.place}: {count} {what}" for prompt, count in long[:SHOWN]]
    if more := [f"{prompt.place} ({count})" for prompt, count in long[SHOWN:]]:
        lines.append(f"and {len(more)} more that are too long: {', '.join(more)}")
    return lines


def _of_kinds(long: Sequence[tuple[PromptEntry, int]], kinds: Mapping[Kind, str]) -> str:
    """How many of which kind, with the verb behind."""
    found = Counter(kinds[prompt.kind] for prompt, _ in long)
    what = "prompt" if len(long) == 1 else "prompts"
    kinds_of = ", ".join(f"{n} {kind}" for kind, n in found.items())
    return f"{len(long)} {what} ({kinds_of}) {'has' if len(long) == 1 else 'have'}"


def _folded(text: str) -> str:
    """A text without case, without what nobody sees, and with one form of each letter and one of each space."""
    plain = unicodedata.normalize("NFKC", text).casefold()
    return " ".join("".join(sign for sign in plain if unicodedata.category(sign) != "Cf").split())


@lru_cache(maxsize=2)
def _read(tokenizers: Tokenizers, texts: tuple[str, ...]) -> tuple[list[int], list[bytes]]:
    """Once a process for the same prompts: every stage asks."""
    return (tokenizers.counts(texts), tokenizers.kept(texts)) if texts else ([], [])
