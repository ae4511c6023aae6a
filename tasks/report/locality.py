"""Is a memory local? Two of the three questions of Kowalczuk et al. (ICML 2026, arXiv 2507.16880).

(a) Do triggers of one image lie together in embedding space, or as far apart as the random points they began from?
(b) Do they excite the same neurons, or differ as much as prompts of different images do?
The third, whether localizing from different triggers finds the same weights, is an IOU of neuron sets, asked in SQL.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from tasks.diffusion.families import Model
from tasks.diffusion.hooks import observed
from tasks.diffusion.noise import Key, initial_noise
from tasks.diffusion.sites import Layer, Site
from tasks.errors import InputError


@dataclass(frozen=True)
class Spread:
    """Pairwise l2 distances within a set."""

    mean: float
    std: float
    n: int
    """Points, not pairs."""


@dataclass(frozen=True)
class Locality:
    """How far the triggers of one image lie apart, beside sets that are surely spread out.

    A share of 1: the triggers are as far apart as the others. Near 0: they lie together, and the memory is local.
    """

    embeddings: float
    """Distance between triggers, as a share of that between the random points they began from."""
    beside_prompts: float
    """The same as a share of that between prompts of different images."""
    moved: float
    """Distance of a trigger from where it began, as a share of that between those points."""
    activations: Mapping[str, float]
    """By layer, distance between the activations of triggers, as a share of that between different images' prompts."""
    starts: Mapping[str, float]
    """The same of the points that the triggers began from."""
    places: Mapping[str, np.ndarray]
    """Points (n, 2) of "triggers", "starts" and "prompts" on one map that keeps neighbours together."""


def locality(
    model: Model,
    triggers: torch.Tensor,
    starts: torch.Tensor,
    prompts: torch.Tensor,
    key: Key,
    site: Site = Site.FEED_FORWARD_HIDDEN,
) -> Locality:
    """Questions (a) and (b) of one image.

    Args:
        triggers, starts, prompts: embeddings (n, tokens, width) of its triggers, of where their searches began, in the
            same order, and of memorized prompts of different images.
        key: whose noise activations are taken on.

    Raises:
        InputError: fewer than two triggers, or two prompts.
    """
    points = {"triggers": triggers, "starts": starts, "prompts": prompts}
    seen = {name: neuron_activations(model, some, site, key) for name, some in points.items()}
    apart = {name: spread(some).mean for name, some in points.items()}
    names = {layer.index: layer.name for layer in model.layers(site)}

    def beside(group: str) -> dict[str, float]:
        return {
            names[index]: share(spread(some).mean, spread(seen["prompts"][index]).mean)
            for index, some in seen[group].items()
        }

    way = (triggers.cpu().double() - starts.cpu().double()).flatten(1).norm(dim=1).mean().item()
    places = tsne_map(torch.cat(list(points.values())), seed=key[1])
    ends = np.cumsum([len(some) for some in points.values()])[:-1]
    return Locality(
        share(apart["triggers"], apart["starts"]),
        share(apart["triggers"], apart["prompts"]),
        way / apart["starts"],
        beside("triggers"),
        beside("starts"),
        dict(zip(points, np.split(places, ends), strict=True)),
    )


def share(distance: float, of: float) -> float:
    """Not a number where the others all are one point, as in layers that the text does not reach yet."""
    return distance / of if of else float("nan")


def pairwise_distances(points: torch.Tensor) -> torch.Tensor:
    """l2 distances float64 (n, n), on the CPU, between points (n, ...), whatever their shape."""
    flat = points.detach().cpu().double().flatten(1)
    return torch.cdist(flat, flat, compute_mode="donot_use_mm_for_euclid_dist")


def spread(points: torch.Tensor) -> Spread:
    """Mean and standard deviation of the distances between different points (n, ...).

    Raises:
        InputError: fewer than two points.
    """
    if len(points) < 2:
        raise InputError(f"distances need two points, not {len(points)}: attack with more restarts")
    rows, columns = torch.triu_indices(len(points), len(points), 1)
    distances = pairwise_distances(points)[rows, columns]
    return Spread(distances.mean().item(), distances.std(correction=0).item(), len(points))


@torch.no_grad()
def neuron_activations(
    model: Model, embeddings: torch.Tensor, site: Site, key: Key, batch: int = 32
) -> dict[int, torch.Tensor]:
    """By layer index of the site, activations float32 (n, neurons) of embeddings (n, tokens, width), on the CPU.

    An activation is the mean over tokens or positions of |output| (of |input| at the feed-forward sites, which are read
    there), in one pass of the denoiser at the last timestep, on the same initial noise for every embedding.

    Args:
        key: whose noise is the common start.
    """
    layers = model.layers(site)
    seen: dict[int, list[torch.Tensor]] = {layer.index: [] for layer in layers}
    at_input = site in (Site.FEED_FORWARD_HIDDEN, Site.FEED_FORWARD_INPUT)

    def see(layer: Layer, inputs: torch.Tensor, output: torch.Tensor) -> None:
        values = (inputs if at_input else output).float().abs()
        # Convolutions carry features second, linear layers last.
        seen[layer.index].append((values.mean((2, 3)) if values.dim() == 4 else values.mean(1)).cpu())

    last = model.schedule.trained - 1
    start = initial_noise(model, [key])
    with observed(layers, see):
        for block in embeddings.to(model.device, model.dtype).split(batch):  # type: ignore[no-untyped-call]
            model.output(start.expand(len(block), -1, -1, -1), last, block)
    return {index: torch.cat(blocks) for index, blocks in seen.items()}


def tsne_map(points: torch.Tensor, perplexity: float = 30.0, seed: int = 0) -> np.ndarray:
    """A map float32 (n, 2) of points (n, ...) that keeps neighbours together (t-SNE; van der Maaten and Hinton, 2008).

    Raises:
        InputError: scikit-learn is not installed, or there are too few points.
    """
    try:
        from sklearn.manifold import TSNE
    except ImportError as error:
        raise InputError("a t-SNE map needs scikit-learn: run `pip install scikit-learn`") from error
    if len(points) < 4:
        raise InputError(f"a map needs at least four points, not {len(points)}")
    flat = points.detach().float().flatten(1).cpu().numpy()
    # The published perplexity where there are points enough for it.
    near = min(perplexity, (len(points) - 1) / 3)
    return np.asarray(TSNE(perplexity=near, init="pca", random_state=seed).fit_transform(flat), np.float32)
