"""Audits are forgotten: what is theirs alone goes, what anything else needs stays, whatever interrupts it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from storage import (
    Store,
    StoreError,
    compact,
    examine,
    forget,
    forget_images,
    forgetting,
    forgetting_images,
    query,
    record_holdings,
    verify,
)
from storage.local import LocalBackend
from storage.tables import TABLES
from tests.support.rows import neuron_set

NOW = datetime(2024, 1, 1, tzinfo=UTC)


def put_shared(store: Store, model: str, prompts: str, shots: Iterable[int], folder: Path) -> set[str]:
    """What an audit of a model with these prompts rests on, unless it is there: the addresses."""
    found = {store.write("models", model, [{"model_id": model, "source": model, "family": "x", "created_at": NOW}])}
    images = [f"{prompts}-image", "image of all"]
    asked = {"prompt_id": f"p{prompts}", "text": prompts, "kind": "memorized", "image_ids": images}
    found.add(store.write("prompts", prompts, [asked], prompt_set=prompts))
    for image in images:
        rows = [{"image_id": image, "bytes": image.encode(), "width": 1, "height": 1}]
        found.add(store.write("images", image.replace(" ", "-"), rows))
    where = {"model_id": model, "variant": f"nemo-{prompts}", "condition": "prompt"}
    for shot in shots:
        name = f"{model}-{prompts}-{shot}"
        row = {"prompt_id": f"p{prompts}", "seed": shot, "generation_id": name, "bytes": name.encode()}
        found.add(store.write("generations", f"{prompts}-{shot}", [row], **where))
        found.add(store.write("scores", name, [{"generation_id": name, "value": shot / 10}], metric="sscd"))
    sets = {"model_id": model, "method": f"nemo-{prompts}", "site": "ff"}
    for layer in ("one", "two"):
        found.add(store.write("neuron_sets", prompts, [neuron_set("all", {1, 2})], layer=layer, **sets))
    pruned: dict[str, Any] = {"variant": f"nemo-{prompts}", "method": "nemo", "params_id": "p", "rule": "neurons"}
    pruned |= {"sets_method": f"nemo-{prompts}", "sets_id": "p", "sets_scopes": ["all"], "site": "ff"}
    found.add(store.write("variants", f"{prompts}-pruned", [pruned], model_id=model))
    source = folder / model
    source.mkdir(exist_ok=True)
    (source / "changed").write_bytes(model.encode())
    weights = store.put_folder("variants", f"{model}-{prompts}", source)
    trained = {"variant": f"trained-{prompts}", "method": "trained", "params_id": "p", "weights": weights}
    found.add(store.write("variants", f"{prompts}-trained", [trained], model_id=model))
    return found | {entry.path for entry in store.home.files(weights)}


def put_audit(
    store: Store, audit_id: str, number: int, model: str, prompts: str, shots: Iterable[int], folder: Path, end: str
) -> set[str]:
    """An audit that ended so, as the flows write it; returns the addresses of what it needs."""
    run = f"{model}-{prompts}"
    began = NOW + timedelta(days=number)
    row: dict[str, Any] = {"audit_id": audit_id, "model_id": model, "prompt_set": prompts, "run_id": run}
    row |= {"params": f'{{"model": "hub/{model}"}}', "code_version": "1", "started_at": began}
    about = {"model_id": model, "prompt_set": prompts, "params": "{}", "long_prompts": "", "code_version": "1"}
    found = {store.write("runs", run, [{"run_id": run, "resolved_at": NOW} | about])}
    process = {"host": "h", "boot": "b", "space": "", "pid": 1, "began": 0.0, "audit_id": audit_id}
    found.add(store.write("processes", audit_id, [process]))
    found.add(store.write("audits", f"{audit_id}-begun", [row | {"state": "running"}]))
    found |= put_shared(store, model, prompts, shots, folder)
    figure = {"variant": "original", "metric": "mr", "value": number / 10}
    found.add(store.write("metrics", f"{audit_id}-mr", [figure], audit_id=audit_id))
    seen: dict[str, Any] = {"variant": "nemo", "condition": "prompt", "metric": "sscd", "scorer": "x"}
    seen["generation_ids"] = [f"{model}-{prompts}-{shot}" for shot in shots]
    found.add(store.write("evidence", f"{audit_id}-seen", [seen], audit_id=audit_id))
    if end != "running":
        ended = row | {"state": end, "finished_at": began + timedelta(hours=1)}
        found.add(store.write("audits", f"{audit_id}-ended", [ended]))
    if end == "completed":
        found.add(record_holdings(store, audit_id))
        night = {"name": model, "audit_id": audit_id, "outcome": "first", "told_at": began}
        found.add(store.write("nights", f"{model}-{audit_id}", [night]))
    return found


def everything(store: Store) -> dict[str, bytes]:
    """The bytes of every part and of every weight, by address."""
    entries = [entry for table in (*TABLES, "weights") for entry in store.home.files(table)]
    return {entry.path: store.home.read(entry.path) for entry in entries}


def mentioned(store: Store) -> set[str]:
    """The audits that any row belongs to."""
    tables = [table for table in TABLES.values() if "audit_id" in table.schema.names]
    return {name for table in tables for name in store.read(table.name)["audit_id"].to_pylist()}


AUDITS = st.lists(
    st.tuples(
        st.sampled_from("mn"),
        st.sampled_from("st"),
        st.sets(st.integers(0, 3), min_size=1),
        st.sampled_from(["completed", "completed", "completed", "failed"]),
        st.booleans(),
    ),
    min_size=1,
    max_size=5,
)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(audits=AUDITS)
def test_what_remaining_audits_need_is_there_and_equal(
    tmp_path_factory: pytest.TempPathFactory, audits: list[tuple[str, str, set[int], str, bool]]
) -> None:
    folder = tmp_path_factory.mktemp("forget")
    store = Store.open(folder / "store")
    needs = {
        f"A{number}": put_audit(store, f"A{number}", number, model, prompts, shots, folder, end)
        for number, (model, prompts, shots, end, _) in enumerate(audits)
    }
    before = everything(store)
    chosen = [f"A{number}" for number, (*_, going) in enumerate(audits) if going]
    staying = set(needs) - set(chosen)
    planned = forgetting(store, chosen)
    assert everything(store) == before, "a plan changes nothing"
    removed = forget(store, chosen)
    after = everything(store)
    assert removed == planned and verify(store) == []
    gone = {path for path in before.keys() - after.keys() if not path.startswith("weights/")}
    assert {entry.path for entry in removed.parts} == gone
    assert after.items() <= before.items()
    for name in staying:
        assert needs[name] <= after.keys(), name
    assert mentioned(store) == staying
    models = {model for number, (model, *_) in enumerate(audits) if f"A{number}" in staying}
    assert {path.split("/")[1] for path in after if "model_id=" in path} == {f"model_id={one}" for one in models}
    if not staying:
        assert after == {}


def compacted(store: Store, again: bool) -> None:
    """Merges parts, and where `again` removes what was merged, as if an hour had passed."""
    compact(store)
    if again:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("storage.compaction.HOUR", -60)
            compact(store, gc=True)


def contents(store: Store) -> dict[str, set[str]]:
    """By table, its rows; of records only whose they are."""
    found = {table: {str(row) for row in store.read(table).to_pylist()} for table in TABLES if table != "audit_parts"}
    return found | {"audit_parts": {*store.read("audit_parts")["audit_id"].to_pylist()}}


@pytest.mark.parametrize("again", [False, True], ids=["merged", "merged and removed"])
@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(audits=AUDITS, more=st.booleans())
def test_what_is_forgotten_goes_from_merged_parts_too(
    tmp_path_factory: pytest.TempPathFactory,
    again: bool,
    audits: list[tuple[str, str, set[int], str, bool]],
    more: bool,
) -> None:
    folder = tmp_path_factory.mktemp("merged")
    store, alone = Store.open(folder / "store"), Store.open(folder / "alone")
    for number, (model, prompts, shots, end, going) in enumerate(audits):
        put_audit(store, f"A{number}", number, model, prompts, shots, folder, end)
        if not going:
            put_audit(alone, f"A{number}", number, model, prompts, shots, folder, end)
        if more:  # what was merged is merged with what comes later
            compacted(store, again)
    compacted(store, again)
    before = contents(store)
    planned = forgetting(store, [f"A{number}" for number, (*_, going) in enumerate(audits) if going])
    assert contents(store) == before, "a plan changes nothing"
    assert forget(store, planned.audits) == planned
    after, needed = contents(store), contents(alone)
    assert verify(store) == []
    for table in TABLES:
        assert needed[table] <= after[table] <= before[table], table
    for table in ("audits", "metrics", "evidence", "audit_parts", "nights", "runs", "models", "prompts", "images"):
        assert after[table] == needed[table], table
    shown = set(store.read("generations")["generation_id"].to_pylist())
    assert set(store.read("scores")["generation_id"].to_pylist()) == shown
    if not contents(alone)["audits"]:
        assert everything(store) == {}


@pytest.mark.slow
def test_a_kill_leaves_a_whole_store_of_merged_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = Store.open(tmp_path / "made")
    for number, (model, prompts) in enumerate([("m", "s"), ("m", "t"), ("n", "s")]):
        put_audit(made, f"A{number}", number, model, prompts, {0, 1}, tmp_path, "completed")
    compacted(made, again=False)
    shutil.copytree(tmp_path / "made", tmp_path / "whole")
    whole, number, killed = Store.open(tmp_path / "whole"), 0, True
    forget(whole, ["A0", "A2"])
    while killed:
        shutil.copytree(tmp_path / "made", tmp_path / "killed")
        store = Store.open(tmp_path / "killed")
        with monkeypatch.context() as patch:
            killed_after(number, patch)
            try:
                forget(store, ["A0", "A2"])
                killed = False
            except KeyboardInterrupt:
                pass
        assert verify(store) == [], number
        if mentioned(store) & {"A0", "A2"}:
            forget(store, ["A0", "A2"])
        assert contents(store) == contents(whole) and verify(store) == [], number
        shutil.rmtree(tmp_path / "killed")
        number += 5
    assert number > 30


def killed_after(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on the process dies once it has removed so many things."""
    left = [count]

    def dying(real: Any) -> Any:
        def remove(backend: LocalBackend, given: Any) -> None:
            for one in [given] if isinstance(given, str) else given:
                if not left[0]:
                    raise KeyboardInterrupt
                left[0] -= 1
                real(backend, one if isinstance(given, str) else [one])

        return remove

    for name in ("remove", "remove_folder"):
        monkeypatch.setattr(LocalBackend, name, dying(getattr(LocalBackend, name)))


