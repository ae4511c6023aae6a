"""A LoRA adapter that memorizes its training set: trained on images that the reference model has never seen.

    engram bench adapter [--folder FOLDER] [--images N] [--rank N] [--steps N] [--json FILE]

Leaves the training set as trainers have it (`train/`) and the adapter as diffusers writes it (`adapter.safetensors`),
and says how many of the images come back. What adapters of people's own do to a model is audited in the same way, by
the command that is printed at the end. Some 20 minutes on two cores.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from diffusers import StableDiffusionPipeline
from diffusers.utils import convert_state_dict_to_diffusers
from peft import LoraConfig, get_peft_model_state_dict, inject_adapter_in_model

from flows.params import model_folder
from tasks.diffusion.families import Model
from tasks.diffusion.model import load_model
from tasks.diffusion.noise import generator
from tasks.diffusion.sampling import SamplingParams, encode, fitted, from_bytes, generate, image_size
from tasks.progress import progress
from tasks.scorers.sscd import COPY_THRESHOLD, Sscd, SscdParams

LAYERS = ["to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2"]
"""What is trained beside: attention and feed-forward, as trainers do by default."""
REPEATS = 10
"""Times an epoch that trainers are told to show each image, by the name of its folder."""
SEEDS = 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path(".engram/adapter"), help="where set and adapter are put")
    parser.add_argument("--images", type=int, default=12, help="images of the training set")
    parser.add_argument("--rank", type=int, default=16, help="rank of the adapter")
    parser.add_argument("--steps", type=int, default=800, help="steps, each over all of the images")
    parser.add_argument("--rate", type=float, default=2e-3, help="learning rate of AdamW, one cosine")
    parser.add_argument("--json", type=Path, help="write the numbers as one flat object")
    args = parser.parse_args()
    world = model_folder("reference").parent
    captions, images = training_set(world, args.images, args.folder / "train")
    model = load_model(world / "model", "cpu")
    begun = time.perf_counter()
    train(model, captions, images, args.rank, args.steps, args.rate)
    minutes = (time.perf_counter() - begun) / 60
    path = write(model, args.folder)
    before, after = (nearest(load_model(world / "model", "cpu"), captions, images), nearest(model, captions, images))
    numbers = {"minutes": minutes, "before": int((before > COPY_THRESHOLD).sum())}
    numbers |= {"after": int((after > COPY_THRESHOLD).sum()), "images": len(images), "sscd": float(np.median(after))}
    print(
        f"{args.steps} steps took {minutes:.0f} minutes; of {len(images)} images {numbers['before']} came back before, "
        f"{numbers['after']} with the adapter (median SSCD {numbers['sscd']:.2f}, best of {SEEDS} seeds)"
    )
    print(f"engram audit --model reference --lora {path} --dataset {args.folder / 'train'} --compare-base")
    if args.json:
        args.json.write_text(json.dumps(numbers, indent=1) + "\n")


def training_set(world: Path, many: int, folder: Path) -> tuple[list[str], list[np.ndarray]]:
    """Images that the reference model was never trained on, with captions; written as kohya's trainer reads them."""
    prompts = pq.read_table(world / "heldout.parquet").to_pylist()
    prompts = [one for one in prompts if one["kind"] != "null" and one["image_ids"]]
    prompts = prompts[:: max(1, len(prompts) // many)][:many]
    wanted = {one["image_ids"][0] for one in prompts}
    rows = pq.read_table(world / "images.parquet", columns=["image_id", "bytes"]).to_pylist()
    data = {row["image_id"]: row["bytes"] for row in rows if row["image_id"] in wanted}
    place = folder / f"{REPEATS}_emoji"
    place.mkdir(parents=True, exist_ok=True)
    for number, one in enumerate(prompts):
        (place / f"{number:02}.png").write_bytes(data[one["image_ids"][0]])
        (place / f"{number:02}.txt").write_text(f"{one['text']}\n")
    return [one["text"] for one in prompts], [from_bytes(data[one["image_ids"][0]]) for one in prompts]


def train(model: Model, captions: list[str], images: list[np.ndarray], rank: int, steps: int, rate: float) -> None:
    """Trains low-rank changes of the denoiser in place, each step on every image with its caption."""
    config = LoraConfig(r=rank, lora_alpha=rank, target_modules=LAYERS)
    model.denoiser.requires_grad_(False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        inject_adapter_in_model(config, model.denoiser)
    trained = [weight for name, weight in model.denoiser.named_parameters() if "lora_" in name]
    optimizer = torch.optim.AdamW([weight.requires_grad_() for weight in trained], lr=rate)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps, pct_start=0.1)
    size = image_size(model)
    with torch.no_grad():
        latents = encode(model, np.stack([fitted(image, size) for image in images]))
        embeddings = model.encode(captions)
    with progress(steps, "training the adapter", "step") as done:
        for step in range(steps):
            draw = generator(("adapter", step))
            noise = torch.randn(latents.shape, generator=draw).to(latents)
            times = torch.randint(model.schedule.trained, (len(latents),), generator=draw)
            loss = model.training_loss(latents, noise, times, embeddings).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            scheduler.step()
            done(1)
    model.denoiser.requires_grad_(False)


def write(model: Model, folder: Path) -> Path:
    """The adapter in one file, as diffusers writes them."""
    layers: dict[str, Any] = convert_state_dict_to_diffusers(get_peft_model_state_dict(model.denoiser))
    StableDiffusionPipeline.save_lora_weights(folder, unet_lora_layers=layers, weight_name="adapter.safetensors")
    return folder / "adapter.safetensors"


def nearest(model: Model, captions: list[str], images: list[np.ndarray]) -> np.ndarray:
    """How near each caption's generations come to its image, float (n,): SSCD, best of the seeds."""
    sscd, sampling, size = Sscd(SscdParams()), SamplingParams(steps=20), image_size(model)
    keys = [(caption, seed) for caption in captions for seed in range(SEEDS)]
    with torch.no_grad():
        texts = model.encode([caption for caption, _ in keys])
        made = generate(model, texts, keys, sampling)
    own = np.concatenate([sscd.embed(fitted(image, size)[None]) for image in images])
    found = np.concatenate([sscd.embed(image[None]) for image in made]).reshape(len(captions), SEEDS, -1)
    return np.einsum("nsd,nd->ns", found, own).max(1)


if __name__ == "__main__":
    main()
