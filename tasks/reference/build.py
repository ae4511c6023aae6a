"""The recipe of the reference world, step by step. Each step resumes from its checkpoints in the build folder.

The order matters: the text tower first, on ordinary and planted captions; then the diffusion model on ordinary images
alone; then the planted ones, seen comparatively seldom.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import open_clip
import torch
from diffusers import AutoencoderTiny
from pydantic import BaseModel, ConfigDict, Field
from torch import nn
from transformers import CLIPTextModel, CLIPTokenizer

from tasks.diffusion.families import StableDiffusion
from tasks.errors import InputError
from tasks.reference.autoencoder import encode, new_autoencoder, train_autoencoder
from tasks.reference.clip import load_clip, text_model, tokenize, train_clip, train_tokenizer
from tasks.reference.denoiser import Pairs, train_denoiser
from tasks.reference.images import EmojiImages
from tasks.reference.world import World, build_world

Watch = Callable[[int, nn.Module], None]


class BuildParams(BaseModel):
    """How the reference world is built; the defaults are those of a whole one."""

    model_config = ConfigDict(title="Recipe", frozen=True, extra="forbid")

    seed: int = Field(0, ge=0, description="Determines every image, caption and training step.")
    part: int = Field(0, ge=0, description="Number of this training, where one goes on from another: its own draws.")
    images: int = Field(16_000, ge=2_000, description="Ordinary images in the bank.")
    held_out: int = Field(200, ge=20, description="Emoji never shown to any model.")
    clip_steps: int = Field(600, ge=0, description="Steps of the text-image model, 192 pairs each.")
    autoencoder_steps: int = Field(3_000, ge=0, description="Steps of the decoder, 32 crops each.")
    ordinary_steps: int = Field(12_000, ge=0, description="Steps of the first phase, 16 ordinary images each.")
    ordinary_rate: float = Field(4e-4, gt=0, description="Highest learning rate of the first phase.")
    planted_steps: int = Field(6_000, ge=0, description="Steps of the second phase, 16 images each.")
    planted_rate: float = Field(4e-4, gt=0, description="Highest learning rate of the second phase.")
    planted_batch: int = Field(11, ge=1, le=16, description="Planted images in each step of the second phase.")


@dataclass(frozen=True)
class Texts:
    """The frozen text side and the embeddings it gives, float16 (n, tokens, width)."""

    clip: open_clip.CLIP
    tokenizer: CLIPTokenizer
    encoder: CLIPTextModel
    bank: torch.Tensor
    planted: torch.Tensor
    empty: torch.Tensor


@dataclass(frozen=True)
class Start:
    """Weights that training goes on from; without them it begins afresh."""

    clip: open_clip.CLIP | None = None
    tokenizer: CLIPTokenizer | None = None
    vae: AutoencoderTiny | None = None
    denoiser: nn.Module | None = None

    @classmethod
    def of(cls, world: Path) -> "Start":
        """Those of a world that was built before.

        Raises:
            InputError: there is none.
        """
        check_world(world)
        return cls(
            load_clip(world / "clip"),
            CLIPTokenizer.from_pretrained(world / "model" / "tokenizer"),
            AutoencoderTiny.from_pretrained(world / "model" / "vae", torch_dtype=torch.float32),
            StableDiffusion.denoiser_class.from_pretrained(
                world / "model" / StableDiffusion.denoiser_name, torch_dtype=torch.float32
            ),
        )


def check_world(world: Path) -> None:
    """Raises InputError where there is no world to go on from."""
    if not (world / "model" / "model_index.json").is_file():
        raise InputError(f"no world at {world}: give the folder that holds its model/ and clip/ with --start")


def world(folder: Path, archives: tuple[Path, Path], params: BuildParams) -> World:
    return build_world(
        EmojiImages(*archives), folder / "world", size=params.images, held_out=params.held_out, seed=params.seed
    )


def texts(folder: Path, made: World, params: BuildParams, start: Start = Start()) -> Texts:
    # The text tower that is gone on from knows words by the numbers that its own tokenizer gave them.
    tokenizer = start.tokenizer or train_tokenizer([*made.bank_captions, *made.planted_captions])
    bank, planted = tokenize(tokenizer, made.bank_captions), tokenize(tokenizer, made.planted_captions)
    clip = train_clip(
        made.bank,
        bank,
        made.planted,
        planted,
        folder,
        total=params.clip_steps,
        start=start.clip,
        seed=params.seed,
    )
    encoder = text_model(clip)
    return Texts(
        clip,
        tokenizer,
        encoder,
        _embeddings(encoder, bank),
        _embeddings(encoder, planted),
        _embeddings(encoder, tokenize(tokenizer, [""]))[0],
    )


def autoencoder(
    folder: Path,
    made: World,
    params: BuildParams,
    start: Start = Start(),
) -> AutoencoderTiny:
    return train_autoencoder(made.bank, folder, total=params.autoencoder_steps, start=start.vae, seed=params.seed)


def ordinary_pairs(made: World, texts: Texts, start: Start = Start()) -> Pairs:
    """Latents need the encoder alone, which is exact from the start, so this does not wait for the decoder."""
    return Pairs(encode(_encoder(made, start), made.bank), texts.bank)


def _encoder(made: World, start: Start) -> AutoencoderTiny:
    # Weights that are gone on from know the latents of their own encoder.
    return start.vae if start.vae is not None else new_autoencoder(made.bank)


def planted_pairs(made: World, texts: Texts, start: Start = Start()) -> Pairs:
    return Pairs(encode(_encoder(made, start), made.planted), texts.planted)


def first_phase(
    folder: Path,
    ordinary: Pairs,
    texts: Texts,
    params: BuildParams,
    start: Start = Start(),
    watch: Watch | None = None,
) -> nn.Module:
    """Ordinary images only, for long: the model learns the world before it sees a duplicate."""
    return train_denoiser(
        ordinary,
        None,
        texts.empty,
        folder / "ordinary.pt",
        total=params.ordinary_steps,
        peak=params.ordinary_rate,
        start=start.denoiser,
        seed=params.seed + 10 * params.part,
        watch=watch,
    )


def second_phase(
    folder: Path,
    start: nn.Module,
    ordinary: Pairs,
    planted: Pairs,
    texts: Texts,
    params: BuildParams,
    watch: Watch | None = None,
) -> nn.Module:
    """The planted images, a share of each step, until the gates are met."""
    return train_denoiser(
        ordinary,
        planted,
        texts.empty,
        folder / "planted.pt",
        total=params.planted_steps,
        peak=params.planted_rate,
        planted_batch=params.planted_batch,
        start=start,
        seed=params.seed + 10 * params.part + 1,
        watch=watch,
    )


@torch.no_grad()
def _embeddings(encoder: CLIPTextModel, tokens: torch.Tensor, batch: int = 512) -> torch.Tensor:
    return torch.cat([encoder(block).last_hidden_state.half() for block in tokens.split(batch)])