@pytest.mark.slow
def test_a_kill_leaves_a_whole_store_and_the_same_call_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = Store.open(tmp_path / "made")
    for number, (model, prompts) in enumerate([("m", "s"), ("m", "t"), ("n", "s"), ("n", "t")]):
        put_audit(made, f"A{number}", number, model, prompts, {0, 1}, tmp_path, "completed")
    for path in (tmp_path / "made" / "weights").rglob("*"):
        os.utime(path, (0, 0))  # put there long ago
    shutil.copytree(tmp_path / "made", tmp_path / "whole")
    whole = Store.open(tmp_path / "whole")
    steps = forget(whole, ["A0", "A2", "A3"])
    count = len(steps.parts) + len(steps.weights)
    assert count > 30
    for number in range(0, count, 3):
        shutil.copytree(tmp_path / "made", tmp_path / "killed")
        store = Store.open(tmp_path / "killed")
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            killed_after(number, patch)
            forget(store, ["A0", "A2", "A3"])
        assert verify(store) == [], number
        if mentioned(store) & {"A0", "A2", "A3"}:
            forget(store, ["A0", "A2", "A3"])
        assert everything(store) == everything(whole) and verify(store) == [], number
        shutil.rmtree(tmp_path / "killed")


def test_audits_are_forgotten_in_both_kinds_of_store(store: Store, tmp_path: Path) -> None:
    needs = put_audit(store, "A", 1, "m", "s", {0, 1}, tmp_path, "completed")
    kept = put_audit(store, "B", 2, "n", "s", {0}, tmp_path, "completed")
    removed = forget(store, ["A"])
    assert everything(store).keys() == kept and verify(store) == []
    assert removed.counts()["generations"] == 2 and removed.counts()["weights"] == 1
    assert {entry.path for entry in removed.parts} | {path for path in needs if "weights" in path} == needs - kept
    forget(store, ["B"])
    assert everything(store) == {}


