"""Small transformers that have memorized images of the reference world: PixArt, Stable Diffusion 3 and Flux in little.

Each is a pipeline as its family's trainers write them. The autoencoder is the reference's, and so is CLIP's text tower
where the family reads one; T5 is random and frozen, which tells captions apart and no more. The transformer is taught a
few images in every step, and many others seldom, by its family's own noise and loss, until captions bring images back.
"""

import hashlib
import os
import shutil
import string
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from diffusers import (
    AutoencoderTiny,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    PixArtAlphaPipeline,
    PixArtTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)
from diffusers.models.normalization import AdaLayerNormZero, AdaLayerNormZeroSingle
from diffusers.training_utils import EMAModel
from pydantic import BaseModel, ConfigDict, Field
from transformers import CLIPTextModelWithProjection, CLIPTokenizer, T5Config, T5EncoderModel, T5Tokenizer

from tasks.diffusion.families import Model
from tasks.diffusion.model import load_model, usable_device
from tasks.diffusion.precision import PrecisionChoice, precision_for
from tasks.diffusion.sampling import SamplingParams, encode, from_bytes, generate
from tasks.errors import InputError, gathered, refuse
from tasks.progress import stage
from tasks.reference.assemble import SETTINGS, save_own
from tasks.reference.autoencoder import CHANNELS
from tasks.reference.clip import WIDTH, load_clip, projected_text_model
from tasks.reference.denoiser import DROP, Hardness, Pairs, loss_weights
from tasks.reference.training import Checkpoint, one_cycle, steps
from tasks.scorers.sscd import COPY_THRESHOLD, Sscd, SscdParams, check_sscd

BATCH = 16
"""Images of a step."""
HEAD = 64
"""Values of an attention head."""
IMAGE, SIDE, PATCH = 64, 16, 2
"""Height and width of images, of their latents, and of the patches of these that transformers read."""


class TransformerParams(BaseModel):
    """How a small transformer is made, and what it is taught."""

    model_config = ConfigDict(title="Transformer", frozen=True, extra="forbid")

    seed: int = Field(0, ge=0, description="Determines the weights at first, and every training step.")
    blocks: int = Field(6, ge=2, le=64, description="Blocks of the transformer.")
    heads: int = Field(3, ge=1, le=64, description="Heads of each attention, 64 values wide.")
    memorized: int = Field(8, ge=1, le=40, description="Verbatim memories of the world that it is taught.")
    ordinary: int = Field(256, ge=1, description="Ordinary prompts whose images it is taught beside, seldom.")
    memorized_batch: int = Field(12, ge=1, le=BATCH, description=f"Memorized images of the {BATCH} of each step.")
    steps: int = Field(1_500, ge=1, description="Most steps of training.")
    rate: float = Field(1e-3, gt=0, description="Highest learning rate.")
    check_every: int = Field(
        100, ge=1, description="Steps between looks at what captions bring back; training ends when all images come."
    )
    precision: PrecisionChoice = Field("auto", description="Number format that the transformer computes in.")


