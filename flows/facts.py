"""What the page of an audit says of the audit itself: what was looked at, how, and what could not be done."""

from collections.abc import Sequence
from typing import Any

from flows.plan import Plan
from storage import content_key
from tasks.diffusion.sites import Site
from tasks.mitigate import task as mitigating
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


def facts_of(plan: Plan, record: dict[str, Any], variants: dict[str, str]) -> list[tuple[str, str]]:
    """Names and values, in the order of the page.

    Args:
        record: the audit's row of `audits`.
        variants: by the name that figures go by, the variant in the store.
    """
    settings, trainings = plan.settings, [one.name for one in plan.settings.chosen("training")]
    missing = [one.name for _, one in settings.prunings() if one.name not in variants]
    untrained = [name for name in trainings if name not in variants]
    facts = [
        ("model", plan.params.model),
        ("fingerprint", record["model_id"]),
        (
            "prompts",
            f"{_counted(plan, plan.memorized, 'memorized')}, {_counted(plan, plan.ordinary, 'ordinary')}, of set"
            f" {plan.subject.prompt_set}; with training pictures {len(plan.pictured[0])} and {len(plan.pictured[1])}",
        ),
        *([("long prompts", f"of the whole set, {plan.long_prompts}")] if plan.long_prompts else []),
        ("seeds", f"{settings.seeds} a prompt or trigger"),
        ("sampling", f"{settings.sampling.steps} steps, guidance {settings.sampling.guidance}"),
        (
            "attacks",
            f"{settings.dori.steps} steps of {settings.dori.batch} at a rate of {settings.dori.learning_rate:g}, on"
            f" {len(plan.attacked)} memorized, {len(plan.controls)} other and {len(plan.unseen)} unseen pictures",
        ),
        ("copies by", scorer_of(settings.sscd)),
        ("CLIP", clip_scorer_of(plan.clip)),
        ("variants", ", ".join(f"{name} = {stored}" for name, stored in variants.items() if name != stored)),
        ("nothing found by", ", ".join(missing) or "none"),
        ("NeMo", f"searches {SEARCHED[plan.nemo.site]}"),
        (
            "Wanda",
            f"{plan.wanda.sparsity:.3g} of each row, {plan.wanda.tau} steps, compared with"
            f" {'the empty prompt, as published' if settings.contrast == 'empty' else 'null prompts'}",
        ),
        ("device", f"{record['device']}, precision {settings.precision}"),
        ("started", f"{record['started_at']:%Y-%m-%d %H:%M} UTC"),
        ("versions", ", ".join(f"{name} {number}" for name, number in record["library_versions"].items())),
        ("settings", f"{plan.params.profile}, {content_key(record['params'])[:8]}"),
    ]
    agreement = list(plan.agreement().values())
    if agreement:
        words = f"finds the neurons of the published search with an IOU of {sum(agreement) / len(agreement):.3f}"
        same = sum(iou == 1 for iou in agreement)
        facts.append(("refinement", f"{plan.nemo.refinement} {words}, the same for {same} of {len(agreement)}"))
    measured = {prompt.prompt_id for prompt in plan.ordinary}
    if any(prompt.prompt_id in measured for prompt in plan.control_prompts):
        facts.append(("control of Wanda", "found on prompts that quality is measured on, there are too few others"))
    for name in random_controls():
        if name in variants and (part := mitigating.shared_with_found(plan.subject, variants[name])):
            facts.append((name, f"{part:.0%} of what it cuts was localized, too: more than half of a layer was"))
    for name in trainings:
        if name in variants and (left := mitigating.not_erased(plan.subject, variants[name])):
            few = [prompt for prompt in plan.erasable if prompt.text in left]
            words = f"left out {_counted(plan, few)}, of {_counted(plan, plan.erasable)}: of those the pruned model"
            facts.append((name, f"{words} makes only copies"))
    if untrained:
        failed = "nothing was localized, the training diverged, or memory was short"
        why = failed if plan.erasable else plan.why_not_erasable
        facts.append(("not fine-tuned", f"{', '.join(untrained)}: {why}"))
    return facts


def _counted(plan: Plan, prompts: Sequence[Prompt], what: str = "prompts") -> str:
    return counted([prompt.prompt_id for prompt in prompts], plan.units, what)
