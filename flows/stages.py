"""The stages of an audit, each a flow that can also be run alone on what lies in the store.

One direction: collect, localize, mitigate, attack, evaluate, report. A stage that misses what the one before it writes
says so and stops.
"""

from collections.abc import Sequence

from prefect import flow, get_run_logger, runtime
from prefect.artifacts import create_image_artifact, create_markdown_artifact
from pydantic import BaseModel

from flows.check import check
from flows.facts import facts_of
from flows.lineage import task
from flows.params import AuditParams
from flows.plan import Plan, pruned_of
from flows.ready import check_ready
from flows.show import show, show_audit, show_chart, shown_progress, uri
from tasks.attack import task as attacking
from tasks.collect import task as collecting
from tasks.conditions import EXTRACTION
from tasks.errors import Diverged, InputError, TooLarge
from tasks.evaluate import task as evaluating
from tasks.evaluate.task import Trial
from tasks.localize import task as localizing
from tasks.methods import Localizer, method
from tasks.mitigate import task as mitigating
from tasks.pruned import random_controls
from tasks.report import task as reporting
from tasks.scan import task as scanning
from tasks.scorers import clip, sscd
from tasks.subject import ORIGINAL, Prompt


class Audited(BaseModel):
    """What came of an audit."""

    audit_id: str
    report: str
    variants: dict[str, str]
    """By the name that figures go by, the variant in the store."""
    written: reporting.Written


PRUNED = ("neuron_sets", "variants")
"""What pruning writes."""

register_model = task(collecting.register_model, "register model", "models", "variants")
collect_values = task(collecting.collect_values, "value activations", "activations", reads=("prompts",))
collect_norms = task(collecting.collect_norms, "feature norms", "activations", reads=("prompts",))
detect = task(localizing.detect, "detection", "nemo_traces", reads=("prompts",))
score_by = task(
    scanning.score_prompts, "score prompts", "detections", reads=("prompts",), run="score prompts: {detector.name}"
)
localize_by = task(
    localizing.localize,
    "localize",
    "neuron_sets",
    "nemo_traces",
    reads=("activations", "images"),
    run="localize: {localizer.name}",
)
draw_curves = task(localizing.draw_curves, "memorization left", "nemo_traces", reads=("neuron_sets",))
prune = task(mitigating.prune, "prune", *PRUNED, reads=("neuron_sets",), run="prune: {pruned.pruning.name}")
defend = task(mitigating.defend, "defend at inference", "variants", run="defend: {mitigation.name}")
erase = task(mitigating.erase, "fine-tune", "variants", reads=("images",), run="fine-tune: {mitigation.name}")
attack_images = task(attacking.attack_images, "Dori", "triggers", reads=("variants", "images"), run="Dori: {variant}")
try_triggers = task(evaluating.try_triggers, "try triggers", "generations", "scores", reads=("triggers",))
measure = task(
    evaluating.measure,
    "evaluate",
    "generations",
    "scores",
    "metrics",
    reads=("variants", "triggers", "prompts"),
    run="evaluate {trial.name}, {trial.condition.name}",
)
write_diagnosis = task(reporting.diagnose, "locality", "metrics", reads=("triggers", "neuron_sets"))
write_report = task(reporting.write_report, "write report", "evidence", reads=("metrics", "generations", "scores"))


@flow(name="collect", flow_run_name="collect")
def collect(params: AuditParams) -> None:
    """Activations and feature norms of memorized, null and ordinary prompts.

    Raises:
        InputError: the model, the prompts or the images cannot be used.
    """
    check(params)
    plan = Plan(params)
    for notice in plan.notices:
        get_run_logger().info(notice)
    with shown_progress("collect"):
        register_model(plan.subject, plan.settings.sampling)
        for localizer in plan.localizers:
            controlled = any(pruning.ordinary for pruning in localizer.prunings)
            _collect(plan, localizer, plan.memorized, plan.control_prompts if controlled else [])


def _collect(plan: Plan, localizer: Localizer, prompts: Sequence[Prompt], control: Sequence[Prompt] = ()) -> None:
    """What a localizer reads of these prompts, of those that it compares them with, and of its control."""
    params = plan.params_of(localizer)
    site, reads = localizer.site_of(params), localizer.reads_of(params)
    if "values" in reads:
        nulls = plan.nulls if "null values" in reads else []
        collect_values(plan.subject, [*prompts, *nulls, *control], site)
    if "norms" in reads:
        contrast = plan.contrast if "contrast norms" in reads else []
        collect_norms(plan.subject, [*prompts, *contrast, *control], plan.settings.sampling, params.tau, site)


