"""Loading a text-to-image pipeline from disk, and its fingerprint."""

import hashlib
import json
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline, StableDiffusionPipeline, UNet2DConditionModel

from tasks.errors import InputError


@dataclass(frozen=True)
class Model:
    """A loaded latent diffusion model, in evaluation mode, its weights without gradients."""

    source: str
    """Folder it was loaded from."""
    model_id: str
    """Fingerprint of its weights and configs, see `fingerprint`."""
    unet: UNet2DConditionModel
    vae: Any
    text_encoder: Any
    tokenizer: Any
    scheduler: Any
    device: torch.device

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of a latent."""
        size = self.unet.config.sample_size
        height, width = (size, size) if isinstance(size, int) else size
        return self.unet.config.in_channels, height, width

    @property
    def tokens(self) -> int:
        """Tokens of a prompt, with the start and the end of the text."""
        return int(min(self.tokenizer.model_max_length, self.text_encoder.config.max_position_embeddings))

    @property
    def dtype(self) -> torch.dtype:
        return self.unet.dtype

    def with_unet(self, folder: Path) -> "Model":
        """The same model with the UNet of another folder, as a mitigated variant has it."""
        unet = UNet2DConditionModel.from_pretrained(folder, torch_dtype=self.dtype, use_safetensors=True)
        return replace(self, unet=_settle(unet, self.device))

    @torch.no_grad()
    def embed(self, prompts: list[str], batch: int = 256) -> torch.Tensor:
        """Text embeddings, float (n, tokens, width).

        Raises:
            InputError: a prompt has more tokens than the model reads.
        """
        out = []
        for start in range(0, len(prompts), batch):
            block = prompts[start : start + batch]
            for prompt, ids in zip(block, self.tokenizer(block).input_ids, strict=True):
                if len(ids) > self.tokens:
                    raise InputError(
                        f"a prompt has {len(ids)} tokens, the model reads {self.tokens}: shorten {prompt[:60]!r}"
                    )
            ids = self.tokenizer(block, padding="max_length", max_length=self.tokens, return_tensors="pt").input_ids
            out.append(self.text_encoder(ids.to(self.device))[0].to(self.dtype))
        return torch.cat(out)


def load_model(source: str | Path, device: str | None = None, dtype: torch.dtype = torch.float32) -> Model:
    """Loads a diffusers pipeline folder; safetensors only, no remote code.

    Args:
        device: "cpu", "cuda", ...; the GPU where there is one by default.

    Raises:
        InputError: no such folder, or it is not a pipeline with a UNet and one text encoder.
    """
    folder = Path(source)
    if not (folder / "model_index.json").is_file():
        raise InputError(
            f"no diffusers pipeline at {folder} (no model_index.json): give the folder of a saved pipeline"
        )
    place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    try:
        pipeline = DiffusionPipeline.from_pretrained(
            folder, torch_dtype=dtype, use_safetensors=True, local_files_only=True, safety_checker=None
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise InputError(f"cannot load the pipeline at {folder}: {str(error).splitlines()[0]}") from error
    if not isinstance(pipeline, StableDiffusionPipeline):
        raise InputError(f"{folder} holds a {type(pipeline).__name__}; audits need a StableDiffusionPipeline")
    return Model(
        source=str(folder),
        model_id=fingerprint(folder),
        unet=_settle(pipeline.unet, place),
        vae=_settle(pipeline.vae, place),
        text_encoder=_settle(pipeline.text_encoder, place),
        tokenizer=pipeline.tokenizer,
        scheduler=pipeline.scheduler,
        device=place,
    )


def fingerprint(folder: Path) -> str:
    """32 hex digits over the names and contents of a pipeline's weights and configs, in order of name."""
    files = sorted(
        path
        for pattern in ("*.safetensors", "*.json", "*.txt")
        for path in folder.rglob(pattern)
        if path.parent != folder or path.name == "model_index.json"
    )
    stamp = tuple((str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in files)
    return _fingerprint(folder, stamp)


@lru_cache(maxsize=16)
def _fingerprint(folder: Path, files: tuple[tuple[str, int, int], ...]) -> str:
    digest = hashlib.sha256()
    for name, _, _ in files:
        path = Path(name)
        digest.update(str(path.relative_to(folder)).encode() + b"\0")
        with path.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()[:32]


def audit_defaults(folder: str | Path) -> dict[str, Any]:
    """What a model folder says of its own audit in `engram.json` (prompts, images, settings); empty without one."""
    path = Path(folder) / "engram.json"
    if not path.is_file():
        return {}
    try:
        return dict(json.loads(path.read_text()))
    except ValueError as error:
        raise InputError(f"{path} is not JSON: {error}") from error


def _settle(module: Any, device: torch.device) -> Any:
    if device.type == "cpu" and isinstance(module, UNet2DConditionModel):
        module = module.to(memory_format=torch.channels_last)
    return module.to(device).eval().requires_grad_(False)
