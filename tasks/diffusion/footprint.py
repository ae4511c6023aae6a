"""What a model takes in memory, counted on the meta device: shapes are known there, and nothing is computed.

So what a computation needs is known before a weight is loaded, also of models that this machine cannot hold, and a
processor takes batches that fit. What is counted are tensors; libraries need some room of their own beside.
"""

import copy
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any, Literal, TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import checkpoint

from tasks.errors import first_line
from tasks.progress import say

if TYPE_CHECKING:  # families ask what fits, too
    from tasks.diffusion.families import Model

M = TypeVar("M", bound="Model")
Work = Literal["evaluation", "gradient", "text", "decoder", "encoder"]
"""What is done batch by batch: passes of the denoiser without gradients, or with the gradient of the text; encoding of
prompts; images of latents; latents of images."""
META = torch.device("meta")
ROOM = 1.5 * 2**30
"""Bytes that a batch may take of the machine's memory beside weights. With what is looked at on the way, and what
libraries need, collecting and localizing stay under two GiB."""


def fitting(model: "Model", work: Work, batch: int) -> int:
    """How many samples are worked on at a time: as many as are asked for, or fewer that fit into `ROOM`, at least one.

    On a processor, and on an Apple GPU, whose memory is the machine's. Other GPUs say when theirs ends, and the batch
    is halved, see `in_batches`; a process that takes more than the machine has is killed. What does not run on the meta
    device, such as a model with tensors that are no buffers, is given what was asked for, and a line says so.
    """
    if model.device.type not in ("cpu", "mps") or batch == 1:
        return batch
    try:
        needed = bytes_of_work(model, work)
    except Exception as error:  # of a model that somebody else made, whatever it may be
        say(f"how much memory a sample takes is not known ({work}: {first_line(error)}): {batch} are taken at a time")
        return batch
    return max(1, min(batch, int(ROOM // max(1, needed))))


def bytes_of_work(model: "Model", work: Work, samples: int = 1) -> int:
    """What work takes at most beside weights; it is counted once for each model."""
    parts = _parts(model, work)
    again = bool(getattr(model.denoiser, "is_gradient_checkpointing", False))
    known, key = _KNOWN.setdefault(next(iter(parts.values())), {}), (work, again, model.latent_shape, samples)
    if key not in known:
        copies: dict[str, Any] = {name: on_meta(part) for name, part in parts.items()}
        if again and "denoiser" in copies:
            copies["denoiser"].enable_gradient_checkpointing(_computed_again)
        empty = replace(model, **copies, device=META, mixed=False)
        given = _GIVEN[work](empty, samples)
        with counted() as tally, torch.set_grad_enabled(work == "gradient"):
            done = _WORK[work](empty, given)
        del done
        known[key] = tally.peak
    return known[key]


_KNOWN: WeakKeyDictionary[nn.Module, dict[tuple[Any, ...], int]] = WeakKeyDictionary()
"""By the module that works, what was counted."""


def bytes_of_training(model: "Model", weights: Sequence[torch.Tensor], checkpointing: bool) -> int:
    """What a pass forward and backward of one sample takes at most beside weights, with the gradients of these weights.

    Args:
        model: on the meta device.
        weights: that take gradients.
        checkpointing: whether what backpropagation needs is computed again rather than kept.
    """
    text = _text(model, 1)
    if checkpointing:
        model.denoiser.enable_gradient_checkpointing(_computed_again)
    with counted() as tally:
        done = _gradient(model, text, weights)
    del done
    model.denoiser.disable_gradient_checkpointing()
    return tally.peak


def _parts(model: "Model", work: Work) -> dict[str, nn.Module]:
    """The components that work passes through, by their names as fields; first what is asked."""
    if work in ("decoder", "encoder"):
        return {"vae": model.vae}
    named = {name: getattr(model, name, None) for name in model.components if name.startswith("text_encoder")}
    encoders = {name: one for name, one in named.items() if isinstance(one, nn.Module)}
    return encoders if work == "text" else {"denoiser": model.denoiser, **encoders}


def without_weights(model: M) -> M:
    """The same model with all its modules on the meta device."""
    named = {field.name: getattr(model, field.name) for field in fields(model)}
    parts: dict[str, Any] = {name: on_meta(one) for name, one in named.items() if isinstance(one, nn.Module)}
    return replace(model, **parts, device=META, mixed=False)


def on_meta(module: nn.Module) -> nn.Module:
    """A copy of a module without its numbers."""
    memo: dict[int, Any] = {
        id(weight): nn.Parameter(torch.empty_like(weight, device=META), requires_grad=False)
        for weight in module.parameters()
    }
    memo |= {id(buffer): torch.empty_like(buffer, device=META) for buffer in module.buffers()}
    return copy.deepcopy(module, memo)


def bytes_of(module: nn.Module) -> int:
    """What a module's parameters and buffers take."""
    return sum(one.numel() * one.element_size() for one in (*module.parameters(), *module.buffers()))


def bytes_of_model(model: "Model") -> int:
    """What the weights of all components take."""
    return sum(bytes_of(one) for one in vars(model).values() if isinstance(one, nn.Module))


def _text(model: "Model", samples: int) -> torch.Tensor:
    with torch.no_grad(), _Fused():
        return model.unconditional().expand(samples, -1, -1)


def _gradient(model: "Model", text: torch.Tensor, of: Sequence[torch.Tensor]) -> Any:
    """The gradients of a pass's loss."""
    output = model.output(_latents(model, len(text)), 1, text)
    return torch.autograd.grad(output.float().square().mean(), of, allow_unused=True)


def _latents(model: "Model", samples: int) -> torch.Tensor:
    return torch.zeros(samples, *model.latent_shape, device=META, dtype=model.dtype)


def _pixels(model: "Model", samples: int) -> torch.Tensor:
    return torch.zeros(samples, 3, *(size * model.pixels_of_latent for size in model.latent_shape[1:]), device=META)


_GIVEN: Mapping[Work, Callable[["Model", int], Any]] = {
    "evaluation": _text,
    "gradient": lambda model, samples: _text(model, samples).clone().requires_grad_(True),
    "text": lambda model, samples: [""] * samples,
    "decoder": _latents,
    "encoder": _pixels,
}
_WORK: Mapping[Work, Callable[["Model", Any], Any]] = {
    "evaluation": lambda model, text: model.output(_latents(model, len(text)), 1, text),
    "gradient": lambda model, text: _gradient(model, text, [text]),
    "text": lambda model, prompts: model.encode(prompts, len(prompts)),
    "decoder": lambda model, latents: model.decode(latents),
    "encoder": lambda model, pixels: model.encode_images(pixels),
}


@contextmanager
def counted() -> Iterator["Tally"]:
    """Within, memory of tensors that are made is counted; attention keeps no scores, as it does where it is fused."""
    with _Fused(), Tally() as tally:
        yield tally


class Tally(TorchDispatchMode):
    """Counts the bytes of storages that are made within and still alive."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now, self.peak = 0, 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for given in tree_leaves((args, kwargs)):
            self._see(given, 0)
        out = func(*args, **(kwargs or {}))
        for made in tree_leaves(out):
            self._see(made, 1)
        return out

    def _see(self, tensor: Any, counts: int) -> None:
        if not isinstance(tensor, torch.Tensor):
            return
        storage = tensor.untyped_storage()
        name, size = storage._cdata, counts * storage.nbytes()
        if name in self._known:
            return
        self._known.add(name)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._gone, name, size)

    def _gone(self, name: int, size: int) -> None:
        self._known.discard(name)
        self.now -= size


class Unasked(TorchFunctionMode):
    """Answers whatever is asked of numbers by no, since the meta device has none: such as whether a mask of tokens
    leaves nothing out, so that there is no need of it."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return False if func is torch.Tensor.__bool__ else func(*args, **(kwargs or {}))


class _Fused(Unasked):
    """Has attention computed by what takes the memory of a fused kernel; the meta device has none."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is not scaled_dot_product_attention:
            return super().__torch_function__(func, types, args, kwargs)
        given = dict(zip(("query", "key", "value"), args, strict=False)) | kwargs
        return _Attention.apply(given["query"], given["key"], given["value"])


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        out = query.new_empty(*query.shape[:-1], value.shape[-1])
        ctx.save_for_backward(query, key, value, out)
        return out

    @staticmethod
    def backward(ctx: Any, *_: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(torch.empty_like(one) for one in ctx.saved_tensors[:3])


def _computed_again(module: nn.Module, *args: Any) -> Any:
    # A mode that is on during the way forward is not on while its parts are computed again.
    return checkpoint(module, *args, use_reentrant=False, context_fn=lambda: (nullcontext(), _Fused()))
