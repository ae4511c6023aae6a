"""What settings, prompts and a model cannot do together: known before any work, by the rules that the work itself has.

Each rule is one of the methods' own, asked here of numbers that are known beforehand.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path

from flows.selection import Selection
from flows.settings import Settings, managed
from tasks.diffusion.detection import enough_scores, pairs
from tasks.diffusion.model import device_of
from tasks.diffusion.outline import Outline, enough_timesteps, weightless
from tasks.diffusion.precision import precision_for
from tasks.errors import gathered
from tasks.evaluate.task import check_clique, check_tiles
from tasks.localize.task import NormsParams, enough_prompts
from tasks.methods import Detector, Localizer, Mitigation
from tasks.mitigate.task import FineTuneParams, too_large
from tasks.scan.task import ScanParams


def together(settings: Settings) -> list[str]:
    """What settings cannot do together, whatever the model and the prompts are."""
    out = managed(settings)
    precision, chosen, trainings = settings.precision, settings.localizers(), settings.chosen("training")
    if precision == "float16" and settings.attacked:
        out.append("attacks need gradients, which vanish in float16: --set precision=bfloat16 or float32")
    learning: list[Localizer | Mitigation] = [*chosen, *settings.chosen("inference")]
    by = [one.name for one in learning if one.gradients]
    if precision == "float16" and by:
        out.append(f"{by[0]} needs gradients, which vanish in float16: --set precision=bfloat16 or float32")
    if precision in ("float16", "bfloat16") and trainings:
        out.append(
            f"{trainings[0].name} needs float32 weights, not {precision}: --set precision=mixed, or leave it out of"
            " --set 'mitigations=[...]'"
        )
    replacing = [one for one in trainings if one.reads_surrogates(settings.of(one))]
    if replacing and not any(one.stands_in for _, one in settings.prunings()):
        out.append(
            f"{replacing[0].name} needs images of a model that was pruned of all memories at once: --set"
            " 'mitigations=[...]' with wanda, say, too"
        )
    names = {one.name for _, one in settings.prunings()}
    out += [
        f"{one.name} is a control of {one.control_of}: --set 'mitigations=[...]' with both, or with neither"
        for _, one in settings.prunings()
        if one.control_of and one.control_of not in names
    ]
    if settings.sampling.guidance <= 1:
        out += (
            f"without guidance {words}, or sample with a guidance above 1" for words in _without_other_half(settings)
        )
    out += dict.fromkeys(
        f"{one.group}.stop_at is looked at by held-out attacks, of which there are none: --set"
        f" {one.group}.check_every=N"
        for one in trainings
        if isinstance(params := settings.of(one), FineTuneParams) and params.stop_at and not params.check_every
    )
    return out + gathered(partial(check_clique, settings.extraction) if settings.extracted else None)


def with_prompts(settings: Settings, chosen: Selection) -> list[str]:
    """What settings cannot do with these prompts."""
    rules: list[Callable[[], object]] = []
    for one in settings.localizers():
        params = settings.of(one)
        reads = one.reads_of(params)
        if "null scores" in reads:
            rules.append(partial(enough_scores, len(chosen.threshold_nulls) * pairs(params.seeds)))
        if "null values" in reads:
            rules.append(partial(enough_prompts, len(chosen.nulls)))
    return gathered(*rules, chosen.check_unseen, chosen.check_images)


def with_model(settings: Settings, outline: Outline) -> list[str]:
    """What settings cannot do with a model of this outline."""
    image, trained, family = outline.image, outline.trained, outline.family
    halves = _without_other_half(settings) if family.distilled and settings.sampling.guidance > 1 else []
    tiled = image and settings.extracted and settings.extraction.measure == "tiles"
    mitigations = [*settings.chosen("training"), *settings.chosen("inference")]
    chosen: list[Detector | Localizer | Mitigation] = [*settings.judged(), *settings.localizers(), *mitigations]
    own = ((one.check, settings.of(one)) for one in chosen)
    return [f"in {family.__name__}, whose guidance is distilled, {words}" for words in halves] + gathered(
        partial(check_tiles, *image, settings.extraction.tiles) if image and tiled else None,
        partial(enough_timesteps, settings.sampling.steps, trained, "sampling.steps"),
        *(partial(check, params, outline) for check, params in own if check is not None),
    )


def _without_other_half(settings: Settings) -> list[str]:
    """Of each localizer that needs the half of guidance without text, what is wrong where there is none."""
    found = ((one.group, settings.of(one)) for one in settings.localizers())
    return [
        f"there is no half without text, which {group}.half={params.half} needs: --set {group}.half=conditional"
        for group, params in found
        if isinstance(params, NormsParams) and params.half != "conditional"
    ]


def with_device(settings: Settings, folder: Path, device: str | None) -> list[str]:
    """Which trainings do not fit into the memory of the device that computes, and what would."""
    trainings = [(one, settings.of(one)) for one in settings.chosen("training")]
    if not trainings:
        return []
    return too_large(trainings, weightless(folder, precision_for(settings.precision, device)), device_of(device))


def of_a_scan(params: ScanParams, outline: Outline) -> list[str]:
    """What a scan cannot do with a model of this outline."""
    checks = ((one.check, params.of(one)) for one in params.chosen())
    return gathered(*(partial(check, own, outline) for check, own in checks if check is not None))


def of_sampling(settings: Settings, outline: Outline) -> list[str]:
    """What is worth a line of how a model of this outline is sampled."""
    return list(outline.family.sampling_notes(outline.denoiser.config, settings.sampling.guidance))


def notices(settings: Settings, chosen: Selection) -> list[str]:
    """What is left out of an audit though settings ask for it: for want of images, or by other settings."""
    out = []
    with_images = chosen.with_images[0]
    if settings.attacked and not with_images:
        out.append("memorized prompts have no images: no copying is measured, and nothing is attacked; give --images")
    elif settings.attacked and settings.controls and not chosen.controls:
        out.append("no ordinary prompt has an image of its own: attacks have no control")
    if settings.chosen("training") and with_images and not chosen.erasable:
        out.append(f"nothing is fine-tuned: {chosen.why_not_erasable}")
    few = min(settings.diagnosed, len(chosen.attacked))
    if few < settings.diagnosed and with_images:
        out.append(f"{few} images are diagnosed, not {settings.diagnosed}: only those that are attacked can be")
    if settings.efforts and with_images and not chosen.attacked:
        out.append("no efforts are drawn: nothing is attacked")
    steps = settings.sampling.steps
    for one in settings.localizers():
        if isinstance(params := settings.of(one), NormsParams) and params.tau > steps:
            out.append(f"{one.group}.tau is {steps}, as many as there are steps, not {params.tau}")
    if settings.seeds == 1:
        out.append("with one seed nothing says how alike the images of one prompt are")
    return out
