"""Loading a text-to-image pipeline from disk, and its fingerprint."""

import hashlib
import json
import re
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from typing import Any, cast

import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from safetensors import safe_open
from torch.nn.functional import pad

from tasks.diffusion.folder import (
    ADAPTER_TENSORS,
    INDEX,
    OPTIONAL,
    PIPELINES,
    no_pipeline,
    problems_of,
    scheduler_in,
    stem_of,
    weight_files,
)
from tasks.diffusion.precision import Precision
from tasks.diffusion.schedulers import line_of, read_json, read_scheduler
from tasks.diffusion.tokens import Tokenizers
from tasks.errors import InputError, refuse

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
    unsampled: str | None = None
    """Why the model's own scheduler cannot sample, see `schedulers.read_scheduler`; None where it can."""
    latent_statistics: tuple[torch.Tensor, torch.Tensor] | None = None
    """Mean and spread of each channel of the autoencoder's latents, where its config states them, as some of XL do."""

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


def load_model(source: str | Path, device: str | None = None, precision: Precision = "float32") -> Model:
    """Loads a diffusers pipeline folder; safetensors only, no remote code.

    Args:
        device: "cpu", "cuda", ...; the GPU where there is one by default.

    Raises:
        InputError: no such folder or device, it is not a pipeline of Stable Diffusion 1.x, 2.x or XL, or something of
            it is broken or would not count, see `problems_of`.
    """
    folder, mixed = Path(source), precision == "mixed"
    if not (folder / INDEX).is_file():
        raise InputError(no_pipeline(folder))
    place = usable_device(device)
    # Whether the model's own scheduler samples counts only where it is asked for.
    refuse(problems_of(folder, "ddim"))
    # Convolutions on a GPU would else compute in TensorFloat-32, three digits, whatever the weights are.
    torch.backends.cudnn.allow_tf32 = False
    index = read_json(folder / INDEX)
    dtype = torch.float32 if mixed else getattr(torch, precision)
    scheduler, unsampled = read_scheduler(folder / "scheduler", scheduler_in(index))
    parts = {
        part: _part(folder / part, getattr(import_module(index[part][0]), index[part][1]), dtype)
        for part in PIPELINES[index["_class_name"]]
        if part != "scheduler"
    }
    for words, encoder in (("tokenizer", "text_encoder"), ("tokenizer_2", "text_encoder_2")):
        if words in parts and len(parts[words]) > (knows := int(parts[encoder].config.vocab_size)):
            raise InputError(
                f"{folder / words} has {len(parts[words])} tokens, {encoder} knows {knows}: they are not of one model, "
                "or tokens were added to one of them alone; download the model again"
            )
    xl = "text_encoder_2" in parts
    # The pipeline mends what old configs say; it is not asked for more.
    if xl:
        zeros = bool(index.get("force_zeros_for_empty_prompt", True))
        pipeline = StableDiffusionXLPipeline(
            **parts, scheduler=scheduler, force_zeros_for_empty_prompt=zeros, add_watermarker=False
        )
    else:
        pipeline = StableDiffusionPipeline(
            **parts, scheduler=scheduler, safety_checker=None, feature_extractor=None, requires_safety_checker=False
        )
    vae = pipeline.vae
    if xl and precision == "float16" and vae.config.force_upcast:  # as its pipeline does: it overflows in float16
        vae = _part(folder / "vae", type(vae), torch.float32)
    second = parts.get("text_encoder_2")
    mean, spread = vae.config.get("latents_mean"), vae.config.get("latents_std")
    return Model(
        source=str(folder),
        model_id=identity(folder, precision),
        unet=_settle(pipeline.unet, place, mixed),
        vae=_settle(vae, place),
        text_encoder=_settle(pipeline.text_encoder, place),
        tokenizer=pipeline.tokenizer,
        scheduler=pipeline.scheduler,
        device=place,
        text_encoder_2=None if second is None else _settle(second, place),
        tokenizer_2=parts.get("tokenizer_2"),
        zeros_for_empty=xl and zeros,
        mixed=mixed,
        unsampled=unsampled,
        latent_statistics=None if mean is None or spread is None else (torch.tensor(mean), torch.tensor(spread)),
    )


