"""How much sets of neurons or weights have in common (Chavhan et al., 2024; Hintersdorf et al., 2024; section 4)."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import torch

from tasks.diffusion.noise import generator
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


def best_first(score: BlockedScore, neurons: Iterable[Neuron]) -> list[Neuron]:
    """Neurons by how much of one seed's memory is left when each alone is deactivated, least first.

    One seed, because all of them would cost more than the search did; the curve of this order is of every seed.
    """
    order = sorted(neurons)
    left = score.by_one_seed([frozenset({neuron}) for neuron in order])
    return [neuron for _, neuron in sorted(zip(left, order, strict=True))]


def stand_ins(neurons: Sequence[Neuron], widths: Sequence[int], seed: int, of: str = "") -> list[Neuron]:
    """The control of a curve: in place of each neuron a random other one of its layer, no one twice.

    Where a layer runs out of others, because most of it is among the neurons, the list ends there.

    Args:
        widths: by layer index, how many neurons the layer has.
        of: whose neurons these are; controls of several must not be one and the same draw.
    """
    given = frozenset(neurons)
    orders = {
        index: [
            neuron
            for neuron in torch.randperm(
                widths[index], generator=generator((f"{of}/stand-ins of {index}", seed))
            ).tolist()
            if (index, neuron) not in given
        ]
        for index in {layer for layer, _ in neurons}
    }
    out = []
    for index, _ in neurons:
        if not orders[index]:
            break
        out.append((index, orders[index].pop()))
    return out


def memorization_curve(score: BlockedScore, neurons: Sequence[Neuron]) -> list[tuple[int, float]]:
    """Memorization left as the first 1, 2, 4, 8, ... neurons are deactivated.

    Args:
        neurons: in order, such as that of `best_first`.

    Returns:
        (number deactivated, score), from none to all of them.
    """
    sizes = [0]
    while sizes[-1] < len(neurons):
        sizes.append(min(max(1, 2 * sizes[-1]), len(neurons)))
    return [(size, score.exact(frozenset(neurons[:size]))) for size in sizes]
