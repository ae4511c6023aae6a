"""What the page of an audit says of the audit itself: what was looked at, how, and what could not be done."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flows.run import ids
from flows.run.spec import Spec
from storage import content_key
from tasks.diffusion.folder import signals_of
from tasks.diffusion.sites import Site
from tasks.localize import task as localizing
from tasks.methods import method
from tasks.mitigate import task as mitigating
from tasks.prompt_files import shortened
from tasks.pruned import random_controls
from tasks.scorers.clip import scorer_of as clip_scorer_of
from tasks.scorers.sscd import scorer_of
from tasks.subject import Prompt
from tasks.units import counted

SEARCHED = {
    Site.VALUE: "the values of the down and mid blocks, as published",
    Site.VALUE_ALL: "the values of all blocks",
    Site.KEY: "the keys of the down and mid blocks, a control",
}


def facts_of(spec: Spec, record: dict[str, Any], variants: dict[str, str]) -> list[tuple[str, str]]:
    """Names and values, in the order of the page.

    Args:
        record: the audit's row of `audits`.
        variants: by the name that estimates go by, the variant in the store.
    """
    settings, chosen = spec.settings, spec.chosen
    with_images = " and ".join(str(len(some)) for some in chosen.with_images)
    nemo, wanda = (ids.params_of(spec, method("localizer", name)) for name in ("nemo", "wanda"))
    missing = [one.name for _, one in settings.prunings() if one.name not in variants]
    trainings = [one.name for one in settings.chosen("training")]
    untrained = [name for name in trainings if name not in variants]
    facts = [
        ("model", spec.params.named),
        ("fingerprint", record["model_id"]),
        (
            "prompts",
            f"{_counted(spec, chosen.memorized, 'memorized')}, {_counted(spec, chosen.ordinary, 'ordinary')}, of set"
            f" {spec.subject.prompt_set}; with training images {with_images}",
        ),
        ("confirmed", confirmed_words(spec)),
        *([("near-duplicates", near)] if (near := near_duplicates(spec)) else []),
        *([("long prompts", f"of the whole set, {spec.long_prompts}")] if spec.long_prompts else []),
        ("seeds", f"{settings.seeds} a prompt or trigger"),
        ("sampling", f"{settings.sampling.steps} steps, guidance {settings.sampling.guidance}"),
        (
            "attacks",
            f"{settings.dori.steps} steps of {settings.dori.batch} at a rate of {settings.dori.learning_rate:g}, on"
            f" {len(chosen.attacked)} memorized, {len(chosen.controls)} other and {len(chosen.unseen)} unseen images",
        ),
        ("copies by", scorer_of(settings.sscd)),
        ("CLIP", clip_scorer_of(spec.clip)),
        ("variants", ", ".join(f"{name} = {stored}" for name, stored in variants.items() if name != stored)),
        ("nothing found by", ", ".join(missing) or "none"),
        ("NeMo", f"searches {SEARCHED[nemo.site]}"),
        (
            "Wanda",
            f"{wanda.sparsity:.3g} of each row, {wanda.tau} steps, compared with"
            f" {'the empty prompt, as published' if settings.contrast == 'empty' else 'null prompts'}",
        ),
        *([("signals", words)] if (words := signals_of(Path(spec.subject.model))) else []),
        ("device", f"{record['device']}, precision {settings.precision}"),
        ("started", f"{record['started_at']:%Y-%m-%d %H:%M} UTC"),
        ("versions", ", ".join(f"{name} {number}" for name, number in record["library_versions"].items())),
        ("settings", f"{spec.params.profile}, {content_key(record['params'])[:8]}"),
    ]
    agreement = list(_agreement(spec).values())
    if agreement:
        words = f"finds the neurons of the published search with an IOU of {sum(agreement) / len(agreement):.3f}"
        same = sum(iou == 1 for iou in agreement)
        facts.append(("refinement", f"{nemo.refinement} {words}, the same for {same} of {len(agreement)}"))
    measured = {prompt.prompt_id for prompt in chosen.ordinary}
    if any(prompt.prompt_id in measured for prompt in chosen.control_prompts):
        facts.append(("control of Wanda", "found on prompts that quality is measured on, there are too few others"))
    for name in random_controls():
        if name in variants and (part := mitigating.shared_with_found(spec.subject, variants[name])):
            facts.append((name, f"{part:.0%} of what it prunes was localized, too: more than half of a layer was"))
    for name in trainings:
        if name in variants and (left := mitigating.not_erased(spec.subject, variants[name])):
            few = [prompt for prompt in chosen.erasable if prompt.text in left]
            words = f"left out {_counted(spec, few)}, of {_counted(spec, chosen.erasable)}: of those the pruned model"
            facts.append((name, f"{words} makes only copies"))
    if untrained:
        failed = "nothing was localized, the training diverged, or memory was short"
        why = failed if chosen.erasable else chosen.why_not_erasable
        facts.append(("not fine-tuned", f"{', '.join(untrained)}: {why}"))
    return facts


def confirmed_words(spec: Spec) -> str:
    """How many memorized prompts the model brings an image back from, and what becomes of which others."""
    chosen, known = spec.chosen, spec.chosen.confirmed
    confirmed = [one for one in chosen.memorized if one.prompt_id in known]
    words = f"{len(confirmed)} of {_counted(spec, chosen.memorized, 'memorized prompts')}"
    for how, some in (
        (f"by a copy among {spec.settings.seeds} generations", [one for one in confirmed if one.image_ids]),
        ("by detection, for want of images", [one for one in confirmed if not one.image_ids]),
    ):
        words += f", {_counted(spec, some)} {how}" if some else ""
    if chosen.unconfirmed:
        others = "are not examined" if spec.settings.examined == "confirmed" else "are examined, too"
        words += f"; the others {others}: {shortened([one.text for one in chosen.unconfirmed])}"
    if not chosen.examined:
        words += "; nothing is localized, attacked or trained away: --set examined=all examines them nevertheless"
    return words


def near_duplicates(spec: Spec) -> str:
    """The memorized prompts that count once since their images or captions are nearly the same; empty without such."""
    chosen = spec.chosen
    sharing: dict[str, list[Prompt]] = {}
    for one in chosen.memorized:
        sharing.setdefault(chosen.units[one.prompt_id], []).append(one)
    alike = [some for some in sharing.values() if len({chosen.exact[one.prompt_id] for one in some}) > 1]
    if not alike:
        return ""
    words = [" = ".join(f'"{one.text}"' for one in some) for some in alike]
    return f"{len(chosen.memorized)} memorized prompts are {len(sharing)} cases; each counts once: {shortened(words)}"


def _agreement(spec: Spec) -> dict[str, float]:
    """By prompt id, the IOU of what NeMo's refinement and the published one found; empty where not compared."""
    nemo = method("localizer", "nemo")
    if (published := ids.published(spec, nemo)) is None:
        return {}
    searches = ids.sets(spec, nemo), ids.sets(spec, nemo, params=published)
    found = localizing.agreement(spec.subject, nemo, published, *searches)
    # The store may know more prompts, of larger audits.
    return {prompt.prompt_id: found[prompt.prompt_id] for prompt in spec.chosen.examined}


def _counted(spec: Spec, prompts: Sequence[Prompt], what: str = "prompts") -> str:
    return counted([prompt.prompt_id for prompt in prompts], spec.chosen.units, what)
