"""How much of a memory is left as its neurons are deactivated, best first (Hintersdorf et al., 2024, section 4)."""

from collections.abc import Iterable, Sequence

import torch

from tasks.diffusion.noise import generator
from tasks.localize.scorer import BlockedScore
from tasks.localize.search import Neuron


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
