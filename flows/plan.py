"""What follows from what an audit is told: its prompts, its conditions, and the ids that results go by.

Every id is a key of what determines a result. So a stage finds what the stages before it left in the store, whether
they ran in this process, on another worker or last night.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, get_args

from flows.params import AuditParams, beside, model_folder, resolved
from flows.rules import may_stand_in, together
from flows.selection import Selection
from flows.settings import Settings
from storage import Store
from tasks.attack import task as attacking
from tasks.collect import task as collecting
from tasks.conditions import EXTRACTION, LOCALITY, ORDINARY, PROMPT, Condition, Start, dori, effort
from tasks.diffusion.precision import Precision, precision_for
from tasks.diffusion.tokens import LongPrompts
from tasks.dori import DoriParams
from tasks.errors import InputError, refuse
from tasks.evaluate import task as evaluating
from tasks.evaluate.task import Trial
from tasks.keys import detection_id
from tasks.localize import task as localizing
from tasks.localize.ground import NormsParams
from tasks.localize.nemo import NemoParams
from tasks.localize.wanda import WandaParams
from tasks.methods import Detector, Localizer, method, metrics, names, prunings
from tasks.mitigate import task as mitigating
from tasks.pruned import Pruned, per_prompt, random_controls
from tasks.report import task as reporting
from tasks.report.standing import claims
from tasks.scorers import clip as clip_score
from tasks.scorers.clip import ClipParams
from tasks.subject import ORIGINAL, Kind, Prompt, Subject, as_prompts, prompts_of


class Plan:
    """What an audit does. Ids of sets and variants say nothing of whether they are there already."""

    def __init__(self, params: AuditParams) -> None:
        """Brings the prompts into the store.

        Raises:
            InputError: the model, the prompts or the images cannot be used, or what is asked not in this precision.
        """
        self.params = resolved(params)
        assert self.params.settings is not None
        settings = self.settings = self.params.settings
        refuse(together(settings))
        self.folder = model_folder(params.model)
        inputs = inputs_of(params, self.folder, settings.long_prompts)
        self.notices, self.long_prompts = inputs.notices, inputs.long
        self.subject = _subject(params, self.folder, inputs, precision_for(settings.precision, params.device))
        chosen = selection_of(self.subject, settings)
        chosen.check_unseen()
        self.chosen, self.units = chosen, chosen.units
        self.memorized, self.nulls, self.ordinary = chosen.memorized, chosen.nulls, chosen.ordinary
        self.kept, self.control_prompts = chosen.kept, chosen.control_prompts
        self.threshold_nulls = chosen.threshold_nulls
        self.attacked, self.controls, self.unseen = chosen.attacked, chosen.controls, chosen.unseen
        # As many null prompts as memorized ones, as published; fewer only where there are no more.
        few = len(self.memorized)
        self.contrast = collecting.empty_prompts(few) if settings.contrast == "empty" else self.nulls[:few]
        self.localizers = settings.localizers()
        self.pool = chosen.pool

    @property
    def clip(self) -> ClipParams:
        """The model that scores alignment.

        Raises:
            InputError: none is named, or none such is there.
        """
        return clip_of(self.params, self.folder)

    def audits(self) -> list[dict[str, Any]]:
        """The audits of these weights with these prompts and settings, however they ended: their rows in the store."""
        subject, told = self.subject, self.params.model_dump_json()
        found = subject.open().read("audits", model_id=subject.model_id, prompt_set=subject.prompt_set)
        rows: list[dict[str, Any]] = found.to_pylist()
        return [row for row in rows if row["params"] == told]

    def params_of(self, localizer: Localizer) -> Any:
        """A localizer's parameters, of feature norms no more steps than are sampled."""
        chosen = self.settings.of(localizer)
        return chosen.within(self.settings.sampling.steps) if isinstance(chosen, NormsParams) else chosen

    @cached_property
    def given(self) -> localizing.Given:
        """What localizers are given beside the prompts whose sets they look for."""
        alone = localizing.Given(
            nulls=self.nulls,
            threshold_nulls=self.threshold_nulls,
            contrast=self.contrast,
            ordinary=self.pictured[1],
            sampling=self.settings.sampling,
        )
        own = [one for localizer in self.localizers if not localizer.budget for one in self._pruned(localizer, alone)]
        return replace(alone, budgets={one.pruning.name: one for one in own})

    @cached_property
    def pruned(self) -> dict[str, Pruned]:
        """What is pruned in each variant that follows from the sets of localizers, by name and in their order."""
        chosen = {one.name for _, one in self.settings.prunings()}
        found = [one for localizer in self.localizers for one in self._pruned(localizer, self.given)]
        return {one.pruning.name: one for one in found if one.pruning.name in chosen}

    def _pruned(self, localizer: Localizer, given: localizing.Given) -> Iterator[Pruned]:
        params = self.params_of(localizer)
        for pruning in localizer.prunings:
            groups = self.groups(localizer, pruning.ordinary)
            scopes = tuple(
                prompt.prompt_id for prompt in (self.control_prompts if pruning.ordinary else self.memorized)
            )
            yield Pruned(localizer, pruning, params, localizing.sets_id(localizer, params, groups, given), scopes)

    def groups(self, localizer: Localizer, ordinary: bool = False) -> localizing.Groups:
        """The prompts that a localizer looks at, by scope; or ordinary ones as if they were memorized."""
        if ordinary:
            return localizing.control_of(localizer, self.memorized, self.control_prompts)
        return localizing.groups_of(localizer, self.memorized)

    def sets_id(self, localizer: Localizer, groups: localizing.Groups | None = None) -> str:
        """Of the sets that a localizer finds for these groups, or for the memorized prompts."""
        groups = groups or self.groups(localizer)
        return localizing.sets_id(localizer, self.params_of(localizer), groups, self.given)

    @property
    def nemo(self) -> NemoParams:
        """NeMo's parameters."""
        params: NemoParams = self.params_of(method("localizer", "nemo"))
        return params

    @property
    def wanda(self) -> WandaParams:
        """Wanda's parameters."""
        params: WandaParams = self.params_of(method("localizer", "wanda"))
        return params

    @cached_property
    def nemo_id(self) -> str:
        """Of NeMo's sets."""
        return self.sets_id(method("localizer", "nemo"))

    def published(self, localizer: Localizer) -> Any:
        """The parameters of a localizer's search as published, where it is to be compared with a shortcut."""
        if not self.settings.agreement or localizer.published is None:
            return None
        return localizer.published(self.params_of(localizer))

    def agreement(self) -> dict[str, float]:
        """By prompt id, the IOU of what NeMo's refinement and the published one found; empty where not compared."""
        nemo = method("localizer", "nemo")
        published = self.published(nemo)
        if published is None:
            return {}
        published_id = localizing.sets_id(nemo, published, self.groups(nemo), self.given)
        found = localizing.agreement(self.subject, nemo, published, self.nemo_id, published_id)
        # The store may know more prompts, of larger audits.
        return {prompt.prompt_id: found[prompt.prompt_id] for prompt in self.memorized}

    @property
    def curve_id(self) -> str:
        """Of the curves of memorization left."""
        return localizing.curve_id(self.nemo_id, self.settings.seed)

    @property
    def wanda_id(self) -> str:
        """Of Wanda's sets."""
        return self.sets_id(method("localizer", "wanda"))

    @property
    def control_id(self) -> str:
        """Of the sets that Wanda finds for ordinary prompts."""
        wanda = method("localizer", "wanda")
        return self.sets_id(wanda, self.groups(wanda, ordinary=True))

    @property
    def pictured(self) -> tuple[list[Prompt], list[Prompt]]:
        """Memorized and ordinary prompts that have training images."""
        return self.chosen.pictured

    @property
    def diagnosed(self) -> list[Prompt]:
        """Memorized prompts whose triggers are asked whether memory is local."""
        return self.attacked[: self.settings.diagnosed]

    @property
    def many(self) -> DoriParams:
        """The attack that finds many triggers of one picture, from random starts."""
        return self.settings.dori.model_copy(
            update={"start": "noise", "restarts": self.settings.triggers, "also_at": (0,)}
        )

    @property
    def searched(self) -> dict[str, list[str]]:
        """By prompt id, what those attacks found, in order of restarts, whether or not it brings the picture back."""
        seed = self.settings.seed
        return attacking.triggers_of(self.subject, ORIGINAL, self.diagnosed, self.pool, self.many, seed)

    @property
    def tried(self) -> tuple[Trial, list[evaluating.Shot]]:
        """The trial by which that is seen, and its generations."""
        trial = Trial(ORIGINAL, ORIGINAL, LOCALITY, self.diagnosed, self.settings.seeds)
        return trial, evaluating.shots(trial.prompts, trial.seeds, self.searched)

    @property
    def begun(self) -> dict[str, list[str]]:
        """By prompt id, the points that those attacks began from, in the same order."""
        seed = self.settings.seed
        return attacking.starts_of(self.subject, ORIGINAL, self.diagnosed, self.pool, self.many, seed)

    def succeeded(self) -> dict[str, list[int]]:
        """By prompt id, the restarts whose triggers do bring the picture back."""
        copying = evaluating.succeeded(self.subject, *self.tried, self.scoring)
        return {
            name: [restart for restart, one in enumerate(found) if one in copying]
            for name, found in self.searched.items()
        }

    def diagnosed_triggers(self) -> tuple[list[Prompt], list[Prompt]]:
        """The triggers that succeeded, to be asked like prompts; none of a picture that has fewer than two. And where
        their searches began, as the control: what these have in common, no search found.

        A search that fails ends anywhere: what lies there says nothing of where the memory is.
        """
        kept = {name: some if len(some) > 1 else [] for name, some in self.succeeded().items()}
        ends, starts = (
            {name: [found[name][restart] for restart in restarts] for name, restarts in kept.items()}
            for found in (self.searched, self.begun)
        )
        return as_prompts(ends, self.diagnosed), as_prompts(starts, self.diagnosed)

    def searches(self) -> list[reporting.Searches]:
        """What was searched for each image whose memory is diagnosed, and what was found."""
        (triggers, starts), succeeded = self.diagnosed_triggers(), self.succeeded()
        # One prompt of each image: captions of one lie together, and would make the others seem nearer than they are.
        others = self.chosen.different(self.memorized)
        out = []
        for prompt in self.diagnosed:
            name, unit = prompt.prompt_id, self.units[prompt.prompt_id]
            searched, begun = self.searched[name], self.begun[name]
            mine = [one for one in triggers if one.prompt_id in searched]
            began = [one for one in starts if one.prompt_id in begun]
            rest = [other for other in others if self.units[other.prompt_id] != unit]
            out.append(reporting.Searches(prompt, len(searched), len(succeeded[name]), mine, began, rest))
        return out

    @property
    def trigger_wanda_id(self) -> str:
        """Of the weights that Wanda finds from single triggers, and from where their searches began."""
        ends, starts = self.diagnosed_triggers()
        return self.sets_id(method("localizer", "wanda"), localizing.one_by_one([*ends, *starts]))

    @property
    def erasable(self) -> list[Prompt]:
        """Memorized prompts that fine-tuning can erase; none where there are no pictures to train on."""
        return self.chosen.erasable

    @property
    def why_not_erasable(self) -> str:
        """What is missing where there is nothing to erase."""
        return self.chosen.why_not_erasable

    def cuts(self) -> dict[str, str]:
        """The pruned variants that are there, in order: by name the variant in the store."""
        ids: dict[str, str] = {}
        for name, pruned in self.pruned.items():
            ids[name] = mitigating.prune_id(pruned)
            if pruned.pruning.control is not None:
                ids[pruned.pruning.control] = mitigating.prune_id(pruned, self.settings.seed)
        return mitigating.known(self.subject, ids)

    def variants(self) -> dict[str, str]:
        """Every variant that is there, the original first: by name the variant in the store."""
        cuts, settings = self.cuts(), self.settings
        ids = {one.name: mitigating.defend_id(one, settings.of(one)) for one in settings.chosen("inference")}
        pruned = pruned_of(cuts)
        if pruned is not None and self.erasable:
            ids |= {
                one.name: mitigating.erase_id(
                    one, self.erasable, self.kept, pruned, settings.of(one), settings.sampling, settings.sscd
                )
                for one in settings.chosen("training")
            }
        return {ORIGINAL: ORIGINAL} | cuts | mitigating.known(self.subject, ids)

    def trials(self, variants: Mapping[str, str]) -> Iterator[Trial]:
        """Everything that these variants are put to: by name the variant in the store."""
        settings, seeds = self.settings, self.settings.seeds
        for name, stored in variants.items():
            yield Trial(name, stored, PROMPT, self.memorized, seeds)
            if name not in per_prompt():  # nothing is pruned for them
                yield Trial(name, stored, ORDINARY, self.ordinary, seeds)
        if many := settings.extracted:
            both = [*self.memorized[:many], *self.ordinary[:many]]
            for name in claims():
                if name in variants:
                    yield Trial(name, variants[name], EXTRACTION, both, settings.extraction.generations)
        for start in settings.starts if self.attacked else ():
            for name, stored in variants.items():
                if start in self._starts(name):
                    yield Trial(name, stored, dori(start), self.attacked, seeds)
            for condition, others in ((dori(start, "control"), self.controls), (dori(start, "unseen"), self.unseen)):
                if others:
                    yield Trial(ORIGINAL, ORIGINAL, condition, others, seeds)
        few = settings.effort_images
        # The largest first: the others are its beginnings, and then there already.
        for steps in sorted(set(settings.efforts), reverse=True) if self.attacked else ():
            for condition, some in ((effort(steps), self.attacked), (effort(steps, "control"), self.controls)):
                if some:
                    yield Trial(ORIGINAL, ORIGINAL, condition, some[:few], seeds)

    def dori(self, condition: Condition) -> DoriParams:
        """The attack of a condition that attacks."""
        own: dict[str, Any] = {"start": condition.start, "also_at": ()}
        if condition.steps is not None:
            own |= {"steps": condition.steps, "also_at": self.settings.efforts}
        return self.settings.dori.model_copy(update=own)

    def triggers(self, trial: Trial) -> dict[str, list[str]] | None:
        """The ids of a trial's triggers by prompt id; None where prompts are asked."""
        if trial.condition.start is None:
            return None
        attack, seed = self.dori(trial.condition), self.settings.seed
        return attacking.triggers_of(self.subject, trial.variant, trial.prompts, self.pool, attack, seed)

    def trigger_ids(self, trial: Trial) -> list[str]:
        """All of those ids, in order."""
        return [name for ids in (self.triggers(trial) or {}).values() for name in ids]

    def shots(self, trial: Trial) -> list[evaluating.Shot]:
        """The generations that a trial asks for."""
        return evaluating.shots(trial.prompts, trial.seeds, self.triggers(trial))

    @cached_property
    def scoring(self) -> evaluating.Scoring:
        """What generations are made and looked at with."""
        settings = self.settings
        own = {one.name: settings.of(one) for one in metrics() if one.params.model_fields}
        detection = detection_id(self.nemo)
        return evaluating.Scoring(
            settings.sampling, settings.sscd, self.clip, own, detection, self.ordinary, self.detectors
        )

    @property
    def detectors(self) -> list[tuple[Detector, Any]]:
        """Those that are judged beside noise differences, with their parameters."""
        return [(one, self.settings.of(one)) for one in self.settings.judged()]

    def generations(self, trial: Trial) -> list[str]:
        """The ids of those generations."""
        wanted, sampling = self.shots(trial), self.settings.sampling
        return evaluating.generation_ids(self.subject, trial.variant, trial.condition, wanted, sampling)

    def _starts(self, name: str) -> tuple[Start, ...]:
        """Where attacks on a variant begin."""
        if name in claims():
            return self.settings.starts
        if name in random_controls() and name not in per_prompt():
            return self.settings.random_starts
        return self.settings.baseline_starts if name in names("mitigation") else ()


