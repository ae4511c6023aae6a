"""A LoRA adapter that memorizes its training set: images that the reference model has never seen.

What adapters of people's own do to a model is audited in the same way, so this is what they can try it on.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
from diffusers import StableDiffusionPipeline
from diffusers.utils import convert_state_dict_to_diffusers
from peft import LoraConfig, get_peft_model_state_dict, inject_adapter_in_model
from pydantic import BaseModel, ConfigDict, Field
from torch import nn

from tasks.diffusion.families import Model
from tasks.diffusion.model import load_model
from tasks.diffusion.noise import generator
from tasks.diffusion.precision import precision_for
from tasks.diffusion.sampling import SamplingParams, encode, fitted, from_bytes, generate, image_size
from tasks.errors import InputError, refuse
from tasks.reference.assemble import SETTINGS
from tasks.reference.denoiser import errors_of
from tasks.reference.training import Checkpoint, one_cycle, steps
from tasks.scorers.sscd import COPY_THRESHOLD, Sscd, SscdParams

LAYERS = ["to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2"]
"""What is trained beside the model: attention and feed-forward, as trainers do by default."""
REPEATS = 10
"""Times an epoch that trainers are told to show each image, by the name of its folder."""
SEEDS = 2
FILE = "adapter.safetensors"


class AdapterParams(BaseModel):
    """How the adapter is trained."""

    model_config = ConfigDict(title="Adapter", frozen=True, extra="forbid")

    seed: int = Field(0, ge=0, description="Determines the first weights, timesteps and noise.")
    images: int = Field(12, ge=1, le=200, description="Images of the training set.")
    rank: int = Field(16, ge=1, le=128, description="Rank of the adapter.")
    steps: int = Field(2_000, ge=1, description="Steps, each over all of the images.")
    rate: float = Field(2e-3, gt=0, description="Highest learning rate of AdamW, in one cycle.")


@dataclass(frozen=True)
class Trained:
    """What came of it."""

    adapter: Path
    dataset: Path
    before: np.ndarray
    """How near the model's generations come to each image without the adapter, float (n,): SSCD, best of the seeds."""
    after: np.ndarray
    """The same with it."""

    @property
    def words(self) -> str:
        """What came of it in one sentence."""
        came = [int((some > COPY_THRESHOLD).sum()) for some in (self.before, self.after)]
        return (
            f"of {len(self.after)} images {came[0]} come back from their captions without the adapter and {came[1]} "
            f"with it (SSCD above {COPY_THRESHOLD}, best of {SEEDS} seeds; medians {np.median(self.before):.2f} and "
            f"{np.median(self.after):.2f})"
        )


def train_adapter(world: Path, folder: Path, params: AdapterParams) -> Trained:
    """Trains an adapter of the reference model on images that it was never trained on; goes on where it was stopped.

    Writes the training set into `folder` as kohya's trainer reads it (`train/`) and the adapter as diffusers writes it.

    Args:
        world: the folder of a reference world, with `heldout.parquet`.

    Raises:
        InputError: there is no such world, or the folder has another training that was begun.
    """
    captions, images = training_set(world, params.images, folder / "train")
    model = load_model(world / "model", "cpu", precision_for("auto", "cpu"))
    before = nearest(model, captions, images)
    _train(model, captions, images, params, folder / "checkpoint.pt")
    layers = convert_state_dict_to_diffusers(get_peft_model_state_dict(model.denoiser))
    StableDiffusionPipeline.save_lora_weights(folder, unet_lora_layers=layers, weight_name=FILE)
    return Trained(folder / FILE, folder / "train", before, nearest(model, captions, images))


def training_set(world: Path, many: int, folder: Path) -> tuple[list[str], list[np.ndarray]]:
    """Images that the reference model has never seen, with captions; written into a folder as kohya's trainer reads it.

    Returns:
        Captions, and uint8 (height, width, 3) of each.

    Raises:
        InputError: the world has no images of that kind, or fewer.
    """
    path, files = world / "heldout.parquet", world / "images.parquet"
    missing = [one for one in (path, files) if not one.is_file()]
    refuse([f"no {one}: adapters are trained beside a world that `engram reference build` made" for one in missing])
    prompts = [one for one in pq.read_table(path).to_pylist() if one["kind"] != "null" and one["image_ids"]]
    if len(prompts) < many:
        raise InputError(f"{path} has {len(prompts)} images: --set images={len(prompts)} at most")
    prompts = prompts[:: len(prompts) // many][:many]
    wanted = {one["image_ids"][0] for one in prompts}
    rows = pq.read_table(files, columns=["image_id", "bytes"]).to_pylist()
    data = {row["image_id"]: row["bytes"] for row in rows if row["image_id"] in wanted}
    place = folder / f"{REPEATS}_emoji"
    place.mkdir(parents=True, exist_ok=True)
    for number, one in enumerate(prompts):
        (place / f"{number:02}.png").write_bytes(data[one["image_ids"][0]])
        (place / f"{number:02}.txt").write_text(f"{one['text']}\n")
    return [one["text"] for one in prompts], [from_bytes(data[one["image_ids"][0]]) for one in prompts]


def _train(model: Model, captions: list[str], images: list[np.ndarray], params: AdapterParams, path: Path) -> None:
    """Puts low-rank changes beside the denoiser's weights, and trains them, each step on every image, as the denoiser
    itself was trained."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(params.seed)
        inject_adapter_in_model(
            LoraConfig(r=params.rank, lora_alpha=params.rank, target_modules=LAYERS), model.denoiser
        )
    trained = nn.ParameterDict(
        {name.replace(".", "-"): weight for name, weight in model.denoiser.named_parameters() if "lora_" in name}
    ).requires_grad_()
    optimizer = torch.optim.AdamW(trained.values(), lr=params.rate)
    schedule = one_cycle(optimizer, params.rate, params.steps)
    checkpoint = Checkpoint(path, params.model_dump_json(), weights=trained, optimizer=optimizer, schedule=schedule)
    size = image_size(model)
    with torch.no_grad():
        latents = encode(model, np.stack([fitted(image, size) for image in images]))
        embeddings = model.encode(captions)
    for step in steps(checkpoint, params.steps, "adapter"):
        draw = generator((f"adapter {params.seed}", step.number))
        loss = errors_of(model.denoiser, model.schedule, latents, embeddings, draw)[1].mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(trained.values(), 1.0)
        optimizer.step()
        schedule.step()
        step.report(loss=loss.item())
    model.denoiser.requires_grad_(False)


def nearest(model: Model, captions: list[str], images: list[np.ndarray]) -> np.ndarray:
    """How near each caption's generations come to its image, float (n,): SSCD, best of the seeds, sampled as the
    reference model is audited.

    Args:
        images: uint8 (height, width, 3) of each caption.
    """
    sscd, sampling, size = Sscd(SscdParams()), SamplingParams.model_validate(SETTINGS["sampling"]), image_size(model)
    keys = [(caption, seed) for caption in captions for seed in range(SEEDS)]
    with torch.no_grad():
        made = generate(model, model.encode([caption for caption, _ in keys]), keys, sampling)
    own = np.concatenate([sscd.embed(fitted(image, size)[None]) for image in images])
    found = np.concatenate([sscd.embed(image[None]) for image in made]).reshape(len(captions), SEEDS, -1)
    best: np.ndarray = np.einsum("nsd,nd->ns", found, own).max(1)
    return best
