"""Looking at layers and silencing neurons while a model runs, as context managers that clean up behind themselves."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from tasks.diffusion.sites import Layer


@contextmanager
def observed(layers: tuple[Layer, ...], see: Callable[[Layer, torch.Tensor, torch.Tensor], None]) -> Iterator[None]:
    """Within, `see(layer, input, output)` is called whenever a layer runs; it must not change what it sees."""

    def hook_for(layer: Layer) -> Callable[..., None]:
        return lambda module, inputs, output: see(layer, inputs[0].detach(), output.detach())

    handles = [layer.module.register_forward_hook(hook_for(layer)) for layer in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def attended(denoiser: torch.nn.Module, layer: Layer, see: Callable[[torch.Tensor], None]) -> Iterator[None]:
    """Within, `see` is given the attention of a cross-attention layer whenever it runs.

    It is float32 (n, heads, pixels, tokens), and computed beside what the layer does, which stays as it is.

    Args:
        layer: the values of that cross-attention, such as `Site.VALUE_ALL` has them.
    """

    def look(module: Any, inputs: tuple[torch.Tensor, ...], named: dict[str, Any]) -> None:
        query = module.head_to_batch_dim(module.to_q(inputs[0])).float()
        key = module.head_to_batch_dim(module.to_k(named["encoder_hidden_states"])).float()
        weights = (query @ key.transpose(1, 2) * module.scale).float().softmax(-1)
        see(weights.unflatten(0, (-1, module.heads)))

    attention = denoiser.get_submodule(layer.name.removesuffix(".to_v"))
    handle = attention.register_forward_pre_hook(look, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def scaled(layers: tuple[Layer, ...], factors: Mapping[int, torch.Tensor]) -> Iterator[None]:
    """Within, the outputs of a layer are multiplied by its factors.

    Args:
        factors: by layer index, (outputs,) for the whole batch or (batch, outputs) for each sample its own;
            0 blocks a neuron. Layers that are not named run unchanged.
    """

    def hook_for(factor: torch.Tensor) -> Callable[..., torch.Tensor]:
        def hook(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
            # A linear layer has its outputs last, a convolution right after the batch.
            last = not isinstance(module, torch.nn.Conv2d)
            weights = factor.to(output)
            between = output.dim() - 2
            sample = weights.shape[:-1] or (1,)
            return output * weights.reshape(*sample, *([1] * between), -1).movedim(-1, -1 if last else 1)

        return hook

    handles = []
    try:
        for layer in layers:
            if layer.index in factors:
                handles.append(layer.module.register_forward_hook(hook_for(factors[layer.index])))
        yield
    finally:
        for handle in handles:
            handle.remove()
