"""The entropy of cross-attention over the text's tokens (Ren et al., ECCV 2024)."""

from collections.abc import Sequence

import torch

from tasks.diffusion.families import Model
from tasks.diffusion.hooks import attended
from tasks.diffusion.outline import Outline
from tasks.diffusion.sites import Layer, Site
from tasks.errors import InputError
from tasks.methods import detector
from tasks.scan.noise import SeededParams, by_seed, check_steps, predicted, timestep


class EntropyParams(SeededParams):
    """How the entropy is taken; published with a single seed."""


def _check(params: EntropyParams, outline: Outline) -> None:
    attention_layer(outline.family, outline.layers(Site.VALUE_ALL))
    check_steps(params, outline)


@detector(
    name="entropy",
    title="Attention entropy",
    paper="Ren et al., Unveiling and Mitigating Memorization in Text-to-Image Diffusion Models through Cross Attention,"
    " ECCV 2024",
    words="Measures how evenly cross-attention is spread over a prompt's tokens.",
    control="Null prompts, by conformal p-values.",
    params=EntropyParams,
    check=_check,
    cost=lambda params: params.seeds,
)
@torch.no_grad()
def entropy(
    model: Model, embeddings: torch.Tensor, prompt_ids: Sequence[str], params: EntropyParams, batch: int
) -> torch.Tensor:
    """The entropy of attention weights, the mean over seeds.

    The attention of an ordinary prompt concentrates on the token that begins every text; that of a memorized one stays
    spread over tokens that bring the image back, so its entropy is HIGHER. Taken is the paper's score of a single step
    (mode "E" of its published detect.py): the first timestep, the fourth cross-attention layer in order of execution,
    weights averaged over heads and pixels, then -sum a log a over all tokens, padding among them. The paper's other
    score (mode "D": all layers, the last ten steps, and how the entropy of the padding changed) needs every prompt to
    be denoised.

    Args, Returns: see `tasks.methods.Score`.

    Raises:
        InputError: a prediction is not finite, or the model has fewer cross-attention layers.
    """
    first, layer = timestep(model, params, 0), attention_layer(type(model), model.layers(Site.VALUE_ALL))

    def entropies(text: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        seen: list[torch.Tensor] = []
        with attended(model.denoiser, layer, lambda weights: seen.append(weights.mean((1, 2)))):
            predicted(model, text, noise, first)
        return torch.special.entr(seen[0]).sum(1)

    return by_seed(model, embeddings, prompt_ids, params.seeds, batch, entropies).mean(1)


def attention_layer(family: type[Model], layers: Sequence[Layer]) -> Layer:
    """The fourth cross-attention layer in order of execution: in SD 1.x the second of the second down block.

    Raises:
        InputError: there are fewer or none, or prompts begin with no such token.
    """
    if family.joint:
        raise InputError(
            f"entropy looks at attention to the text alone, and in {family.__name__} text and image attend to both: "
            "scan with norm"
        )
    if not family.start_token:
        raise InputError(
            "entropy looks at the attention that leaves the token which begins every prompt, and prompts of "
            f"{family.__name__} begin with none: scan with norm"
        )
    if len(layers) < 4:
        raise InputError(f"entropy needs a fourth cross-attention layer, this model has {len(layers)}: scan with norm")
    return layers[3]
