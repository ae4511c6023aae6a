"""The settings of an audit, and the two profiles that people start from."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from flows.typed import may_be, validated
from tasks.conditions import Start
from tasks.diffusion.precision import PrecisionChoice
from tasks.diffusion.sampling import SamplingParams
from tasks.diffusion.tokens import LongPrompts
from tasks.dori import DoriParams
from tasks.errors import InputError, refuse
from tasks.evaluate.task import ExtractionParams
from tasks.methods import (
    Detector,
    Localizer,
    Method,
    Mitigation,
    Pruning,
    localizer_of,
    method,
    methods,
    mitigations,
    named,
    params_in,
    prunings,
    variants,
    with_groups,
)
from tasks.scorers.sscd import SscdParams

Profile = Literal["quick", "full"]

if TYPE_CHECKING:
    DetectorName = str
    VariantName = str
else:
    DetectorName = named("detector")
    VariantName = Literal.__getitem__(variants())


class AuditSettings(BaseModel):
    """How much an audit looks at, and how. Methods are set as published, but where their descriptions say otherwise;
    how much is looked at is what hours allow, such as 500 null prompts of the published 50,000. Each method's own
    settings are a group beside."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    memorized: int | None = Field(None, ge=1, description="Number of memorized prompts that are audited; all if empty.")
    examined: Literal["confirmed", "all"] = Field(
        "confirmed",
        description="The memorized prompts that are localized, attacked, trained away and extracted: those that the"
        " model at hand was seen to bring an image back from, or all.",
    )
    nulls: int = Field(500, ge=2, description="Largest number of null prompts that NeMo's statistics are taken over.")
    threshold_nulls: int = Field(
        50, ge=1, description="Largest number of null prompts that the memorization threshold is taken over."
    )
    ordinary: int = Field(50, ge=1, description="Largest number of ordinary prompts that quality is measured on.")
    long_prompts: LongPrompts = Field(
        "truncate",
        description="What is done with prompts of more tokens than the model reads: truncate reads their beginning, as "
        "training does; refuse names them all and stops; skip leaves them out.",
    )
    seeds: int = Field(4, ge=1, le=100, description="Number of images made of each prompt or trigger.")
    attacked: int = Field(
        16, ge=0, description="Number of training images that are attacked in each variant; 0 attacks nothing."
    )
    controls: int = Field(
        16, ge=0, description="Number of images never memorized that are attacked under the same budget, as a control."
    )
    unseen: int = Field(
        0,
        ge=0,
        description="Number of images of null prompts that are attacked as a further control, for models known never"
        " to have seen them.",
    )
    detectors: tuple[DetectorName, ...] = Field(
        (),
        description="Detectors that are judged by memorized and ordinary prompts, beside the noise differences that"
        " NeMo begins with. `engram methods` explains them.",
    )
    starts: tuple[Start, ...] = Field(("prompt", "noise"), description="Where attacks begin.")
    baseline_starts: tuple[Start, ...] = Field(
        ("noise",), description="Where attacks on baselines begin; only those that `starts` names count."
    )
    random_starts: tuple[Start, ...] = Field(
        ("prompt", "noise", "other"),
        description="Where attacks on randomly pruned controls begin; only those that `starts` names count.",
    )
    efforts: tuple[Annotated[int, Field(ge=1, le=10_000)], ...] = Field(
        (),
        description="Numbers of attack steps that the copy rate is plotted against; hundreds can bring anything back.",
    )
    effort_images: int = Field(
        8,
        ge=1,
        description="Number of memorized images, and of images never memorized, that are attacked for the plot over"
        " `efforts`.",
    )
    precision: PrecisionChoice = Field(
        "float32",
        description="Number format of what is computed. mixed: the denoiser computes in bfloat16 where that is safe;"
        " auto: mixed where there is bfloat16.",
    )
    sampling: SamplingParams = SamplingParams()
    agreement: bool = Field(
        False,
        description="Whether NeMo's published refinement runs beside another that is set, and the two are compared.",
    )
    contrast: Literal["prompts", "empty"] = Field(
        "empty",
        description="What Wanda compares memorized prompts with: the empty prompt as published, or null prompts.",
    )
    mitigations: tuple[VariantName, ...] = Field(
        ("nemo", "nemo-union", "wanda"),
        description="The variants that are made and audited beside the original: pruned, trained, or changed at"
        " inference. Controls are made beside them. `engram methods` explains them.",
    )
    kept: int = Field(
        512, ge=1, description="Largest number of ordinary images that fine-tuning trains on beside memorized ones."
    )
    dori: DoriParams = DoriParams()
    diagnosed: int = Field(
        0,
        ge=0,
        description="Number of memorized images for which many triggers are made, to see whether memory is local.",
    )
    triggers: int = Field(
        10, ge=3, le=1000, description="Number of triggers made for each image that is diagnosed; 100 as published."
    )
    extracted: int = Field(
        0, ge=0, description="Number of memorized prompts, and of ordinary prompts, in the extraction attack."
    )
    extraction: ExtractionParams = ExtractionParams()
    sscd: SscdParams = SscdParams()
    seed: int = Field(0, ge=0, le=2**32 - 1, description="Seed of attacks and of random pruning.")

    def of(self, chosen: Method) -> Any:
        """The parameters of a method."""
        return params_in(self, chosen)

    def files(self) -> dict[str, dict[str, Path]]:
        """The files that settings of methods name, by group and name."""
        groups = {one.group: dict(self.of(one)) for one in methods()}
        return {
            group: {name: value for name, value in own.items() if isinstance(value, Path)}
            for group, own in groups.items()
            if any(isinstance(value, Path) for value in own.values())
        }

    def prunings(self) -> list[tuple[Localizer, Pruning]]:
        """The pruned variants that are chosen, and the controls that their own localizers find beside them, each behind
        the localizer whose sets it prunes."""
        own = {(found.name, one.name) for found, one in prunings() if one.name in self.mitigations}
        return [
            (found, one)
            for found, one in prunings()
            if one.name in self.mitigations or (found.name, one.control_of) in own
        ]

    def judged(self) -> list[Detector]:
        """The detectors that are chosen, each once."""
        return [method("detector", name) for name in dict.fromkeys(self.detectors)]

    def chosen(self, acts: Literal["training", "inference"]) -> list[Mitigation]:
        """The mitigations that are chosen beside pruned variants, in the order in which they are named."""
        known = {one.name: one for one in mitigations() if one.acts == acts}
        return [known[name] for name in dict.fromkeys(self.mitigations) if name in known]

    def localizers(self) -> list[Localizer]:
        """Those that the pruned variants follow from, each once, behind those that they are compared with."""
        found: dict[str, Localizer] = {}
        for chosen, _ in self.prunings():
            for one in (*([localizer_of(chosen.budget)] if chosen.budget else []), chosen):
                found.setdefault(one.name, one)
        return list(found.values())


