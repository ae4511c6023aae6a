"""What settings, prompts and a model cannot do together: known before any work, by the rules that the work itself has.

Each rule is one of the methods' own, asked here of numbers that are known beforehand.
"""

from functools import partial

from flows.selection import Selection
from flows.settings import Settings, managed
from tasks.diffusion.detection import enough_scores, pairs
from tasks.diffusion.outline import Outline, enough_timesteps
from tasks.diffusion.sites import Site
from tasks.diffusion.ssim import scales_and_kernel
from tasks.errors import gathered
from tasks.evaluate.extraction import check_clique, check_tiles
from tasks.localize.importance import BY_GRADIENT
from tasks.localize.statistics import enough_prompts, load_statistics
from tasks.localize.wanda import candidates_of
from tasks.mitigate.inference import check_defence
from tasks.scan.task import ScanParams


def together(settings: Settings) -> list[str]:
    """What settings cannot do together, whatever the model and the prompts are."""
    out = managed(settings)
    precision, half = settings.precision, settings.wanda.half
    if precision == "float16" and settings.attacked:
        out.append("attacks need gradients, which vanish in float16: --set precision=bfloat16 or float32")
    if precision == "float16" and (by := [score for score in settings.scores if score in BY_GRADIENT]):
        out.append(f"the {by[0]} score needs gradients, which vanish in float16: --set precision=bfloat16 or float32")
    if precision == "float16" and "perturbed-embedding" in settings.defences:
        out.append("perturbed-embedding needs gradients, which vanish in float16: --set precision=bfloat16 or float32")
    if precision in ("float16", "bfloat16") and settings.erase:
        out.append(f"fine-tuning needs float32 weights, not {precision}: --set precision=mixed, or --set 'erase=[]'")
    if settings.sampling.guidance <= 1 and half != "conditional":
        out.append(
            f"without guidance there is no half without text, which wanda.half={half} needs: "
            "--set wanda.half=conditional, or sample with a guidance above 1"
        )
    if settings.finetune.stop_at and not settings.finetune.check_every:
        out.append(
            "finetune.stop_at is looked at by held-out attacks, of which there are none: --set finetune.check_every=N"
        )
    return out + gathered(partial(check_clique, settings.extraction) if settings.extracted else None)


def with_prompts(settings: Settings, chosen: Selection) -> list[str]:
    """What settings cannot do with these prompts."""
    scores = len(chosen.threshold_nulls) * pairs(settings.nemo.seeds)
    return gathered(
        partial(enough_scores, scores) if settings.nemo.threshold is None else None,
        partial(enough_prompts, len(chosen.nulls)) if settings.nemo.statistics is None else None,
        chosen.check_unseen,
        chosen.check_scores,
    )


def with_model(settings: Settings, outline: Outline) -> list[str]:
    """What settings cannot do with a model of this outline."""
    latent, picture, trained = outline.latent, outline.picture, outline.trained
    site = Site(settings.nemo.site)

    def rows() -> None:
        columns = min(layer.inputs for layer in outline.layers(Site.FEED_FORWARD_HIDDEN))
        candidates_of(columns, settings.wanda.sparsity)

    def statistics() -> None:
        layers = outline.layers(site)
        if settings.nemo.statistics is not None:
            load_statistics(settings.nemo.statistics, layers)

    tiled = picture and settings.extracted and settings.extraction.measure == "tiles"
    gradients = any(score in BY_GRADIENT for score in settings.scores)
    return gathered(
        rows,
        statistics,
        partial(scales_and_kernel, min(latent)) if latent else None,
        partial(check_tiles, *picture, settings.extraction.tiles) if picture and tiled else None,
        partial(enough_timesteps, settings.sampling.steps, trained, "sampling.steps"),
        partial(enough_timesteps, settings.nemo.steps, trained, "nemo.steps"),
        *(partial(check_defence, kind, outline.family) for kind in settings.defences),
        partial(enough_timesteps, settings.importance.timesteps, trained, "importance.timesteps")
        if gradients
        else None,
    )


def of_a_scan(params: ScanParams, outline: Outline) -> list[str]:
    """What a scan cannot do with a model of this outline."""
    checks = ((one.check, params.of(one)) for one in params.chosen())
    return gathered(*(partial(check, own, outline) for check, own in checks if check is not None))


def notices(settings: Settings, chosen: Selection) -> list[str]:
    """What is left out of an audit though settings ask for it: for want of pictures, or by other settings."""
    out = []
    pictured = chosen.pictured[0]
    if settings.attacked and not pictured:
        out.append("memorized prompts have no pictures: no copying is measured, and nothing is attacked; give --images")
    elif settings.attacked and settings.controls and not chosen.controls:
        out.append("no ordinary prompt has a picture of its own: attacks have no control")
    if settings.erase and pictured and not chosen.erasable:
        out.append(f"nothing is fine-tuned: {chosen.why_not_erasable}")
    few = min(settings.diagnosed, len(chosen.attacked))
    if few < settings.diagnosed and pictured:
        out.append(f"{few} pictures are diagnosed, not {settings.diagnosed}: only those that are attacked can be")
    if settings.efforts and pictured and not chosen.attacked:
        out.append("no efforts are drawn: nothing is attacked")
    if settings.wanda.tau > settings.sampling.steps:
        out.append(f"wanda.tau is {settings.sampling.steps}, as many as there are steps, not {settings.wanda.tau}")
    if settings.seeds == 1:
        out.append("with one seed nothing says how alike the pictures of one prompt are")
    return out
