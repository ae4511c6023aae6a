"""Which prompts an audit asks, and for what: a choice among those of its files, before anything is in a store."""

from collections.abc import Mapping, Sequence

from flows.settings import Settings
from tasks.errors import InputError
from tasks.subject import Kind, Prompt
from tasks.units import units


class Selection:
    """The prompts of an audit by what they are for."""

    def __init__(self, settings: Settings, prompts: Mapping[Kind, Sequence[Prompt]]) -> None:
        """Chooses; the same prompts in the same order give the same choice.

        Args:
            prompts: all of each kind, in the order of `tasks.subject.in_turns`.
        """
        self.settings = settings
        self.units = units((one.prompt_id, one.text, one.image_ids) for some in prompts.values() for one in some)
        """By prompt id, what every estimate counts once; see `tasks.units`."""
        remembered = {self.units[prompt.prompt_id] for prompt in prompts["memorized"]}

        # A memorized image is no control, and must not be trained back in, whatever caption it has, too.
        def apart(some: Sequence[Prompt]) -> list[Prompt]:
            return [one for one in some if one.image_ids and self.units[one.prompt_id] not in remembered]

        every = list(prompts["ordinary"])
        self.memorized = list(prompts["memorized"][: settings.memorized])
        self.nulls = list(prompts["null"][: settings.nulls])
        self.ordinary = every[: settings.ordinary]
        # What trains a model must not be what its quality is measured on.
        self.kept = apart(every[settings.ordinary :])[: settings.kept]
        # Nor what the control's weights are found on: pruned, it would spoil the very prompts that judge pruning.
        others, few = every[settings.ordinary :], len(self.memorized)
        self.control_prompts = [*others, *self.ordinary][:few]
        self.threshold_nulls = self.nulls[: settings.threshold_nulls]
        self.attacked = self.different(self.memorized)[: settings.attacked]
        self.controls = self.different(apart(self.ordinary))[: settings.controls]
        self.unseen = self.different(apart(self.nulls))[: settings.unseen]

    def different(self, prompts: Sequence[Prompt]) -> list[Prompt]:
        """The first of the prompts with images that share one: an attack knows an image, not its captions, so that an
        image would be attacked as often as it has captions."""
        found: dict[str, Prompt] = {}
        for prompt in prompts:
            if prompt.image_ids:
                found.setdefault(self.units[prompt.prompt_id], prompt)
        return list(found.values())

    @property
    def with_images(self) -> tuple[list[Prompt], list[Prompt]]:
        """Memorized and ordinary prompts that have training images."""
        memorized, ordinary = (
            [prompt for prompt in prompts if prompt.image_ids] for prompts in (self.memorized, self.ordinary)
        )
        return memorized, ordinary

    @property
    def pool(self) -> list[str]:
        """Texts that attacks start from, or whose spread their noise has."""
        return [prompt.text for prompt in (*self.memorized, *self.nulls, *self.ordinary)]

    @property
    def erasable(self) -> list[Prompt]:
        """Memorized prompts that fine-tuning can erase; none where there are no images to train on."""
        return self.with_images[0] if self.kept else []

    @property
    def why_not_erasable(self) -> str:
        """What is missing where there is nothing to erase."""
        if not self.with_images[0]:
            return "memorized prompts have no training images: give --images"
        return (
            f"beyond the {self.settings.ordinary} ordinary prompts that quality is measured on, none has an image "
            "that could keep the model useful: give more with --ordinary and --images, or --set ordinary=N lower"
        )

    def check_unseen(self) -> None:
        """Raises InputError where fewer images were never seen than are to be attacked."""
        if len(self.unseen) < (wanted := self.settings.unseen):
            raise InputError(
                f"{wanted} unseen images are to be attacked, but null prompts have {len(self.unseen)}: give"
                " --nulls and --images, or --set unseen=0"
            )

    def check_images(self) -> None:
        """Raises InputError where a localizer reads images that the prompts do not have."""
        kinds = zip(("images", "ordinary images"), ("memorized", "ordinary"), self.with_images, strict=True)
        lacking = {read: kind for read, kind, with_images in kinds if not with_images}
        for localizer in self.settings.localizers():
            reads = localizer.reads_of(self.settings.of(localizer))
            if found := [kind for read, kind in lacking.items() if read in reads]:
                raise InputError(
                    f"{localizer.name} needs training images of {' and of '.join(found)} prompts: give --images, or"
                    " leave it out of `mitigations`"
                )