if TYPE_CHECKING:
    Settings = AuditSettings
else:
    Settings = with_groups("Settings", AuditSettings, methods())


PROFILES: dict[Profile, dict[str, Any]] = {
    "quick": {
        "memorized": 8,
        "nulls": 200,
        "threshold_nulls": 10,
        "ordinary": 8,
        "seeds": 2,
        "attacked": 4,
        "controls": 4,
        "starts": ("noise",),
        "random_starts": (),
        "sampling": {"steps": 20},
        "wanda": {"tau": 4},
    },
    "full": {
        "attacked": 24,
        "controls": 24,
        "starts": ("prompt", "noise", "other"),
        "efforts": (10, 25, 50, 100, 200, 500),
        "mitigations": (
            "nemo",
            "nemo-union",
            "wanda",
            "adversarial-finetune",
            "surrogate-finetune",
            "ordinary-finetune",
            "perturbed-embedding",
            "random-tokens",
            "reweighted-attention",
        ),
        "finetune": {"check_every": 6},
        "diagnosed": 2,
        "extracted": 8,
        "extraction": {"generations": 100, "clique": 5},
    },
}


MANAGED = {
    "dori.start": "attacks begin where `starts` says",
    "dori.also_at": "`efforts` says at which numbers of steps attacks are looked at",
}
"""Settings of methods that an audit sets itself, and by what. They are not listed, and refused where they are given."""


def settings_for(
    profile: Profile, model: Mapping[str, Any], file: str | Path = "engram.json", /, **changes: Any
) -> Settings:
    """A profile, with what the model's own `engram.json` says, with what a person asked for.

    Args:
        model: its "settings" count for every profile, its "profiles" for the one that they are named by.
        file: what the model's own settings are called by where they cannot be used.

    Raises:
        InputError: values are out of their bounds, or have no such name; all of them at once.
    """
    profiles: Mapping[str, Any] = model.get("profiles", {})
    own = [model.get("settings", {}), profiles.get(profile, {})]
    problems: list[str] = []
    base: Mapping[str, Any] = PROFILES[profile]
    try:
        others = sorted(profiles.keys() - PROFILES.keys())
        refuse([f"{file} has a profile {name!r}; there are {', '.join(PROFILES)}" for name in others])
        # By itself first, so that what is wrong is said of the file that it stands in.
        merged = validated(Settings, _merged(base, *own), f"{file}: ")
        refuse([f"{file}: {problem}" for problem in managed(merged)])
        base = _merged(base, *own)
    except InputError as error:
        problems += error.problems
    try:
        chosen = validated(Settings, _merged(base, changes))
        refuse(problems + managed(chosen))
    except InputError as error:
        refuse([*problems, *error.problems])
        raise
    return chosen


def managed(settings: Settings) -> list[str]:
    """What is said of settings that would be ignored, since an audit sets them itself."""
    found = []
    for name, words in MANAGED.items():
        group, _, last = name.partition(".")
        chosen = getattr(settings, group)
        if getattr(chosen, last) != type(chosen).model_fields[last].default:
            found.append(f"{name} would be ignored: {words}")
    return found


def _merged(*sources: Mapping[str, Any]) -> dict[str, Any]:
    """Later sources over earlier ones, setting by setting."""
    merged: dict[str, Any] = {}
    for source in sources:
        for name, value in source.items():
            known = merged.get(name)
            merged[name] = _merged(known, value) if isinstance(value, Mapping) and isinstance(known, Mapping) else value
    return merged


def listed(settings: BaseModel, group: str = "") -> Iterator[dict[str, str]]:
    """Every setting by the name that `--set` takes, with its value there, what it may be and what it is."""
    schemas = type(settings).model_json_schema()["properties"]
    for name, field in type(settings).model_fields.items():
        value = getattr(settings, name)
        if isinstance(value, BaseModel):
            yield from listed(value, f"{group}{name}.")
        elif group + name not in MANAGED:
            words = json.dumps(settings.model_dump(mode="json", include={name})[name])
            yield {
                "setting": group + name,
                "value": words,
                "may be": may_be(schemas[name]),
                "what": field.description or "",
            }
