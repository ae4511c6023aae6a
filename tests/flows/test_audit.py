"""The whole audit on a model of random weights: that every stage runs, adds up, resumes and refuses."""

import copy
import json
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from diffusers import UNet2DConditionModel
from typer.testing import CliRunner

from flows import stages
from flows.audit import Audited, AuditParams, audit, recorded
from flows.cli.commands import app
from flows.cli.shared import settings_of
from flows.facts import _agreement
from flows.params import resolved
from flows.run import ids, triggers
from flows.run.spec import Spec, resolve
from flows.settings import Settings, settings_for
from storage import Store, examine, run_sql, verify
from tasks.conditions import PROMPT
from tasks.diffusion.sampling import generate
from tasks.errors import InputError
from tasks.evaluate import task as evaluating
from tasks.localize import task as localizing
from tasks.methods import method
from tasks.report import task as reporting
from tasks.scorers.sscd import Sscd
from tasks.subject import Subject
from tests.support.world import tiny_world

pytestmark = [pytest.mark.server, pytest.mark.usefixtures("prefect"), pytest.mark.filterwarnings("ignore")]

SETTINGS: dict[str, Any] = {
    "examined": "all",
    "memorized": 4,
    "threshold_nulls": 2,
    "ordinary": 2,
    "seeds": 2,
    "attacked": 2,
    "controls": 1,
    "unseen": 1,
    "starts": ("noise",),
    "sampling": {"steps": 2},
    "nemo": {"seeds": 3, "threshold": 0.0, "theta": 1.5, "theta_min": 1.0},
    "wanda": {"sparsity": 0.1, "tau": 2},
    "mitigations": ("nemo", "nemo-union", "wanda", "magnitude"),
    "dori": {"steps": 2, "batch": 2},
}
TRAININGS = ("adversarial-finetune", "surrogate-finetune", "ordinary-finetune", "lora-finetune")
AT_INFERENCE = ("perturbed-embedding", "random-tokens", "reweighted-attention")
RIVALS: dict[str, Any] = {
    "mitigations": (*SETTINGS["mitigations"], *TRAININGS, *AT_INFERENCE),
    "finetune": {
        "epochs": 1,
        "images_per_step": 2,
        "noises": 1,
        "ordinary_batch": 2,
        "attack_steps": 1,
        "attack_batch": 1,
        "check_every": 2,
    },
    "extracted": 2,
    "extraction": {"generations": 3, "clique": 3, "distance": 2.0, "measure": "sscd"},
    "diagnosed": 1,
    "triggers": 3,
    "efforts": (1, 3),
    "effort_images": 1,
}


@pytest.fixture(scope="module", autouse=True)
def most_triggers_count() -> Iterator[None]:
    """Random weights bring no image back; so that the diagnosis has triggers, it takes all but the first for such."""
    with pytest.MonkeyPatch.context() as patch:
        which = "tasks.evaluate.task.succeeded"
        patch.setattr(
            which, lambda subject, trial, shots, scoring: {one.trigger_id for one in shots} - {shots[0].trigger_id}
        )
        yield


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def params(model: Path, tmp_path_factory: pytest.TempPathFactory) -> AuditParams:
    settings = Settings.model_validate(SETTINGS | RIVALS)
    store = tmp_path_factory.mktemp("audited") / "store"
    return AuditParams(model=str(model), store=str(store), device="cpu", settings=settings)


@pytest.fixture(scope="module")
def audited(params: AuditParams) -> Audited:
    return audit(params)


def parts(store: Store) -> set[str]:
    """All but what each audit writes of its own."""
    tables = ("prompts", "images", "activations", "neuron_sets", "nemo_traces", "variants", "triggers", "generations")
    return {part for table in (*tables, "scores") for part in store.parts(table)}


@contextmanager
def nothing_computed() -> Iterator[None]:
    """Within, whoever asks a UNet or the model of copies anything is told that the answer was there. All but the
    diagnosis, whose figures take a pass of a few prompts through the denoiser each time."""

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("computed what the store holds")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(UNet2DConditionModel, "forward", refuse)
        patch.setattr(Sscd, "embed", refuse)
        patch.setattr("tasks.report.task.diagnose", lambda *given: ("nothing", []))
        yield


