"""Weights that hold memories, by Wanda scores (Chavhan et al., 2024, arXiv 2406.18566, section 3).

The score of a weight is its magnitude times the norm of the feature it reads (Sun et al., ICLR 2024). A weight belongs
to the memorized set of a step and layer when its score is among the highest of its row for memorized prompts, and
higher than for null prompts.
"""

from collections.abc import Iterator, Mapping
from math import ceil
from typing import Annotated

import torch
from pydantic import ConfigDict, Field

from tasks.diffusion.outline import Outline
from tasks.diffusion.sites import Layer, Site
from tasks.errors import InputError
from tasks.localize.ground import Found, Ground, NormsParams
from tasks.methods import Pruning, localizer
from tasks.params import UNITES


class WandaParams(NormsParams):
    """Which weights count as memorized, and which of them are pruned."""

    model_config = ConfigDict(title="Wanda")

    sparsity: Annotated[
        float,
        Field(gt=0, le=1, description="The share of each row's weights that can be memorized ones (published: 1 %)."),
    ] = 0.01
    share: Annotated[
        float,
        Field(ge=0, lt=1, description="A weight must be in more than this share of the sets of the first tau steps."),
        UNITES,
    ] = 0.0


def candidates_of(columns: int, sparsity: float) -> int:
    """How many weights of a row can be memorized ones.

    Raises:
        InputError: none.
    """
    count = int(sparsity * columns)
    if count < 1:
        least = ceil(10_000 / columns) / 10_000  # rounded up, so that it can be typed
        raise InputError(
            f"a sparsity of {sparsity} selects no weight in rows of {columns}: --set wanda.sparsity={least} or more"
        )
    return count


@torch.no_grad()
def memorized_weights(
    weight: torch.Tensor, memorized: torch.Tensor, null: torch.Tensor, sparsity: float
) -> torch.Tensor:
    """The memorized set of one step and layer.

    Of each row int(sparsity * columns) weights are candidates, as in the published implementation. Sums are taken as
    means over tokens, so that different numbers of memorized and null prompts compare fairly; with equal numbers this
    changes nothing.

    Args:
        weight: (rows, columns) of a linear layer, on any device and of any dtype.
        memorized, null: sums of squares of unit token vectors, (columns,), see `feature_norms`.

    Returns:
        Flat indices row * columns + column, sorted, uint32 on the CPU.

    Raises:
        InputError: a row has too few weights for this sparsity, the sums are not those of the layer, or something is
            not finite.
    """
    rows, columns = weight.shape
    count = candidates_of(columns, sparsity)
    if memorized.shape != (columns,) or null.shape != (columns,):
        raise InputError(f"sums of {tuple(memorized.shape)} and {tuple(null.shape)} do not fit rows of {columns}")
    if not (memorized.isfinite().all() and null.isfinite().all() and weight.isfinite().all()):
        raise InputError("feature norms or weights are not finite; load the model in float32 or bfloat16")
    if not (memorized.sum() > 0 and null.sum() > 0):
        raise InputError("feature norms are all zero: the layer's input never differed from zero")
    norms, null_norms = (_norms(sums).to(weight.device) for sums in (memorized, null))
    candidates = (weight.float().abs() * norms).topk(count, dim=1).indices
    magnitudes = weight.float().abs().gather(1, candidates)
    higher = magnitudes * norms[candidates] > magnitudes * null_norms[candidates]
    flat = torch.arange(rows, device=weight.device)[:, None] * columns + candidates
    return flat[higher].sort().values.cpu().to(torch.uint32)


def memorized_sets(
    layers: tuple[Layer, ...],
    memorized: Mapping[tuple[int, int], torch.Tensor],
    null: Mapping[tuple[int, int], torch.Tensor],
    params: WandaParams,
) -> Iterator[tuple[int, int, torch.Tensor]]:
    """The memorized sets of all steps and layers, one at a time: (step, layer index, indices).

    Only one layer's scores are in memory at any time.

    Args:
        memorized, null: by (step, layer index), see `FeatureNorms.sums`.

    Raises:
        InputError: the steps and layers are not the same, see also `memorized_weights`.
    """
    if memorized.keys() != null.keys():
        raise InputError("memorized and null prompts were not seen at the same steps and layers")
    by_index = {layer.index: layer for layer in layers}
    for step, index in sorted(memorized):
        weight = by_index[index].module.weight
        assert isinstance(weight, torch.Tensor)
        yield step, index, memorized_weights(weight, memorized[step, index], null[step, index], params.sparsity)


def over_steps(
    sets: Mapping[tuple[int, int], torch.Tensor], universes: Mapping[int, int], params: WandaParams
) -> dict[int, torch.Tensor]:
    """The weights to prune: in the sets of more than a share of the first tau steps, by default in any.

    Args:
        sets: by (step, layer index), flat indices; later steps are ignored.
        universes: by layer index, the number of its weights.

    Returns:
        By layer index, sorted uint32 flat indices.

    Raises:
        InputError: a set of the first tau steps is missing.
    """
    out = {}
    for index, universe in universes.items():
        counts = torch.zeros(universe, dtype=torch.int16)
        for step in range(params.tau):
            if (step, index) not in sets:
                raise InputError(
                    f"no memorized set of layer {index} at step {step}: collect at least {params.tau} steps"
                )
            counts[sets[step, index].long()] += 1
        out[index] = (counts > params.share * params.tau).nonzero().flatten().to(torch.uint32)
    return out


def _check(params: WandaParams, outline: Outline) -> None:
    candidates_of(min(layer.inputs for layer in outline.layers(Site.FEED_FORWARD_HIDDEN)), params.sparsity)


@localizer(
    name="wanda",
    title="Wanda",
    paper="Chavhan et al., Memorized Images in Diffusion Models share a Subspace that can be Located and Deleted, 2024,"
    " arXiv 2406.18566, section 3",
    words="Finds the feed-forward weights whose magnitude times the norm of what they read is among the highest of"
    " their row for memorized prompts, and higher than without them.",
    control="As many random weights of the same layers; and what it finds when it takes ordinary prompts for memorized"
    " ones.",
    params=WandaParams,
    members="weights",
    site=Site.FEED_FORWARD_HIDDEN,
    scopes="subsets",
    on_triggers="found and begun",
    reads=("norms", "contrast norms"),
    over_steps=over_steps,
    check=_check,
    prunings=(
        Pruning(
            name="wanda",
            over="all",
            card="the weights that Wanda found to hold memorized training images",
            random="as many random weights of each layer as Wanda found, a control,",
            claims=True,
        ),
        Pruning(
            name="wanda-control",
            over="all",
            card="the weights that Wanda finds when it takes ordinary prompts for memorized ones, a control,",
            control_of="wanda",
            words="what ordinary prompts use",
            ordinary=True,
        ),
    ),
)
def find_wanda(ground: Ground, params: WandaParams) -> Iterator[Found]:
    """The memorized sets of a subset of prompts, or of a single trigger, at each of the first steps.

    Args, Returns: see `tasks.methods.Find`.
    """
    for step, index, members in memorized_sets(ground.layers, ground.norms, ground.contrast_norms, params):
        yield Found(ground.layers[index], members, step)


def _norms(sums: torch.Tensor) -> torch.Tensor:
    # The squares of a unit vector sum to 1, so the sum over features is the number of tokens.
    return (sums.double() / sums.double().sum()).sqrt().float()
