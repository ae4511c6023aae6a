"""The stages of an audit, each a flow that can also be run alone on what lies in the store.

One direction: confirm, collect, localize, mitigate, attack, diagnose, evaluate, report. A stage that misses what the
one before it writes says so and stops. What each has to do stands in `flows.run.work`.
"""

from prefect import flow, get_run_logger, runtime
from prefect.artifacts import create_image_artifact, create_markdown_artifact
from pydantic import BaseModel

from flows.check import check_run
from flows.facts import confirmed_words, facts_of
from flows.lineage import task
from flows.run import ids, triggers
from flows.run.execution import execute
from flows.run.spec import Run, Spec, audits_like, spec_of
from flows.run.trials import generations_of, has_own_weights, trials, trigger_ids
from flows.show import show, show_audit, show_chart, shown_progress, uri
from tasks.conditions import EXTRACTION
from tasks.errors import InputError
from tasks.evaluate.task import Trial
from tasks.mitigate import task as mitigating
from tasks.progress import say
from tasks.report import task as reporting
from tasks.scorers import clip, sscd


class Audited(BaseModel):
    """What came of an audit."""

    audit_id: str
    report: str
    """Where its page lies: a path of the machine that made it, or an s3:// URL."""
    variants: dict[str, str]
    """By the name that estimates go by, the variant in the store."""
    written: reporting.Written


write_report = task(reporting.write_report, "write report", "evidence", reads=("metrics", "generations", "scores"))


@flow(name="confirm", flow_run_name="confirm")
def confirm(run: Run) -> None:
    """Which memorized prompts the model at hand brings an image back from: later stages examine these.

    Raises:
        InputError: there is no such run, or its model cannot be used.
    """
    spec = _begun(run)
    for _ in execute(spec, "confirm"):
        pass
    show_confirmed(spec_of(run))


def show_confirmed(spec: Spec) -> None:
    """Says how many memorized prompts are confirmed, in the log and where a command was typed."""
    words = f"confirmed: {confirmed_words(spec)}"
    log = get_run_logger().info if spec.chosen.examined else get_run_logger().warning
    log(words)
    say(words)


@flow(name="collect", flow_run_name="collect")
def collect(run: Run) -> None:
    """Activations and feature norms of examined, null and ordinary prompts.

    Raises:
        InputError: there is no such run, its model cannot be used, or the confirmation did not run.
    """
    spec = _begun(run)
    for _ in execute(spec, "collect"):
        pass


@flow(name="localize", flow_run_name="localize")
def localize(run: Run) -> None:
    """Neurons and weights that hold memorized images, found by every localizer that is asked for, and their controls.

    Raises:
        InputError: the collection did not run, or prompts have no images where gradients need them.
    """
    spec = _begun(run)
    for _ in execute(spec, "localize"):
        pass


@flow(name="mitigate", flow_run_name="mitigate")
def mitigate(run: Run, audit_id: str | None = None) -> dict[str, str]:
    """Variants of the model: pruned, trained, or defended at inference.

    Args:
        audit_id: the audit that the model cards name, if any.

    Returns:
        By the name that estimates go by, the variant in the store.

    Raises:
        InputError: the localization did not run, or there is no such audit, see `audit_of`.
    """
    spec = _begun(run)
    trainings = spec.settings.chosen("training")
    if trainings and not spec.chosen.erasable:
        get_run_logger().warning("nothing is fine-tuned: %s", spec.chosen.why_not_erasable)
    for _ in execute(spec, "mitigate", "none" if audit_id is None else audit_of(spec, audit_id)):
        pass
    show_trainings(spec)
    return ids.there(spec)


def show_trainings(spec: Spec) -> None:
    """Shows how the trainings went that are there."""
    there = ids.there(spec)
    for name in (one.name for one in spec.settings.chosen("training") if one.name in there):
        show_chart(name, reporting.training_chart(name, mitigating.history_of(spec.subject, there[name])))


@flow(name="attack", flow_run_name="attack")
def attack(run: Run) -> None:
    """Adversarial embeddings for training images, on every variant that claims to have forgotten them.

    Raises:
        InputError: the mitigation did not run, or an attack diverged.
    """
    spec = _begun(run)
    if not spec.chosen.attacked:
        _nothing("attacked", "--set attacked=N, with training images")
    for _ in execute(spec, "attack"):
        pass


@flow(name="diagnose", flow_run_name="diagnose")
def diagnose(run: Run, audit_id: str | None = None) -> None:
    """Whether memory is local: embeddings, activations and weights of many triggers of one image.

    Args:
        audit_id: the audit that the estimates belong to; the latest of this run if empty.

    Raises:
        InputError: the localization did not run, or there is no such audit, see `audit_of`.
    """
    spec = _begun(run)
    audit_id = audit_of(spec, audit_id)
    if not triggers.diagnosed(spec):
        _nothing("diagnosed", "--set diagnosed=N, or --profile full, with training images")
        return
    for _ in execute(spec, "diagnose", audit_id):
        pass
    show_locality(spec, audit_id)


