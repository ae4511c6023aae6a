"""Fine-tuning on ordinary pairs alone: what any further training makes a model forget."""

from tasks.methods import mitigation
from tasks.mitigate.finetune import ALL_WEIGHTS, FineTuneParams, cost_of_an_image, finetune, memory_of_training
from tasks.mitigate.training import Lesson, Trained


@mitigation(
    name="ordinary-finetune",
    title="Fine-tuning on ordinary images",
    paper="A convention of this project: adversarial fine-tuning without surrogates.",
    words="Trains the model further on ordinary images alone.",
    control="The original model.",
    params=FineTuneParams,
    group="finetune",
    acts="training",
    cost=cost_of_an_image,
    gradients=True,
    change=ALL_WEIGHTS | {"erase_weight": 0.0, "check_every": 0},
    memory=memory_of_training,
    done="the denoiser was trained further on ordinary images alone",
)
def ordinary_finetune(lesson: Lesson, params: FineTuneParams) -> Trained:
    """See `finetune`; what is missing, `change` takes away.

    Raises: as there.
    """
    return finetune(lesson, params)
