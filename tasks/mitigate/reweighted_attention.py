"""Cross-attention kept from what sums a prompt up (Ren et al., ECCV 2024, section 5.2)."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import torch
from pydantic import Field

from tasks.diffusion.families import Model
from tasks.diffusion.outline import Outline
from tasks.diffusion.sites import Site
from tasks.errors import InputError
from tasks.inference import Answer, Request
from tasks.methods import Params, mitigation


class ReweightedAttentionParams(Params):
    """How far attention is turned to the first token."""

    rescale: Annotated[
        float, Field(gt=0, le=10, description="The factor on the attention logits of a prompt's first token.")
    ] = 1.25


def _check(params: ReweightedAttentionParams, outline: Outline) -> None:
    check_family(outline.family)


def check_family(family: type[Model]) -> None:
    """Raises InputError where a family has no attention to the text alone, or its prompts no token to turn it to."""
    if family.joint:
        raise InputError(
            "reweighted-attention changes attention to the text alone, and in "
            f"{family.__name__} text and image attend to both: leave it out of --set 'mitigations=[...]'"
        )
    if not family.start_token:
        raise InputError(
            "reweighted-attention turns attention to the token that begins every prompt, and prompts of "
            f"{family.__name__} begin with none: leave it out of --set 'mitigations=[...]'"
        )


@mitigation(
    name="reweighted-attention",
    title="Reweighted attention",
    paper="Ren et al., Unveiling and Mitigating Memorization in Text-to-Image Diffusion Models through Cross Attention,"
    " ECCV 2024, section 5.2",
    words="Masks the end of a prompt in cross-attention, and turns more of it to the beginning.",
    control="The original model, and what the mitigation does to ordinary prompts.",
    params=ReweightedAttentionParams,
    acts="inference",
    check=_check,
    done="cross-attention is kept from what sums a prompt up, at inference",
)
def reweighted(request: Request, params: ReweightedAttentionParams) -> Answer:
    """Embeddings as they are, denoised with other attention.

    Raises:
        InputError: the model's prompts have no first token.
    """
    model = request.model
    check_family(type(model))
    lengths = torch.tensor(model.tokenizers.counts(list(request.prompts)), device=model.device).clamp(max=model.tokens)
    # The last of a prompt's own tokens is the end of the text, which sums it up.
    return Answer(request.embeddings, lambda rows: reweighted_attention(model, lengths[rows] - 1, params.rescale))


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
