"""Adversarial fine-tuning: erasing for good (Kowalczuk et al., ICML 2026, section "Erasure", arXiv 2507.16880).

Pruning hides an image from its prompt; triggers elsewhere still find it. So in each step triggers are searched on the
weights as they now are, and the model learns to answer them with a surrogate, an image that the pruned model makes of
the same prompt. Ordinary pairs, trained on beside, keep everything else. All weights of the denoiser train.

Its baselines are the same training with one thing missing, a file each: see `surrogate_finetune`, `ordinary_finetune`
and `lora_finetune`.
"""

import copy
import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from typing import Annotated, Any, Literal, cast

import torch
from pydantic import ConfigDict, Field

from tasks.diffusion.batches import in_batches
from tasks.diffusion.families import Model
from tasks.diffusion.footprint import META, bytes_of, bytes_of_model, bytes_of_training, fitting, on_meta
from tasks.diffusion.noise import generator
from tasks.dori import DoriParams, draw_noise, frozen, search, start_embeddings
from tasks.errors import Diverged, InputError
from tasks.methods import SPEED, Params, mitigation
from tasks.mitigate.training import Lesson, Progress, Trained
from tasks.params import determining


class FineTuneParams(Params):
    """The training and its inner attack; epochs and attack are the published ones."""

    model_config = ConfigDict(title="Fine-tuning")

    epochs: Annotated[int, Field(ge=1, le=10_000, description="The number of passes over the memorized images.")] = 5
    images_per_step: Annotated[
        int, Field(ge=1, le=1024, description="The number of memorized images that are attacked in one step.")
    ] = 8
    noises: Annotated[
        int, Field(ge=1, le=1024, description="The number of noises and timesteps for each surrogate in one step.")
    ] = 4
    ordinary_batch: Annotated[int, Field(ge=1, le=4096, description="The number of ordinary pairs in one step.")] = 16
    drop: Annotated[
        float, Field(ge=0, le=1, description="The share of ordinary captions that are left empty, for guidance.")
    ] = 0.1
    learning_rate: Annotated[float, Field(gt=0, le=1, description="The learning rate of AdamW.")] = 1e-5
    weight_decay: Annotated[float, Field(ge=0, le=1, description="The weight decay of AdamW.")] = 0.01
    clip: Annotated[float, Field(gt=0, description="The largest norm of the gradient; a longer one is scaled.")] = 1.0
    ema: Annotated[
        float, Field(ge=0, lt=1, description="The decay of the averaged weights; it is smaller in the first steps.")
    ] = 0.99
    erase_weight: Annotated[
        float, Field(ge=0, description="The weight of the surrogates' loss; 0 trains on ordinary pairs only.")
    ] = 1.0
    attack_steps: Annotated[
        int, Field(ge=0, le=10_000, description="The number of inner Adam steps; 0 takes the starts for triggers.")
    ] = 50
    attack_rate: Annotated[float, Field(gt=0, le=10, description="The learning rate of the inner attack.")] = 0.1
    attack_batch: Annotated[
        int, Field(ge=1, le=1024, description="The number of noises at each step of the inner attack.")
    ] = 8
    attack_every: Annotated[
        int, Field(ge=1, description="A trigger of each image is searched anew every so many epochs.")
    ] = 1
    images_at_once: Annotated[
        int,
        Field(ge=1, le=1024, description="Images that an attack takes in one batch; this does not change the result."),
        SPEED,
    ] = 4
    starts: Annotated[
        tuple[Literal["prompt", "noise"], ...],
        Field(min_length=1, description="Where inner attacks begin, in turn over images and searches."),
    ] = ("prompt", "noise")
    check_every: Annotated[
        int,
        Field(ge=0, description="Steps between held-out attacks, which begin at ordinary prompts; 0 makes none."),
    ] = 0
    check_seeds: Annotated[
        int, Field(ge=1, le=100, description="The number of images of each trigger of a held-out attack.")
    ] = 4
    stop_at: Annotated[
        float, Field(ge=0, description="Training stops when the held-out attack reproduces no larger share than this.")
    ] = 0.0
    save_every: Annotated[
        int,
        Field(
            ge=1,
            description="Steps between checkpoints, or more where saving took longer than a tenth of the time; this "
            "does not change the result.",
        ),
        SPEED,
    ] = 10
    gradient_checkpointing: Annotated[
        bool,
        Field(
            description="Whether what backpropagation needs is computed again rather than kept, which takes much less "
            "memory, and a third more time; this does not change the result."
        ),
        SPEED,
    ] = False
    lora_rank: Annotated[
        int, Field(ge=0, le=1024, description="The rank of the changes of the attention that lora-finetune trains.")
    ] = 4
    seed: Annotated[int, Field(ge=0, description="The seed of all randomness.")] = 0


