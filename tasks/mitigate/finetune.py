"""Adversarial fine-tuning: erasing for good (Kowalczuk et al., ICML 2026, section "Erasure", arXiv 2507.16880).

Pruning hides a picture from its prompt; triggers elsewhere still find it. So in each step triggers are searched on the
weights as they now are, and the model learns to answer them with a surrogate, a picture that the pruned model makes of
the same prompt. Ordinary pairs, trained on beside, keep everything else. All weights of the denoiser train.

Two rivals are the same training with one thing missing: `attack_steps=0` teaches surrogates at the starts without any
attack, `erase_weight=0` goes on training on ordinary pairs alone. `lora_rank` trains low-rank changes in place of all
weights, which the authors found not to suffice.
"""

import copy
import json
import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal, cast

import torch
from pydantic import BaseModel, ConfigDict, Field

from tasks.attack.dori import DoriParams, draw_noise, frozen, search, start_embeddings
from tasks.diffusion.batches import in_batches
from tasks.diffusion.families import Model
from tasks.diffusion.noise import generator
from tasks.errors import Diverged, InputError
from tasks.params import SPEED

Erasure = Literal["adversarial-finetune", "surrogate-finetune", "ordinary-finetune", "lora-finetune"]
"""The method itself, and its rivals."""


class FineTuneParams(BaseModel):
    """The training and its inner attack; epochs and attack are the published ones."""

    model_config = ConfigDict(title="Fine-tuning", frozen=True, extra="forbid")

    epochs: Annotated[int, Field(ge=1, le=10_000, description="passes over the memorized pictures")] = 5
    images_per_step: Annotated[int, Field(ge=1, le=1024, description="memorized pictures attacked in one step")] = 8
    noises: Annotated[int, Field(ge=1, le=1024, description="noises and timesteps for each surrogate in one step")] = 4
    ordinary_batch: Annotated[int, Field(ge=1, le=4096, description="ordinary pairs in one step")] = 16
    drop: Annotated[float, Field(ge=0, le=1, description="share of ordinary captions left empty, for guidance")] = 0.1
    learning_rate: Annotated[float, Field(gt=0, le=1, description="learning rate of AdamW")] = 1e-5
    weight_decay: Annotated[float, Field(ge=0, le=1, description="weight decay of AdamW")] = 0.01
    clip: Annotated[float, Field(gt=0, description="largest norm of the gradient")] = 1.0
    ema: Annotated[
        float, Field(ge=0, lt=1, description="decay of the averaged weights; smaller in the first steps")
    ] = 0.99
    erase_weight: Annotated[
        float, Field(ge=0, description="weight of the surrogates' loss; 0: ordinary pairs only")
    ] = 1.0
    attack_steps: Annotated[int, Field(ge=0, le=10_000, description="inner Adam steps; 0: triggers are the starts")] = (
        50
    )
    attack_rate: Annotated[float, Field(gt=0, le=10, description="learning rate of the inner attack")] = 0.1
    attack_batch: Annotated[int, Field(ge=1, le=1024, description="noises at each step of the inner attack")] = 8
    attack_every: Annotated[int, Field(ge=1, description="search a picture's trigger anew every so many epochs")] = 1
    images_at_once: Annotated[
        int, Field(ge=1, le=1024, description="pictures the inner attack takes in one batch"), SPEED
    ] = 4
    starts: Annotated[
        tuple[Literal["prompt", "noise"], ...],
        Field(min_length=1, description="where inner attacks begin, in turn over pictures and searches"),
    ] = ("prompt", "noise")
    check_every: Annotated[
        int, Field(ge=0, description="steps between held-out attacks, which begin at ordinary prompts; 0: none")
    ] = 0
    check_seeds: Annotated[int, Field(ge=1, le=100, description="pictures of each trigger of a held-out attack")] = 4
    stop_at: Annotated[float, Field(ge=0, description="stop when the held-out attack reproduces no larger share")] = 0.0
    save_every: Annotated[int, Field(ge=1, description="steps between checkpoints"), SPEED] = 10
    lora_rank: Annotated[
        int, Field(ge=0, le=1024, description="train low-rank changes of the attention only; 0: all weights")
    ] = 0
    seed: Annotated[int, Field(ge=0, description="seed of all randomness")] = 0


