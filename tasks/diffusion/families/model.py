"""What every method knows of a model, whatever its family.

A family is a subclass in a file of its own: which pipelines of diffusers it is, how its text is read, how its denoiser
is called, which layers play which role, and what it cannot do. What noise does to latents is the schedule's business.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from diffusers.models.attention_processor import AttnProcessor
from torch import nn

from tasks.diffusion.families.schedule import Prediction, Schedule, read_schedule
from tasks.diffusion.families.tokenizers import Tokenizers
from tasks.diffusion.files import INDEX, read_json
from tasks.diffusion.sites import Layer, Site
from tasks.errors import InputError

Parts = Mapping[str, Any]
"""By name, the components of a pipeline, or their configs."""


@dataclass(frozen=True, kw_only=True)
class Model(ABC):
    """A loaded latent diffusion model, in evaluation mode, its weights without gradients.

    Embeddings are one float tensor (n, rows, width), a row a token, so that they can be moved, mixed, searched by
    gradients and stored like any other. What the denoiser reads beside the tokens travels in it: a family says how, and
    lets no gradient through to what is not to be searched.
    """

    source: str
    """Folder it was loaded from."""
    model_id: str
    """What it goes by in the store, see `tasks.diffusion.model.identity`."""
    denoiser: Any
    """The module that predicts, whose weights are mitigated."""
    vae: Any
    text_encoder: Any
    tokenizer: Any
    schedule: Schedule
    device: torch.device
    mixed: bool = False
    """Whether the denoiser computes in bfloat16 where that is safe."""

    pipeline_class: ClassVar[Any]
    """The pipeline of diffusers that is the family's own."""
    components: ClassVar[Mapping[str, tuple[str, ...]]]
    """By component of the pipeline, the classes that it may be of; any scheduler."""
    denoiser_name: ClassVar[str]
    """The component that denoises."""
    denoiser_class: ClassVar[Any]
    text_alone: ClassVar[frozenset[Site]]
    """Sites whose activations follow from the text alone; those of others depend on step and latent, too."""
    start_token: ClassVar[bool]
    """Whether every prompt begins with the same token, and what fills it up is attended to, too, as with CLIP."""
    from_first_step: ClassVar[bool]
    """Whether the pipeline tells its scheduler to begin at step 0: it counts where a schedule names a step twice."""
    optional: ClassVar[frozenset[str]] = frozenset()
    """Components that a pipeline may lack, all of them together."""
    joint: ClassVar[bool] = False
    """Whether text and image attend to both at once, so that no attention is to the text alone."""
    distilled: ClassVar[bool] = False
    """Whether guidance was distilled into the denoiser: no step asks it a second time, without text."""

    # Before any weights are loaded

    @classmethod
    @abstractmethod
    def problems(cls, folder: Path, index: Mapping[str, Any], configs: Parts) -> Iterator[str]:
        """Settings of the components' configs that would be ignored, or that this family cannot follow, a line each.

        Args:
            index: model_index.json.
            configs: by component, its config.json; those that can be read.
        """

    @staticmethod
    @abstractmethod
    def find(denoiser: nn.Module, site: Site) -> Iterable[tuple[str, nn.Module]]:
        """Names and modules of the layers of a site, in order of execution; none where it has none."""

    @classmethod
    @abstractmethod
    def most_tokens(cls, tokenizer: Any, config: Any, denoiser: Mapping[str, Any]) -> int:
        """Tokens of a prompt that are read, with those that begin and end it.

        Args:
            tokenizer: the first one.
            config: of the first text encoder.
            denoiser: its config.
        """

    @classmethod
    def token_limits(cls, tokenizers: Sequence[Any], most: int) -> tuple[int, ...]:
        """How many tokens each of the tokenizers reads, `most_tokens` by default."""
        return (most,) * len(tokenizers)

    @staticmethod
    def read_schedule(folder: Path, name: str) -> Schedule:
        """The schedule by a scheduler's folder and class; see `tasks.diffusion.families.schedule.read_schedule`."""
        return read_schedule(folder, name)

    @staticmethod
    def as_read(text: str) -> str:
        """What the pipeline makes of a prompt before it is tokenized."""
        return text

    @classmethod
    @abstractmethod
    def assembled(cls, parts: Parts, scheduler: Any, index: Mapping[str, Any]) -> Any:
        """The pipeline of diffusers of these components."""

    @classmethod
    def of(cls, index: Mapping[str, Any], **fields: Any) -> Self:
        """The model of these fields, and of what model_index.json says beside."""
        return cls(**fields)

    @classmethod
    def latent_size(cls, denoiser: Mapping[str, Any], vae: Mapping[str, Any]) -> tuple[int, int] | None:
        """Height and width of a latent by the configs of denoiser and autoencoder; None where they do not say."""
        size = denoiser.get("sample_size")
        if isinstance(size, int):
            return size, size
        return (size[0], size[1]) if isinstance(size, list) and len(size) == 2 else None

    @classmethod
    def sampling_notes(cls, denoiser: Mapping[str, Any], guidance: float) -> Iterable[str]:
        """What is worth a line of how models of this family are sampled.

        Args:
            denoiser: its config.
            guidance: that is asked for.
        """
        return ()

    @classmethod
    def decodes_in_float32(cls, vae: Any) -> bool:
        """Whether the pipeline decodes in float32 where everything else is float16."""
        return False

    @classmethod
    def layers_of(cls, denoiser: nn.Module, site: Site) -> tuple[Layer, ...]:
        """The layers of a site.

        Raises:
            InputError: the denoiser has none.
        """
        found = [Layer(site, index, name, module) for index, (name, module) in enumerate(cls.find(denoiser, site))]
        if not found:
            raise InputError(f"this denoiser has no layers at site {site.value!r}")
        return tuple(found)

    # Text

    @abstractmethod
    def encode(self, prompts: list[str], batch: int = 256) -> torch.Tensor:
        """Embeddings of prompts, float (n, rows, width).

        A prompt of more tokens than the model reads is truncated as training truncates captions: the start of the
        text, its first tokens, the end of the text. Whoever asks says so beforehand, see `tasks.collect.token_check`.
        """

    def unconditional(self) -> torch.Tensor:
        """What the half of classifier-free guidance without text reads, (1, rows, width)."""
        return self.encode([""])

    @property
    def tokens(self) -> int:
        """Tokens of a prompt that are read, with those that begin and end it."""
        return self.most_tokens(self.tokenizer, self.text_encoder.config, self.denoiser.config)

    @property
    def tokenizers(self) -> Tokenizers:
        """What counts a prompt's tokens: some families have several."""
        named = (getattr(self, name) for name in self.components if name.startswith("tokenizer"))
        each = tuple(one for one in named if one is not None)
        return Tokenizers(each, self.tokens, self.as_read, self.token_limits(each, self.tokens))

    @property
    @abstractmethod
    def token_width(self) -> int:
        """Values of a token's embedding."""

    @property
    def row_groups(self) -> tuple[slice, ...]:
        """Rows of an embedding that are of one kind, such as tokens and pooled vectors."""
        return (slice(0, self.tokens),)

    def mask(self, embeddings: torch.Tensor) -> torch.Tensor | None:
        """Which rows of embeddings are read, bool (n, rows); None where all are."""
        return None

    def unmasked(self, embeddings: torch.Tensor) -> torch.Tensor:
        """The same embeddings, of which all rows are read."""
        return embeddings

    def text_input(self, site: Site, embeddings: torch.Tensor) -> torch.Tensor:
        """What the layers of a site read that depends on the text alone, (n, tokens, inputs).

        Raises:
            InputError: the site depends on step and latent, too.
        """
        if site not in self.text_alone:
            known = ", ".join(sorted(one.value for one in self.text_alone)) or "none"
            raise InputError(
                f"activations at site {site.value!r} of {type(self).__name__} depend on step and latent, not on the "
                f"text alone; those at these sites do not: {known}"
            )
        return self._text(embeddings)

    @abstractmethod
    def _text(self, embeddings: torch.Tensor) -> torch.Tensor:
        """What the denoiser's cross-attention reads, (n, tokens, inputs)."""

    def of_text(self, output: torch.Tensor) -> torch.Tensor:
        """What a layer of values or keys gives of the text, (n, tokens, outputs), where the image passes it, too."""
        return output

    # Predictions

    @property
    def dtype(self) -> torch.dtype:
        return self.denoiser.dtype

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of a latent."""
        size = self.denoiser.config.sample_size
        height, width = (size, size) if isinstance(size, int) else size
        return self.denoiser.config.in_channels, height, width

    @property
    def pixels_of_latent(self) -> int:
        """Height of what a latent's one row shows, in pixels; as the pipeline counts it."""
        return 2 ** (len(self.vae.config.block_out_channels) - 1)

    def with_guidance(self, guidance: float) -> Self:
        """The same model as it samples at this guidance, where that is a number which the denoiser reads."""
        return self

    def output(self, latents: torch.Tensor, timestep: torch.Tensor | float, embeddings: torch.Tensor) -> torch.Tensor:
        """What the denoiser says of latents, in its own terms, which are those of its scheduler.

        Args:
            latents: (n, channels, height, width).
            timestep: one for all, or (n,).
            embeddings: (n, rows, width).

        Returns:
            (n, channels, height, width), of the latents' dtype.
        """
        timesteps = torch.as_tensor(timestep, device=self.device).expand(len(latents))
        # Not all devices know autocast, even where it is off.
        with torch.autocast(self.device.type, torch.bfloat16) if self.mixed else nullcontext():
            return self._run(latents, timesteps, embeddings).to(latents.dtype)

    @abstractmethod
    def _run(self, latents: torch.Tensor, timesteps: torch.Tensor, embeddings: torch.Tensor) -> torch.Tensor:
        """The denoiser's pass; timesteps (n,)."""

    def predict(self, latents: torch.Tensor, timestep: torch.Tensor | float, embeddings: torch.Tensor) -> Prediction:
        """The noise in latents and the clean latents behind them, whatever the denoiser was trained to predict.

        Args: as `output`; timesteps are those of training.

        Raises:
            InputError: the denoiser predicts something else.
        """
        return self.schedule.prediction(self.output(latents, timestep, embeddings), latents, timestep)

    def add_noise(self, latents: torch.Tensor, noise: torch.Tensor, timestep: torch.Tensor | float) -> torch.Tensor:
        """Latents noised as in training, of the model's dtype; all (n, channels, height, width), timesteps (n,)."""
        return self.schedule.add_noise(latents, noise, timestep).to(self.dtype)

    def training_loss(
        self, latents: torch.Tensor, noise: torch.Tensor, timestep: torch.Tensor | float, embeddings: torch.Tensor
    ) -> torch.Tensor:
        """The plain diffusion loss of each sample, float32 (n,): the mean square of eps - eps_theta(z_t, t, y).

        On noise also where the model predicts velocities, so that losses of all models compare; on velocity where the
        schedule ends in noise, see `Schedule.target`.

        Args:
            latents: clean, (n, channels, height, width), as the noise.
            timestep: one for all, or (n,).
            embeddings: (n, rows, width).
        """
        noisy = self.add_noise(latents, noise, timestep)
        predicted = self.predict(noisy, timestep, embeddings.to(self.dtype)).target
        target = self.schedule.target(latents, noise, timestep)
        return (predicted.float() - target.float()).square().mean((1, 2, 3))

    def memory_signal(self, prediction: Prediction, latents: torch.Tensor) -> torch.Tensor:
        """What a first prediction shows of a memory, float32 (n, channels, height, width): eps(z, t, y) - z.

        Near pure noise it is the image that the model steers at, whatever the seed (Hintersdorf et al., Finding NeMo,
        NeurIPS 2024, section 3.1). Where little signal is left that difference is about -sqrt(a) x, x the predicted
        image; where none is left it is nothing, so it is -x itself for a schedule that ends in noise: derived from the
        published signal, and scaled by whoever compares it.
        """
        if self.schedule.ends_in_noise:
            return -prediction.clean.float()
        return prediction.noise.float() - latents.float()

    # Images

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Pixels (n, 3, height, width), about -1 to 1, of latents."""
        pixels: torch.Tensor = self.vae.decode(self._unscaled(latents.to(self.vae.dtype)), return_dict=False)[0]
        return pixels

    def encode_images(self, pixels: torch.Tensor) -> torch.Tensor:
        """Latents of pixels (n, 3, height, width), -1 to 1; the mean where the encoder gives a distribution."""
        output = self.vae.encode(pixels.to(self.device, self.vae.dtype))
        return self._scaled(output.latents if hasattr(output, "latents") else output.latent_dist.mean).to(self.dtype)

    def _unscaled(self, latents: torch.Tensor) -> torch.Tensor:
        """Latents as the autoencoder has them, of latents as the denoiser has them."""
        unscaled: torch.Tensor = latents / self.vae.config.scaling_factor
        return unscaled

    def _scaled(self, latents: torch.Tensor) -> torch.Tensor:
        """The other way."""
        scaled: torch.Tensor = latents * self.vae.config.scaling_factor
        return scaled

    # The denoiser and its layers

    def layers(self, site: Site) -> tuple[Layer, ...]:
        """The layers of a site in order of execution.

        Raises:
            InputError: the denoiser has none.
        """
        return self.layers_of(self.denoiser, site)

    @property
    def family(self) -> str:
        """Class of the denoiser and width of the text embeddings."""
        return f"{type(self.denoiser).__name__} {self.token_width}"

    def with_denoiser(self, denoiser: nn.Module) -> Self:
        """The same model with another denoiser of the same shape."""
        return replace(self, denoiser=settled(denoiser, self.device, self.mixed and not self.joint))

    @property
    def asked_of_pipeline(self) -> Mapping[str, Any]:
        """What the pipeline's call has to be given to sample as audits do."""
        return {}

    def packed(self, latents: torch.Tensor) -> torch.Tensor:
        """Latents (n, channels, height, width) as the pipeline passes them on."""
        return latents

    def unpacked(self, packed: torch.Tensor) -> torch.Tensor:
        """The other way."""
        return packed

    def pipeline(self, scheduler: Any) -> Any:
        """The pipeline of diffusers of the same components."""
        names = [name for name in self.components if name not in (self.denoiser_name, "scheduler")]
        parts = {name: getattr(self, name) for name in names} | {self.denoiser_name: self.denoiser}
        return self.assembled(parts, scheduler, read_json(Path(self.source) / INDEX))


