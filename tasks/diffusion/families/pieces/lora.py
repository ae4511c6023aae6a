"""LoRA adapters: what a file holds, and fusing it into the weights of a pipeline.

A layer's weights W become W + scale * alpha / rank * B A (Hu et al., ICLR 2022); an adapter without alpha has that of
its rank. Files have the names of PEFT, of diffusers before it, or of kohya's trainer, which calls layers as diffusers
does or as the models' own code. Every tensor of a file must belong to a layer of the model: loaders that leave out what
they do not know make another model than the one that was trained.
"""

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open

from tasks.diffusion.files import conversion_of, read_json, safetensors_header
from tasks.errors import InputError, first_line

_DOWN_AND_UP = (
    (".lora_A.weight", ".lora_B.weight"),
    (".lora_A.default.weight", ".lora_B.default.weight"),
    (".lora_down.weight", ".lora_up.weight"),
    (".lora.down.weight", ".lora.up.weight"),
    (".lora_linear_layer.down.weight", ".lora_linear_layer.up.weight"),
    ("_lora.down.weight", "_lora.up.weight"),
)
_OTHERS = {
    "a LoHa of LyCORIS": re.compile(r"\.hada_(w|t)\d"),
    "a LoKr of LyCORIS": re.compile(r"\.lokr_(w|t)\d"),
    "a GLoRA of LyCORIS": re.compile(r"\.(a1|a2|b1|b2)\.weight$"),
    "a LoCon with a core (Tucker decomposition)": re.compile(r"\.lora_mid\.weight$"),
    "an adapter of full differences": re.compile(r"\.diff(_b)?$"),
    "an OFT": re.compile(r"\.(oft_(blocks|diag|R|s)|oft_r|boft_\w+)\b"),
    "an (IA)^3": re.compile(r"\.(on_input|ia3_\w+)"),
    "a DoRA": re.compile(r"dora_scale|lora_magnitude_vector"),
}
_PARTS = {
    "lora_unet_": "unet",
    "lora_te1_": "text_encoder",
    "lora_te2_": "text_encoder_2",
    "lora_te_": "text_encoder",
    "unet.": "unet",
    "text_encoder.": "text_encoder",
    "text_encoder_2.": "text_encoder_2",
    "base_model.model.": "unet",
    "diffusion_model.": "unet",
}
"""What the names of a part's layers begin with."""
_OF_PEFT = "base_model.model."
CONFIG = "adapter_config.json"
"""Beside an adapter that PEFT itself saved."""
_RESNET = {
    "in_layers_2": "conv1",
    "emb_layers_1": "time_emb_proj",
    "out_layers_3": "conv2",
    "skip_connection": "conv_shortcut",
}
_OUTER = {
    "time_embed_0": "time_embedding_linear_1",
    "time_embed_2": "time_embedding_linear_2",
    "label_emb_0_0": "add_embedding_linear_1",
    "label_emb_0_2": "add_embedding_linear_2",
    "input_blocks_0_0": "conv_in",
    "out_2": "conv_out",
}


class Lora(NamedTuple):
    """An adapter, and how strongly it is fused."""

    path: Path
    scale: float = 1.0

    @property
    def words(self) -> str:
        return self.path.name if self.scale == 1 else f"{self.path.name}={self.scale:g}"


@dataclass(frozen=True)
class Factors:
    """What a file says of one layer."""

    name: str
    """The layer's, as the file has it."""
    down: torch.Tensor
    """A, of shape (rank, in), or (rank, in, height, width) of a convolution."""
    up: torch.Tensor
    """B, of shape (out, rank), or (out, rank, 1, 1)."""
    strength: float
    """alpha / rank."""

    def difference(self) -> torch.Tensor:
        """What is added to the layer's weights at scale 1: (out, in), or (out, in, height, width); float32."""
        down, up = self.down.float(), self.up.float()
        return self.strength * (up.flatten(1) @ down.flatten(1)).view(up.shape[0], *down.shape[1:])


