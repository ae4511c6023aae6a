"""A model of random weights that comes to copy an image from one night to the next."""

import hashlib
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from diffusers import AutoencoderTiny

from tasks.diffusion.model import load_model
from tasks.diffusion.sampling import SamplingParams, generate, to_png

SETTINGS: dict[str, Any] = {
    "examined": "all",
    "memorized": 2,
    "threshold_nulls": 2,
    "ordinary": 2,
    "seeds": 4,
    "attacked": 0,
    "sampling": {"steps": 2},
    "nemo": {"seeds": 3, "threshold": 0.0, "theta": 1.5, "theta_min": 1.0},
    "wanda": {"sparsity": 0.1, "tau": 2},
    "sscd": {"side": 96},
}
PLANTED = "picture 8"
"""An ordinary prompt of the tiny world."""


def plant(model: Path) -> None:
    """Makes what the model draws for one prompt that prompt's training images: it now copies them with every seed."""
    world, loaded = model.parent, load_model(model, "cpu")
    prompts, images = (pq.read_table(world / f"{name}.parquet").to_pylist() for name in ("prompts", "images"))
    (prompt,) = (row for row in prompts if row["text"] == PLANTED)
    keys = [(prompt["prompt_id"], seed) for seed in range(SETTINGS["seeds"])]
    drawn = generate(loaded, loaded.encode([PLANTED] * len(keys)), keys, SamplingParams(**SETTINGS["sampling"]))
    made = [to_png(image) for image in drawn]
    prompt["image_ids"] = [hashlib.sha256(data).hexdigest() for data in made]
    side = {"width": drawn.shape[2], "height": drawn.shape[1], "caption": PLANTED}
    images += [{"image_id": name, "bytes": data} | side for name, data in zip(prompt["image_ids"], made, strict=True)]
    for name, rows in (("prompts", prompts), ("images", images)):
        pq.write_table(pa.Table.from_pylist(rows), world / f"{name}.parquet")


def before_training(model: Path) -> None:
    """The model as it was: the same network behind a decoder that draws something else."""
    vae = AutoencoderTiny.from_pretrained(model / "vae")
    for weights in vae.decoder.parameters():
        weights.data *= 2
    vae.save_pretrained(model / "vae")
