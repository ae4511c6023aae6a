"""Which prompts an audit asks, and for what: a choice among those of its files, before anything is in a store."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from flows.settings import Settings
from tasks.errors import InputError
from tasks.methods import Localizer
from tasks.subject import Kind, Prompt
from tasks.units import units

POOLED = 2000
"""Null prompts that attacks may start from."""


@dataclass(frozen=True)
class Known:
    """What the confirmation found, before anything else is done."""

    confirmed: frozenset[str]
    """Ids of the memorized prompts that the model at hand brings an image back from."""
    clusters: Mapping[str, str]
    """By id of the prompts that were compared, the cluster of near-duplicates."""


class Selection:
    """The prompts of an audit by what they are for."""

    def __init__(
        self,
        settings: Settings,
        prompts: Mapping[Kind, Sequence[Prompt]],
        known: Known | None = None,
        examine: bool = True,
        exact: Mapping[str, str] | None = None,
    ) -> None:
        """Chooses; the same prompts in the same order give the same choice.

        Args:
            prompts: all of each kind, in the order of `tasks.subject.in_turns`.
            known: what the confirmation found; None while the model was not asked, when all prompts may be confirmed.
            examine: whether memorized prompts are examined at all.
            exact: units without near-duplicates, where they are known; of many thousand prompts they take a while.
        """
        self.settings, self.known, self._prompts = settings, known, prompts
        every, told = list(prompts["ordinary"]), list(prompts["memorized"])
        self.memorized = told[: settings.memorized]
        self.nulls = list(prompts["null"][: settings.nulls])
        self.ordinary = every[: settings.ordinary]
        links = [(one.prompt_id, one.text, one.image_ids) for some in prompts.values() for one in some]
        if exact is None:
            exact = units(links)
        self.exact = exact
        """By prompt id, what counts once without near-duplicates."""

        # A memorized image is no control, and must not be trained back in, whatever caption it has, too.
        def apart(some: Sequence[Prompt], of: Mapping[str, str]) -> list[Prompt]:
            remembered = {of[prompt.prompt_id] for prompt in told}
            return [one for one in some if one.image_ids and of[one.prompt_id] not in remembered]

        # What trains a model must not be what its quality is measured on.
        kept = apart(every[settings.ordinary :], exact)[: settings.kept]
        self.compared = [*told, *self.ordinary, *(kept if settings.chosen("training") else [])]
        """Prompts among which near-duplicates are looked for: memorized ones, and all that must not be like them."""
        if settings.unseen:
            self.compared += self.nulls
        self.units = exact if known is None else units(links, known.clusters.items())
        """By prompt id, what every estimate counts once; see `tasks.units`."""
        self.kept = apart(kept, self.units)
        self.examined = self.memorized if examine else []
        """The memorized prompts on which the expensive work is done."""
        if known is not None and settings.examined == "confirmed":
            self.examined = [one for one in self.examined if one.prompt_id in known.confirmed]
        # Nor what the control's weights are found on: pruned, it would spoil the very prompts that judge pruning.
        others, few = every[settings.ordinary :], len(self.examined)
        self.control_prompts = [*others, *self.ordinary][:few]
        self.threshold_nulls = self.nulls[: settings.threshold_nulls]
        self.attacked = self.different(self.examined)[: settings.attacked]
        self.controls = self.different(apart(self.ordinary, self.units))[: settings.controls]
        self.unseen = self.different(apart(self.nulls, self.units))[: settings.unseen]

    @property
    def confirmed(self) -> frozenset[str]:
        """Ids of the memorized prompts that are confirmed, as far as is known."""
        return self.known.confirmed if self.known is not None else frozenset()

    @property
    def unconfirmed(self) -> list[Prompt]:
        """Memorized prompts that the model did not bring an image back from, as far as is known."""
        return [one for one in self.memorized if one.prompt_id not in self.confirmed]

    @property
    def examined_first(self) -> list[Prompt]:
        """All memorized prompts, those that are examined before the others."""
        names = {one.prompt_id for one in self.examined}
        return [*self.examined, *(one for one in self.memorized if one.prompt_id not in names)]

    def narrowed(self, known: Known | None) -> "Selection":
        """The choice among the same prompts once more is known."""
        return Selection(self.settings, self._prompts, known, exact=self.exact)

    def unexamined(self) -> "Selection":
        """The same choice where no memorized prompt is examined."""
        return Selection(self.settings, self._prompts, self.known, examine=False, exact=self.exact)

    def localizers(self) -> list[Localizer]:
        """Those that search; none where there is no prompt to search for."""
        return self.settings.localizers() if self.examined else []

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
        """Examined and ordinary prompts that have training images."""
        memorized, ordinary = (
            [prompt for prompt in prompts if prompt.image_ids] for prompts in (self.examined, self.ordinary)
        )
        return memorized, ordinary

    @property
    def pool(self) -> list[str]:
        """Texts that attacks start from, or whose spread their noise has. Of very many null prompts the first will do:
        every attack reads all of the pool."""
        return [prompt.text for prompt in (*self.memorized, *self.nulls[:POOLED], *self.ordinary)]

    @property
    def erasable(self) -> list[Prompt]:
        """Examined prompts that fine-tuning can erase; none where there are no images to train on."""
        return self.with_images[0] if self.kept else []

    @property
    def why_not_erasable(self) -> str:
        """What is missing where there is nothing to erase."""
        if not self.examined:
            return "no memorized prompt was confirmed: --set examined=all trains on all of them"
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
        for localizer in self.localizers():
            reads = localizer.reads_of(self.settings.of(localizer))
            if found := [kind for read, kind in lacking.items() if read in reads]:
                raise InputError(
                    f"{localizer.name} needs training images of {' and of '.join(found)} prompts: give --images, or"
                    " leave it out of `mitigations`"
                )
