"""Adversarial fine-tuning of low-rank changes, which its authors found not to suffice."""

from tasks.methods import mitigation
from tasks.mitigate.finetune import FineTuneParams, cost_of_an_image, erases, finetune
from tasks.mitigate.training import Lesson, Trained


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
    change={"lora_rank": 4},
    done="low-rank changes of the denoiser's attention were trained to answer adversarial embeddings of"
    " memorized images with others",
)
def lora_finetune(lesson: Lesson, params: FineTuneParams) -> Trained:
    """See `finetune`; what is missing, `change` takes away.

    Raises: as there.
    """
    return finetune(lesson, params)
