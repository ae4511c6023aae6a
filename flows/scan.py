"""The scan: which prompts of a file a model has memorized, when nobody knows what it has memorized."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from prefect import flow, get_run_logger
from pydantic import BaseModel, ConfigDict, Field

from flows import rules
from flows.check import of_model, of_store
from flows.lineage import task
from flows.params import ModelParams, beside, defaults_for
from flows.show import show_scan, shown_progress
from storage import Store, query
from tasks.collect import task as collecting
from tasks.diffusion.model import usable_device
from tasks.diffusion.precision import precision_for
from tasks.diffusion.sampling import SamplingParams
from tasks.diffusion.tokens import tokenizers_of
from tasks.errors import InputError, gathered, noting, refuse
from tasks.progress import say
from tasks.prompt_files import Kind, PromptEntry, expanded
from tasks.scan import task as scanning
from tasks.scan.task import ScanParams
from tasks.subject import Subject
from tasks.units import spelling

KINDS: dict[Kind, str] = {"memorized": "scanned", "ordinary": "scanned", "null": "null"}
"""What prompts of a scan are called."""


class ScanRun(ModelParams):
    """What is scanned."""

    model_config = ConfigDict(title="Scan", frozen=True, extra="forbid")

    store: str = Field(".engram/store", description="Address of the store: a folder, or an s3:// URL.")
    prompts: str | None = Field(None, description="File of prompts that are scanned; the model's own if empty.")
    nulls: str | None = Field(
        None,
        description="File of prompts that are not memorized, which others are compared with; the model's own if empty.",
    )
    device: str | None = Field(
        None, description="Where it computes: cpu, cuda, mps, ...; CUDA where there is any if empty."
    )
    scan: ScanParams = ScanParams()


class Scanned(BaseModel):
    """What came of a scan."""

    scan_id: str
    words: str


register_model = task(collecting.register_model, "register model", "models", "variants")
score_prompts = task(scanning.score_prompts, "score prompts", "detections", run="score prompts: {detector.name}")
write_findings = task(scanning.write_findings, "compare with nulls", "findings", reads=("detections",))


@flow(name="scan", flow_run_name="scan {params.named}")
def scan(params: ScanRun) -> Scanned:
    """Finds the prompts of a file that a model has memorized, at a false-alarm rate that holds.

    Whatever the store holds already is not computed again, so an interrupted scan goes on where it stopped.

    Raises:
        InputError: the model or the prompts cannot be used, or there are too few null prompts for the false-alarm rate.
    """
    check_scan(params)
    folder = params.folder
    precision = precision_for(defaults_for("quick", folder).precision, params.device)
    # What is scanned is no set in the store: nobody knows yet what these prompts are.
    given = {"store": Store.open(params.store).url, "model": str(folder), "prompt_set": "", "device": params.device}
    subject = Subject.model_validate(given | {"precision": precision})
    entries = to_scan(params)
    prompts, nulls = entries.prompts, entries.nulls
    for notice in entries.notices:
        get_run_logger().info(notice)
    enough_nulls(nulls, params.scan.alpha)
    different = scanning.different(nulls)
    with shown_progress("scan"):
        # A scan samples nothing, so any scheduler will do.
        register_model(subject, SamplingParams(scheduler=subject.load().schedule.always))
        for detector in params.scan.chosen():
            score_prompts(subject, [*prompts, *different], detector, params.scan.of(detector), params.scan.batch)
        scan_id = write_findings(subject, _file(params, folder).stem, prompts, different, params.scan)
    words = scanning.verdict(subject.open(), scan_id)
    if entries.long:
        words += f"\n{entries.long}"
    if same := len(nulls) - len(different):
        words += (
            f"\nleft out {same} null prompts: they share an image or, but for case and spaces, the text with others"
        )
    show_scan(scan_id, words, query(subject.open(), "suspects", scan_id=scan_id).to_pylist())
    return Scanned(scan_id=scan_id, words=words)


class ToScan(NamedTuple):
    """What is scanned, and what it is compared with; no prompt is in both."""

    prompts: list[PromptEntry]
    nulls: list[PromptEntry]
    notices: list[str]
    """What a person should know of the files."""
    long: str
    """How many prompts are longer than the model reads, and what becomes of them; empty where none is."""


def scanned_and_nulls(params: ScanRun) -> tuple[list[PromptEntry], list[PromptEntry]]:
    """The prompts that are scanned, and the null prompts that they are compared with; see `to_scan`.

    What a person should know of them is said on standard error, once a process.
    """
    found = to_scan(params)
    for notice in found.notices:
        say(notice)
    return found.prompts, found.nulls


def to_scan(params: ScanRun) -> ToScan:
    """Reads the files of a scan, and has the model's tokenizers look at them.

    Null prompts are those of their own file, or else what the scanned file and the model's own say is null.

    Raises:
        InputError: files cannot be used, all that is wrong with them at once; there is none; or nothing in it can be
            scanned.
    """
    folder = params.folder
    path, own = _file(params, folder), beside(folder, "prompts")
    files: list[tuple[Path, Kind]] = [(path, "memorized")]
    if params.nulls is not None:
        files.append((expanded(Path(params.nulls)), "null"))
    elif own is not None and Path(own) != path:
        files.append((Path(own), "memorized"))
    reads = [collecting.read_prompt_file(file, kind) for file, kind in files]
    refuse([problem for read in reads for problem in read.problems])
    scanned = {prompt.text: prompt for prompt in reads[0].prompts if prompt.kind != "null"}
    if not scanned:
        raise InputError(f"{path} has nothing to scan: it says of all its prompts that they are not memorized")
    known = [prompt for read in (reads[1:] if params.nulls is not None else reads) for prompt in read.prompts]
    nulls = {prompt.text: prompt for prompt in known if prompt.kind == "null" and prompt.text not in scanned}
    every = [*scanned.values(), *nulls.values()]
    found = collecting.tokenized(every, tokenizers_of(folder), params.scan.long_prompts, KINDS)
    refuse(found.problems)
    prompts, held = ([one for one in found.prompts if one.text in some] for some in (scanned, nulls))
    if not prompts:
        raise InputError(f"{path} has nothing to scan: {found.long}; take --long-prompts truncate")
    # What is scanned is no null prompt under another spelling.
    spellings = {spelling(text) for text in scanned}
    held = [one for one in held if spelling(one.text) not in spellings]
    return ToScan(prompts, held, [*(notice for read in reads for notice in read.notices), *found.notices], found.long)


def check_scan(params: ScanRun, settled: bool = True) -> None:
    """Looks at all that a scan is given: model, device, store, prompts and settings; nothing is written.

    Args:
        settled: whether the settings are those that are meant; else nothing is said of what follows from them.

    Raises:
        InputError: something cannot be used; all of it at once, a sentence each.
    """
    problems = [*gathered(partial(usable_device, params.device)), *of_store(params.store)]
    with noting(problems):
        folder = params.folder
        outline = of_model(folder, problems)
        with noting(problems):
            defaults_for("quick", folder)
        with noting(problems):
            found = to_scan(params)
            problems += gathered(partial(enough_nulls, found.nulls, params.scan.alpha)) if settled else []
        problems += rules.of_a_scan(params.scan, outline) if settled and outline is not None else []
    refuse(problems)


def enough_nulls(nulls: Sequence[PromptEntry], alpha: float) -> None:
    """Raises InputError where there are too few null prompts for a rate of false alarms; those that share an image or
    their text count once."""
    different = scanning.different(nulls)
    try:
        scanning.false_alarms(len(different), alpha)
    except InputError as error:
        if len(different) == len(nulls):
            raise
        raise InputError(f"{error}; {len(nulls)} are given, of which some share an image or their text") from error


def _file(params: ScanRun, folder: Path) -> Path:
    path = params.prompts or beside(folder, "prompts")
    if path is None:
        raise InputError(f"which prompts? {folder} names none of its own: give a file of them with --prompts")
    return expanded(Path(path))