def _part(folder: Path, kind: Any, dtype: torch.dtype) -> Any:
    """A component of a pipeline, all of whose weights are in its files, and finite.

    Raises:
        InputError: it cannot be loaded, its weights are not those that its config asks for, or not finite.
    """
    if folder.name.startswith("tokenizer"):
        try:
            return kind.from_pretrained(folder, local_files_only=True)
        except Exception as error:  # a tokenizer's files fail in many ways
            raise InputError(f"cannot load {folder} ({line_of(error)}): download the model again") from error
    options: dict[str, Any] = {"dtype": dtype} if folder.name.startswith("text_encoder") else {"torch_dtype": dtype}
    if not folder.name.startswith("text_encoder"):
        options["low_cpu_mem_usage"] = False  # what diffusers does without accelerate, after a warning
    try:
        module, loaded = kind.from_pretrained(
            folder, use_safetensors=True, local_files_only=True, output_loading_info=True, **options
        )
    except Exception as error:  # whatever a config or its weights may be
        raise InputError(f"cannot load {folder} ({line_of(error)}): download the model again") from error
    # What a file lacks is filled up with random numbers, and what it has beyond is left out.
    for what, names in (("lack", "missing_keys"), ("have beyond its config", "unexpected_keys")):
        found = sorted(name for name in loaded[names] if not name.endswith("position_ids"))
        if what != "lack" and folder.name.startswith("text_encoder"):
            # Published ones come with what their class does not read, such as a projection; an adapter is none of that.
            found = [name for name in found if ADAPTER_TENSORS.search(name)]
        if found:
            raise InputError(
                f"the weights in {folder} {what} {found[0]}"
                + (f" and {len(found) - 1} more" if len(found) > 1 else "")
                + ": they are not those of config.json; download the model again"
            )
    _refuse_infinite(module, folder, dtype)
    return module


def _refuse_infinite(module: torch.nn.Module, folder: Path, dtype: torch.dtype) -> None:
    """Refuses weights that are not finite, by the name of the tensor and its file."""
    for name, tensor in module.named_parameters():
        # A sum tells of any that is not finite, cheaply; but it may overflow by itself.
        if tensor.sum(dtype=torch.float32).isfinite() or tensor.isfinite().all():
            continue
        path, stored = _stored(folder, name)
        if stored is None or not stored.isfinite().all():
            raise InputError(f"the weights of {path} are broken ({name} is not finite): download the model again")
        raise InputError(f"{name} of {path} is too large for {str(dtype)[6:]}: --set precision=float32 or bfloat16")


def _stored(folder: Path, name: str) -> tuple[Path, torch.Tensor | None]:
    """The file that holds a tensor of a component, and the tensor as it stands there."""
    files = weight_files(folder, stem_of(folder.name))
    for path in files:
        with safe_open(path, framework="pt") as opened:
            for key in opened.keys():  # noqa: SIM118
                if key == name or key.endswith(f".{name}"):
                    return path, opened.get_tensor(key)
    return files[0], None


def device_of(named: str | None) -> torch.device:
    """The device of this name; the GPU where there is one without a name."""
    return torch.device(named or ("cuda" if torch.cuda.is_available() else "cpu"))


def usable_device(named: str | None) -> torch.device:
    """The same, after something was put there.

    Raises:
        InputError: there is no such device here.
    """
    try:
        place = device_of(named)
        torch.zeros(1, device=place).cpu()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise InputError(f"no device {named!r} here ({str(error).splitlines()[0]}): try cpu") from error
    return place


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
        told = json.loads(path.read_text())
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not JSON: {error}") from error
    if not isinstance(told, dict):
        raise InputError(f"{path} holds no names with their values: it begins with a brace, {{")
    return told


def _settle(module: Any, device: torch.device, mixed: bool = False) -> Any:
    if device.type == "cpu" and isinstance(module, UNet2DConditionModel):
        module = module.to(memory_format=torch.channels_last)
        if mixed:  # the fused attention has no fast backward pass in bfloat16 on a CPU
            module.set_attn_processor(AttnProcessor())
    return module.to(device).eval().requires_grad_(False)
