"""Loading a text-to-image pipeline from disk, and its fingerprint."""

import hashlib
import json
import re
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

import torch
from diffusers import DiffusionPipeline, StableDiffusionPipeline, StableDiffusionXLPipeline, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from torch.nn.functional import pad

from tasks.diffusion.precision import Precision
from tasks.diffusion.tokens import Tokenizers
from tasks.errors import InputError

OPTIONAL = ("safety_checker", "feature_extractor", "image_encoder")
"""Components of a pipeline that nothing here uses."""

_OTHER_WEIGHTS = re.compile(r"\.(?!safetensors|index|json)\w+(-\d+-of-\d+)?\.(safetensors|json)$")
"""Weights, or their index, that diffusers loads only where a variant is asked for, such as `model.fp16.safetensors`."""


@dataclass(frozen=True)
class Model:
    """A loaded latent diffusion model, in evaluation mode, its weights without gradients.

    Text embeddings are float (n, rows, width), a row a token. SDXL's UNet reads a pooled vector of the prompt as well:
    it travels as one more row behind the tokens, filled up with zeros, so that what handles embeddings handles it too.
    """

    source: str
    """Folder it was loaded from."""
    model_id: str
    """What it goes by in the store, see `identity`."""
    unet: UNet2DConditionModel
    vae: Any
    text_encoder: Any
    tokenizer: Any
    scheduler: Any
    device: torch.device
    text_encoder_2: Any = None
    """SDXL's second text encoder, the one with a pooled output; None for SD 1.x and 2.x."""
    tokenizer_2: Any = None
    zeros_for_empty: bool = False
    """Whether the half of guidance without text reads zeros, as SDXL was trained, and not the empty prompt."""
    mixed: bool = False
    """Whether the UNet computes in bfloat16 where that is safe."""

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
    def tokenizers(self) -> Tokenizers:
        """What counts a prompt's tokens: SDXL has two tokenizers."""
        each = (self.tokenizer,) if self.tokenizer_2 is None else (self.tokenizer, self.tokenizer_2)
        return Tokenizers(each, self.tokens)

    @property
    def rows(self) -> int:
        """Rows of an embedding: the tokens, and SDXL's pooled vector."""
        return self.tokens + (self.text_encoder_2 is not None)

    @property
    def dtype(self) -> torch.dtype:
        return self.unet.dtype

    def with_unet(self, folder: Path) -> "Model":
        """The same model with the UNet of another folder, as a mitigated variant has it."""
        unet = UNet2DConditionModel.from_pretrained(
            folder, torch_dtype=self.dtype, use_safetensors=True, low_cpu_mem_usage=False
        )
        return self.with_weights(unet)

    def with_weights(self, unet: UNet2DConditionModel) -> "Model":
        """The same model with another UNet of the same shape."""
        return replace(self, unet=_settle(unet, self.device, self.mixed))

    @torch.no_grad()
    def embed(self, prompts: list[str], batch: int = 256) -> torch.Tensor:
        """Text embeddings, float (n, rows, width).

        A prompt of more tokens than the model reads is truncated as training truncates captions: the start of the
        text, its first tokens, the end of the text. Whoever asks says so beforehand, see `tasks.collect.token_check`.
        """
        out = []
        for start in range(0, len(prompts), batch):
            block = prompts[start : start + batch]
            ids = self._ids(self.tokenizer, block)
            if self.text_encoder_2 is None:
                out.append(self.text_encoder(ids)[0].to(self.dtype))
                continue
            first = self.text_encoder(ids, output_hidden_states=True)
            second = self.text_encoder_2(self._ids(self.tokenizer_2, block), output_hidden_states=True)
            # As in SDXL: the last layer but one of both encoders, side by side, and the pooled output of the second.
            tokens = torch.cat([first.hidden_states[-2], second.hidden_states[-2]], -1)
            pooled = pad(second[0], (0, tokens.shape[-1] - second[0].shape[-1]))
            out.append(torch.cat([tokens, pooled[:, None]], 1).to(self.dtype))
        return torch.cat(out)

    def unguided(self) -> torch.Tensor:
        """What the half of classifier-free guidance without text reads, (1, rows, width)."""
        empty = self.embed([""])
        return torch.zeros_like(empty) if self.zeros_for_empty else empty

    def conditions(self, embeddings: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor] | None]:
        """What the UNet is given for embeddings (n, rows, width): the tokens, and what SDXL reads beside them."""
        if self.text_encoder_2 is None:
            return embeddings, None
        scale = 2 ** (len(self.vae.config.block_out_channels) - 1)
        _, height, width = self.latent_shape
        # Original size, crop and target size: an uncropped picture of the model's own size.
        sizes = [height * scale, width * scale, 0, 0, height * scale, width * scale]
        pooled = embeddings[:, -1, : self.text_encoder_2.config.projection_dim]
        return embeddings[:, :-1], {
            "text_embeds": pooled,
            "time_ids": torch.tensor([sizes], device=embeddings.device, dtype=embeddings.dtype).expand(len(pooled), -1),
        }

    def _ids(self, tokenizer: Any, prompts: list[str]) -> torch.Tensor:
        how = {"padding": "max_length", "truncation": True, "max_length": self.tokens, "return_tensors": "pt"}
        ids = tokenizer(prompts, **how).input_ids
        return cast(torch.Tensor, ids.to(self.device))


