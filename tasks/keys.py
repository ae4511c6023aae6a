"""Names of work that one stage writes and another reads: hashes of what determines it."""

import hashlib

from storage import content_key
from tasks.diffusion.detection import DetectionParams
from tasks.diffusion.sampling import SamplingParams
from tasks.params import determining

SEED = 0
"""The seed of the trajectories that feature norms are taken along: one for each prompt, as published."""


def prompt_id(text: str) -> str:
    """What a prompt goes by in the store."""
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def values_id() -> str:
    """Value activations: nothing but the model and the prompt determines them, and with these the noise of the prompt
    where they depend on step and latent."""
    return content_key("values/1")


def norms_id(sampling: SamplingParams, steps: int) -> str:
    """Feature norms of the first steps of trajectories; the batch size does not change them."""
    return content_key("norms/2", determining(sampling), steps, SEED)


def detection_id(params: DetectionParams) -> str:
    """Detection scores: so many seeds, at the second timestep of such a schedule."""
    return content_key("detect/3", params.seeds, params.steps)
