"""Runs: the spec is resolved once, ids follow from it, and items of work say what there is to do."""

import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from flows.cli.commands import app
from flows.params import AuditParams
from flows.run import ids, work
from flows.run.outlook import outlook
from flows.run.spec import Spec, audits_like, resolve, spec_of, speeds
from flows.settings import Settings
from storage import Store, connect, verify
from storage.tables import TABLES
from tasks.errors import InputError
from tests.support.world import tiny_world

SETTINGS: dict[str, Any] = {
    "examined": "all",
    "memorized": 4,
    "threshold_nulls": 2,
    "ordinary": 2,
    "seeds": 2,
    "attacked": 2,
    "controls": 1,
    "starts": ("noise",),
    "sampling": {"steps": 2},
    "nemo": {"seeds": 3, "threshold": 0.0, "theta": 1.5, "theta_min": 1.0},
    "wanda": {"sparsity": 0.1, "tau": 2},
    "dori": {"steps": 2, "batch": 2},
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_world(tmp_path_factory.mktemp("world"))


def params_of(model: Path, store: Path, **changed: Any) -> AuditParams:
    settings = Settings.model_validate(SETTINGS | changed)
    return AuditParams(model=str(model), store=str(store), device="cpu", settings=settings)


def do(spec: Spec, *stages: work.Stage) -> None:
    """The work of these stages, of all by default; which prompts are confirmed is known behind the first."""
    for stage in stages or work.STAGES:
        for item in work.work(spec_of(spec.run), stage, audit_id="an audit"):
            if item.anew or item.missing():
                item.do()


def rows(store: str, table: str) -> list[str]:
    """All rows, whatever the parts that they lie in, and but for when they were written."""
    found = Store.open(store).read(table)
    kept = [name for name in found.column_names if not name.endswith("_at")]
    return sorted(str(row) for row in found.select(kept).to_pylist())


def test_a_spec_is_the_same_wherever_it_is_read(model: Path, tmp_path: Path) -> None:
    spec = resolve(params_of(model, tmp_path / "store"))
    again = spec_of(spec.run)
    assert (again.run_id, again.settings, again.subject) == (spec.run_id, spec.settings, spec.subject)
    assert ids.variants(again) == ids.variants(spec) and again.chosen.memorized == spec.chosen.memorized
    assert resolve(params_of(model, tmp_path / "store")).run_id == spec.run_id
    assert len(Store.open(spec.subject.store).parts("runs")) == 1
    with pytest.raises(InputError, match="has no run 'mistyped'"):
        spec_of(spec.run.model_copy(update={"run_id": "mistyped"}))


def test_a_run_is_another_by_what_changes_a_result_alone(model: Path, tmp_path: Path) -> None:
    assert {"sampling.batch", "nemo.batch", "dori.images_at_once", "finetune.save_every", "sscd.threads"} <= speeds()
    known = resolve(params_of(model, tmp_path / "store")).run_id
    faster = resolve(params_of(model, tmp_path / "store", sampling={"steps": 2, "batch": 1}))
    other = resolve(params_of(model, tmp_path / "store", sampling={"steps": 3}))
    assert faster.run_id == known != other.run_id


def test_a_run_computes_as_whoever_asked_last_said(model: Path, tmp_path: Path) -> None:
    """Its id says nothing of speed: one that ran out of memory goes on with a smaller batch."""
    for batch in (8, 1, 8, 8):
        spec = resolve(params_of(model, tmp_path / "store", sampling={"steps": 2, "batch": batch}))
        assert spec_of(spec.run).settings.sampling.batch == batch
    assert len(Store.open(spec.subject.store).parts("runs")) == 3


def test_a_run_goes_on_where_its_model_lies_now(model: Path, tmp_path: Path) -> None:
    """Nor of the folder: the same weights may have moved, or be another machine's."""
    worlds = [shutil.copytree(model.parent, tmp_path / name) / model.name for name in ("a", "b")]
    known = [resolve(params_of(world, tmp_path / "store")) for world in worlds]
    assert known[0].run_id == known[1].run_id
    shutil.rmtree(worlds[0])
    assert spec_of(known[0].run).subject.model == str(worlds[1])


def test_a_setting_that_is_new_does_not_part_an_audit_from_its_figures(model: Path, tmp_path: Path) -> None:
    spec = resolve(params_of(model, tmp_path / "store"))
    whole = json.loads(spec.params.model_dump_json())
    lacking = {name: value for name, value in whole["settings"].items() if name != "contrast"}
    kinds = {
        "before-the-setting": whole | {"settings": lacking},
        "with-one-that-is-no-more": whole | {"settings": whole["settings"] | {"gone": 1}},
        "with-another-value": whole | {"settings": whole["settings"] | {"seeds": 3}},
    }
    store = Store.open(spec.subject.store)
    same: dict[str, Any] = {"model_id": spec.subject.model_id, "prompt_set": spec.subject.prompt_set}
    same |= {"code_version": "0", "started_at": 0, "state": "completed"}
    for name, params in kinds.items():
        store.write("audits", name, [same | {"audit_id": name, "params": json.dumps(params)}])
    assert {row["audit_id"] for row in audits_like(spec)} == {"before-the-setting", "with-one-that-is-no-more"}
    unusual = resolve(params_of(model, tmp_path / "store", contrast="prompts"))
    assert audits_like(unusual) == []


def test_ids_are_known_before_anything_has_run(model: Path, tmp_path: Path) -> None:
    spec = resolve(params_of(model, tmp_path / "store"))
    before, expected = ids.variants(spec), ids.expected(spec)
    do(spec, "confirm", "collect", "localize", "mitigate")
    spec = spec_of(spec.run)
    assert ids.variants(resolve(spec.params)) == before
    assert ids.there(spec).items() <= expected.items() and {"nemo", "wanda"} < ids.there(spec).keys()


@pytest.mark.slow
def test_neither_shards_nor_order_nor_overlap_change_what_is_found(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each shard as another worker would do it, and the last one first. Then, as if both had begun at one moment and
    neither had seen what the other did, the parts of both lie in one store."""
    few: dict[str, Any] = {"detectors": ("norm",), "seeds": 1, "attacked": 1}
    whole, apart = (resolve(params_of(model, tmp_path / name, **few)) for name in ("whole", "apart"))
    stages: tuple[work.Stage, ...] = ("confirm", "collect", "localize", "mitigate", "attack", "evaluate")
    do(whole, *stages)
    monkeypatch.setattr("flows.run.work.item.UNITS", 1)
    for stage in stages:
        apart = spec_of(apart.run)
        items = work.work(apart, stage, audit_id="an audit")
        for item in reversed(list(items)) if stage in ("collect", "attack") else items:
            item.do()
    assert len([item for item in work.work(apart, "collect") if item.method.startswith("feature norms")]) == 12
    one, two = (Store.open(spec.subject.store) for spec in (whole, apart))
    ended = {"audit_id": "an audit", "model_id": whole.subject.model_id, "params": "{}", "code_version": "0"}
    for store in (one, two):
        store.write("audits", "an-audit", [ended | {"started_at": 0, "finished_at": 1, "state": "completed"}])
    for table in ("neuron_sets", "nemo_traces", "variants"):
        assert rows(one.url, table) == rows(two.url, table)
    of_one, of_two = ({table: rows(store.url, table) for table in TABLES} for store in (one, two))
    made = [table for table in TABLES if table != "runs"]  # which name the store
    names = {table: units(one, table) for table in made}
    assert names == {table: units(two, table) for table in made}
    for path in (tmp_path / "apart").rglob("*"):
        target = tmp_path / "whole" / path.relative_to(tmp_path / "apart")
        if path.is_file() and not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, target)
    both = Store.open(one.url)
    for table in ("activations", "detections", "generations"):
        held = sum(pq.read_metadata(f"{both.backend.root}/{part}").num_rows for part in both.parts(table))
        assert held > both.read(table).num_rows, f"no parts of {table} overlap; the test has lost its point"
    for table in TABLES:
        # The last bits of what was computed in other batches may differ.
        assert set(rows(both.url, table)) <= {*of_one[table], *of_two[table]}
        assert table == "runs" or units(both, table) == names[table]
        assert query_rows(both, table) == sorted(map(str, both.read(table).to_pylist()))
    assert verify(both) == []


def units(store: Store, table: str) -> list[str]:
    """What each row is of, as often as there are rows."""
    columns = [*TABLES[table].partition, *TABLES[table].unit]
    kept = [name for name in columns if not name.endswith("_at")]
    return sorted(str(row) for row in store.read(table, columns=kept).to_pylist())


def query_rows(store: Store, table: str) -> list[str]:
    """All rows as SQL has them."""
    answer = connect(store).sql(f"SELECT * FROM {TABLES[table].view}").to_arrow_table()
    return sorted(map(str, answer.cast(TABLES[table].schema).to_pylist()))


def test_the_outlook_shrinks_as_work_is_done(model: Path, tmp_path: Path) -> None:
    spec = resolve(params_of(model, tmp_path / "store"))
    before = outlook(spec)
    assert before.seconds > 0 and before.bytes > 0 and all(row.there == 0 for row in before.rows)
    norms = next(row for row in before.rows if row.work.startswith("feature norms"))
    assert (norms.of, norms.evaluations) == (12, 12 * 2 * 2)  # prompts, steps, halves of guidance
    images = sum(row.evaluations for row in before.rows if row.work == "ask the model, original, prompt")
    assert images == 4 * 2 * 2 * 2  # prompts, seeds, steps, halves
    do(spec, "confirm", "collect", "localize")
    spec = spec_of(spec.run)
    half = outlook(spec)
    assert all(row.there == row.of for row in half.rows if row.stage in ("confirm", "collect", "localize"))
    assert 0 < half.evaluations < before.evaluations and "evaluations of the denoiser are left" in half.words()


def test_the_outlook_says_what_trainings_take(model: Path, tmp_path: Path) -> None:
    trained = {"mitigations": ("wanda", "adversarial-finetune"), "ordinary": 2}
    found = outlook(resolve(params_of(model, tmp_path / "store", **trained)))
    denoiser = next(row.bytes for row in found.rows if row.work.startswith("train"))  # as many bytes are written
    assert found.memory.keys() == {"adversarial-finetune"}
    assert 7 * denoiser < found.memory["adversarial-finetune"]
    assert "Trainings take memory, at the least: adversarial-finetune " in found.words()


def test_a_dry_run_leaves_everything_as_it_was(model: Path, tmp_path: Path) -> None:
    settings = [
        word for pair in ("attacked=1", "seeds=2", "sampling.steps=2", "wanda.sparsity=0.1") for word in ("--set", pair)
    ]
    command = ["audit", "--model", str(model), "--store", str(tmp_path / "none"), "--dry-run", *settings]
    found = CliRunner().invoke(app, command)
    assert found.exit_code == 0, found.output
    assert "feature norms at ff-hidden" in found.output and "evaluations of the denoiser are left" in found.output
    assert not (tmp_path / "none").exists()
    spec = resolve(params_of(model, tmp_path / "store"))
    before = sorted(path for path in (tmp_path / "store").rglob("*"))
    answer = json.loads(CliRunner().invoke(app, [*command[:4], str(tmp_path / "store"), *command[5:], "--json"]).stdout)
    assert sum(row["evaluations"] for row in answer["work"]) > 0 < answer["seconds"]
    assert sorted(path for path in (tmp_path / "store").rglob("*")) == before
    assert spec.run_id
    (tmp_path / "store" / "store.json").write_text('{"format": "engram", "version": 3}')
    refused = CliRunner().invoke(app, [*command[:4], str(tmp_path / "store"), *command[5:]])
    assert isinstance(refused.exception, InputError) and "run `engram migrate" in str(refused.exception)


def test_a_stage_says_what_comes_first(model: Path, tmp_path: Path) -> None:
    from flows.run.execution import check_ready

    spec = resolve(params_of(model, tmp_path / "store"))
    for stage in ("collect", "localize"):
        with pytest.raises(InputError, match="which memorized prompts the model brings back: run the confirmation"):
            check_ready(spec, stage)
    do(spec, "confirm")
    spec = spec_of(spec.run)
    with pytest.raises(
        InputError, match=r"lacks 8 of 8 prompts of value activations at value: run the collection first"
    ):
        check_ready(spec, "localize")
    do(spec, "collect")
    check_ready(spec, "localize")
    with pytest.raises(InputError, match="noise differences: run the localization first"):
        check_ready(spec, "mitigate")
