"""How exactly a model computes, and which precision suits a device."""

from typing import Literal

import torch

Precision = Literal["float32", "mixed", "bfloat16", "float16"]
"""Of weights and of what is computed. "mixed": weights, latents and everything else are float32, and the denoiser
computes in bfloat16 where that is safe (autocast). Such results differ in the third digit, and with the batch in the
fourth."""

PrecisionChoice = Literal["auto", "float32", "mixed", "bfloat16", "float16"]
"""The same, or "auto": mixed where the device computes in bfloat16, and float32 elsewhere."""

BFLOAT16_INSTRUCTIONS = ("amx_bf16", "avx512_bf16", "bf16")
"""Of processors, as `torch.cpu.get_capabilities` names them: Intel's, AMD's and Intel's, ARM's."""


def computes_in_bfloat16(device: str | None = None) -> bool:
    """Whether a device multiplies in bfloat16 itself. Where it does not, bfloat16 is emulated, many times slower than
    float32.

    Args:
        device: "cpu", "cuda", "mps", ...; CUDA where there is any by default. Of "mps" nobody knows.
    """
    try:
        chosen = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    except RuntimeError:
        return False  # a device of no such name is refused where the model is loaded
    if chosen.type == "cuda":
        return torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
    known = torch.cpu.get_capabilities()
    return chosen.type == "cpu" and any(bool(known.get(name)) for name in BFLOAT16_INSTRUCTIONS)


def precision_for(choice: PrecisionChoice, device: str | None = None) -> Precision:
    """The precision that is meant on a device, see `PrecisionChoice`."""
    if choice != "auto":
        return choice
    return "mixed" if computes_in_bfloat16(device) else "float32"


def arithmetic(device: torch.device) -> dict[str, str]:
    """By name, what results on a device depend on beside torch's version: of a GPU its CUDA and cuDNN, and whether
    products are rounded to TensorFloat-32; of a processor the instructions that torch uses, and its threads."""
    if device.type == "cuda":
        rounded = torch.backends.cudnn.allow_tf32 or torch.backends.cuda.matmul.allow_tf32
        return {
            "CUDA": str(torch.version.cuda),
            "cuDNN": str(torch.backends.cudnn.version()),
            "cuDNN deterministic": "on" if torch.backends.cudnn.deterministic else "off",
            "TensorFloat-32": "on" if rounded else "off",
        }
    if device.type == "cpu":
        return {"instructions": torch.backends.cpu.get_cpu_capability(), "threads": str(torch.get_num_threads())}
    return {}