def test_every_variant_is_measured_under_every_probe(params: AuditParams, audited: Audited) -> None:
    rows = run_sql(Store.open(params.store), "SELECT variant, condition, metric, value, n FROM metrics").to_pylist()
    found = {(row["variant"], row["condition"]) for row in rows if row["metric"] == "mr"}
    cut = {"nemo-union", "random-nemo-union", "wanda", "random-wanda", "wanda-control", "magnitude"}
    probed = {(variant, condition) for variant in {"original", *cut} for condition in ("prompt", "ordinary")}
    probed |= {("nemo", "prompt"), ("random-nemo", "prompt")}  # nothing of them is cut for other prompts
    rivals = {*TRAININGS, *AT_INFERENCE}
    probed |= {(variant, condition) for variant in rivals for condition in ("prompt", "ordinary")}
    attacked = {(variant, "dori-noise") for variant in {"original", *cut, *rivals} - {"wanda-control", "magnitude"}}
    efforts = {(f"effort-{steps}{suffix}") for steps in (1, 3) for suffix in ("", "-control")}
    attacked |= {("nemo", "dori-noise")}
    attacked |= {("original", condition) for condition in ("dori-noise-control", "dori-noise-unseen", *efforts)}
    assert found == probed | attacked
    assert {(row["variant"], row["condition"]) for row in rows if row["metric"] == "ssim_orig_max"} == found
    numbers = {(row["condition"], row["n"]) for row in rows if row["metric"] == "mr"}
    known = {("prompt", 4), ("ordinary", 2), ("dori-noise", 2), ("dori-noise-control", 1), ("dori-noise-unseen", 1)}
    assert numbers == known | {(condition, 1) for condition in efforts}
    assert {row["variant"] for row in rows if row["metric"] == "sscd_gen"} == cut | rivals | {
        "nemo",
        "random-nemo",
    }


def test_the_page_and_the_table(audited: Audited) -> None:
    page = Path(audited.report).read_text()
    assert page.startswith("<!doctype html>") or page.startswith("<!DOCTYPE html>")
    assert "picture 0" in page
    assert "random-wanda, from its prompt" in page and "wanda, attacked from noise" in page
    assert "dori-noise" in audited.written.table
    assert "effort" not in audited.written.table
    assert set(audited.written.drawings) == {"attacks", "effort", *TRAININGS}
    assert [len(curve.values) for curve in audited.written.drawings["effort"].curves] == [2, 2]
    assert "Training: adversarial-finetune" in page


def test_a_search_is_written_for_every_effort_once(params: AuditParams, audited: Audited) -> None:
    rows = Store.open(params.store).read("triggers", variant="original").to_pylist()
    assert len({row["trigger_id"] for row in rows}) == len(rows)
    losses = sorted((row["loss"] for row in rows if row["start"] == "noise"), key=len)
    longest = [loss for loss in losses if len(loss) == 3]
    assert len(longest) == 2
    # One of them is attacked with the audit's own two steps and with many triggers as well: the search is the same.
    for whole in longest:
        assert whole[:1] in losses
    assert any(whole[:2] in losses for whole in longest)


def test_another_refinement_is_held_against_the_published_one(params: AuditParams, tmp_path: Path) -> None:
    assert params.settings is not None
    nemo = params.settings.of(method("localizer", "nemo")).model_copy(update={"refinement": "group"})
    settings = params.settings.model_copy(
        update={"nemo": nemo, "agreement": True, "memorized": 2, "mitigations": ("nemo",)}
    )
    spec = resolve(params.model_copy(update={"settings": settings, "store": str(tmp_path / "store")}))
    stages.confirm(spec.run)
    stages.collect(spec.run)
    stages.localize(spec.run)
    found = _agreement(spec)
    assert found.keys() == {prompt.prompt_id for prompt in spec.chosen.memorized}
    assert all(0 <= iou <= 1 for iou in found.values())
    assert _agreement(resolve(params)) == {}


def test_random_cuts_are_as_large_and_elsewhere(params: AuditParams, audited: Audited) -> None:
    rows = {row["method"]: row for row in Store.open(params.store).read("variants").to_pylist()}
    for name in ("nemo", "wanda"):
        assert rows[name]["pruned"] == rows[f"random-{name}"]["pruned"] > 0
        assert rows[name]["total"] == rows[f"random-{name}"]["total"]
        assert rows[name]["sets_id"] != rows[f"random-{name}"]["sets_id"]