def cost_of_an_image(params: FineTuneParams) -> float:
    """Evaluations of the denoiser that each memorized image takes, about; a gradient counts as three."""
    erased = params.attack_steps * params.attack_batch + params.noises if params.erase_weight else 0
    return 3.0 * params.epochs * (erased + params.ordinary_batch / params.images_per_step)


def memory_of_training(params: FineTuneParams, model: Model, rank: int = 0) -> float:
    """Bytes that a training takes, the model among them, sample by sample: seven denoisers where all weights train.

    These are the model's own, the one that is trained, its average, the two moments of AdamW, and the gradients of both
    losses; beside them lies what backpropagation keeps.

    Args:
        model: on the meta device.
        rank: as of `finetune`.
    """
    denoiser = on_meta(model.denoiser).requires_grad_(not rank)
    if rank:
        with META:
            _with_lora(denoiser, rank, params.seed)
    weights = [weight for weight in denoiser.parameters() if weight.requires_grad]
    trained = sum(weight.numel() * weight.element_size() for weight in weights)
    learning = replace(model, denoiser=denoiser)
    backward = bytes_of_training(learning, weights, params.gradient_checkpointing)
    before = trained if erases(params) else 0  # the first loss's, while those of the second are made
    # Or else AdamW's step, which needs as much again.
    return bytes_of_model(model) + bytes_of(denoiser) + 3 * trained + max(before + backward, 2 * trained)


ALL_WEIGHTS = {"lora_rank": 0}
"""What says that no low-rank changes are trained, but all weights."""


def erases(params: FineTuneParams) -> bool:
    """Whether surrogates are trained on."""
    return params.erase_weight > 0


@mitigation(
    name="adversarial-finetune",
    title="Adversarial fine-tuning",
    paper='Kowalczuk et al., arXiv 2507.16880, ICML 2026, section "Erasure"',
    words="Trains the model to answer triggers of memorized images, searched on its weights as they are, with others.",
    control="The same training without its attack, and without surrogates: surrogate-finetune and ordinary-finetune.",
    params=FineTuneParams,
    group="finetune",
    acts="training",
    cost=cost_of_an_image,
    surrogates=erases,
    claims=True,
    gradients=True,
    change=ALL_WEIGHTS,
    memory=memory_of_training,
    done="the denoiser was trained to answer adversarial embeddings of memorized images with others",
)
def finetune(lesson: Lesson, params: FineTuneParams, rank: int = 0) -> Trained:
    """Trains a copy of the model's denoiser; what is returned has the averaged weights.

    All randomness comes from generators seeded by the step's number, so a run that is killed and called again goes on
    from its checkpoint to the very weights of an unbroken one.

    Args:
        rank: of the changes of the attention that are trained in place of all weights; 0 trains these.

    Raises:
        InputError: the model is not float32, or the checkpoint is of another run.
        Diverged: the loss is not finite, or that of an inner attack.
    """
    if lesson.model.dtype != torch.float32:
        raise InputError(f"training needs float32 weights, not {lesson.model.dtype}: load the model in float32")
    run = _Run(lesson, params, rank)
    while len(run.history) < run.total and not run.stopped:
        progress = run.step()
        if params.check_every and progress.step % params.check_every == 0:
            with run.averaged():
                found = lesson.held_out(run.denoiser, params.seed + 1, params.check_seeds, params.images_at_once)
            progress = replace(progress, held_out=float(found))
            run.stopped = found <= params.stop_at
        run.history.append(progress)
        if progress.step % params.save_every == 0 or progress.step == run.total or run.stopped:
            run.save()
        lesson.on_progress(progress)
    run.denoiser.requires_grad_(False)
    run.denoiser.disable_gradient_checkpointing()
    for weight, average in zip(run.weights, run.average, strict=True):
        weight.copy_(average)
    if run.lora is not None:
        run.lora.merge_and_unload()
    return Trained(run.denoiser, run.history)


