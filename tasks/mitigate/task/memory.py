"""Whether a training fits into its device's memory: known before it, and before what it is made from."""

from collections.abc import Iterator, Sequence

import torch

from tasks.diffusion.families import Model
from tasks.diffusion.model import memory_of
from tasks.methods import Mitigation, Params, mitigations

CHECKPOINTING = "gradient_checkpointing"
"""The parameter of a training by which what backpropagation needs is computed again rather than kept."""


def memory_needed(mitigation: Mitigation, params: Params, model: Model) -> float | None:
    """Bytes that a training takes at the least, the model among them; None where it does not say.

    Args:
        params: those of the mitigation's group of settings.
        model: on the meta device.
    """
    return None if mitigation.memory is None else mitigation.memory(mitigation.changed(params), model)


def too_large(trainings: Sequence[tuple[Mitigation, Params]], model: Model, device: torch.device) -> list[str]:
    """Which of these trainings do not fit into a device's memory, a sentence each, which says what would.

    Args:
        trainings: with the parameters of their groups of settings.
        model: on the meta device.
    """
    if (has := memory_of(device)) is None:
        return []
    out = []
    for one, params in trainings:
        if (needs := memory_needed(one, params, model)) is not None and needs > has:
            fits = " or ".join(_fitting(one, params, model, has)) or "no such training"
            out.append(
                f"{one.name} needs {gigabytes(needs)} of memory at the least, and {device} has {gigabytes(has)}, where"
                f" {fits} fits: take a device of more, or leave {one.name} out of --set 'mitigations=[...]'"
            )
    return out


def _fitting(refused: Mitigation, params: Params, model: Model, has: int) -> Iterator[str]:
    """The same training, or others with its parameters, that fit, as they are asked for."""
    same = [refused, *(one for one in mitigations() if one.group == refused.group and one.name != refused.name)]
    for one in same if CHECKPOINTING in type(params).model_fields else ():
        for again in (False, True):
            asked = params.model_copy(update={CHECKPOINTING: again})
            if (needs := memory_needed(one, asked, model)) is not None and needs <= has:
                how = f" with --set {one.group}.{CHECKPOINTING}=true" if again else ""
                yield f"{one.name}{how} ({gigabytes(needs)})"
                break


def gigabytes(number: float) -> str:
    """A number of bytes in words."""
    return f"{number / 1e9:.1f} GB"