def test_who_runs_is_accepted_or_unknown_is_refused(local: Store, tmp_path: Path) -> None:
    for number, end in enumerate(["completed", "completed", "running"]):
        put_audit(local, f"A{number}", number, "m", "s", {number}, tmp_path, end)
    for number in (0, 1):
        row = {"audit_id": f"A{number}", "accepted_at": NOW + timedelta(days=number)}
        local.write("accepted", f"A{number}", [row])
    before = everything(local)
    for name, why in (("A1", "is the accepted baseline"), ("A2", "is running"), ("Z", "the store has no audit 'Z'")):
        with pytest.raises(StoreError, match=why) as refused:
            forget(local, ["A0", name])
        assert "\n" not in str(refused.value) and everything(local) == before
    with pytest.raises(StoreError, match="A0 was accepted"):
        forget_images(local, ["A0"])
    assert everything(local) == before
    assert [row["audit_id"] for row in query(local, "baselines").to_pylist()] == ["A1"]
    found = forgetting(local, ["A0"])  # another one was accepted since
    assert found.notes == ["the audit A2 has no record of all that it rests on, so all of its model stays"]
    forget(local, ["A0"])
    assert mentioned(local) == {"A1", "A2"} and verify(local) == []
    assert local.read("generations").num_rows == 3