def pruned_of(cuts: Mapping[str, str]) -> str | None:
    """The pruned variant that makes surrogates for training: one whose sets were found for all prompts together, else
    one of all prompts' sets united."""
    fit = [one for _, one in sorted(prunings(), key=lambda pair: pair[1].over) if may_stand_in(one)]
    return next((cuts[one.name] for one in fit if one.name in cuts), None)


def selection_of(subject: Subject, settings: Settings) -> Selection:
    """The choice among the prompts of a set in the store."""
    return Selection(settings, {kind: prompts_of(subject, kind) for kind in get_args(Kind)})


def attack_pool(subject: Subject, settings: Settings) -> list[str]:
    """Prompts that attacks start from, or whose spread their noise has."""
    return selection_of(subject, settings).pool


def inputs_of(
    params: AuditParams, folder: Path, long_prompts: LongPrompts, tokenized: bool = True
) -> collecting.Inputs:
    """The prompts and images of an audit's files, with what is wrong with them; nothing is in a store yet.

    Args:
        folder: the model's.
        tokenized: whether the model's tokenizers look at them; not where it is known that they cannot be used.

    Raises:
        InputError: no prompts are named, and the model has none of its own.
    """
    prompts = params.prompts or beside(folder, "prompts")
    if prompts is None:
        raise InputError(
            f"which prompts? {folder} names none of its own: give a file of memorized prompts with --prompts"
        )
    images = params.images or (beside(folder, "images") if params.prompts is None else None)
    nulls, ordinary, images_at = (Path(path) if path else None for path in (params.nulls, params.ordinary, images))
    return collecting.read_inputs(
        Path(prompts), nulls, ordinary, images_at, folder if tokenized else None, long_prompts
    )


def _subject(params: AuditParams, folder: Path, inputs: collecting.Inputs, precision: Precision) -> Subject:
    """The model with its prompts in the store."""
    refuse(inputs.problems)  # before there is a store
    store = Store.open(params.store)
    name = collecting.import_inputs(store, inputs)
    return Subject(store=store.url, model=str(folder), prompt_set=name, device=params.device, precision=precision)


def clip_of(params: AuditParams, folder: Path) -> ClipParams:
    """The model that scores alignment: the one named, or else the model's own.

    Raises:
        InputError: none is named, or none such is there.
    """
    if params.clip is not None:
        return clip_score.clip_named(params.clip)
    own = beside(folder, "clip", clip_score.LOCAL)
    if own is None:
        raise InputError(f"{folder} names no CLIP model: give the folder of one with --clip FOLDER")
    return ClipParams(model=own)