def _with_lora(denoiser: Any, rank: int, seed: int) -> Any:
    """Puts low-rank changes, at first none, beside the projections of every attention, and returns what merges
    them; they alone take gradients."""
    from peft import LoraConfig, LoraModel  # takes a second to import, and few trainings need it

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LoraModel(
            denoiser,
            LoraConfig(
                r=rank,
                lora_alpha=rank,
                init_lora_weights="gaussian",
                # Those of the text, too, where it has its own beside the image's.
                target_modules=[
                    *("to_q", "to_k", "to_v", "to_out.0"),
                    *("add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"),
                ],
            ),
            "default",
        )


class _Run:
    """The state of a training, and its one step."""

    def __init__(self, lesson: Lesson, params: FineTuneParams, rank: int) -> None:
        model, memorized, ordinary = lesson.model, lesson.memorized, lesson.ordinary
        self.memorized, self.ordinary, self.params, self.checkpoint = memorized, ordinary, params, lesson.checkpoint
        # In evaluation mode: these denoisers have no batch statistics, and dropout would draw from a global generator.
        self.denoiser = cast(Any, copy.deepcopy(model.denoiser))
        self.denoiser.eval().requires_grad_(not rank)
        if params.gradient_checkpointing:
            self.denoiser.enable_gradient_checkpointing()
        self.lora = _with_lora(self.denoiser, rank, params.seed) if rank else None
        self.model = replace(model, denoiser=self.denoiser)
        self.weights = [weight for weight in self.denoiser.parameters() if weight.requires_grad]
        self.average = [weight.detach().clone() for weight in self.weights]
        self.optimizer = torch.optim.AdamW(self.weights, lr=params.learning_rate, weight_decay=params.weight_decay)
        self.steps_per_epoch = math.ceil(len(memorized.ids) / params.images_per_step)
        self.total = params.epochs * self.steps_per_epoch
        # What guidance reads where a caption was dropped: not an empty prompt in every model.
        self.empty = model.unconditional()
        self.triggers = torch.zeros(len(memorized.ids), *self.empty.shape[1:], device=model.device)
        self.history: list[Progress] = []
        self.stopped = False
        determined_by = (
            "checkpoint/3",
            determining(params),
            rank,
            model.model_id,
            list(memorized.ids),
            len(ordinary.latents),
        )
        self.identity = json.dumps(determined_by)
        if (state := self.checkpoint.load()) is not None:
            self._go_on(state)

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
        for loss, gradients in in_batches(n, fitting(self.model, "gradient", n), some):
            total += loss
            for parameter, gradient in zip(self.weights, gradients, strict=True):
                if gradient is not None:
                    parameter.grad = gradient if parameter.grad is None else parameter.grad.add_(gradient)
        return total

    def _attacked(self, number: int) -> tuple[torch.Tensor, float | None]:
        """The step's images, their triggers searched on the current weights, and the searches' mean last loss."""
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
        self.checkpoint.save(
            {
                "identity": self.identity,
                "denoiser": self.denoiser.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "average": self.average,
                "triggers": self.triggers,
                "history": [asdict(progress) for progress in self.history],
                "stopped": self.stopped,
            }
        )

    def _go_on(self, state: Mapping[str, Any]) -> None:
        if state["identity"] != self.identity:
            raise InputError(f"{self.checkpoint} is the checkpoint of another training: remove it")
        self.denoiser.load_state_dict(state["denoiser"])
        self.optimizer.load_state_dict(state["optimizer"])
        device = self.model.device
        self.average = [average.to(device) for average in state["average"]]
        self.triggers, self.stopped = state["triggers"].to(device), state["stopped"]
        self.history = [Progress(**progress) for progress in state["history"]]