@dataclass(frozen=True)
class Memorized:
    """The pictures to erase, one row each."""

    ids: Sequence[str]
    prompts: Sequence[str]
    latents: torch.Tensor
    """(n, channels, height, width) of the training pictures."""
    surrogates: torch.Tensor
    """(n, channels, height, width) of what the pruned model makes of the same prompts."""


@dataclass(frozen=True)
class Ordinary:
    """Pairs that keep the model useful."""

    latents: torch.Tensor
    """(m, channels, height, width)."""
    embeddings: torch.Tensor
    """(m, tokens, width) of their captions."""


@dataclass(frozen=True)
class Progress:
    """One training step."""

    step: int
    """Steps done, from 1."""
    total: int
    erase: float | None
    """Diffusion loss of the surrogates under the triggers; None without them."""
    ordinary: float
    """Diffusion loss of the ordinary pairs."""
    attack: float | None
    """Mean loss of the inner attacks at their last step; None where none ran."""
    held_out: float | None = None
    """What the held-out attack reproduced after this step, where it ran."""


@dataclass(frozen=True)
class FineTuned:
    denoiser: Any
    """With the averaged weights, in evaluation mode."""
    history: list[Progress]
    stopped: bool
    """Whether the held-out attack found nothing before the epochs were over."""


def steps_of(pictures: int, params: FineTuneParams) -> int:
    """Training steps for so many memorized pictures, unless it stops early."""
    return params.epochs * math.ceil(pictures / params.images_per_step)


def finetune(
    model: Model,
    memorized: Memorized,
    ordinary: Ordinary,
    params: FineTuneParams,
    checkpoint: Path,
    told: Callable[[Progress], None] = lambda progress: None,
    held_out: Callable[[Any], float] | None = None,
) -> FineTuned:
    """Trains a copy of the model's denoiser; `model` itself stays as it is.

    All randomness comes from generators seeded by the step's number, so a run that is killed and called again goes on
    from its checkpoint to the very weights of an unbroken one.

    Args:
        checkpoint: file that is replaced atomically as training goes; it belongs to these parameters and pictures.
        told: called after each step of this call.
        held_out: given a denoiser with the averaged weights, the share of pictures an attack with other seeds and other
            starts than the inner one reproduces.

    Raises:
        InputError: the model is not float32, or the checkpoint is of another run.
        Diverged: the loss is not finite, or that of an inner attack.
    """
    if model.dtype != torch.float32:
        raise InputError(f"training needs float32 weights, not {model.dtype}: load the model in float32")
    if params.check_every and held_out is None:
        raise InputError("check_every asks for a held-out attack, but none was given: give one, or set it to 0")
    run = _Run(model, memorized, ordinary, params, checkpoint)
    while len(run.history) < run.total and not run.stopped:
        progress = run.step()
        if held_out is not None and params.check_every and progress.step % params.check_every == 0:
            with run.averaged():
                progress = replace(progress, held_out=float(held_out(run.denoiser)))
            run.stopped = progress.held_out is not None and progress.held_out <= params.stop_at
        run.history.append(progress)
        if progress.step % params.save_every == 0 or progress.step == run.total or run.stopped:
            run.save()
        told(progress)
    run.denoiser.requires_grad_(False)
    for weight, average in zip(run.weights, run.average, strict=True):
        weight.copy_(average)
    if run.lora is not None:
        run.lora.merge_and_unload()
    return FineTuned(run.denoiser, run.history, run.stopped)