@flow(name="localize", flow_run_name="localize")
def localize(params: AuditParams) -> None:
    """Neurons (NeMo) and weights (Wanda and other scores) that hold memorized images, and the controls of both.

    Raises:
        InputError: the collection did not run, or prompts have no images where gradients need them.
    """
    check(params)
    plan = Plan(params)
    check_ready("localize", plan)
    subject = plan.subject
    with shown_progress("localize"):
        detect(subject, [*plan.memorized, *plan.threshold_nulls, *plan.ordinary], plan.nemo)
        for detector, own in plan.detectors:
            score_by(subject, [*plan.memorized, *plan.ordinary], detector, own)
        plan.chosen.check_images()
        for localizer in plan.localizers:
            params, groups = plan.params_of(localizer), plan.groups(localizer)
            localize_by(subject, localizer, params, groups, plan.given)
            if (published := plan.published(localizer)) is not None:
                localize_by(subject, localizer, published, groups, plan.given)
            if localizer.curve is not None:
                draw_curves(subject, localizer, params, plan.memorized, plan.given, plan.settings.seed)
            if any(pruning.ordinary for pruning in localizer.prunings):
                localize_by(subject, localizer, params, plan.groups(localizer, ordinary=True), plan.given)


@flow(name="mitigate", flow_run_name="mitigate")
def mitigate(params: AuditParams, audit_id: str | None = None) -> dict[str, str]:
    """Variants of the model: pruned, trained, or defended at inference.

    Args:
        audit_id: the audit that the model cards name, if any.

    Returns:
        By the name that figures go by, the variant in the store.

    Raises:
        InputError: the localization did not run, or there is no such audit, see `audit_of`.
    """
    check(params)
    plan = Plan(params)
    check_ready("mitigate", plan)
    audit_id = "none" if audit_id is None else audit_of(plan, audit_id)
    subject, settings, seed = plan.subject, plan.settings, plan.settings.seed
    with shown_progress("mitigate"):
        cuts: dict[str, str] = {}
        for pruned in plan.pruned.values():
            if not pruned.pruning.control_of or pruned.pruning.control_of in cuts:
                cuts |= prune(subject, pruned, audit_id, seed)
        for one in settings.chosen("inference"):
            defend(subject, one, settings.of(one), audit_id)
        surrogates_by, trainings = pruned_of(cuts), settings.chosen("training")
        if trainings and not plan.erasable:
            get_run_logger().warning("nothing is fine-tuned: %s", plan.why_not_erasable)
        for one in trainings if surrogates_by is not None and plan.erasable else ():
            name, pair = one.name, (plan.erasable, plan.kept)
            try:
                erase(subject, one, *pair, surrogates_by, settings.of(one), settings.sampling, settings.sscd, audit_id)
            except (Diverged, TooLarge) as error:
                # A result, too: the audit goes on without this variant, and its page says so.
                get_run_logger().warning("%s has no result: %s", name, error)
                continue
            history = mitigating.history_of(subject, plan.variants()[name])
            show_chart(name, reporting.training_chart(name, history))
    return plan.variants()


@flow(name="attack", flow_run_name="attack")
def attack(params: AuditParams) -> None:
    """Adversarial embeddings for training images, on every variant that claims to have forgotten them.

    Raises:
        InputError: the mitigation did not run, or an attack diverged.
    """
    check(params)
    plan = Plan(params)
    check_ready("attack", plan)
    if not plan.attacked:
        _nothing("attacked", "--set attacked=N, with training images")
    with shown_progress("attack"):
        for trial in plan.trials(plan.variants()):
            if trial.condition.start is not None:
                dori = plan.dori(trial.condition)
                attack_images(plan.subject, trial.variant, trial.prompts, plan.pool, dori, plan.settings.seed)


@flow(name="diagnose", flow_run_name="diagnose")
def diagnose(params: AuditParams, audit_id: str | None = None) -> None:
    """Whether memory is local: embeddings, activations and weights of many triggers of one picture.

    Args:
        audit_id: the audit that the figures belong to; the latest with these parameters if empty.

    Raises:
        InputError: the localization did not run, or there is no such audit, see `audit_of`.
    """
    check(params)
    plan = Plan(params)
    check_ready("diagnose", plan)
    audit_id = audit_of(plan, audit_id)
    subject, settings = plan.subject, plan.settings
    if not plan.diagnosed:
        _nothing("diagnosed", "--set diagnosed=N, or --profile full, with training images")
        return
    with shown_progress("diagnose"):
        attack_images(subject, ORIGINAL, plan.diagnosed, plan.pool, plan.many, settings.seed)
        try_triggers(subject, *plan.tried, plan.scoring)
        triggers, starts = plan.diagnosed_triggers()
        if triggers:
            both = [*triggers, *starts]
            for name, points in (("nemo", triggers), ("wanda", both)):
                localizer = method("localizer", name)
                _collect(plan, localizer, points)
                alone = localizing.one_by_one(points)
                localize_by(subject, localizer, plan.params_of(localizer), alone, plan.given)
        sets = plan.nemo_id, plan.trigger_wanda_id
        words, maps = write_diagnosis(subject, audit_id, plan.searches(), *sets, settings.seed)
    show(create_markdown_artifact, words, key="locality", description="Whether memory is local")
    for number, drawing in enumerate(maps, 1):
        key, picture = f"locality-{number}", uri(drawing.encode(), "svg+xml")
        show(create_image_artifact, picture, key=key, description="Triggers, their starts and prompts")