def test_the_store_is_whole_and_says_how_it_was_made(params: AuditParams, audited: Audited) -> None:
    store = Store.open(params.store)
    # No damage, and the audit has a record of the parts that it rests on.
    assert verify(store) == [] and examine(store).notes == []
    held = set(store.read("audit_parts", audit_id=audited.audit_id)["address"].to_pylist())
    assert {address.split("/")[0] for address in held} >= {
        "models",
        "prompts",
        "images",
        "scores",
        "metrics",
        "evidence",
    }
    (row,) = run_sql(store, "SELECT state, params FROM audits").to_pylist()
    assert row["state"] == "completed"
    assert json.loads(row["params"])["settings"]["dori"]["steps"] == 2


def diagnosed(spec: Spec, audit_id: str) -> tuple[str, list[str]]:
    """What the diagnosis says of an audit whose triggers are there."""
    asked = triggers.asked(spec).items()
    sets = {one.name: ids.sets(spec, one, localizing.one_by_one(points)) for one, points in asked}
    assert {*sets} <= {"nemo", "wanda"}
    return reporting.diagnose(spec.subject, audit_id, triggers.searches(spec), sets, spec.settings.seed)


def test_a_second_audit_reuses_everything(params: AuditParams, audited: Audited) -> None:
    store = Store.open(params.store)
    before = parts(store)
    with nothing_computed():
        again = audit(params)
    diagnosed(resolve(params), again.audit_id)
    assert parts(store) == before
    of = [
        store.read("metrics", audit_id=name).drop(["audit_id"]).to_pylist()
        for name in (audited.audit_id, again.audit_id)
    ]
    assert sorted(of[0], key=str) == sorted(of[1], key=str)


def test_batch_sizes_do_not_change_the_figures(params: AuditParams, audited: Audited, tmp_path: Path) -> None:
    """Convolutions of other batch sizes round differently: a grey level here and there, which similarities show."""
    small = SETTINGS | {
        "sampling": {"steps": 2, "batch": 3},
        "nemo": SETTINGS["nemo"] | {"batch": 2},
        "dori": SETTINGS["dori"] | {"images_at_once": 1},
    }
    other = params.model_copy(update={"store": str(tmp_path / "store"), "settings": Settings.model_validate(small)})
    again = audit(other)
    one, two = (
        {
            (r["variant"], r["condition"], r["metric"]): r["value"]
            for r in Store.open(p.store).read("metrics", audit_id=a.audit_id).to_pylist()
        }
        for p, a in ((params, audited), (other, again))
    )
    assert two.keys() <= one.keys() and len(two) > 50
    assert two == pytest.approx({key: one[key] for key in two}, abs=0.02)