def _with_lora(denoiser: Any, params: FineTuneParams) -> Any:
    """Puts low-rank changes, at first none, beside the four projections of every attention, and returns what merges
    them; they alone take gradients."""
    from peft import LoraConfig, LoraModel  # takes a second to import, and few trainings need it

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(params.seed)
        return LoraModel(
            denoiser,
            LoraConfig(
                r=params.lora_rank,
                lora_alpha=params.lora_rank,
                init_lora_weights="gaussian",
                target_modules=["to_q", "to_k", "to_v", "to_out.0"],
            ),
            "default",
        )


class _Run:
    """The state of a training, and its one step."""

    def __init__(
        self, model: Model, memorized: Memorized, ordinary: Ordinary, params: FineTuneParams, checkpoint: Path
    ) -> None:
        self.memorized, self.ordinary, self.params, self.path = memorized, ordinary, params, checkpoint
        # In evaluation mode: these denoisers have no batch statistics, and dropout would draw from a global generator.
        self.denoiser = cast(Any, copy.deepcopy(model.denoiser))
        self.denoiser.eval().requires_grad_(not params.lora_rank)
        self.lora = _with_lora(self.denoiser, params) if params.lora_rank else None
        self.model = replace(model, denoiser=self.denoiser)
        self.weights = [weight for weight in self.denoiser.parameters() if weight.requires_grad]
        self.average = [weight.detach().clone() for weight in self.weights]
        self.optimizer = torch.optim.AdamW(self.weights, lr=params.learning_rate, weight_decay=params.weight_decay)
        self.steps_per_epoch = math.ceil(len(memorized.ids) / params.images_per_step)
        self.total = steps_of(len(memorized.ids), params)
        # What guidance reads where a caption was dropped: not an empty prompt in every model.
        self.empty = model.unconditional()
        self.triggers = torch.zeros(len(memorized.ids), *self.empty.shape[1:], device=model.device)
        self.history: list[Progress] = []
        self.stopped = False
        told = (
            "checkpoint/2",
            params.model_dump(exclude={"save_every", "images_at_once"}),
            model.model_id,
            list(memorized.ids),
            len(ordinary.latents),
        )
        self.identity = json.dumps(told)
        if checkpoint.exists():
            self._load()

    def step(self) -> Progress:
        number = len(self.history)
        draw = generator(("finetune", self.params.seed * 1_000_003 + number))
        self.optimizer.zero_grad(set_to_none=True)
        erase = attack = None
        if self.params.erase_weight:
            rows, attack = self._attacked(number)
            clean = self.memorized.surrogates[rows].repeat_interleave(self.params.noises, 0)
            erase = self._backward(
                clean,
                self.triggers[rows].repeat_interleave(self.params.noises, 0),
                draw,
                weight=self.params.erase_weight,
            )
        picked = torch.randint(len(self.ordinary.latents), (self.params.ordinary_batch,), generator=draw)
        dropped = torch.rand(self.params.ordinary_batch, generator=draw) < self.params.drop
        text = self.ordinary.embeddings[picked].to(self.model.device)
        text = torch.where(dropped[:, None, None].to(self.model.device), self.empty, text)
        plain = self._backward(self.ordinary.latents[picked], text, draw, weight=1.0)
        if not math.isfinite(plain + (erase or 0.0)):
            raise Diverged(f"training diverged at step {number + 1}: lower the learning rate")
        torch.nn.utils.clip_grad_norm_(self.weights, self.params.clip)
        self.optimizer.step()
        # The start is the memory itself, so the average must forget it soon: a short horizon first, the full one later.
        decay = min(self.params.ema, (1 + number) / (10 + number))
        torch._foreach_lerp_(self.average, [weight.detach() for weight in self.weights], 1 - decay)
        return Progress(number + 1, self.total, erase, plain, attack)

    def _backward(self, clean: torch.Tensor, text: torch.Tensor, draw: torch.Generator, weight: float) -> float:
        """Adds the gradient of the samples' mean loss to the weights', in as many pieces as memory asks for."""
        device, n = self.model.device, len(clean)
        times, noise = (drawn.to(device) for drawn in draw_noise(self.model, draw, n))

        def some(rows: slice) -> tuple[float, tuple[torch.Tensor | None, ...]]:
            errors = self.model.training_loss(clean[rows].to(device).float(), noise[rows], times[rows], text[rows])
            loss = errors.sum() / n
            return loss.item(), torch.autograd.grad(weight * loss, self.weights, allow_unused=True)

        total = 0.0
        for loss, gradients in in_batches(n, n, some):
            total += loss
            for parameter, gradient in zip(self.weights, gradients, strict=True):
                if gradient is not None:
                    parameter.grad = gradient if parameter.grad is None else parameter.grad.add_(gradient)
        return total

    def _attacked(self, number: int) -> tuple[torch.Tensor, float | None]:
        """The step's pictures, their triggers searched on the current weights, and the searches' mean last loss."""
        params = self.params
        epoch, place = divmod(number, self.steps_per_epoch)
        order = torch.randperm(
            len(self.memorized.ids), generator=generator(("finetune-order", params.seed * 1_000_003 + epoch))
        )
        rows = order[place * params.images_per_step :][: params.images_per_step]
        if epoch % params.attack_every:
            return rows, None
        keys = [(f"{self.memorized.ids[row]}/finetune-{number}", params.seed) for row in rows]
        budget = DoriParams(
            steps=max(params.attack_steps, 1),
            learning_rate=params.attack_rate,
            batch=params.attack_batch,
            images_at_once=params.images_at_once,
        )
        starts = torch.cat(
            [
                start_embeddings(
                    self.model,
                    params.starts[(int(row) + epoch // params.attack_every) % len(params.starts)],
                    [self.memorized.prompts[row]],
                    [key],
                    budget,
                    pool=self.memorized.prompts,
                )
                for row, key in zip(rows, keys, strict=True)
            ]
        )
        if not params.attack_steps:
            self.triggers[rows] = starts.float()
            return rows, None
        found = search(self.model, self.memorized.latents[rows], starts, keys, budget)
        self.triggers[rows] = torch.stack([trigger.embedding for trigger in found]).to(self.model.device)
        return rows, sum(trigger.losses[-1] for trigger in found) / len(found)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Within, the denoiser has the averaged weights and takes no gradient."""
        current = [weight.detach().clone() for weight in self.weights]
        with frozen(self.denoiser):
            try:
                for weight, average in zip(self.weights, self.average, strict=True):
                    weight.copy_(average)
                yield
            finally:
                for weight, value in zip(self.weights, current, strict=True):
                    weight.copy_(value)

    def save(self) -> None:
        state = {
            "identity": self.identity,
            "denoiser": self.denoiser.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "average": self.average,
            "triggers": self.triggers,
            "history": [asdict(progress) for progress in self.history],
            "stopped": self.stopped,
        }
        self.path.parent.mkdir(parents=True, exist_ok=True)
        aside = self.path.with_suffix(f".{os.getpid()}.writing")  # another audit may train the same
        torch.save(state, aside)
        os.replace(aside, self.path)

    def _load(self) -> None:
        # Into main memory: beside the training itself there may be no room for it on a GPU.
        state = torch.load(self.path, map_location="cpu", weights_only=True)
        if state["identity"] != self.identity:
            raise InputError(f"{self.path} is the checkpoint of another training: remove it, or give another file")
        self.denoiser.load_state_dict(state["denoiser"])
        self.optimizer.load_state_dict(state["optimizer"])
        device = self.model.device
        self.average = [average.to(device) for average in state["average"]]
        self.triggers, self.stopped = state["triggers"].to(device), state["stopped"]
        self.history = [Progress(**progress) for progress in state["history"]]
