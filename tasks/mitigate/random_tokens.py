"""Random words in prompts (Somepalli et al., NeurIPS 2023, section 6)."""

from collections.abc import Sequence
from typing import Annotated

import torch
from pydantic import Field

from tasks.diffusion.families import Model
from tasks.diffusion.noise import Key, generator
from tasks.inference import Answer, Request
from tasks.methods import Params, mitigation


class RandomTokensParams(Params):
    """How many words are added."""

    tokens: Annotated[
        int,
        Field(
            ge=1, le=64, description="The number of random words that are added to a prompt, where it can hold them."
        ),
    ] = 4


@mitigation(
    name="random-tokens",
    title="Random words",
    paper="Somepalli et al., Understanding and Mitigating Copying in Diffusion Models, NeurIPS 2023, section 6",
    words="Adds random words to prompts.",
    control="The original model, and what the mitigation does to ordinary prompts.",
    params=RandomTokensParams,
    acts="inference",
    done="random words are added to prompts, at inference",
)
def random_tokens(request: Request, params: RandomTokensParams) -> Answer:
    """Prompts with random words; triggers have none, so they stay as they are."""
    if request.triggers is not None:
        return Answer(request.embeddings)
    return Answer(request.model.encode(with_random_words(request.model, request.prompts, request.keys, params)))


def with_random_words(
    model: Model, prompts: Sequence[str], keys: Sequence[Key], params: RandomTokensParams
) -> list[str]:
    """Prompts with random words of the vocabulary at random places.

    As many of `params.tokens` as the model still reads. A prompt that is full already, or longer, has room for none:
    there they are put among the words that the model reads, and what they push beyond the end is truncated. A draw
    depends on the image's key alone.
    """
    words, count = model.tokenizers.words(), model.tokenizers.counts
    out = []
    for prompt, (name, seed) in zip(prompts, keys, strict=True):
        draw = generator((f"{name}/random words", seed))
        parts = prompt.split()
        full = count([prompt])[0] >= model.tokens
        places = max(1, _words_read(model, parts)) if full else 0
        for _ in range(params.tokens):
            place = int(torch.randint(places or len(parts) + 1, (), generator=draw))
            longer = [*parts[:place], words[int(torch.randint(len(words), (), generator=draw))], *parts[place:]]
            if not full and count([" ".join(longer)])[0] > model.tokens:
                break
            parts = longer
        out.append(" ".join(parts))
    return out


def _words_read(model: Model, words: Sequence[str]) -> int:
    """How many of a prompt's words the model reads to their end. Each has a token at least."""
    starts = [" ".join(words[: n + 1]) for n in range(min(len(words), model.tokens))]
    return sum(count <= model.tokens for count in model.tokenizers.counts(starts))