@flow(name="evaluate", flow_run_name="evaluate")
def evaluate(params: AuditParams, audit_id: str | None = None) -> None:
    """Generations of every variant under every condition, their scores, and the estimates of the audit.

    Args:
        audit_id: the audit that the figures belong to; the latest with these parameters if empty.

    Raises:
        InputError: the attack did not run, or there is no such audit, see `audit_of`.
    """
    check(params)
    plan = Plan(params)
    check_ready("evaluate", plan)
    audit_id = audit_of(plan, audit_id)
    with shown_progress("evaluate"):
        for trial in plan.trials(plan.variants()):
            random = trial.name in random_controls()
            shared = mitigating.shared_members(plan.subject, trial.variant) if random else None
            measure(plan.subject, audit_id, trial, plan.shots(trial), plan.scoring, shared)


@flow(name="report", flow_run_name="report")
def report(params: AuditParams, audit_id: str | None = None) -> Audited:
    """The page of an audit, with its pictures, tables and curves.

    Args:
        audit_id: an audit whose figures are in the store; the latest with these parameters if empty.

    Raises:
        InputError: there is no such audit, see `audit_of`, or it has no figures.
    """
    check(params)
    plan = Plan(params)
    check_ready("report", plan)
    audit_id = audit_of(plan, audit_id)
    subject, settings = plan.subject, plan.settings
    record = reporting.record_of(subject.open(), audit_id)
    variants = plan.variants()
    # Many generations of one prompt are nothing to look at, and attacks of so many steps are a curve.
    trials = [
        trial for trial in plan.trials(variants) if trial.condition != EXTRACTION and trial.condition.steps is None
    ]
    shown = {(trial.name, trial.variant, trial.condition): plan.generations(trial) for trial in trials}
    searches = {
        _search_name(trial): plan.trigger_ids(trial)
        for trial in trials
        if trial.condition.is_attack and subject.weights_of(trial.variant) == trial.variant
    }
    trainings = [one.name for one in settings.chosen("training")]
    trained = {name: mitigating.history_of(subject, variants[name]) for name in trainings if name in variants}
    found = reporting.Localized(wanda=plan.wanda_id, control=plan.control_id, curve=plan.curve_id)
    path = reporting.page_path(subject, audit_id)
    facts = facts_of(plan, record, variants)
    scorers = {"sscd": sscd.scorer_of(settings.sscd), "clip": clip.scorer_of(plan.clip)}
    page = (subject, audit_id, path, variants, plan.memorized, shown, facts, found, scorers, searches, trained)
    with shown_progress("report"):
        written = write_report(*page)
    if runtime.flow_run.parent_flow_run_id is None:  # else the audit shows it on its own page
        show_audit(audit_id, str(path), written)
    return Audited(audit_id=audit_id, report=str(path), variants=variants, written=written)


def audit_of(plan: Plan, audit_id: str | None) -> str:
    """The audit that a stage adds to: the one named, or the last with these parameters.

    Raises:
        InputError: there is none, or it was of other weights, prompts or settings: figures of both must not mix.
    """
    rows = plan.audits()
    mine = [row for row in rows if audit_id in (None, row["audit_id"])]
    if not mine:
        which = f"audit {audit_id!r}" if audit_id else "audit"
        raise InputError(
            f"the store has no {which} with this model, these prompts and these settings: run `engram audit` with them"
        )
    return str(max(mine, key=lambda row: row["started_at"])["audit_id"])


def _nothing(done: str, how: str) -> None:
    """Says that a stage that was run by itself has nothing to do; within an audit that is as its settings say."""
    if runtime.flow_run.parent_flow_run_id is None:
        get_run_logger().warning("nothing is %s: %s", done, how)


def _search_name(trial: Trial) -> str:
    kind = {"control": ", never memorized", "unseen": ", never seen"}.get(trial.condition.whose, "")
    return f"{trial.name}, from {trial.condition.start}{kind}"