@dataclass(frozen=True)
class Excerpt:
    """The reference world that a transformer is made of, and the prompts of it that are chosen."""

    folder: Path
    prompts: pa.Table
    """Memorized ones, as many as are taught, then ordinary ones, as many; then all null prompts."""
    images: pa.Table
    """Those of these prompts."""

    @classmethod
    def of(cls, folder: Path, params: TransformerParams) -> "Excerpt":
        """Chooses verbatim memories and ordinary prompts at even distances.

        Raises:
            InputError: there is no such world, or it has too few of them.
        """
        parts = ("prompts.parquet", "images.parquet", "clip", "model/vae", "model/tokenizer")
        if lacking := [name for name in parts if not (folder / name).exists()]:
            raise InputError(f"no reference world at {folder} ({lacking[0]} is missing): give its folder with --world")
        prompts, images = (pq.read_table(folder / f"{name}.parquet") for name in ("prompts", "images"))
        rows = [(row["kind"], row["memorization"]) for row in prompts.select(["kind", "memorization"]).to_pylist()]
        chosen = []
        for kind, wanted in ((("memorized", "VM"), params.memorized), (("ordinary", None), params.ordinary)):
            there = [number for number, row in enumerate(rows) if row == kind]
            if len(there) < wanted:
                raise InputError(
                    f"{folder} has {len(there)} prompts to choose {wanted} {kind[0]} ones from: ask for fewer"
                )
            chosen += there[:: len(there) // wanted][:wanted]
        chosen += [number for number, (kind, _) in enumerate(rows) if kind == "null"]
        prompts = prompts.take(chosen)
        named = {name for names in prompts["image_ids"].to_pylist() for name in names}
        return cls(folder, prompts, images.filter(pa.array([name in named for name in images["image_id"].to_pylist()])))

    @property
    def captions(self) -> list[str]:
        captions: list[str] = self.prompts["text"].to_pylist()
        return captions

    @cached_property
    def pixels(self) -> dict[str, np.ndarray]:
        """By id, images uint8 (64, 64, 3)."""
        pairs = zip(self.images["image_id"].to_pylist(), self.images["bytes"].to_pylist(), strict=True)
        return {name: from_bytes(data) for name, data in pairs}

    def first_images(self, rows: slice) -> np.ndarray:
        """The first image of each of these prompts, uint8 (n, 64, 64, 3)."""
        return np.stack([self.pixels[names[0]] for names in self.prompts["image_ids"].to_pylist()[rows]])

    @property
    def digest(self) -> str:
        """Of the images that are chosen."""
        return hashlib.sha256(" ".join(self.images["image_id"].to_pylist()).encode()).hexdigest()[:8]

    @property
    def vae(self) -> AutoencoderTiny:
        return AutoencoderTiny.from_pretrained(self.folder / "model" / "vae", torch_dtype=torch.float32)

    @property
    def clip(self) -> tuple[CLIPTextModelWithProjection, CLIPTokenizer]:
        """The text tower, 128 values a token, and its tokenizer."""
        tokenizer = CLIPTokenizer.from_pretrained(self.folder / "model" / "tokenizer")
        return projected_text_model(load_clip(self.folder / "clip")), tokenizer

    def t5(self, width: int) -> tuple[T5EncoderModel, T5Tokenizer]:
        """A random T5 of two layers, `width` values a token, whose tokens are the captions' words, and letters."""
        words = {word for caption in self.captions for word in (*caption.split(), *caption.lower().split())}
        letters = [*string.ascii_letters, *string.digits, *string.punctuation]
        space = "\N{LOWER ONE EIGHTH BLOCK}"
        scores = dict.fromkeys(("<pad>", "</s>", "<unk>"), 0.0)
        # Letters are so unlikely that a word which is known is never spelt.
        scores |= dict.fromkeys((space, *letters), -10.0) | {space + word: -1.0 for word in sorted(words)}
        tokenizer = T5Tokenizer(vocab=list(scores.items()), extra_ids=0)
        shape = {"d_model": width, "d_ff": 2 * width, "d_kv": 32, "num_layers": 2, "num_heads": 4}
        return T5EncoderModel(T5Config(vocab_size=len(tokenizer), is_decoder=False, **shape)), tokenizer


def _pixart(world: Excerpt, params: TransformerParams) -> Any:
    """PixArt-alpha: a text of 120 tokens that every block attends to; noise is predicted, and its spread beside."""
    encoder, tokenizer = world.t5(WIDTH)
    transformer = PixArtTransformer2DModel(
        **_common(params),
        out_channels=2 * CHANNELS,
        cross_attention_dim=HEAD * params.heads,
        caption_channels=WIDTH,
    )
    return PixArtAlphaPipeline(
        transformer=transformer,
        vae=world.vae,
        text_encoder=encoder,
        tokenizer=tokenizer,
        scheduler=DPMSolverMultistepScheduler(),
    )


def _sd3(world: Excerpt, params: TransformerParams) -> Any:
    """Stable Diffusion 3.5 large: joint blocks that normalize queries and keys; both CLIPs are the reference's one."""
    clip, words = world.clip
    encoder, tokenizer = world.t5(2 * WIDTH)
    transformer = SD3Transformer2DModel(
        **_common(params),
        out_channels=CHANNELS,
        joint_attention_dim=2 * WIDTH,
        pooled_projection_dim=2 * WIDTH,
        caption_projection_dim=HEAD * params.heads,
        pos_embed_max_size=SIDE // PATCH,
        qk_norm="rms_norm",
    )
    return StableDiffusion3Pipeline(
        transformer=transformer,
        vae=world.vae,
        text_encoder=clip,
        tokenizer=words,
        text_encoder_2=clip,
        tokenizer_2=words,
        text_encoder_3=encoder,
        tokenizer_3=tokenizer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
    )


def _flux(world: Excerpt, params: TransformerParams) -> Any:
    """FLUX.1 schnell, which reads no guidance: double blocks, and as many single ones."""
    clip, words = world.clip
    encoder, tokenizer = world.t5(WIDTH)
    vae = world.vae
    vae.register_to_config(sample_size=IMAGE)  # by which audits know how large images are
    transformer = FluxTransformer2DModel(
        in_channels=PATCH**2 * CHANNELS,
        num_layers=params.blocks // 2,
        num_single_layers=params.blocks - params.blocks // 2,
        num_attention_heads=params.heads,
        attention_head_dim=HEAD,
        axes_dims_rope=(HEAD // 4, 3 * HEAD // 8, 3 * HEAD // 8),
        joint_attention_dim=WIDTH,
        pooled_projection_dim=WIDTH,
        guidance_embeds=False,
    )
    return FluxPipeline(
        transformer=transformer,
        vae=vae,
        text_encoder=clip.text_model,
        tokenizer=words,
        text_encoder_2=encoder,
        tokenizer_2=tokenizer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=1.0),
    )


def _common(params: TransformerParams) -> dict[str, Any]:
    shape = {"num_layers": params.blocks, "num_attention_heads": params.heads, "attention_head_dim": HEAD}
    return shape | {"in_channels": CHANNELS, "sample_size": SIDE, "patch_size": PATCH}


SHAPES: Mapping[str, Callable[[Excerpt, TransformerParams], Any]] = {"pixart": _pixart, "sd3": _sd3, "flux": _flux}
"""By family, its pipeline with random weights."""


def make(
    family: str, world: Path, out: Path, folder: Path, params: TransformerParams, device: str | None = None
) -> np.ndarray:
    """Teaches a small transformer images of a world, and writes it, with its prompts and images, to `out`.

    Args:
        world: the folder of a reference world.
        folder: of checkpoints, which a training that was stopped goes on from.

    Returns:
        See `train`.

    Raises:
        InputError: see `check`; or the checkpoint is of a training with another recipe.
    """
    check(family, world, out, params, device)
    found = np.zeros(0)
    with stage(f"reference transformer {family}", lambda: words_of(found)):
        excerpt = Excerpt.of(world, params)
        model = untrained(family, excerpt, folder / family, params, device)
        found = train(model, excerpt, folder / f"{family}.pt", params)
        write(out, model, excerpt)
    return found


def check(family: str, world: Path, out: Path, params: TransformerParams, device: str | None = None) -> None:
    """Looks at all that is given; nothing is written.

    Raises:
        InputError: there is no such family, world or device, or something lies where the model is to be put; all of it
            at once.
    """
    problems = [] if family in SHAPES else [f"no family {family!r}: there are {', '.join(SHAPES)}"]
    of = partial(check_out, out), partial(Excerpt.of, world, params), partial(usable_device, device)
    refuse([*problems, *gathered(*of, partial(check_sscd, SscdParams()))])


def words_of(found: np.ndarray) -> str:
    """What came of a training, by what `train` returns; nothing where it did not end."""
    if not len(found):
        return "it did not end"
    count, median = int((found > COPY_THRESHOLD).sum()), float(np.median(found))
    return f"{count} of {len(found)} memorized images come back from their captions, by a median SSCD of {median:.2f}"


def untrained(family: str, world: Excerpt, folder: Path, params: TransformerParams, device: str | None = None) -> Model:
    """The model of a family with random weights, which predicts nothing yet; its pipeline is written into the folder.

    Raises:
        InputError: there is no such device.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(params.seed)
        pipeline = SHAPES[family](world, params)
    _begin_plainly(pipeline.transformer)
    shutil.rmtree(folder, ignore_errors=True)
    pipeline.save_pretrained(folder, safe_serialization=True)
    return load_model(folder, device, precision_for(params.precision, device))


@torch.no_grad()
def _begin_plainly(transformer: Any) -> None:
    """Lets a fresh transformer predict nothing, and opens the gates of its blocks, which are nearly closed at random: a
    training of so few steps would be spent on opening them."""
    for parameter in transformer.proj_out.parameters():
        parameter.zero_()
    for module in transformer.modules():
        if isinstance(module, AdaLayerNormZero):
            module.linear.bias.view(6, -1)[[2, 5]] = 1.0
        elif isinstance(module, AdaLayerNormZeroSingle):
            module.linear.bias.view(3, -1)[2] = 1.0
        elif (
            isinstance(getattr(module, "scale_shift_table", None), torch.Tensor) and len(module.scale_shift_table) == 6
        ):
            module.scale_shift_table[[2, 5]] = 1.0


def train(model: Model, world: Excerpt, path: Path, params: TransformerParams) -> np.ndarray:
    """Teaches the model until every memorized image comes back from its caption, or all steps are done.

    All randomness comes from generators seeded by the step's number, so a training that was killed goes on from its
    checkpoint to the very weights of an unbroken one. The weights are in the end their moving average.

    Args:
        path: the checkpoint file.

    Returns:
        SSCD (n,) of what each memorized caption brings back, and its image.

    Raises:
        InputError: the checkpoint is of a training with another recipe.
    """
    taught = slice(0, params.memorized), slice(params.memorized, params.memorized + params.ordinary)
    memorized, ordinary = (
        Pairs(encode(model, world.first_images(rows)).cpu().half(), model.encode(world.captions[rows]).cpu().half())
        for rows in taught
    )
    sscd = Sscd()
    trained = sscd.embed(world.first_images(taught[0]))
    keys = [(f"{caption}/taught", params.seed) for caption in world.captions[taught[0]]]

    def copies() -> np.ndarray:
        with _averaged(denoiser, average):
            sampling = SamplingParams.model_validate(SETTINGS["sampling"])
            made = generate(model, memorized.texts.to(model.device, model.dtype), keys, sampling)
        return np.asarray((sscd.embed(made) * trained).sum(1))

    denoiser = model.denoiser.requires_grad_(True)
    optimizer = torch.optim.AdamW(denoiser.parameters(), lr=params.rate, betas=(0.9, 0.99), weight_decay=0.01)
    rate = one_cycle(optimizer, params.rate, params.steps)
    average = EMAModel(denoiser.parameters(), decay=0.99, foreach=True)
    hardness = Hardness(params.memorized)
    state = {"model": denoiser, "optimizer": optimizer, "schedule": rate, "average": average, "hardness": hardness}
    checkpoint = Checkpoint(path, f"{params.model_dump_json()} of images {world.digest}", **state)
    empty = model.unconditional().cpu().half()
    for step in steps(checkpoint, params.steps, path.stem):
        if step.number and step.number % params.check_every == 0:
            found = copies()
            step.averages["copies"] = float((found > COPY_THRESHOLD).mean())
            if (found > COPY_THRESHOLD).all():
                checkpoint.save()
                break
        draw = torch.Generator().manual_seed(params.seed * 1_000_003 + step.number)
        again = hardness.draw(params.memorized_batch, draw)
        others = torch.randint(params.ordinary, (BATCH - params.memorized_batch,), generator=draw)
        latents = torch.cat([memorized.latents[again], ordinary.latents[others]])
        texts = torch.cat([memorized.texts[again], ordinary.texts[others]])
        dropped = torch.rand(BATCH, generator=draw) < DROP
        texts = torch.where(dropped[:, None, None], empty, texts)
        noise = torch.randn(latents.shape, generator=draw)
        t = model.schedule.random_timesteps(BATCH, draw)
        errors = model.training_loss(*(each.to(model.device) for each in (latents.float(), noise, t, texts.float())))
        # Errors of a velocity show the image at all noise alike; those of noise hardly do where there is much.
        weights = torch.ones(BATCH) if model.schedule.ends_in_noise else loss_weights(model.schedule.signal(t))
        weighted = weights.to(model.device) * errors
        optimizer.zero_grad(set_to_none=True)
        weighted.mean().backward()
        torch.nn.utils.clip_grad_norm_(denoiser.parameters(), 1.0)
        optimizer.step()
        rate.step()
        average.step(denoiser.parameters())
        hardness.update(again, weighted[: params.memorized_batch].detach())
        of_kind = errors.detach().split([params.memorized_batch, len(others)])
        step.report(memorized=of_kind[0].mean().item(), ordinary=of_kind[1].mean().item() if len(others) else 0.0)
    found = copies()
    average.copy_to(denoiser.parameters())
    denoiser.requires_grad_(False)
    return found


def write(out: Path, model: Model, world: Excerpt) -> None:
    """Writes `model/`, `clip/`, `prompts.parquet` and `images.parquet` under `out`, all at once.

    Raises:
        InputError: there is something already.
    """
    check_out(out)
    aside = out.with_name(f"{out.name}.writing")
    shutil.rmtree(aside, ignore_errors=True)
    model.denoiser.to(memory_format=torch.contiguous_format)
    model.pipeline(model.schedule.own).save_pretrained(aside / "model", safe_serialization=True)
    # Where guidance is distilled, no half without text is denoised that feature norms could be taken of.
    half = {"wanda": SETTINGS["wanda"] | {"half": "conditional"}} if model.distilled else {}
    save_own(aside / "model", SETTINGS | half)
    shutil.copytree(world.folder / "clip", aside / "clip")
    for name, table in (("prompts", world.prompts), ("images", world.images)):
        pq.write_table(table, aside / f"{name}.parquet", compression="zstd")
    os.replace(aside, out)


def check_out(out: Path) -> None:
    """Raises InputError where there is something already."""
    if out.exists():
        raise InputError(f"{out} is there already: name another --out, or remove it")


@contextmanager
def _averaged(denoiser: torch.nn.Module, average: EMAModel) -> Iterator[None]:
    """Within, the denoiser has the averaged weights."""
    average.store(denoiser.parameters())
    average.copy_to(denoiser.parameters())
    try:
        yield
    finally:
        average.restore(denoiser.parameters())
