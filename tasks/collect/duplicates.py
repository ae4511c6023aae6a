"""Near-duplicates in a set of prompts: images that are copies of each other, and captions that say the same.

Web data hold an image many times, scaled, cropped or recoloured, with captions of their own; and what a training set
holds often is memorized (Carlini et al., USENIX Security 2023; Somepalli et al., CVPR 2023). Prompts whose images or
captions are nearly the same are one case rather than several, and no control of each other.

- Images: the cosine of their SSCD embeddings, each image as a whole. From 0.7 on, as a generation counts as a copy.
- Captions: the same words, see `tasks.clusters.normalised`; where a CLIP model is given, the cosine of its embeddings
  of texts, too. How alike captions are by it depends on the model, so the bound is high.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Annotated

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from tasks.clusters import clusters, normalised, similar_pairs
from tasks.progress import progress
from tasks.scorers.clip import ClipParams, ClipScore
from tasks.scorers.sscd import COPY_THRESHOLD, WIDTH, Sscd, SscdParams
from tasks.units import Link


class DuplicatesParams(BaseModel):
    """What counts as nearly the same."""

    model_config = ConfigDict(title="Near-duplicates", frozen=True, extra="forbid")

    images: Annotated[
        float, Field(gt=0, le=1, description="SSCD cosine from which on two images are near-duplicates.")
    ] = COPY_THRESHOLD
    captions: Annotated[
        float, Field(gt=0, le=1, description="CLIP cosine from which on two captions are near-duplicates.")
    ] = 0.95
    sscd: SscdParams = SscdParams()


def image_clusters(
    images: Sequence[str], pixels: Callable[[str], np.ndarray], params: DuplicatesParams
) -> dict[str, str]:
    """By image, the cluster of its near-duplicates: the smallest image id in it.

    Args:
        images: image ids.
        pixels: takes one and gives the image, uint8 (height, width, 3).

    Raises:
        InputError: see `Sscd`.
    """
    features = np.empty((len(images), WIDTH), np.float32)
    if images:
        sscd = Sscd(params.sscd)
        with progress(len(images), "SSCD of images", "image") as done:
            for row, image in enumerate(images):
                features[row] = sscd.embed(pixels(image)[None])[0]
                done(1)
    return _clustered(images, features, params.images, "comparing images")


def caption_clusters(captions: Mapping[str, str], clip: ClipParams, params: DuplicatesParams) -> dict[str, str]:
    """By prompt id, the cluster of its caption's near-duplicates: the smallest prompt id in it.

    Args:
        captions: by prompt id.

    Raises:
        InputError: see `ClipScore`.
    """
    texts, scorer = list(captions.values()), ClipScore(clip)
    blocks = []
    with progress(len(texts), "CLIP of captions", "caption") as done:
        for start in range(0, len(texts), clip.batch):
            blocks.append(scorer.texts(texts[start : start + clip.batch]))
            done(len(blocks[-1]))
    return _clustered(list(captions), np.concatenate(blocks), params.captions, "comparing captions")


def prompt_clusters(prompts: Sequence[Link], images: Mapping[str, str], captions: Mapping[str, str]) -> dict[str, str]:
    """By prompt id, the cluster of prompts with near-duplicate images or captions: the smallest prompt id in it.

    Args:
        prompts: id, text and image ids of each.
        images: by image, its cluster; an image that has none is one by itself.
        captions: by prompt id, the cluster of its caption; without one, the same words alone count.
    """
    together: dict[str, list[str]] = {}
    for name, text, image_ids in prompts:
        links = [f"text {normalised(text)}", *(f"image {images.get(image, image)}" for image in image_ids)]
        for link in links + ([f"caption {captions[name]}"] if name in captions else []):
            together.setdefault(link, []).append(name)
    return clusters([name for name, _, _ in prompts], together.values(), ())


def _clustered(ids: Sequence[str], features: np.ndarray, at_least: float, what: str) -> dict[str, str]:
    with progress(len(ids), what, "row") as done:
        return clusters(ids, (), similar_pairs(features, ids, at_least, done=done))
