"""A model's training noise, and the scheduler that samples it: its own, DDIM or DPM-Solver++.

A scheduler's config says two things: by which noise the model was trained (betas, and what it predicts), and how it is
sampled. Every audit needs the first. The second counts only where the model's own scheduler is asked for.

With `a` the share of signal that betas leave at a timestep, a noised latent is sqrt(a) x + sqrt(1 - a) eps, and its
velocity sqrt(a) eps - sqrt(1 - a) x (Salimans and Ho, ICLR 2022). Where no signal is left at the last timestep (zero
terminal SNR; Lin et al., WACV 2024), nothing can be divided by it: what is called noise there is the latent itself,
whatever the prompt, and only a model that predicts velocity says anything of an image.
"""

import copy
import inspect
import json
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar, Literal, cast

import diffusers
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, PNDMScheduler

from tasks.diffusion.files import read_json
from tasks.errors import InputError, first_line

Choice = Literal["model", "ddim", "dpm"]
"""What samples: the model's own scheduler, DDIM, or DPM-Solver++."""

PREDICTS = ("epsilon", "v_prediction")
"""What a model may predict."""

ELSE = "--set sampling.scheduler=ddim"

_DDIM = {"clip_sample": False, "set_alpha_to_one": False}
"""Values of latents are not bounded by 1, so nothing is clipped."""

_TRAINED_BY = (
    *("beta_start", "beta_end", "beta_schedule", "trained_betas", "num_train_timesteps", "prediction_type"),
    "rescale_betas_zero_snr",
)
"""What a scheduler's config says of the model's training."""

_LEAST_SIGNAL = 1e-6
"""Of alphas_cumprod at the last step; 5e-3 in Stable Diffusion, 4e-5 in the first diffusion models, and 0 or 6e-8, as
schedulers write it, of zero terminal SNR."""

ENDS_IN_NOISE = (
    "the noise schedule ends without any signal (zero terminal SNR), so memories are looked for in predicted images,"
    " and norms and losses are those of velocity: derived, without a published reference"
)

_NOISE = "draws noise at every step, so images would depend on their batch: sample with " + ELSE + " or dpm"


@dataclass(frozen=True)
class Prediction:
    """What a denoiser says of noised latents, both (n, channels, height, width), of its output's dtype."""

    noise: torch.Tensor
    """eps(z_t, t, y)."""
    clean: torch.Tensor
    """The latents of the image that it steers at."""
    target: torch.Tensor
    """What losses and norms are taken of, as the model predicts it: see `Schedule.target`."""


