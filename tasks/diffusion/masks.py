"""Weights of a loaded denoiser set to zero or replaced for a while: in place, and put back bit by bit.

A variant of a model so costs the memory of what it changes, not that of another model. While it is applied, the
denoiser is not the original: `is_changed` says so, and no second change is let in.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from weakref import WeakSet

import torch
from torch import nn

from tasks.diffusion.sites import Layer
from tasks.errors import InputError

Members = Mapping[int, torch.Tensor]
"""By layer index, indices of neurons or flat indices (row * columns + column) of weights, of any integer type."""
Places = list[tuple[torch.Tensor, tuple[torch.Tensor, ...]]]
"""Tensors that share memory with parameters, each with the index of what is changed in it."""

_changed: WeakSet[nn.Module] = WeakSet()


def is_changed(denoiser: nn.Module) -> bool:
    """Whether a context of this module is open on it."""
    return denoiser in _changed


@contextmanager
def without_neurons(denoiser: nn.Module, layers: tuple[Layer, ...], neurons: Members) -> Iterator[int]:
    """Within, the rows (and biases, where there are any) of these neurons are zero.

    NeMo deactivates neurons by blocking their activations (Hintersdorf et al., section 3.4). A value layer is linear,
    so zeroing a neuron's row of weights is the same, and needs nothing at inference.

    Yields:
        How many weights that were not zero are now.

    Raises:
        InputError: a layer or a neuron that the site does not have.
        RuntimeError: the denoiser is changed already.
    """
    places: Places = []
    for layer, members in _of_layers(layers, neurons):
        _check(members, layer.outputs, layer.name)
        for parameter in layer.module.parameters(recurse=False):
            places.append((parameter.detach(), (members.to(parameter.device),)))
    with _zeroed(denoiser, places) as count:
        yield count


@contextmanager
def without_weights(denoiser: nn.Module, layers: tuple[Layer, ...], weights: Members) -> Iterator[int]:
    """Within, these weights are zero, as the subspace paper prunes them (Chavhan et al., section 3).

    Yields, Raises: as `without_neurons`.
    """
    places: Places = []
    for layer, members in _of_layers(layers, weights):
        weight: Any = layer.module.weight
        _check(members, weight.numel(), layer.name)
        # By all its indices, since the weights of a convolution may lie in memory with their channels last.
        places.append((weight.detach(), torch.unravel_index(members.to(weight.device), weight.shape)))
    with _zeroed(denoiser, places) as count:
        yield count


@contextmanager
def with_tensors(denoiser: nn.Module, tensors: Iterable[tuple[str, torch.Tensor]]) -> Iterator[None]:
    """Within, these parameters have other values, at the denoiser's own precision and layout in memory.

    Args:
        tensors: names and values, read one at a time; those that are what they were before cost nothing.

    Raises:
        InputError: a parameter that the denoiser does not have, or of another shape.
        RuntimeError: the denoiser is changed already.
    """
    parameters = dict(denoiser.named_parameters())
    before: list[tuple[nn.Parameter, torch.Tensor]] = []
    with _alone(denoiser):
        try:
            for name, tensor in tensors:
                parameter = parameters.get(name)
                if parameter is None or parameter.shape != tensor.shape:
                    raise InputError(f"{name} {tuple(tensor.shape)} is no parameter of this model: it is another's")
                value = torch.empty_like(parameter, requires_grad=False).copy_(tensor)
                if not torch.equal(value, parameter):
                    before.append((parameter, parameter.data))
                    parameter.data = value
            yield
        finally:
            for parameter, old in before:
                parameter.data = old


@contextmanager
def _zeroed(denoiser: nn.Module, places: Places) -> Iterator[int]:
    with _alone(denoiser):
        before = [tensor[where] for tensor, where in places]  # such an index copies
        try:
            for tensor, where in places:
                tensor[where] = 0
            yield sum(int(old.count_nonzero()) for old in before)
        finally:
            for (tensor, where), old in zip(places, before, strict=True):
                tensor[where] = old


@contextmanager
def _alone(denoiser: nn.Module) -> Iterator[None]:
    if is_changed(denoiser):
        raise RuntimeError("the weights of this denoiser are changed already: leave that context first")
    _changed.add(denoiser)
    try:
        yield
    finally:
        _changed.discard(denoiser)


def _of_layers(layers: tuple[Layer, ...], members: Members) -> Iterator[tuple[Layer, torch.Tensor]]:
    for index, found in members.items():
        if not 0 <= index < len(layers):
            raise InputError(f"this site has {len(layers)} layers, there is no layer {index}")
        yield layers[index], found.long()


def _check(members: torch.Tensor, universe: int, name: str) -> None:
    if len(members) and not 0 <= int(members.min()) <= int(members.max()) < universe:
        raise InputError(f"{name} has {universe} members, {int(members.max())} is not one of them")
