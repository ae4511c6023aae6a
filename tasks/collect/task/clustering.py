"""Near-duplicates among the prompts of an audit, in the store: what counts once, beyond the very same image."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from storage import content_key
from tasks.collect.duplicates import DuplicatesParams, caption_clusters, image_clusters, prompt_clusters
from tasks.diffusion.sampling import from_bytes
from tasks.errors import InputError
from tasks.scorers.clip import ClipParams
from tasks.scorers.clip import scorer_of as clip_scorer_of
from tasks.scorers.sscd import SscdParams, scorer_of
from tasks.subject import Prompt, Subject

VERSION = "clusters/1"
Clip = Callable[[], ClipParams]
"""Names the CLIP model; called only where there are captions to be compared, so that nobody else needs one."""


def cluster_prompts(subject: Subject, prompts: Sequence[Prompt], sscd: SscdParams, clip: Clip) -> None:
    """Writes which prompts have near-duplicate images or captions, a row of `clusters` for each; see
    `tasks.collect.duplicates`.

    Captions of memorized prompts without images are compared by their embeddings, too. Images say more of what a model
    saw, and no bound on embeddings is sure enough to take a prompt for memorized that nobody said is.

    Args:
        prompts: those that are compared with each other.

    Raises:
        InputError: an image is not in the store, or SSCD or CLIP cannot be loaded.
    """
    near = DuplicatesParams(sscd=sscd)
    names = sorted({image for prompt in prompts for image in prompt.image_ids})
    images = image_clusters(names, _Pixels(subject), near)
    bare = {prompt.prompt_id: prompt.text for prompt in _bare(prompts)}
    captions = caption_clusters(bare, clip(), near) if bare else {}
    found = prompt_clusters([(one.prompt_id, one.text, one.image_ids) for one in prompts], images, captions)
    params_id = clusters_id(prompts, sscd, clip)
    rows = [{"prompt_id": name, "cluster": cluster, "params_id": params_id} for name, cluster in found.items()]
    subject.open().write("clusters", params_id, rows, prompt_set=subject.prompt_set)


def clusters_id(prompts: Sequence[Prompt], sscd: SscdParams, clip: Clip) -> str:
    """What clusters go by: what was compared, and with which models."""
    compared = sorted((one.prompt_id, sorted(one.image_ids)) for one in prompts)
    bounds = DuplicatesParams().model_dump(include={"images", "captions"})
    scorers = scorer_of(sscd), clip_scorer_of(clip()) if _bare(prompts) else None
    return content_key(VERSION, compared, *scorers, bounds)


def clusters_known(
    subject: Subject, prompts: Sequence[Prompt], sscd: SscdParams, clip: Clip
) -> Mapping[str, str] | None:
    """By prompt id, the cluster; None while the store does not have it."""
    where = {"prompt_set": subject.prompt_set, "params_id": clusters_id(prompts, sscd, clip)}
    rows = subject.open().read("clusters", columns=["prompt_id", "cluster"], **where)
    found = dict(zip(rows["prompt_id"].to_pylist(), rows["cluster"].to_pylist(), strict=True))
    return found if found or not prompts else None


def _bare(prompts: Sequence[Prompt]) -> list[Prompt]:
    return [prompt for prompt in prompts if prompt.kind == "memorized" and not prompt.image_ids]


class _Pixels:
    """Training images as they are, one at a time."""

    def __init__(self, subject: Subject) -> None:
        self._store = subject.open()

    def __call__(self, name: str) -> np.ndarray:
        rows = self._store.read("images", columns=["bytes"], image_id=name)
        if not rows.num_rows:
            raise InputError(f"the store has no image {name}: import the prompts with their images")
        return from_bytes(rows["bytes"][0].as_py())