_LEAST_SIGNAL = 1e-6
"""Of alphas_cumprod at the last step; 5e-3 in Stable Diffusion, 4e-5 in the first diffusion models."""


def load_model(source: str | Path, device: str | None = None, precision: Precision = "float32") -> Model:
    """Loads a diffusers pipeline folder; safetensors only, no remote code.

    Args:
        device: "cpu", "cuda", ...; the GPU where there is one by default.

    Raises:
        InputError: no such folder or device, or it is not a pipeline of Stable Diffusion 1.x, 2.x or XL.
    """
    folder, mixed = Path(source), precision == "mixed"
    if not (folder / "model_index.json").is_file():
        raise InputError(
            f"no diffusers pipeline at {folder} (no model_index.json): give the folder of a saved pipeline"
        )
    try:
        place = device_of(device)
        torch.zeros(1, device=place)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"no device {device!r} here ({str(error).splitlines()[0]}): try cpu") from error
    # Convolutions on a GPU would else compute in TensorFloat-32, three digits, whatever the weights are.
    torch.backends.cudnn.allow_tf32 = False
    try:
        pipeline = DiffusionPipeline.from_pretrained(
            folder,
            torch_dtype=torch.float32 if mixed else getattr(torch, precision),
            use_safetensors=True,
            local_files_only=True,
            safety_checker=None,
            low_cpu_mem_usage=False,  # what diffusers does without accelerate, after a warning for each component
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise InputError(f"cannot load the pipeline at {folder}: {str(error).splitlines()[0]}") from error
    if not isinstance(pipeline, (StableDiffusionPipeline, StableDiffusionXLPipeline)):
        raise InputError(f"{folder} holds a {type(pipeline).__name__}; audits need a StableDiffusion(XL)Pipeline")
    if float(pipeline.scheduler.alphas_cumprod.min()) < _LEAST_SIGNAL:
        raise InputError(
            f"the noise schedule of {folder} ends without any signal (zero terminal SNR), where no picture follows from"
            " predicted noise: audits need a schedule without rescale_betas_zero_snr"
        )
    # Any of a pipeline's components may be missing on disk; SDXL's refiner has no first text encoder, for one.
    if lost := [name for name, part in pipeline.components.items() if part is None and name not in OPTIONAL]:
        raise InputError(f"the pipeline at {folder} has no {lost[0]}: audits need all of a base model")
    second = getattr(pipeline, "text_encoder_2", None)
    return Model(
        source=str(folder),
        model_id=identity(folder, precision),
        unet=_settle(pipeline.unet, place, mixed),
        vae=_settle(pipeline.vae, place),
        text_encoder=_settle(pipeline.text_encoder, place),
        tokenizer=pipeline.tokenizer,
        scheduler=pipeline.scheduler,
        device=place,
        text_encoder_2=None if second is None else _settle(second, place),
        tokenizer_2=getattr(pipeline, "tokenizer_2", None),
        zeros_for_empty=second is not None and bool(pipeline.config.force_zeros_for_empty_prompt),
        mixed=mixed,
    )


def device_of(named: str | None) -> torch.device:
    """The device of this name; the GPU where there is one without a name."""
    return torch.device(named or ("cuda" if torch.cuda.is_available() else "cpu"))


def identity(folder: Path, precision: Precision) -> str:
    """What a model goes by in the store: its fingerprint, or one of both where the precision changes results."""
    found = fingerprint(folder)
    return found if precision == "float32" else hashlib.sha256(f"{found} {precision}".encode()).hexdigest()[:32]


def fingerprint(folder: Path) -> str:
    """32 hex digits over the names and contents of a pipeline's weights and configs, in order of name.

    Of what is loaded alone: a folder fetched from the Hub may later hold a safety checker or half-precision files, too.

    Raises:
        InputError: model_index.json is not one.
    """
    try:
        index = dict(json.loads((folder / "model_index.json").read_text()))
    except (ValueError, TypeError) as error:
        raise InputError(f"{folder / 'model_index.json'} is no index of a pipeline: save the pipeline anew") from error
    parts = [name for name, kind in index.items() if isinstance(kind, list) and name not in OPTIONAL]
    found = [
        path
        for part in parts
        for pattern in ("*.safetensors", "*.json", "*.txt")
        for path in (folder / part).rglob(pattern)
        if not _OTHER_WEIGHTS.search(path.name)
    ]
    files = sorted([folder / "model_index.json", *found])
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
    """What a model folder says of its own audit in `engram.json`; empty without one.

    "prompts", "images" and "clip" are paths; "settings" count for every profile, "profiles" by their names for one.
    """
    path = Path(folder) / "engram.json"
    if not path.is_file():
        return {}
    try:
        return dict(json.loads(path.read_text()))
    except ValueError as error:
        raise InputError(f"{path} is not JSON: {error}") from error


def _settle(module: Any, device: torch.device, mixed: bool = False) -> Any:
    if device.type == "cpu" and isinstance(module, UNet2DConditionModel):
        module = module.to(memory_format=torch.channels_last)
        if mixed:  # the fused attention has no fast backward pass in bfloat16 on a CPU
            module.set_attn_processor(AttnProcessor())
    return module.to(device).eval().requires_grad_(False)
