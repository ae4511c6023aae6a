"""Adversarial fine-tuning of low-rank changes, which its authors found not to suffice."""

from tasks.diffusion.outline import Outline
from tasks.errors import InputError
from tasks.methods import mitigation
from tasks.mitigate.finetune import FineTuneParams, cost_of_an_image, erases, finetune, memory_of_training
from tasks.mitigate.training import Lesson, Trained


def _check(params: FineTuneParams, outline: Outline) -> None:
    if not params.lora_rank:
        raise InputError("lora-finetune trains changes of a rank of 1 or more: --set finetune.lora_rank=4")


@mitigation(
    name="lora-finetune",
    title="Low-rank adversarial fine-tuning",
    paper='Kowalczuk et al., arXiv 2507.16880, ICML 2026, section "Erasure"',
    words="Trains low-rank changes of the attention in place of all weights, and is else adversarial fine-tuning.",
    control="The same training of all weights: adversarial-finetune.",
    params=FineTuneParams,
    group="finetune",
    acts="training",
    cost=cost_of_an_image,
    surrogates=erases,
    gradients=True,
    check=_check,
    memory=lambda params, model: memory_of_training(params, model, params.lora_rank),
    done="low-rank changes of the denoiser's attention were trained to answer adversarial embeddings of"
    " memorized images with others",
)
def lora_finetune(lesson: Lesson, params: FineTuneParams) -> Trained:
    """See `finetune`: changes of the parameters' rank are trained.

    Raises: as there.
    """
    return finetune(lesson, params, params.lora_rank)