@dataclass(frozen=True)
class Schedule:
    """The noise that a model was trained by, and what samples it; see `read_schedule`."""

    own: Any
    """The model's own scheduler; DDIM of the same training noise where that cannot sample."""
    unsampled: str | None = None
    """Why the model's own cannot sample; None where it can."""
    always: ClassVar[Choice] = "ddim"
    """What samples every model of such a schedule, whether or not its own scheduler can."""

    @property
    def trained(self) -> int:
        """Timesteps that the model was trained with: 0, with hardly any noise, up to one less than this."""
        return len(self.own.alphas_cumprod)

    @property
    def ends_in_noise(self) -> bool:
        """Whether nothing of an image is left at the last timestep (zero terminal SNR): predicted noise says nothing
        of a prompt there, so predicted images and velocities are looked at in its place."""
        return float(self.own.alphas_cumprod.min()) < _LEAST_SIGNAL

    @property
    def words(self) -> str | None:
        """What is looked at in place of predicted noise, in words; None where nothing is."""
        return ENDS_IN_NOISE if self.ends_in_noise else None

    def as_timestep(self, value: torch.Tensor) -> float:
        """A timestep of a scheduler as the model reads it: a whole number."""
        return int(value)

    def random_timesteps(self, n: int, draw: torch.Generator) -> torch.Tensor:
        """Timesteps int64 (n,), uniform over all of training, on the CPU."""
        return torch.randint(self.trained, (n,), generator=draw)

    def timing(self, steps: int) -> dict[str, Hashable]:
        """What a scheduler's `set_timesteps` is given beside the number of steps, as by the model's pipeline."""
        return {}

    def timestep(self, steps: int, number: int) -> float:
        """A timestep of the model's own way of so many steps, by its number; negative ones count from the end.

        Raises:
            InputError: the scheduler cannot take so few steps, or so many.
        """
        scheduler = copy.deepcopy(self.own)
        try:
            scheduler.set_timesteps(steps, **self.timing(steps))
            return self.as_timestep(scheduler.timesteps[number])
        except Exception as error:
            raise InputError(
                f"{type(self.own).__name__} cannot take {steps} steps ({first_line(error)}): ask for more"
            ) from error

    def signal(self, timesteps: torch.Tensor) -> torch.Tensor:
        """The share `a` of signal in the variance of latents at timesteps (n,), float32 (n,)."""
        share: torch.Tensor = self.own.alphas_cumprod.to(timesteps.device, torch.float32)[timesteps.long()]
        return share

    def add_noise(self, latents: torch.Tensor, noise: torch.Tensor, timestep: torch.Tensor | float) -> torch.Tensor:
        """Noised latents, float32; all (n, channels, height, width), timesteps (n,) or one for all."""
        a = self._signal_for(latents, timestep)
        return a.sqrt() * latents + (1 - a).sqrt() * noise

    def target(self, latents: torch.Tensor, noise: torch.Tensor, timestep: torch.Tensor | float) -> torch.Tensor:
        """What losses are taken on, for clean latents that are noised so: the noise, so that losses of all such models
        compare; the velocity, float32, where the schedule ends in noise, of which a loss on noise would see nothing.

        Args: as `add_noise`.
        """
        if not self.ends_in_noise:
            return noise
        a = self._signal_for(latents, timestep)
        return a.sqrt() * noise - (1 - a).sqrt() * latents

    def prediction(self, output: torch.Tensor, latents: torch.Tensor, timestep: torch.Tensor | float) -> Prediction:
        """Noise and clean latents of what the denoiser gives for noised latents.

        Raises:
            InputError: it predicts neither noise nor velocity.
        """
        # In float32: 1 - a would be nothing in half precision where there is little noise.
        a, kind = self._signal_for(latents, timestep), self.own.config.prediction_type
        if kind == "epsilon":
            return Prediction(output, ((latents - (1 - a).sqrt() * output) / a.sqrt()).to(output.dtype), output)
        if kind == "v_prediction":
            noise = (a.sqrt() * output + (1 - a).sqrt() * latents).to(output.dtype)
            clean = (a.sqrt() * latents - (1 - a).sqrt() * output).to(output.dtype)
            return Prediction(noise, clean, output if self.ends_in_noise else noise)
        raise InputError(f"the model predicts {kind!r}; audits need one that predicts 'epsilon' or 'v_prediction'")

    def _signal_for(self, latents: torch.Tensor, timestep: torch.Tensor | float) -> torch.Tensor:
        return self.signal(torch.as_tensor(timestep, device=latents.device).expand(len(latents))).view(-1, 1, 1, 1)

    def sampler(self, choice: Choice, steps: int) -> Any:
        """A scheduler that samples in so many steps; its timesteps are still to be set.

        Raises:
            InputError: it cannot take so many steps, draws noise of its own, or does not follow the model's training
                noise.
        """
        own = self.own
        if choice == "model" and self.unsampled is not None:
            raise InputError(self.unsampled)
        config = dict(own.config)
        # Said in so many words: what a config leaves out would else be another scheduler's default.
        noise = {name: config[name] for name in _TRAINED_BY if name in config}
        if choice == "ddim":
            made = _made(DDIMScheduler, config, _DDIM | noise)
        elif choice == "dpm":
            # Without the algorithms that draw noise, and those of other schedulers.
            algorithm = config.get("algorithm_type") if config.get("algorithm_type") == "dpmsolver" else "dpmsolver++"
            made = _made(DPMSolverMultistepScheduler, config, {"algorithm_type": algorithm} | noise)
        else:
            made = _made(type(own), config, {})
        if not self._follows(made):
            raise InputError(
                f"{type(made).__name__} does not know the noise schedule of {type(own).__name__}, by which the model "
                "was trained: --set sampling.scheduler=model"
            )
        kind = cast(Hashable, type(made))
        words = made.to_json_string()

        def problem_of(n: int) -> str | None:
            return _walk(kind, words, n, tuple(self.timing(n).items()))

        if problem := problem_of(steps):
            if problem != _NOISE:
                fits = next((n for n in range(steps + 1, steps + 33) if problem_of(n) is None), None)
                ways = [f"--set sampling.steps={fits}"] if fits else []
                ways += [ELSE] if choice != "ddim" else []  # which is what was just tried
                problem += f": sample with {', or '.join(ways)}" if ways else ": mend the model's scheduler_config.json"
            raise InputError(f"{type(made).__name__} {problem}")
        return made

    def _follows(self, made: Any) -> bool:
        """Whether a scheduler knows the noise by which the model was trained."""
        trained, known = self.own.alphas_cumprod, made.alphas_cumprod
        return torch.allclose(known.cpu().double(), trained.cpu().double(), atol=1e-6)


