"""Fine-tuning on surrogates without any attack: what adversarial fine-tuning owes to its triggers."""

from tasks.methods import mitigation
from tasks.mitigate.finetune import ALL_WEIGHTS, FineTuneParams, cost_of_an_image, erases, finetune, memory_of_training
from tasks.mitigate.training import Lesson, Trained


@mitigation(
    name="surrogate-finetune",
    title="Fine-tuning on surrogates",
    paper="A convention of this project: adversarial fine-tuning without its attack.",
    words="Trains the model to answer the prompts of memorized images with other images, and attacks nothing.",
    control="The same training on ordinary pairs alone: ordinary-finetune.",
    params=FineTuneParams,
    group="finetune",
    acts="training",
    cost=cost_of_an_image,
    surrogates=erases,
    gradients=True,
    change=ALL_WEIGHTS | {"attack_steps": 0, "starts": ("prompt",)},
    memory=memory_of_training,
    done="the denoiser was trained to answer the prompts of memorized images with other images",
)
def surrogate_finetune(lesson: Lesson, params: FineTuneParams) -> Trained:
    """See `finetune`; what is missing, `change` takes away.

    Raises: as there.
    """
    return finetune(lesson, params)
