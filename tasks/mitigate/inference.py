"""Mitigations at inference, the weights untouched: what a user would try before cutting or training.

They change what the model is asked, not what it knows: a memory stays where it was, and an audit shows how well it
hides.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Annotated, Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field

from tasks.diffusion.batches import in_batches
from tasks.diffusion.families import Model
from tasks.diffusion.noise import Key, generator, initial_noise
from tasks.diffusion.sampling import SamplingParams, first_timestep
from tasks.diffusion.sites import Site
from tasks.errors import InputError

Defence = Literal["perturbed-embedding", "random-tokens", "reweighted-attention"]


class DefenceParams(BaseModel):
    """Strength of the mitigations at inference; the defaults are the published ones."""

    model_config = ConfigDict(title="Mitigations at inference", frozen=True, extra="forbid")

    target: Annotated[
        float,
        Field(gt=0, description="perturb until the text-conditional noise norm is below this, at 4 x 64 x 64 latents"),
    ] = 3.0
    steps: Annotated[int, Field(ge=1, le=1000, description="Adam steps of the perturbation, at most")] = 10
    learning_rate: Annotated[float, Field(gt=0, le=10, description="learning rate of the perturbation")] = 0.05
    tokens: Annotated[int, Field(ge=1, le=64, description="random words added to a prompt, as many as it can hold")] = 4
    rescale: Annotated[float, Field(gt=0, le=10, description="factor on the attention logits of the first token")] = (
        1.25
    )


def defended(
    model: Model,
    kind: Defence | None,
    params: DefenceParams,
    sampling: SamplingParams,
    prompts: Sequence[str],
    keys: Sequence[Key],
    triggers: torch.Tensor | None = None,
) -> tuple[torch.Tensor, Callable[[slice], AbstractContextManager[None]]]:
    """What pictures under the mitigation are made of.

    Returns:
        Embeddings (n, rows, width), and within which context those of some rows are denoised: see
        `tasks.diffusion.sampling.generate`.

    Raises:
        InputError: the model cannot be defended so.

    Args:
        kind: none leaves everything as it is.
        sampling: how the pictures are made.
        prompts: one for each picture.
        keys: what each picture is; see `tasks.diffusion.noise`.
        triggers: embeddings (n, rows, width) to be asked in place of the prompts. They have no words to add to, but all
            else is done to them as to prompts.
    """
    if kind is not None:
        check_defence(kind, type(model))
    words = list(prompts)
    if kind == "random-tokens" and triggers is None:
        words = with_random_words(model, words, keys, params)
    embeddings = model.encode(words) if triggers is None else triggers.to(model.device, model.dtype)
    if kind == "perturbed-embedding":
        embeddings = with_lower_norm(model, embeddings, keys, params, first_timestep(model, sampling))
    if kind != "reweighted-attention":
        return embeddings, lambda rows: nullcontext()
    lengths = torch.tensor(model.tokenizers.counts(words), device=model.device).clamp(max=model.tokens)
    # The last of a prompt's own tokens is the end of the text, which sums it up.
    return embeddings, lambda rows: reweighted_attention(model, lengths[rows] - 1, params.rescale)


def check_defence(kind: Defence, family: type[Model]) -> None:
    """Raises InputError where models of a family cannot be defended so."""
    if kind == "reweighted-attention" and not family.start_token:
        raise InputError(
            "reweighted-attention turns attention to the token that begins every prompt, and prompts of "
            f"{family.__name__} begin with none: leave it out of --set 'defences=[...]'"
        )


def with_random_words(model: Model, prompts: Sequence[str], keys: Sequence[Key], params: DefenceParams) -> list[str]:
    """Prompts with random words of the vocabulary at random places (Somepalli et al., NeurIPS 2023, section 6).

    As many of `params.tokens` as the model still reads. A prompt that is full already, or longer, has room for none:
    there they are put among the words that the model reads, and what they push beyond the end is truncated. A draw
    depends on the picture's key alone.
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