def read_lora(text: str) -> Lora:
    """What FILE or FILE=SCALE says.

    Raises:
        InputError: the scale is no number, or zero, or the file is none of an adapter that can be fused.
    """
    name, equals, scale = text.rpartition("=")
    if not equals or Path(text).expanduser().exists():
        name, scale = text, "1"
    try:
        number = float(scale)
    except ValueError as error:
        raise InputError(f"--lora {text!r}: {scale!r} is no number: give FILE or FILE=SCALE") from error
    if number == 0 or not math.isfinite(number):
        raise InputError(f"--lora {text!r}: a scale of {scale} is none; 1 is what the adapter was trained with")
    found = Lora(Path(name).expanduser(), number)
    _check(found.path)
    return found


def fuse(pipeline: Any, adapters: Iterable[Lora]) -> None:
    """Adds adapters to the weights of a pipeline, which must be in float32.

    Raises:
        InputError: an adapter has layers that are none of this model.
    """
    parts = {part: layers_of_part(getattr(pipeline, part, None)) for part in dict.fromkeys(_PARTS.values())}
    blocks = int(pipeline.unet.config["layers_per_block"]) + 1
    for adapter in adapters:
        found: list[tuple[torch.nn.Module, torch.Tensor]] = []
        strange: list[str] = []
        for factors in factors_of(adapter.path):
            layer = _layer(factors.name, parts, blocks)
            if layer is None or _shape(layer.weight) != _shape(change := factors.difference()):
                strange.append(factors.name)
            else:
                found.append((layer, change.view_as(layer.weight)))
        if strange:
            raise InputError(
                f"{adapter.path} changes {len(strange) + len(found)} layers, of which {len(strange)} are none of this "
                f"model, such as {strange[0]}: it is of another base model, or of another kind"
            )
        with torch.no_grad():
            for layer, change in found:
                layer.weight.add_(change, alpha=adapter.scale)  # type: ignore[operator]


def factors_of(path: Path) -> Iterator[Factors]:
    """The layers of an adapter's file, in its order.

    Raises:
        InputError: a factor lacks the other one, or a tensor belongs to none.
    """
    left = set(safetensors_header(path))
    with safe_open(path, framework="pt") as opened:
        trained = trained_with(path)
        for name, (down, up) in _pairs(left).items():
            if up not in left:
                raise InputError(f"{path} has {down} without {up}: it is not whole")
            left -= {down, up}
            factors = opened.get_tensor(down), opened.get_tensor(up)
            rank = factors[0].shape[0]
            if f"{name}.alpha" in left:
                left.remove(f"{name}.alpha")
                strength = float(opened.get_tensor(f"{name}.alpha")) / rank
            else:
                strength = _strength(name, rank, trained)
            yield Factors(name, *factors, strength)
    if left:
        raise InputError(f"{path} has {len(left)} tensors that belong to no layer, such as {min(left)}")


def trained_with(path: Path) -> dict[str, Any]:
    """What PEFT says of an adapter's training: in the metadata of the file, by part, or in adapter_config.json beside a
    file of PEFT's own names, which has no metadata.

    Raises:
        InputError: that file is not there, or is none; without its alpha nobody knows how strong the adapter is.
    """
    if any(name.startswith(_OF_PEFT) for name in safetensors_header(path)):
        return {f"{_OF_PEFT}{name}": value for name, value in read_json(path.parent / CONFIG).items()}
    with safe_open(path, framework="pt") as opened:
        said = (opened.metadata() or {}).get("lora_adapter_metadata", "{}")
    try:
        return dict(json.loads(said))
    except (ValueError, TypeError) as error:
        raise InputError(f"{path} has metadata of PEFT that are no JSON object ({first_line(error)})") from error


def layers_of_part(part: torch.nn.Module | None) -> dict[str, torch.nn.Module]:
    """The layers of a component that an adapter can change, by their names with underscores."""
    found: dict[str, torch.nn.Module] = {}
    for name, layer in part.named_modules() if part is not None else ():
        if isinstance(layer, torch.nn.Linear | torch.nn.Conv2d):
            found[name.replace(".", "_")] = layer
            if not name.startswith("text_model."):  # a level that text encoders had when adapters were written
                found[f"text_model_{name.replace('.', '_')}"] = layer
    return found