def settled(denoiser: Any, device: torch.device, mixed: bool) -> Any:
    """A denoiser as it computes fastest on a device, in evaluation mode, its weights without gradients.

    Args:
        mixed: whether it computes in bfloat16, and its attention is such as diffusers' plain one can do.
    """
    if device.type == "cpu":
        denoiser = denoiser.to(memory_format=torch.channels_last)
        if mixed:  # the fused attention has no fast backward pass in bfloat16 on a CPU
            denoiser.set_attn_processor(AttnProcessor())
    return denoiser.to(device).eval().requires_grad_(False)


def autoencoder_problems(
    path: Path, vae: Mapping[str, Any], pipeline: str, statistics: bool = False, shift: bool = False
) -> Iterator[str]:
    """Settings of an autoencoder that its pipeline would ignore.

    Args:
        path: of its config.
        pipeline: the class that does or does not apply them.
        statistics: whether it applies the mean and spread of latents.
        shift: whether it applies their shift.
    """
    if vae.get("shift_factor") and not shift:
        yield f"{path} has shift_factor {vae['shift_factor']}, which {pipeline} does not apply: its images would be off"
    given = [name for name in ("latents_mean", "latents_std") if vae.get(name) is not None]
    if given and not statistics:
        yield f"{path} has {' and '.join(given)}, which {pipeline} does not apply: its images would be off"
    elif len(given) == 1:
        yield f"{path} has {given[0]} alone, which {pipeline} does not apply: give latents_mean and latents_std"
    channels = vae.get("latent_channels", 4)
    for name in given if len(given) == 2 and statistics else ():
        if not isinstance(vae[name], list) or len(vae[name]) != channels:
            yield f"{path} has a {name} that is no list of {channels} numbers, one a channel of latents"
    if "scaling_factor" in vae and not (isinstance(vae["scaling_factor"], int | float) and vae["scaling_factor"] > 0):
        yield f"{path} has scaling_factor {vae['scaling_factor']!r}: it must be a number above 0"
    if vae.get("in_channels", 3) != 3 or vae.get("out_channels", 3) != 3:
        yield f"{path} makes no images of 3 channels: audits need red, green and blue"
