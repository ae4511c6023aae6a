"""LoRA adapters of a pipeline, as diffusers with PEFT writes them and as kohya's trainer does."""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

RANK = 4
LAYERS = {
    "unet": ("to_k", "to_v", "to_out.0", "ff.net.2", "proj_in"),
    "text_encoder": ("q_proj", "fc1"),
    "text_encoder_2": ("v_proj", "fc2"),
}
_KOHYA = {"unet": "lora_unet", "text_encoder": "lora_te", "text_encoder_2": "lora_te2"}


class Adapter:
    """Random factors for some layers of each part of a pipeline; by part and layer (down, up, alpha)."""

    def __init__(self, pipeline: Any, seed: int = 0, alpha: float | None = None) -> None:
        draw = torch.Generator().manual_seed(seed)
        self.factors: dict[tuple[str, str], tuple[torch.Tensor, torch.Tensor, float]] = {}
        for part, ends in LAYERS.items():
            if getattr(pipeline, part, None) is None:
                continue
            for name, layer in getattr(pipeline, part).named_modules():
                if name.endswith(ends) and isinstance(layer, torch.nn.Linear):
                    down = torch.randn(RANK, layer.in_features, generator=draw) / 8
                    up = torch.randn(layer.out_features, RANK, generator=draw) / 8
                    self.factors[part, name] = (down, up, RANK if alpha is None else alpha)
        self.has_alpha, self.two = alpha is not None, hasattr(pipeline, "text_encoder_2")

    def fused(self, pipeline: Any, part: str, scale: float = 1.0) -> dict[str, torch.Tensor]:
        """What the weights of a part are with the adapter, by the formula."""
        found = {name: value.clone() for name, value in getattr(pipeline, part).state_dict().items()}
        for (of, name), (down, up, alpha) in self.factors.items():
            if of == part:
                found[f"{name}.weight"] += scale * alpha / RANK * (up @ down)
        return found

    def write(self, path: Path) -> Path:
        """In the names of diffusers and PEFT, where alpha is the rank."""
        assert not self.has_alpha
        tensors: dict[str, torch.Tensor] = {}
        for (part, name), (down, up, _) in self.factors.items():
            full = _as_published(part, name)
            tensors |= {f"{part}.{full}.lora_A.weight": down, f"{part}.{full}.lora_B.weight": up}
        save_file(tensors, path)
        return path

    def write_kohya(self, path: Path, **extra: torch.Tensor) -> Path:
        """In the names of kohya's trainer."""
        tensors: dict[str, torch.Tensor] = {}
        for (part, name), (down, up, alpha) in self.factors.items():
            start = "lora_te1" if self.two and part == "text_encoder" else _KOHYA[part]
            full = f"{start}_{_as_published(part, name).replace('.', '_')}"
            tensors |= {f"{full}.lora_down.weight": down, f"{full}.lora_up.weight": up}
            tensors[f"{full}.alpha"] = torch.tensor(float(alpha))
        save_file(tensors | extra, path)
        return path


def _as_published(part: str, name: str) -> str:
    """Text encoders lost a level of their names since adapters are written."""
    return name if part == "unet" or name.startswith("text_model.") else f"text_model.{name}"
