"""The schedule of models that are trained by flow matching (Lipman et al., ICLR 2023; Esser et al., ICML 2024).

At sigma, which is a timestep over those of training, a noised latent is (1 - sigma) x + sigma eps, and its velocity
eps - x. At the first step sigma is 1: what follows as predicted noise is the latent itself there, whatever the prompt,
so predicted images and velocities are looked at in its place, see `Schedule.ends_in_noise`.
"""

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from tasks.diffusion.families.schedule import Choice, Prediction, Schedule
from tasks.diffusion.files import read_json
from tasks.errors import InputError, first_line

FLOW = (
    "the model is trained by flow matching, so memories are looked for in predicted images, and norms and losses are"
    " those of velocity: derived, without a published reference"
)

_REFUSED = {
    "use_dynamic_shifting": "shifts its steps by the size of images",
    "invert_sigmas": "runs from images to noise",
    "stochastic_sampling": "draws noise at every step",
}
"""Settings of a scheduler that must be empty, and what one that has them does."""


@dataclass(frozen=True)
class FlowSchedule(Schedule):
    """The noise that a model was trained by, and its own scheduler, which alone samples it."""

    always: ClassVar[Choice] = "model"

    @property
    def trained(self) -> int:
        return int(self.own.config.num_train_timesteps)

    @property
    def ends_in_noise(self) -> bool:
        return True

    @property
    def words(self) -> str:
        return FLOW

    def as_timestep(self, value: torch.Tensor) -> float:
        return float(value)

    def random_timesteps(self, n: int, draw: torch.Generator) -> torch.Tensor:
        """Timesteps float32 (n,), of sigmas uniform over [0, 1), on the CPU."""
        return torch.rand(n, generator=draw) * self.trained

    def add_noise(self, latents: torch.Tensor, noise: torch.Tensor, timestep: torch.Tensor | float) -> torch.Tensor:
        sigma = self._sigma_for(latents, timestep)
        return (1 - sigma) * latents + sigma * noise

    def target(self, latents: torch.Tensor, noise: torch.Tensor, timestep: torch.Tensor | float) -> torch.Tensor:
        """The velocity eps - x, of which a model of this kind is trained."""
        return noise - latents

    def prediction(self, output: torch.Tensor, latents: torch.Tensor, timestep: torch.Tensor | float) -> Prediction:
        sigma = self._sigma_for(latents, timestep)
        noise, clean = latents + (1 - sigma) * output, latents - sigma * output
        return Prediction(noise.to(output.dtype), clean.to(output.dtype), output)

    def sampler(self, choice: Choice, steps: int) -> Any:
        if choice != "model":
            raise InputError(
                f"a model that is trained by flow matching is sampled by its own scheduler, not by {choice}: --set "
                "sampling.scheduler=model"
            )
        return super().sampler(choice, steps)

    def _follows(self, made: Any) -> bool:
        return True

    def _sigma_for(self, latents: torch.Tensor, timestep: torch.Tensor | float) -> torch.Tensor:
        """Sigma float32 (n, 1, 1, 1)."""
        times = torch.as_tensor(timestep, device=latents.device).expand(len(latents))
        return (times.float() / self.trained).view(-1, 1, 1, 1)


def read_flow(folder: Path, name: str, followed: Collection[str] = ()) -> FlowSchedule:
    """The schedule of a pipeline that is trained by flow matching; see `read_schedule`.

    Args:
        followed: settings that are refused otherwise, and that the family follows as its pipeline does.

    Raises:
        InputError: the scheduler is another than that of flow matching, its config is none, or one that audits cannot
            follow.
    """
    path, kind = folder / "scheduler_config.json", FlowMatchEulerDiscreteScheduler
    config = read_json(path)
    if name != kind.__name__:
        raise InputError(
            f"{folder} has a {name}, and the model is trained by flow matching: put the {kind.__name__} of its base "
            "model there, and name it in model_index.json"
        )
    for setting, meaning in _REFUSED.items():
        if config.get(setting) and setting not in followed:
            raise InputError(f"{path} has {setting}: such a scheduler {meaning}, which audits cannot follow")
    try:
        own = kind.from_pretrained(folder)
    except Exception as error:  # of settings that do not fit, in many ways
        raise InputError(f"no {name} can be made of {path}: {first_line(error)}") from error
    return FlowSchedule(own)