def show_locality(spec: Spec, audit_id: str) -> None:
    """Shows the diagnosis of an audit, if there is one."""
    if (found := reporting.diagnosis_of(spec.subject, audit_id)) is None:
        return
    words, maps = found
    show(create_markdown_artifact, words, key="locality", description="Whether memory is local")
    for number, drawing in enumerate(maps, 1):
        key, image = f"locality-{number}", uri(drawing.encode(), "svg+xml")
        show(create_image_artifact, image, key=key, description="Triggers, their starts and prompts")


@flow(name="evaluate", flow_run_name="evaluate")
def evaluate(run: Run, audit_id: str | None = None) -> None:
    """Generations of every variant under every condition, their scores, and the estimates of the audit.

    Args:
        audit_id: the audit that the estimates belong to; the latest of this run if empty.

    Raises:
        InputError: the attack did not run, or there is no such audit, see `audit_of`.
    """
    spec = _begun(run)
    for _ in execute(spec, "evaluate", audit_of(spec, audit_id)):
        pass


@flow(name="report", flow_run_name="report")
def report(run: Run, audit_id: str | None = None) -> Audited:
    """The page of an audit, with its images, tables and curves.

    Args:
        audit_id: an audit whose estimates are in the store; the latest of this run if empty.

    Raises:
        InputError: there is no such audit, see `audit_of`, or it has no estimates.
    """
    spec = _begun(run)
    audit_id = audit_of(spec, audit_id)
    subject, settings = spec.subject, spec.settings
    store = subject.open()
    record = reporting.record_of(store, audit_id)
    variants = ids.there(spec)
    # Many generations of one prompt are nothing to look at, and attacks of so many steps are a curve.
    put = [one for one in trials(spec, variants) if one.condition != EXTRACTION and one.condition.steps is None]
    shown = {(one.name, one.variant, one.condition): generations_of(spec, one) for one in put}
    searches = {
        _search_name(one): trigger_ids(spec, one) for one in put if one.condition.is_attack and has_own_weights(one)
    }
    trainings = [one.name for one in settings.chosen("training") if one.name in variants]
    trained = {name: mitigating.history_of(subject, variants[name]) for name in trainings}
    found = [
        reporting.Localized(
            one,
            subsets=ids.sets(spec, one) if one.scopes == "subsets" else "",
            control=ids.sets(spec, one, ids.groups(spec, one, ordinary=True)) if one.controlled else "",
            curve=ids.curve(spec, one) if one.curve is not None else "",
        )
        for one in spec.chosen.localizers()
    ]
    facts = facts_of(spec, record, variants)
    scorers = {"sscd": sscd.scorer_of(settings.sscd), "clip": clip.scorer_of(spec.clip)}
    page = (
        subject,
        audit_id,
        variants,
        spec.chosen.examined_first,
        spec.chosen.units,
        shown,
        facts,
        found,
        scorers,
        searches,
        trained,
    )
    with shown_progress("report"):
        written = write_report(*page)
    place = reporting.page_place(store, audit_id)
    if runtime.flow_run.parent_flow_run_id is None:  # else the audit shows it on its own page
        show_audit(store, audit_id, place, written)
    return Audited(audit_id=audit_id, report=place, variants=variants, written=written)


def audit_of(spec: Spec, audit_id: str | None) -> str:
    """The audit that a stage adds to: the one named, or the last with these parameters.

    Raises:
        InputError: there is none, or it was of other weights, prompts or settings: estimates of both must not mix.
    """
    mine = [row for row in audits_like(spec) if audit_id in (None, row["audit_id"])]
    if not mine:
        which = f"audit {audit_id!r}" if audit_id else "audit"
        raise InputError(
            f"the store has no {which} with this model, these prompts and these settings: run `engram audit` with them"
        )
    return str(max(mine, key=lambda row: row["started_at"])["audit_id"])


def _begun(run: Run) -> Spec:
    """The spec of a run whose stage begins, once it is known that it can be run here."""
    spec = spec_of(run)
    check_run(spec.params)
    return spec


def _nothing(done: str, how: str) -> None:
    """Says that a stage that was run by itself has nothing to do; within an audit that is as its settings say."""
    if runtime.flow_run.parent_flow_run_id is None:
        get_run_logger().warning("nothing is %s: %s", done, how)


def _search_name(trial: Trial) -> str:
    kind = {"control": ", never memorized", "unseen": ", never seen"}.get(trial.condition.whose, "")
    return f"{trial.name}, from {trial.condition.start}{kind}"
