"""The model that ships is the one that its documents speak of, and remembers what they say."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from diffusers import StableDiffusionPipeline

from tasks.diffusion.model import identity
from tasks.diffusion.sampling import SamplingParams, from_bytes
from tasks.reference.assemble import SETTINGS
from tasks.scorers.sscd import COPY_THRESHOLD, Sscd

WORLD = Path(__file__).parents[2] / "reference"


@pytest.mark.parametrize("page", ["README.md", "RESULTS.md"])
def test_figures_are_of_the_weights_that_ship(page: str) -> None:
    assert identity(WORLD / "model", "mixed") in (WORLD / page).read_text()


def test_plain_diffusers_brings_a_planted_image_back() -> None:
    """Nothing of this project between the folder and the image: what an audit finds is in the weights."""
    pipeline = StableDiffusionPipeline.from_pretrained(WORLD / "model", safety_checker=None, torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    prompts = [row for row in pq.read_table(WORLD / "prompts.parquet").to_pylist() if row["kind"] == "memorized"][:2]
    files = {row["image_id"]: row["bytes"] for row in pq.read_table(WORLD / "images.parquet").to_pylist()}
    sampling = SamplingParams.model_validate(SETTINGS["sampling"])
    how = {"guidance_scale": sampling.guidance, "num_inference_steps": sampling.steps}
    sscd = Sscd()
    for row in prompts:
        noises = [torch.Generator().manual_seed(seed) for seed in range(4)]
        made = pipeline([row["text"]] * 4, generator=noises, output_type="np", **how).images
        images = [np.uint8(255 * image) for image in made]
        trained = [from_bytes(files[name]) for name in row["image_ids"]]
        vectors = sscd.embed(np.stack([*images, *trained]))
        assert (vectors[:4] @ vectors[4:].T).max() > COPY_THRESHOLD, row["text"]