def with_lower_norm(
    model: Model, embeddings: torch.Tensor, keys: Sequence[Key], params: DefenceParams, first: int
) -> torch.Tensor:
    """Embeddings (n, rows, width) moved until the text-conditional noise norm at the first step is small.

    ||eps(z_T, t, y) - eps(z_T, t, null)||_2 is large for memorized prompts (Wen et al., ICLR 2024, section 4.2). Each
    sample stops by itself when it is below the target, and Adam works element by element, so a batch does not matter.

    Args:
        first: the timestep that sampling begins with.
    """

    def some(rows: slice) -> torch.Tensor:
        return _with_lower_norm(model, embeddings[rows], keys[rows], params, first)

    return torch.cat(list(in_batches(len(keys), len(keys), some)))


def _with_lower_norm(
    model: Model, embeddings: torch.Tensor, keys: Sequence[Key], params: DefenceParams, first: int
) -> torch.Tensor:
    start = initial_noise(model, keys)
    target = params.target * (start[0].numel() / (4 * 64 * 64)) ** 0.5
    with torch.no_grad():
        plain = model.predict(start, first, model.unconditional().expand_as(embeddings)).noise
    text = embeddings.detach().float().clone().requires_grad_(True)
    optimizer = torch.optim.Adam([text], lr=params.learning_rate)
    for _ in range(params.steps):
        noise = model.predict(start, first, text.to(model.dtype)).noise
        norms = (noise - plain).float().flatten(1).norm(dim=1)
        going = norms.detach() > target
        if not going.any():
            break
        (gradient,) = torch.autograd.grad(norms.sum(), text)
        before = text.detach().clone()
        text.grad = gradient
        optimizer.step()
        with torch.no_grad():
            text[~going] = before[~going]
    return text.detach().to(embeddings.dtype)


@contextmanager
def reweighted_attention(model: Model, lengths: torch.Tensor, rescale: float) -> Iterator[None]:
    """Within, cross-attention does not see what sums a prompt up, and looks more at its first token.

    Memorized prompts draw attention to the end of the text and the padding behind it (Ren et al., ECCV 2024, section
    5.2): those are masked, and the logits of the beginning are multiplied by `rescale`. Only with text: the half of
    guidance without it stays as it is.

    Args:
        lengths: (n,) tokens of each prompt that stay visible.
    """
    before = model.denoiser.attn_processors
    values = model.layers(Site.VALUE_ALL)
    chosen = {f"{layer.name.removesuffix('to_v')}processor": _Reweighted(lengths, rescale) for layer in values}
    model.denoiser.set_attn_processor(before | chosen)
    try:
        yield
    finally:
        model.denoiser.set_attn_processor(before)


class _Reweighted:
    """An attention processor of diffusers; the last len(lengths) rows of a batch are those with text."""

    def __init__(self, lengths: torch.Tensor, rescale: float) -> None:
        self.lengths, self.rescale = lengths, rescale

    def __call__(
        self,
        attn: Any,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        temb: torch.Tensor | None = None,
    ) -> torch.Tensor:
        query = attn.head_to_batch_dim(attn.to_q(hidden_states))
        key = attn.head_to_batch_dim(attn.to_k(encoder_hidden_states))
        value = attn.head_to_batch_dim(attn.to_v(encoder_hidden_states))
        if len(hidden_states) not in (len(self.lengths), 2 * len(self.lengths)):
            raise ValueError(f"attention of {len(hidden_states)} rows was re-weighted for {len(self.lengths)} prompts")
        logits = (query @ key.transpose(1, 2) * attn.scale).unflatten(0, (len(hidden_states), attn.heads))
        with_text = logits[-len(self.lengths) :]
        with_text[..., 0] *= self.rescale
        hidden = torch.arange(logits.shape[-1], device=logits.device) >= self.lengths[:, None]
        with_text.masked_fill_(hidden[:, None, None], float("-inf"))
        weights = logits.flatten(0, 1).softmax(-1)
        mixed: torch.Tensor = attn.to_out[0](attn.batch_to_head_dim(weights @ value))
        return mixed
