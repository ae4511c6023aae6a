"""Value activations (Hintersdorf et al., Finding NeMo, NeurIPS 2024, section 3.1).

A cross-attention value layer sees the text embedding only. Its activations therefore depend neither on the latent, nor
on the seed, nor on the timestep, and are computed by that one linear layer, without the rest. Tokens that only fill
a prompt up do not count where the denoiser does not attend to them.

Where text and image attend to both, the text's values depend on step and latent, too. There they are taken as the
denoiser runs, at the step at which NeMo looks for memories, and averaged over initial noises: our own, no reference is
published. All prompts are looked at so, those of statistics, too.
"""

from collections.abc import Sequence

import torch

from tasks.diffusion.batches import in_batches
from tasks.diffusion.detection import DetectionParams, detection_timestep
from tasks.diffusion.families import Model
from tasks.diffusion.hooks import observed
from tasks.diffusion.noise import initial_noise
from tasks.diffusion.sites import Layer
from tasks.errors import InputError

SEEDS = 4
"""Initial noises that activations are averaged over where they depend on them."""
STEPS = DetectionParams().steps
"""Steps of the schedule at whose second timestep they are taken."""


@torch.no_grad()
def value_activations(
    layers: tuple[Layer, ...], tokens: torch.Tensor, mask: torch.Tensor | None = None, batch: int = 256
) -> list[torch.Tensor]:
    """The activation of a neuron for a prompt: the mean over tokens of the absolute value of its output.

    Args:
        layers: cross-attention value layers (or key layers, which see the text alone as well).
        tokens: what they read, (n, tokens, width), see `Model.text_input`.
        mask: which tokens are read, bool (n, tokens), see `Model.mask`; all by default.
        batch: prompts at a time, halved when memory runs out; does not change the result.

    Returns:
        By layer, float32 (n, outputs) on the layers' device.

    Raises:
        InputError: the tokens do not fit the layers, or an activation is not finite.
    """
    out = []
    for layer in layers:
        if tokens.dim() != 3 or tokens.shape[-1] != layer.inputs:
            raise InputError(f"{layer.name} reads tokens (n, tokens, {layer.inputs}), these are {tuple(tokens.shape)}")
        weight = next(layer.module.parameters())

        def activations(rows: slice, layer: Layer = layer, weight: torch.Tensor = weight) -> torch.Tensor:
            output: torch.Tensor = layer.module(tokens[rows].to(weight))
            if mask is None:
                return output.float().abs().mean(1)
            read = mask[rows, :, None].to(output.device)
            return (output.float().abs() * read).sum(1) / read.sum(1)

        blocks = list(in_batches(len(tokens), batch, activations))
        found = torch.cat(blocks) if blocks else weight.new_zeros((0, layer.outputs), dtype=torch.float32)
        if not found.isfinite().all():
            raise InputError(f"activations of {layer.name} are not finite; load the model in float32 or bfloat16")
        out.append(found)
    return out


@torch.no_grad()
def seen_activations(
    model: Model, layers: tuple[Layer, ...], embeddings: torch.Tensor, noises: Sequence[str], batch: int = 16
) -> list[torch.Tensor]:
    """The same of layers that see step and latent, too: the mean over the text's tokens and initial noises of |output|.

    Args:
        layers: linear layers that read (n, tokens, inputs).
        embeddings: (n, rows, width).
        noises: what seeds the initial noises of each prompt, together with the number of each.
        batch: samples at a time, halved when memory runs out; does not change the result.

    Returns, Raises: as `value_activations`.
    """
    keys = [(name, seed) for name in noises for seed in range(SEEDS)]
    owners = torch.arange(len(noises), device=embeddings.device).repeat_interleave(SEEDS)
    timestep = detection_timestep(model, STEPS)

    def activations(rows: slice) -> list[torch.Tensor]:
        seen: dict[int, torch.Tensor] = {}

        def see(layer: Layer, inputs: torch.Tensor, output: torch.Tensor) -> None:
            seen[layer.index] = model.of_text(output).float().abs().mean(1)

        with observed(layers, see):
            model.output(initial_noise(model, keys[rows]), timestep, embeddings[owners[rows]].to(model.dtype))
        return [seen[layer.index] for layer in layers]

    blocks = list(in_batches(len(keys), batch, activations))
    out = []
    for layer, found in zip(layers, (torch.cat(each) for each in zip(*blocks, strict=True)), strict=True):
        if not found.isfinite().all():
            raise InputError(f"activations of {layer.name} are not finite; load the model in float32 or bfloat16")
        out.append(found.unflatten(0, (len(noises), SEEDS)).mean(1))
    return out
