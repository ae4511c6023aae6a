"""How much sets of neurons or weights have in common (Chavhan et al., 2024; Hintersdorf et al., 2024; section 4)."""

from collections import Counter
from collections.abc import Iterable, Mapping

import torch

from tasks.localize.scorer import BlockedScore
from tasks.localize.search import Neuron


def iou(a: torch.Tensor, b: torch.Tensor) -> float:
    """Intersection over union of two sets of indices, each without repetition; nan when both are empty."""
    common = int(torch.isin(a.long(), b.long()).sum())
    union = len(a) + len(b) - common
    return common / union if union else float("nan")


def expected_iou(a: int, b: int, universe: int) -> float:
    """The IOU of random sets of these sizes: expected intersection a * b / universe over expected union."""
    common = a * b / universe
    union = a + b - common
    return common / union if union else float("nan")


def shared_neurons(found: Iterable[Mapping[int, torch.Tensor]]) -> Counter[Neuron]:
    """For each (layer index, neuron) the number of prompts whose set has it.

    Args:
        found: a prompt's neurons by layer index, as in `NemoResult.neurons`.
    """
    return Counter(
        (layer, neuron) for prompt in found for layer, neurons in prompt.items() for neuron in neurons.tolist()
    )


def memorization_curve(score: BlockedScore, neurons: Iterable[Neuron]) -> list[tuple[int, float]]:
    """Memorization left as the best 1, 2, 4, 8, ... neurons are deactivated.

    Best is the neuron that alone takes away most.

    Returns:
        (number deactivated, score), from none to all of them.
    """
    ranked = sorted(neurons, key=lambda neuron: (score.exact(frozenset({neuron})), neuron))
    sizes = [0]
    while sizes[-1] < len(ranked):
        sizes.append(min(max(1, 2 * sizes[-1]), len(ranked)))
    return [(size, score.exact(frozenset(ranked[:size]))) for size in sizes]