def test_parts_that_came_after_the_record_keep_their_model(local: Store, tmp_path: Path) -> None:
    put_audit(local, "A", 1, "m", "s", {0}, tmp_path, "completed")
    put_audit(local, "B", 2, "m", "s", {1}, tmp_path, "completed")
    put_audit(local, "C", 3, "m", "s", {2}, tmp_path, "completed")
    local.write("metrics", "later", [{"variant": "nemo", "metric": "fid", "value": 1.0}], audit_id="A")
    assert forgetting(local, ["C"]).counts().keys() == {
        "audit_parts", "metrics", "evidence", "nights", "processes", "audits"
    }  # fmt: skip


def test_scans_runs_and_variants_of_nobody_keep_what_they_go_by(local: Store, tmp_path: Path) -> None:
    score = {"prompt_id": "p", "params_id": "p", "score": 1.0}
    local.write("detections", "d", [score], model_id="m", variant="original", detector="norm")
    put_audit(local, "A", 1, "m", "s", {0}, tmp_path, "completed")
    finding = {"model_id": "m", "prompt_id": "p", "text": "t", "detector": "norm", "params_id": "p", "score": 1.0}
    finding |= {"nulls": 9, "p_value": 0.1, "alpha": 0.1, "flagged": True, "found_at": NOW}
    local.write("findings", "f", [finding], scan_id="scan")
    run = {"run_id": "alone", "model_id": "m", "prompt_set": "s", "params": "{}", "long_prompts": ""}
    local.write("runs", "alone", [run | {"code_version": "1", "resolved_at": NOW}])
    later: dict[str, Any] = {
        "variant": "later",
        "method": "nemo",
        "params_id": "q",
        "rule": "neurons",
        "sets_method": "nemo-s",
    }
    later |= {"sets_id": "p", "sets_scopes": ["all"], "site": "ff"}
    local.write("variants", "later", [later], model_id="m")
    forget(local, ["A"])
    assert verify(local) == [] and mentioned(local) == set()
    left = {path.split("/")[0] for path in everything(local)}
    assert left == {"models", "detections", "findings", "prompts", "images", "runs", "variants", "neuron_sets"}
    assert local.read("variants")["variant"].to_pylist() == ["later"]


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(audits=AUDITS)
def test_images_go_and_estimates_stay(
    tmp_path_factory: pytest.TempPathFactory, audits: list[tuple[str, str, set[int], str, bool]]
) -> None:
    folder = tmp_path_factory.mktemp("images")
    store = Store.open(folder / "store")
    needs = {
        f"A{number}": put_audit(store, f"A{number}", number, model, prompts, shots, folder, end)
        for number, (model, prompts, shots, end, _) in enumerate(audits)
    }
    before = everything(store)
    chosen = [f"A{number}" for number, (*_, end, going) in enumerate(audits) if going and end == "completed"]
    planned = forgetting_images(store, chosen)
    removed = forget_images(store, chosen)
    after = everything(store)
    gone = before.keys() - after.keys()
    assert {entry.path for entry in removed.parts} == {entry.path for entry in planned.parts}
    assert {path.split("/")[0] for path in gone} <= {"generations", "audit_parts"} and mentioned(store) == set(needs)
    assert not gone & set().union(*(needs[name] for name in set(needs) - set(chosen)))
    # What is left of theirs somebody else needs: by a record, which names all of a model, or because there is none.
    rows = store.read("audit_parts").to_pylist()
    held = {row["address"] for row in rows if row["audit_id"] not in chosen}
    failed = {f"model_id={model}" for model, *_, end, _ in audits if end == "failed"}
    for name in chosen:
        left = {path for path in needs[name] & after.keys() if path.startswith("generations/")}
        assert all(path in held or path.split("/")[1] in failed for path in left)
    assert verify(store) == []
    assert forget_images(store, chosen).parts == [], "there is nothing more to do"
    assert everything(store) == after
    assert not any("no record" in note for note in examine(store).notes)


def test_images_that_went_half_go_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store.open(tmp_path / "store")
    put_audit(store, "A", 1, "m", "s", {0, 1, 2}, tmp_path, "completed")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        killed_after(0, patch)
        forget_images(store, ["A"])
    assert verify(store) == [] and store.read("generations").num_rows == 3
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        killed_after(2, patch)
        forget_images(store, ["A"])
    assert verify(store) == [] and len(store.parts("audit_parts")) == 1
    # What the record no longer names is found by nobody's need of it.
    forget_images(store, ["A"])
    assert store.read("generations").num_rows == 0 and verify(store) == []
    assert store.read("metrics").num_rows == 1 and store.read("scores").num_rows == 3