def test_an_interrupted_audit_goes_on(params: AuditParams, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few = {"store": str(tmp_path / "store"), "settings": Settings.model_validate(SETTINGS)}
    other = params.model_copy(update=few)

    def interrupted(*args: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("tasks.attack.task.attack_images", interrupted)
        with pytest.raises(KeyboardInterrupt):
            audit(other)
    store = Store.open(other.store)
    before = parts(store)
    assert any(part.startswith("variants/") for part in before)
    assert run_sql(store, "SELECT state FROM audits").to_pylist() == [{"state": "cancelled"}]
    with nothing_computed():
        for stage in (stages.confirm, stages.collect, stages.localize, stages.mitigate):
            stage(resolve(other).run)
    assert parts(store) == before
    audit(other)
    assert before < parts(store)
    assert verify(store) == []


@pytest.mark.slow
def test_each_stage_runs_alone_on_what_the_others_left(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few: dict[str, Any] = {"mitigations": ("nemo-union", "wanda", "ordinary-finetune"), "efforts": ()}
    settings = Settings.model_validate(SETTINGS | RIVALS | few)
    params = AuditParams(model=str(model), store=str(tmp_path / "whole"), device="cpu", settings=settings)
    audited, other = audit(params), params.model_copy(update={"store": str(tmp_path / "store")})
    spec = resolve(other)
    for stage in (stages.collect, stages.localize):
        with pytest.raises(InputError, match="run the confirmation first"):
            stage(spec.run)
    stages.confirm(spec.run)
    with pytest.raises(InputError, match="run the collection first"):
        stages.localize(spec.run)
    with pytest.raises(InputError, match="run the localization first"):
        stages.mitigate(spec.run)
    stages.collect(spec.run)
    stages.localize(spec.run)
    assert stages.mitigate(spec.run) == audited.variants
    with recorded(spec) as audit_id, pytest.raises(InputError, match="attack first"):
        stages.evaluate(spec.run, audit_id)
    stages.attack(spec.run)
    assert stages.audit_of(resolve(other), None) == audit_id
    stages.diagnose(spec.run)
    stages.evaluate(spec.run, audit_id)
    assert stages.report(spec.run).written.table == audited.written.table
    assert parts(Store.open(other.store)) == parts(Store.open(params.store))
    before = parts(Store.open(other.store)), Store.open(other.store).parts("metrics")
    apart = resolve(other.model_copy(update={"settings": Settings.model_validate(SETTINGS)})).run
    for flow in (stages.mitigate, stages.diagnose, stages.evaluate, stages.report):
        # Estimates of other settings, or of no audit, must not mix with these.
        with pytest.raises(InputError, match="with this model, these prompts and these settings"):
            flow(apart, audit_id)
        with pytest.raises(InputError, match="has no audit 'mistyped'"):
            flow(spec.run, "mistyped")
    with monkeypatch.context() as patched:
        patched.setattr(Subject, "model_id", property(lambda self: "weights that changed since"))
        with pytest.raises(InputError, match="with this model, these prompts"):
            stages.audit_of(resolve(other), audit_id)
        with pytest.raises(InputError, match="changed since run"):
            stages.collect(spec.run)
    assert (parts(Store.open(other.store)), Store.open(other.store).parts("metrics")) == before


def test_many_triggers_say_whether_memory_is_local(params: AuditParams, audited: Audited) -> None:
    store = Store.open(params.store)
    rows = {row["metric"]: row["value"] for row in store.read("metrics", audit_id=audited.audit_id).to_pylist()}
    # Two steps of the attack move a point by next to nothing.
    assert rows["locality_triggers"] == pytest.approx(2 / 3)
    assert rows["locality_embeddings"] == pytest.approx(1, abs=0.2)
    assert 0 < rows["locality_moved"] < 0.5
    assert 0 <= rows["locality_wanda"] <= 1 and 0 <= rows["locality_wanda_starts"] <= 1
    scopes = run_sql(store, "SELECT DISTINCT scope_id FROM neuron_sets WHERE scope = 'trigger'").num_rows
    assert scopes == 2 + 2  # triggers that bring the image back, and where their searches began
    spec = resolve(params)
    (found,), (begun,) = triggers.searched(spec).values(), triggers.begun(spec).values()
    ends, starts = triggers.points(spec)
    assert [one.prompt_id for one in ends] == found[1:] and [one.prompt_id for one in starts] == begun[1:]
    folder = Path(audited.report).parent
    assert "Is the memory local?" in (folder / "locality.md").read_text()
    assert "starts" in (folder / "locality-1.svg").read_text()


def test_one_success_is_one_though_nothing_follows_from_it(
    params: AuditParams, audited: Audited, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tasks.evaluate.task.succeeded", lambda subject, trial, shots, scoring: {shots[0].trigger_id})
    (found,) = triggers.searches(resolve(params))
    assert (found.searched, found.succeeded, found.triggers, found.starts) == (3, 1, [], [])
    words, maps = diagnosed(resolve(params), "another audit")
    assert "Of 3 attacks, each from another random point, 1 bring this image back." in words and maps == []


def test_a_memorized_image_is_no_control_and_is_not_trained_back_in(params: AuditParams, tmp_path: Path) -> None:
    prompts = pq.read_table(Path(params.model).parent / "prompts.parquet").to_pylist()
    files = {"prompts": str(tmp_path / "prompts.parquet"), "images": str(Path(params.model).parent / "images.parquet")}
    nulls, ordinary = ([row for row in prompts if row["kind"] == kind] for kind in ("null", "ordinary"))
    for row in (nulls[0], ordinary[0], ordinary[-1]):
        row["image_ids"] = prompts[-1]["image_ids"] + prompts[0]["image_ids"]
    remembered = prompts[0]["image_ids"][0]
    pq.write_table(pa.Table.from_pylist(prompts), files["prompts"])
    spec = resolve(params.model_copy(update=files | {"store": str(tmp_path / "store")}))
    apart = [*spec.chosen.controls, *spec.chosen.unseen, *spec.chosen.kept]
    assert spec.chosen.controls and spec.chosen.unseen and len(spec.chosen.kept) == 3
    assert all(remembered not in prompt.image_ids for prompt in apart)
    assert remembered in spec.chosen.ordinary[0].image_ids  # whose quality is measured all the same


def test_extraction_is_held_against_the_truth(params: AuditParams, audited: Audited) -> None:
    """At a distance that all images are within, every prompt is claimed; random weights copy nothing, so wrongly."""
    rows = Store.open(params.store).read("metrics", audit_id=audited.audit_id, condition="extraction").to_pylist()
    found = {(row["variant"], row["metric"]): (row["value"], row["n"]) for row in rows}
    for variant in ("original", "nemo-union", "wanda", "adversarial-finetune"):
        assert found[variant, "extraction_recall"] == (0.0, 2)
        assert found[variant, "extraction_precision"] == (0.0, 4)


def test_a_prompts_images_are_made_without_its_own_neurons(params: AuditParams, audited: Audited) -> None:
    spec = resolve(params)
    subject, variant, sampling = spec.subject, audited.variants["nemo"], spec.settings.sampling
    sets: dict[str, Any] = {
        "method": "nemo",
        "params_id": ids.sets(spec, method("localizer", "nemo")),
        "model_id": subject.model_id,
    }
    rows = [row for row in subject.open().read("neuron_sets", **sets).to_pylist() if row["members"]]
    prompt = next(prompt for prompt in spec.chosen.memorized if prompt.prompt_id in {row["scope_id"] for row in rows})
    model = subject.load()
    unet = copy.deepcopy(model.denoiser)
    with torch.no_grad():
        for row in rows:
            if row["scope_id"] == prompt.prompt_id:
                unet.get_submodule(row["layer"]).weight[row["members"]] = 0
    wanted = evaluating.shots([prompt], spec.settings.seeds)
    names = evaluating.generation_ids(subject, variant, PROMPT, wanted, sampling)
    made = evaluating.images_of(subject, variant, PROMPT, names)
    keys = [(prompt.prompt_id, shot.seed) for shot in wanted]
    cut, whole = (
        generate(one, one.encode([prompt.text] * len(keys)), keys, sampling)
        for one in (model.with_denoiser(unet), model)
    )
    assert np.abs(np.stack([made[name] for name in names]).astype(int) - cut).max() <= 1  # rounding may differ by batch
    assert (cut != whole).any()


def test_trained_and_defended_variants(params: AuditParams, audited: Audited) -> None:
    subject = resolve(params).subject
    before = {name: weight.clone() for name, weight in subject.load().denoiser.state_dict().items()}
    for name in TRAININGS:
        with subject.loaded(audited.variants[name]) as model:
            after = {name: weight.clone() for name, weight in model.denoiser.state_dict().items()}
        assert after.keys() == before.keys()
        changed = {key for key in before if not before[key].equal(after[key])}
        assert changed
        if name == "lora-finetune":
            assert all(".attn" in key and key.endswith(".weight") for key in changed)
    for name in AT_INFERENCE:
        with subject.loaded(audited.variants[name]) as model:
            assert all(torch.equal(weight, before[key]) for key, weight in model.denoiser.state_dict().items())
        assert subject.weights_of(audited.variants[name]) == "original"
        found = subject.at_inference(audited.variants[name])
        assert found is not None and found[0].name == name
    assert not list(subject.open().home.files("checkpoints"))


def test_bad_input_is_one_line_and_exit_code_2(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "from flows.cli import main; main()", "audit", "--model", str(tmp_path / "none")]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    assert found.returncode == 2
    assert found.stderr.splitlines()[-1].startswith("engram: no model at")
    assert "Traceback" not in found.stderr


def test_a_model_may_say_how_it_is_audited() -> None:
    own = {
        "settings": {"seeds": 3, "sampling": {"guidance": 2.0}},
        "profiles": {"quick": {"sampling": {"steps": 5}}, "full": {"controls": 1}},
    }
    quick, full = settings_for("quick", own, seeds=5), settings_for("full", own)
    assert (quick.seeds, quick.sampling.steps, quick.sampling.guidance) == (5, 5, 2.0)
    assert (full.seeds, full.controls, full.sampling.guidance) == (3, 1, 2.0)
    assert quick.controls != 1
    with pytest.raises(InputError, match="has a profile 'quik'; there are quick, full"):
        settings_for("quick", {"profiles": {"quik": {}}})


def test_without_settings_an_audit_is_what_profile_and_model_say(params: AuditParams, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(params.model, folder)
    own = json.loads((folder / "engram.json").read_text())
    own_settings = {"settings": {"sampling": {"guidance": 2.0}}, "profiles": {"full": {"seeds": 7}}}
    (folder / "engram.json").write_text(json.dumps(own | own_settings))
    given = params.model_copy(update={"model": str(folder), "settings": None, "profile": "full"})
    assert resolved(given).settings == settings_for("full", own_settings)
    assert resolved(resolved(given)) == resolved(given)
    assert resolved(params) == params


@pytest.mark.parametrize(("known", "expected"), [({"avx512_bf16": True}, "mixed"), ({"avx2": True}, "float32")])
def test_the_record_says_in_which_precision_was_computed(
    params: AuditParams, known: dict[str, bool], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: known)
    assert params.settings is not None
    either = params.settings.model_copy(update={"precision": "auto"})
    spec = resolve(params.model_copy(update={"device": "cpu", "settings": either}))
    assert spec.settings.precision == spec.subject.precision == expected
    # What one machine recorded stays what it is on another.
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict)
    assert resolve(spec.params).subject == spec.subject


@pytest.mark.parametrize(
    ("precision", "changed", "expected"),
    [
        ("float16", {"attacked": 1, "mitigations": ()}, "attacks need gradients"),
        ("bfloat16", {"attacked": 0, "mitigations": ("ordinary-finetune",)}, "ordinary-finetune needs float32"),
    ],
)
def test_what_a_precision_cannot_compute_is_refused_at_once(
    params: AuditParams, precision: str, changed: dict[str, Any], expected: str
) -> None:
    assert params.settings is not None
    settings = params.settings.model_copy(update={"precision": precision, **changed})
    with pytest.raises(InputError, match=expected):
        resolve(params.model_copy(update={"settings": settings}))


def test_settings_out_of_bounds_are_refused() -> None:
    with pytest.raises(InputError, match="seeds"):
        settings_for("quick", {}, seeds=0)
    with pytest.raises(InputError, match="nonsense"):
        settings_for("quick", {}, nonsense=1)


def test_results_for_those_without_the_store(params: AuditParams, audited: Audited, tmp_path: Path) -> None:
    command = ["results", str(tmp_path / "out"), "--audit", audited.audit_id, "--store", params.store]
    found = CliRunner().invoke(app, command)
    assert found.exit_code == 0, found.output
    rows = json.loads((tmp_path / "out" / "results.json").read_text())
    assert len(rows) == len(Store.open(params.store).read("metrics", audit_id=audited.audit_id))
    assert {"variant", "condition", "metric", "value", "low", "high", "n"} < rows[0].keys()
    page = (tmp_path / "out" / "RESULTS.md").read_text()
    assert "| original | dori-noise-control | 1 |" in page
    assert "CLIP, share kept" in page
    assert "| the model itself, memorized prompts | 0.98 | 0.90 |" in page  # the paper's, of another model
    # The command that it names asks for the very same settings.
    command = shlex.split(page.split("Made by `")[1].split("`")[0])
    assert command[:4] == ["engram", "audit", "--model", params.model]
    changes = command[command.index("--set") + 1 :: 2]
    settings = settings_for("quick", {}, **settings_of(changes, Settings))
    assert resolved(params.model_copy(update={"settings": settings})) == resolved(params)
    assert "| 3 | 0 % (0" in page or "| 3 | 100 % (" in page


def test_sql_from_the_command_line(params: AuditParams, audited: Audited) -> None:
    command = ["sql", "select count(*) as n from metrics", "--store", params.store, "--format", "csv"]
    found = CliRunner().invoke(app, command)
    assert found.exit_code == 0
    assert int(found.output.splitlines()[1]) > 0


def test_the_overlap_of_two_subsets(params: AuditParams, audited: Audited) -> None:
    pair = "method = 'wanda' AND scope_id_1 = 'subset 0' AND scope_id_2 = 'subset 1'"
    rows = run_sql(Store.open(params.store), f"SELECT iou FROM iou WHERE {pair}").to_pylist()
    assert len(rows) == 2 * 7  # steps and layers
    assert all(0 <= row["iou"] <= 1 for row in rows)