def read_schedule(folder: Path, name: str) -> Schedule:
    """The schedule of a pipeline, by its scheduler.

    Args:
        folder: of the scheduler, with `scheduler_config.json`.
        name: its class, as model_index.json has it.

    Raises:
        InputError: the config is none, states no training noise, or one that audits cannot follow.
    """
    path = folder / "scheduler_config.json"
    config = read_json(path)
    own, why = _own(folder, name)
    if why is None and config.get("rescale_betas_zero_snr") and not Schedule(own).ends_in_noise:
        why = f"the scheduler {name} does not know rescale_betas_zero_snr, by which the model was trained"
    if why is not None:
        if lacking := _unstated(config, name):
            raise InputError(
                f"{why}, and {path} does not say by which noise the model was trained (no {', '.join(lacking)}): put "
                "the scheduler_config.json of its base model there; such a pipeline that is trained by flow matching, "
                "EDM or consistency cannot be audited"
            )
        own = _made(DDIMScheduler, config, _DDIM, path)
        why = f"{why}: sample with {ELSE} or dpm"
    kind = own.config.prediction_type
    if kind not in PREDICTS:
        raise InputError(f"the model predicts {kind!r} ({path}); audits need one that predicts {' or '.join(PREDICTS)}")
    if own.config.get("timestep_type") == "continuous" or own.config.get("use_flow_sigmas"):
        raise InputError(
            f"{path} asks for continuous timesteps or flow sigmas: audits need a model of 1000 noise steps"
        )
    schedule = Schedule(own, why)
    if schedule.ends_in_noise and kind != "v_prediction":
        raise InputError(
            f"the noise schedule of {path} ends without any signal (zero terminal SNR), where no image follows from "
            "predicted noise: write v_prediction for its prediction_type if that is what the model predicts, else take "
            "rescale_betas_zero_snr away"
        )
    return schedule


def started(scheduler: Any, noise: torch.Tensor) -> torch.Tensor:
    """Standard normal noise as the latents that a scheduler begins with; some have no scale of their own."""
    latents: torch.Tensor = noise * scheduler.init_noise_sigma if hasattr(scheduler, "init_noise_sigma") else noise
    return latents


def as_input(scheduler: Any, latents: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
    """A scheduler's latents as the denoiser reads them."""
    if not hasattr(scheduler, "scale_model_input"):
        return latents
    scaled: torch.Tensor = scheduler.scale_model_input(latents, timestep)
    return scaled


def stepped(scheduler: Any, output: torch.Tensor, timestep: torch.Tensor, latents: torch.Tensor) -> torch.Tensor:
    """The latents one step on, as pipelines take it: without noise where the scheduler leaves it to `eta`."""
    options = {"eta": 0.0} if "eta" in _options(cast(Hashable, type(scheduler))) else {}
    after: torch.Tensor = scheduler.step(output, timestep, latents, **options, return_dict=False)[0]
    return after


def _unstated(config: Mapping[str, Any], name: str) -> list[str]:
    """What a config lacks to say by which noise its model was trained."""
    betas = () if config.get("trained_betas") else ("beta_start", "beta_end", "beta_schedule")
    # IPNDM knows models that predict noise alone, so its config has no word for it.
    needed = betas if name == "IPNDMScheduler" else (*betas, "prediction_type")
    return [each for each in needed if config.get(each) is None]


def _own(folder: Path, name: str) -> tuple[Any, str | None]:
    """The scheduler of a folder, or why it is none that audits can sample with."""
    kind = getattr(diffusers, name, None)
    if kind is None:
        return None, f"diffusers {diffusers.__version__} has no scheduler {name}"
    try:
        found = kind.from_pretrained(folder)
    except ImportError:
        lacking = ", ".join(getattr(kind, "_backends", ["torch"])[1:]) or "another package"
        return None, f"the scheduler {name} needs {lacking}, which is not installed"
    except Exception as error:
        return None, f"the scheduler {name} cannot be made of its config ({first_line(error)})"
    if "Inverse" in name or name.startswith("CogVideoX"):
        return None, f"the scheduler {name} is none for text-to-image models"
    if not hasattr(found, "alphas_cumprod") or "prediction_type" not in found.config:
        return None, f"the scheduler {name} has no noise schedule of a model that predicts noise or velocity"
    return found, None


def _made(kind: Any, config: Mapping[str, Any], options: Mapping[str, Any], path: Path | None = None) -> Any:
    try:
        return kind.from_config(dict(config), **options)
    except Exception as error:
        where = f" of {path}" if path else ""
        raise InputError(
            f"no {kind.__name__} can be made of the scheduler's config{where}: {first_line(error)}"
        ) from error


@lru_cache
def _options(kind: Any) -> frozenset[str]:
    """The names of what a scheduler's step takes."""
    return frozenset(inspect.signature(kind.step).parameters)


@lru_cache(maxsize=64)
def _walk(kind: Any, config: str, steps: int, timing: tuple[tuple[str, Hashable], ...]) -> str | None:
    """What is wrong with such a scheduler's way through so many steps: it fails, or two walks from the same latents
    part. None where nothing is."""
    scheduler, ends = kind.from_config(json.loads(config)), []
    with torch.random.fork_rng(devices=[]):
        for seed in range(2):
            torch.manual_seed(seed)
            latents = torch.ones(1, 1, 2, 2)
            try:
                scheduler.set_timesteps(steps, **dict(timing))
                for step in scheduler.timesteps:
                    scaled = as_input(scheduler, latents, step)
                    latents = stepped(scheduler, torch.zeros_like(scaled), step, latents)
            except Exception as error:
                prk = kind is PNDMScheduler and not scheduler.config.skip_prk_steps
                detail = "its config lacks skip_prk_steps" if prk else first_line(error)
                return f"cannot take {steps} steps ({detail})"
            if not latents.isfinite().all():
                return f"cannot take {steps} steps (what it makes is not finite)"
            ends.append(latents)
    return None if torch.equal(*ends) else _NOISE