def _pairs(names: Iterable[str]) -> dict[str, tuple[str, str]]:
    """By layer, the names of its two factors."""
    found = {}
    for name in sorted(names):
        for down, up in _DOWN_AND_UP:
            if name.endswith(down):
                found[name.removesuffix(down)] = name, name.removesuffix(down) + up
                break
    return found


def _strength(name: str, rank: int, trained: Mapping[str, Any]) -> float:
    """alpha / rank, as the metadata say that PEFT trained it; 1 where they do not."""
    part = next((part for part in _PARTS if part.endswith(".") and name.startswith(part)), "")
    said = {key.removeprefix(part): value for key, value in trained.items() if key.startswith(part)}
    alpha = said.get("lora_alpha", rank)
    for pattern, value in (said.get("alpha_pattern") or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", name.removeprefix(part)):
            alpha = value
            break
    return float(alpha) / (math.sqrt(rank) if said.get("use_rslora") else rank)


def _layer(name: str, parts: Mapping[str, Mapping[str, torch.nn.Module]], blocks: int) -> Any:
    """The layer that a name of a file means; None where it is none of the model.

    Args:
        blocks: of the UNet's own code, how many make a level.
    """
    start = next((start for start in _PARTS if name.startswith(start)), "")
    flat = name.removeprefix(start).replace(".processor.", ".").replace(".", "_")
    layers = parts[_PARTS.get(start, "unet")]
    return layers.get(flat) or layers.get(_as_diffusers(flat, blocks)) or layers.get(f"{flat}_0")


def _shape(weight: torch.Tensor) -> tuple[int, ...]:
    """A layer's shape; one of a convolution of one pixel is that of a linear layer."""
    return tuple(weight.shape[:2]) if weight.shape[2:].numel() == 1 else tuple(weight.shape)


def _as_diffusers(flat: str, blocks: int) -> str:
    """What diffusers calls a layer of a UNet that is called as in the models' own code; another name as it stands."""
    if flat in _OUTER:
        return _OUTER[flat]
    if match := re.fullmatch(r"input_blocks_(\d+)_0_op", flat):
        return f"down_blocks_{int(match[1]) // blocks - 1}_downsamplers_0_conv"
    if match := re.fullmatch(r"output_blocks_(\d+)_[12]_conv", flat):
        return f"up_blocks_{int(match[1]) // blocks}_upsamplers_0_conv"
    if match := re.fullmatch(r"(input|output)_blocks_(\d+)_([01])_(.*)", flat):
        number = int(match[2]) - (match[1] == "input")
        place = f"{'down' if match[1] == 'input' else 'up'}_blocks_{number // blocks}"
        kind = "attentions" if match[3] == "1" else "resnets"
        return f"{place}_{kind}_{number % blocks}_{_RESNET.get(match[4], match[4])}"
    if match := re.fullmatch(r"middle_block_([012])_(.*)", flat):
        place = "attentions_0" if match[1] == "1" else f"resnets_{int(match[1]) // 2}"
        return f"mid_block_{place}_{_RESNET.get(match[2], match[2])}"
    return flat


def _check(path: Path) -> None:
    """Raises InputError where a file is no adapter that can be fused, with what it is."""
    if not path.is_file():
        what = "is a folder: give the .safetensors file in it" if path.is_dir() else "is not there"
        raise InputError(f"--lora {path} {what}")
    if path.suffix != ".safetensors":
        raise InputError(
            f"--lora {path} is no safetensors file: a pickle can run code when it is loaded; give what this makes of "
            f"it: {conversion_of(path)}"
        )
    names = list(safetensors_header(path))
    for kind, pattern in _OTHERS.items():
        if any(pattern.search(name) for name in names):
            raise InputError(f"--lora {path} is {kind}, which cannot be fused here: fuse it with the tool that made it")
    if any(name.endswith("use_dora") and value for name, value in trained_with(path).items()):
        raise InputError(f"--lora {path} is a DoRA, which cannot be fused here: fuse it with the tool that made it")
    if not _pairs(names):
        raise InputError(f"--lora {path} holds no layers of a LoRA: give a whole model with --model")
