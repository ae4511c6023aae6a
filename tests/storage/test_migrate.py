"""Stores of earlier releases come to this version, whatever happens on the way, and nothing of them is lost."""

from __future__ import annotations

import json
import shutil
import tarfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import boto3
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from flows.audit import AuditParams
from flows.cli.commands import app
from flows.settings import Settings
from storage import Store, StoreError, drop_former, examine, migrate, query, run_sql, write_catalog
from storage.local import LocalBackend
from storage.mark import MARK, read_mark
from storage.migrate import _Move
from storage.migrations import MIGRATIONS, OLDEST, kept_schemas, tables_of, v4, v5
from storage.parts import encode
from storage.tables import TABLES, VERSION
from tasks.errors import InputError
from tasks.subject import Subject
from tests.storage.keep_schemas import kept
from tests.storage.test_crashes import Death, dying_at

FIXTURES = Path(__file__).parent / "fixtures"
KEPT_ROWS = {"generations", "scores", "triggers", "images", "models", "findings", "accepted", "neuron_sets"}
"""Tables of which version 4 changed no value but the names of variants."""


@pytest.fixture(scope="session")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of version 3, as its release wrote it; not to be changed."""
    folder = tmp_path_factory.mktemp("v3") / "store"
    with tarfile.open(FIXTURES / "v3.tar.xz") as archive:
        archive.extractall(folder, filter="data")
    return folder


@pytest.fixture
def old(unpacked: Path, tmp_path: Path) -> Path:
    return shutil.copytree(unpacked, tmp_path / "store")


@pytest.fixture(scope="session")
def migrated(unpacked: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, migrated; not to be changed."""
    folder = shutil.copytree(unpacked, tmp_path_factory.mktemp("migrated") / "store")
    migrate(folder)
    return folder


@pytest.fixture
def uploaded(unpacked: Path, s3_url: str) -> str:
    """The same on S3."""
    bucket, prefix = s3_url.removeprefix("s3://").split("/", 1)
    for path in unpacked.rglob("*"):
        if path.is_file():
            boto3.client("s3").upload_file(str(path), bucket, f"{prefix}/{path.relative_to(unpacked)}")
    return s3_url


@pytest.fixture(params=["old", pytest.param("uploaded", marks=pytest.mark.slow)])
def url(request: pytest.FixtureRequest) -> str:
    """Both kinds of store in turn."""
    return str(request.getfixturevalue(request.param))


def rows_of(folder: Path, table: str) -> list[dict[str, Any]]:
    """All rows of a table as its files have them, whatever their version."""
    return [
        row for path in sorted((folder / table).rglob("*.parquet")) for row in pq.ParquetFile(path).read().to_pylist()
    ]


def files_of(folder: Path) -> dict[str, bytes]:
    found = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    return {name: data for name, data in found.items() if ".aside" not in name}


def sorted_rows(rows: list[dict[str, Any]]) -> list[str]:
    return sorted(map(repr, rows))


def test_the_present_schemas_are_kept_and_every_version_has_its_migration() -> None:
    # Where this fails, a schema changed. One that no release has written yet: `python -m tests.storage.keep_schemas`.
    # Else raise storage.tables.VERSION first, and write the migration: storage/migrations/__init__.py says how.
    assert kept(VERSION).read_text() == kept_schemas(TABLES)
    assert sorted(MIGRATIONS) == list(range(OLDEST + 1, VERSION + 1))
    assert all(kept_schemas(tables_of(version)) == kept(version).read_text() for version in range(OLDEST, VERSION + 1))


@pytest.mark.parametrize("packed", sorted(FIXTURES.glob("*.tar.xz")), ids=lambda path: path.name)
def test_what_a_release_wrote_opens(packed: Path, tmp_path: Path) -> None:
    """Also that of the present version, once it is there: schemas that were released cannot change unnoticed."""
    with tarfile.open(packed) as archive:
        archive.extractall(tmp_path / "store", filter="data")
    migrate(tmp_path / "store")
    store = Store.open(tmp_path / "store", create=False)
    assert examine(store).damages == [] and examine(store).notes == []
    assert sum(store.read(name).num_rows for name in TABLES) > 1000


def test_any_other_command_says_to_migrate(old: Path) -> None:
    for command in (("audits",), ("sql", "SELECT 1"), ("verify",), ("query", "copies")):
        found = CliRunner().invoke(app, [*command, "--store", str(old)])
        assert isinstance(found.exception, StoreError)
        assert f"run `engram migrate --store {old}`" in str(found.exception)


def test_no_row_is_lost_and_no_figure_changes(unpacked: Path, url: str) -> None:
    done = migrate(url)
    assert done is not None and done.version == 3
    store = Store.open(url, create=False)
    for name in TABLES:
        before, after = rows_of(unpacked, name), store.read(name).to_pylist()
        assert len(before) == len(after)
        if name in KEPT_ROWS:
            for row in (*before, *after):
                row.pop("variant", None)
                row["condition"] = row.pop("probe", row.get("condition"))
            assert sorted_rows(before) == sorted_rows([{key: row[key] for key in before[0]} for row in after])
    figures = {
        (row["audit_id"], row["variant"], row["condition"], row["metric"]): (
            row["value"],
            row["low"],
            row["high"],
            row["n"],
        )
        for row in store.read("metrics").to_pylist()
    }
    names = {
        "nemo-own": "nemo",
        "nemo": "nemo-union",
        "random-nemo": "random-nemo-union",
        "random-nemo-own": "random-nemo",
    }
    metrics = {"diversity": "seed_similarity", "diversity_prompts": "seed_similarity_prompts"}
    before = rows_of(unpacked, "metrics")
    assert {"nemo-own", "nemo", "random-nemo", "random-nemo-own"} <= {row["variant"] for row in before}
    assert "diversity" in {row["metric"] for row in before}
    for row in before:
        key = row["audit_id"], names.get(row["variant"], row["variant"]), row["probe"]
        figure = row["value"], row["low"], row["high"], row["n"]
        assert figures[*key, metrics.get(row["metric"], row["metric"])] == pytest.approx(figure, nan_ok=True)
    assert len(figures) == len(before)


def test_a_variant_has_one_name_in_every_table(migrated: Path) -> None:
    store = Store.open(migrated)
    method = {row["variant"]: row["method"] for row in store.read("variants").to_pylist()}
    assert set(method.values()) >= {"nemo", "nemo-union", "random-nemo", "random-nemo-union", "none"}
    for name, one in method.items():
        assert one == "none" or name == f"{one}-{name[-8:]}"
    for table in ("generations", "triggers", "activations", "nemo_traces", "detections"):
        assert set(store.read(table)["variant"].to_pylist()) <= set(method)
    for table in ("metrics", "evidence"):
        assert set(store.read(table)["variant"].to_pylist()) - {"original"} <= set(method.values())
    # What the localizer found is its own, and keeps its name.
    assert "nemo" in store.read("neuron_sets")["method"].to_pylist()
    assert "nemo-union" not in store.read("neuron_sets")["method"].to_pylist()
    shown = query(store, "copies")
    assert {"nemo", "nemo-union"} <= {name.rsplit("-", 1)[0] for name in shown["variant"].to_pylist()}


def test_what_stood_on_the_store_works(url: str, tmp_path: Path) -> None:
    migrate(url)
    store = Store.open(url, create=False)
    assert examine(store).damages == [] and examine(store).notes == []
    first, second = run_sql(store, "SELECT audit_id FROM audits ORDER BY started_at")["audit_id"].to_pylist()
    assert store.read("accepted")["audit_id"].to_pylist() == [first]
    assert store.read("nights", audit_id=second)["baseline"].to_pylist() == [first]
    settings = [json.loads(text)["settings"] for text in store.read("audits")["params"].to_pylist()]
    settings += [json.loads(text)["settings"] for text in store.read("registrations")["params"].to_pylist()]
    assert all("rival_starts" not in one and one["baseline_starts"] == ["noise"] for one in settings)
    variants = ["nemo", "nemo-union", "wanda", "adversarial-finetune", "random-tokens"]
    assert all(list(Settings.model_validate(one).mitigations) == variants for one in settings)
    compared = CliRunner().invoke(app, ["compare", first, second, "--store", url])
    assert compared.exit_code == 0, compared.output
    assert CliRunner().invoke(app, ["audits", "--store", url]).exit_code == 0
    drifted = run_sql(store, "SELECT count(*) AS n, sum(abs(change)) AS sum FROM drift").to_pylist()
    assert drifted[0]["n"] > 100 and drifted[0]["sum"] == 0
    for row in store.read("variants").to_pylist():
        if row["weights"]:
            before = json.loads((store.get_folder(row["weights"]) / "variant.json").read_text())
            before["pruned_words"] = before.pop("cut")
            named = {"method": row["method"], "title": f"model, {row['method']}"}
            if row["method"] == "random-tokens":
                named["params"] = {"tokens": 4}
            assert json.loads(row["card"]) == before | named
    if not url.startswith("s3://"):
        write_catalog(store, tmp_path / "catalog.duckdb")


def test_records_follow_their_parts_and_keep_what_was_wrong(old: Path, unpacked: Path) -> None:
    gone = next((old / "scores").rglob("*.parquet"))
    gone.unlink()
    address = str(gone.relative_to(old))
    migrate(old)
    store = Store.open(old)
    damages = examine(store).damages
    assert [damage.address for damage in damages] == [address]
    assert "is missing" in damages[0].reason and "rest on it" in damages[0].reason
    addresses = store.read("audit_parts")["address"].to_pylist()
    assert len(addresses) == len(rows_of(unpacked, "audit_parts"))
    assert any("/condition=" in one for one in addresses) and not any("/probe=" in one for one in addresses)


def test_a_damaged_part_is_refused_by_name_and_the_migration_goes_on_without_it(old: Path) -> None:
    damaged = next((old / "scores").rglob("*.parquet"))
    damaged.write_bytes(damaged.read_bytes()[:-20])
    with pytest.raises(StoreError, match=f"{damaged.relative_to(old)}.*once it is removed, the migration goes on"):
        migrate(old)
    damaged.unlink()
    migrate(old)
    assert len(examine(Store.open(old)).damages) == 1


def test_a_variant_whose_files_are_gone_has_no_card(old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gone, changed = sorted(path.parent for path in old.glob("weights/*/variant.json"))[:2]
    shutil.rmtree(gone)
    card = changed / "variant.json"
    text = card.read_text()
    card.write_text(text.replace("{", "{ "))
    with pytest.raises(StoreError, match=f"weights/{changed.name}/variant.json has changed since it was written"):
        migrate(old)
    card.write_text(text)
    migrate(old)
    store = Store.open(old)
    (model_id,) = set(store.read("variants")["model_id"].to_pylist())
    monkeypatch.setattr(Subject, "model_id", property(lambda self: model_id))
    subject = Subject(store=store.url, model="gone", prompt_set="")
    for row in store.read("variants", model_id=subject.model_id).to_pylist():
        if row["weights"] == f"weights/{gone.name}":
            with pytest.raises(InputError, match="were gone when the store was migrated"):
                subject.card(row["variant"])
        elif row["weights"]:
            assert subject.card(row["variant"])["method"] == row["method"]
    assert [damage.address for damage in examine(store).damages] == [f"weights/{gone.name}"]


def test_nothing_is_written_by_a_dry_run(old: Path, unpacked: Path) -> None:
    size = sum(path.stat().st_size for path in old.rglob("*.parquet"))
    planned = migrate(old, dry_run=True)
    assert planned is not None and planned.size == size
    assert files_of(old) == files_of(unpacked) and not (old / ".aside").exists()
    assert migrate(old) == planned
    assert drop_former(old, dry_run=True) == planned
    assert files_of(unpacked).items() - files_of(old).items() == {(MARK, (unpacked / MARK).read_bytes())}


def test_the_former_parts_stay_until_they_are_removed(url: str) -> None:
    with pytest.raises(StoreError, match="is not migrated yet"):
        drop_former(url)
    assert drop_former(Store.open(f"{url}-new").url) is None
    done = migrate(url)
    store = Store.open(url)
    former = [entry.path for name in TABLES for entry in store.home.files(name)]
    assert done is not None and len(former) == done.parts
    before = {name: sorted_rows(store.read(name).to_pylist()) for name in TABLES}
    assert migrate(url) is None
    assert drop_former(url) == done and drop_former(url) is None
    store = Store.open(url)
    assert [entry.path for name in TABLES for entry in store.home.files(name)] == []
    assert {name: sorted_rows(store.read(name).to_pylist()) for name in TABLES} == before
    assert examine(store, gc=True).damages == []
    assert read_mark(url, store.home.read(MARK)).former is None


def test_what_is_no_part_is_not_removed(old: Path, migrated: Path) -> None:
    shutil.copytree(migrated, old, dirs_exist_ok=True)
    (old / "metrics" / "notes.txt").write_text("mine")
    drop_former(old)
    assert (old / "metrics" / "notes.txt").read_text() == "mine"
    assert sorted(path.name for path in old.iterdir()) == [".aside", "metrics", "store.json", f"v{VERSION}", "weights"]


def test_new_work_goes_on_in_a_migrated_store(old: Path, migrated: Path) -> None:
    store = Store.open(shutil.copytree(migrated, old, dirs_exist_ok=True))
    address = store.write("accepted", "new", [{"audit_id": "a", "accepted_at": 0}])
    assert (old / f"v{VERSION}" / address).exists()
    folder = old.parent / "weights"
    folder.mkdir()
    (folder / "tensor").write_bytes(b"x")
    assert store.has_folder(store.put_folder("variants", "new", folder))
    assert (old / "weights" / "new" / "tensor").exists()
    assert "a" in run_sql(store, "SELECT audit_id FROM accepted")["audit_id"].to_pylist()


# Interruptions.


def test_a_migration_may_die_at_any_step(unpacked: Path, tmp_path: Path) -> None:
    """Few parts, so that every call of the operating system can be the last one."""
    small = tmp_path / "small"
    for name in ("accepted", "nights", "registrations", "audits", "audit_parts", "processes"):
        shutil.copytree(unpacked / name, small / name)
    shutil.copy(unpacked / MARK, small)
    whole = shutil.copytree(small, tmp_path / "whole")
    migrate(whole)
    step, ended = 0, False
    while not ended:
        folder = shutil.copytree(small, tmp_path / str(step))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(_Move, "at_once", 1)
            try:
                with dying_at(step):
                    migrate(folder)
                ended = True
            except Death:
                version = read_mark("", (folder / MARK).read_bytes())
                if version.migrating:
                    with pytest.raises(StoreError, match="is being migrated"):
                        Store.open(folder)
        migrate(folder)
        assert files_of(folder) == files_of(whole)
        shutil.rmtree(folder)
        step += 3
    assert step > 100


@pytest.mark.slow
@pytest.mark.parametrize("requests", [40, 700])
def test_an_outage_of_s3_is_gone_on_from(uploaded: str, outage: Any, unpacked: Path, requests: int) -> None:
    outage.left = requests
    try:
        with pytest.raises(StoreError):
            migrate(uploaded)
    finally:
        outage.left = None
    done = migrate(uploaded)
    assert done is not None
    store = Store.open(uploaded)
    assert examine(store).damages == []
    assert sum(store.read(name).num_rows for name in TABLES) == sum(len(rows_of(unpacked, name)) for name in TABLES)


def test_what_is_done_is_not_done_again(old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    converted: list[str] = []
    convert, most = _Move.convert, 100

    def counted(self: Any, address: str) -> None:
        if len(converted) == most:
            raise KeyboardInterrupt
        converted.append(address)
        convert(self, address)

    monkeypatch.setattr(_Move, "convert", counted)
    monkeypatch.setattr(_Move, "at_once", 1)
    with pytest.raises(KeyboardInterrupt):
        migrate(old)
    most = 1000
    done = migrate(old)
    assert done is not None and Counter(converted).most_common(1)[0][1] == 1 and len(converted) == done.parts
    assert examine(Store.open(old)).damages == []


def test_a_removal_that_was_interrupted_goes_on(old: Path, migrated: Path) -> None:
    shutil.copytree(migrated, old, dirs_exist_ok=True)
    before = files_of(old / f"v{VERSION}")
    with pytest.raises(Death), dying_at(40):
        drop_former(old)
    assert drop_former(old) is not None
    assert files_of(old / f"v{VERSION}") == before and not (old / "metrics").exists()


# Other writers.


def running(unpacked: Path) -> dict[str, Any]:
    row = rows_of(unpacked, "audits")[0]
    return row | {"audit_id": "at-work", "state": "running", "finished_at": None}


def put(folder: Path, table: str, key: str, rows: list[dict[str, Any]]) -> None:
    """Write a part as version 3 did."""
    definition = tables_of(3)[table]
    data = encode(definition, pa.Table.from_pylist(rows, definition.schema), f"{table}/{key}.parquet")
    (folder / table / f"{key}.parquet").write_bytes(data)


def test_an_audit_at_work_keeps_the_store_as_it_is(old: Path, unpacked: Path) -> None:
    put(old, "audits", "at-work-begun", [running(unpacked)])
    before = files_of(old)
    for dry_run in (True, False):
        with pytest.raises(StoreError, match="the audit at-work is running: wait until it has ended"):
            migrate(old, dry_run)
    assert files_of(old) == before
    assert migrate(old, lost=["at-work"]) is not None
    states = Store.open(old).read("audits", audit_id="at-work")["state"].to_pylist()
    assert sorted(states) == ["lost", "running"]


def test_an_audit_is_marked_lost_after_the_migration_too(old: Path, unpacked: Path) -> None:
    """As after one that was killed before it came to that."""
    migrate(old)
    begun = running(unpacked)
    columns = TABLES["audits"].schema.names
    Store.open(old).write("audits", "at-work-begun", [{name: begun[name] for name in columns if name in begun}])
    assert migrate(old, dry_run=True, lost=["at-work"]) is None
    assert Store.open(old).read("audits", audit_id="at-work")["state"].to_pylist() == ["running"]
    assert migrate(old, lost=["at-work"]) is None
    states = Store.open(old).read("audits", audit_id="at-work")["state"].to_pylist()
    assert sorted(states) == ["lost", "running"]


def test_one_that_begins_at_the_last_moment_too(old: Path, unpacked: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replace = LocalBackend.replace

    def late(self: Any, path: str, data: bytes) -> None:
        if not (old / "audits" / "at-work-begun.parquet").exists():
            put(old, "audits", "at-work-begun", [running(unpacked)])
        replace(self, path, data)

    monkeypatch.setattr(LocalBackend, "replace", late)
    with pytest.raises(StoreError, match="the audit at-work is running"):
        migrate(old)
    assert json.loads((old / MARK).read_text()) == {"format": "engram", "version": 3}


def test_a_part_that_comes_late_is_taken_along(old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As of a writer that had the store open before the migration began."""
    convert = _Move.convert

    def late(self: Any, address: str) -> None:
        put(old, "accepted", "late", [{"audit_id": "late", "accepted_at": 0}])
        convert(self, address)

    monkeypatch.setattr(_Move, "convert", late)
    migrate(old)
    assert "late" in Store.open(old).read("accepted")["audit_id"].to_pylist()


def test_two_at_once_come_to_the_same_end(old: Path, migrated: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inner: list[bool] = []
    convert = _Move.convert

    def other(self: Any, address: str) -> None:
        if not inner:
            inner.append(True)
            migrate(old)
        convert(self, address)

    monkeypatch.setattr(_Move, "convert", other)
    monkeypatch.setattr(_Move, "at_once", 1)
    migrate(old)
    assert files_of(old) == files_of(migrated)


@pytest.mark.parametrize(
    ("mark", "message"),
    [
        ({"version": VERSION + 1}, "install a newer engram"),
        ({"version": VERSION + 1, "former": {"version": VERSION}, "migrating": True}, "install a newer engram"),
        ({"version": OLDEST - 1}, "begin a new store"),
        ({}, "is damaged"),
    ],
)
def test_versions_that_cannot_be_migrated(old: Path, mark: Mapping[str, Any], message: str) -> None:
    (old / MARK).write_text(json.dumps({"format": "engram"} | dict(mark)))
    for act in (lambda: migrate(old), lambda: Store.open(old)):
        with pytest.raises(StoreError, match=message) as caught:
            act()
        assert "\n" not in str(caught.value)
    with pytest.raises(StoreError, match="there is no store"):
        migrate(old.parent / "nowhere")
    assert not (old.parent / "nowhere").exists()


# The words of version 4.

NAMES = {
    "nemo-own": "nemo",
    "nemo-own-0a1b2c3d": "nemo-0a1b2c3d",
    "nemo": "nemo-union",
    "nemo-0a1b2c3d": "nemo-union-0a1b2c3d",
    "random-nemo-own-0a1b2c3d": "random-nemo-0a1b2c3d",
    "random-nemo-0a1b2c3d": "random-nemo-union-0a1b2c3d",
    "random-nemo": "random-nemo-union",
    "wanda-0a1b2c3d": "wanda-0a1b2c3d",
    "original": "original",
    "nemo-candidates": "nemo-candidates",
}


def test_names_of_variants() -> None:
    assert {name: v4.variant(name) for name in NAMES} == NAMES
    assert [v4.metric(name) for name in ("diversity", "diversity_prompts", "diversity2", "sscd_gen")] == [
        "seed_similarity", "seed_similarity_prompts", "diversity2", "sscd_gen",
    ]  # fmt: skip


# Names of its own, as a setting of the former ones' names would be one of these.
@given(st.dictionaries(st.text().map("own {}".format), st.text() | st.floats(allow_nan=False) | st.lists(st.text())))
def test_parameters_keep_every_value(settings: dict[str, Any]) -> None:
    former = {
        "rival_starts": ["noise"],
        "importance": {"timesteps": 3, "contrast": False, "seed": 7, "score": "taylor"},
    }
    now = {"baseline_starts": ["noise"], "random": {"seed": 7}}
    now |= {name: {"timesteps": 3, "contrast": False} for name in ("gradient", "taylor")}
    new = v4.params(json.dumps({"model": '"rival_starts":', "settings": settings | former}))
    assert json.loads(new) == {"model": '"rival_starts":', "settings": settings | now}
    assert v4.params('{"settings":null}') == '{"settings":null}'


def test_a_registration_fits_the_settings_of_now(migrated: Path) -> None:
    """Else the nights of whoever migrated end with an error."""
    (text,) = Store.open(migrated).read("registrations")["params"].to_pylist()
    settings = AuditParams.model_validate_json(text).settings
    assert settings is not None and settings.baseline_starts == ("noise",) and settings.memorized == 2


def test_settings_choose_the_same_variants_by_the_same_parameters() -> None:
    defence = {"target": 3.0, "steps": 9, "learning_rate": 0.05, "tokens": 4, "rescale": 1.25}
    old = {
        "own_cuts": True,
        "scores": ["random", "wanda"],
        "erase": ["lora-finetune"],
        "defences": ["random-tokens"],
        "importance": {"score": "taylor", "timesteps": 7, "contrast": True, "seed": 3},
        "defence": defence,
    }
    new = v4.settings(old)
    assert new.pop("mitigations") == ["nemo", "nemo-union", "wanda", "random", "lora-finetune", "random-tokens"]
    assert new == {
        "taylor": {"timesteps": 7, "contrast": True},
        "gradient": {"timesteps": 7, "contrast": True},
        "random": {"seed": 3},
        "perturbed_embedding": {"target": 3.0, "steps": 9, "learning_rate": 0.05},
        "random_tokens": {"tokens": 4},
        "reweighted_attention": {"rescale": 1.25},
    }
    assert v4.settings({"own_cuts": False})["mitigations"] == ["nemo-union", "wanda"]
    text = json.dumps({"title": "model, random-tokens", "method": "random-tokens", "params": defence})
    assert json.loads(v4.card(text))["params"] == {"tokens": 4}


# Version 5.


def in_folder(packed: Path, folder: Path) -> Path:
    with tarfile.open(packed) as archive:
        archive.extractall(folder, filter="data")
    return folder


def test_sets_keep_their_names_and_prompts_have_no_exposures(tmp_path: Path) -> None:
    folder = in_folder(FIXTURES / "v4.tar.xz", tmp_path / "store")
    before = {name: rows_of(folder, name) for name in TABLES}
    done = migrate(folder)
    assert done is not None and done.version == 4
    store = Store.open(folder)
    for name, rows in before.items():
        after = store.read(name).to_pylist()
        if name == "prompts":
            assert {row["exposures"] for row in after} == {None}
        if name != "audit_parts":  # what an audit rests on is named by new addresses and seals
            # What was merged stands in two files, and counts once.
            assert set(map(repr, rows)) == {repr({key: row[key] for key in rows[0]}) for row in after}
    assert examine(store).damages == [] and examine(store).notes == []


def test_a_store_is_migrated_twice_once_what_it_began_with_is_removed(unpacked: Path, tmp_path: Path) -> None:
    """Else nothing would name those parts any more, and they would stay for ever."""
    folder, tables = tmp_path / "store", set(tables_of(4))
    in_folder(FIXTURES / "v4.tar.xz", folder)
    (folder / "v4").mkdir()
    for path in folder.iterdir():
        if path.name in tables:
            path.rename(folder / "v4" / path.name)
    for name in tables_of(3):
        shutil.copytree(unpacked / name, folder / name)
    mark = {"format": "engram", "version": 4, "tables": "v4", "former": {"version": 3, "tables": ""}}
    (folder / MARK).write_text(json.dumps(mark))
    before = files_of(folder)
    with pytest.raises(StoreError, match=r"still has the parts of version 3.*`engram migrate --gc --store"):
        migrate(folder)
    assert files_of(folder) == before
    former = drop_former(folder)
    assert former is not None and former.version == 3 and not (folder / "scores").exists()
    done = migrate(folder)
    assert done is not None and done.version == 4
    assert examine(Store.open(folder)).damages == []
    again = drop_former(folder)
    assert again is not None and again.version == 4 and not any((folder / "v4").rglob("*.parquet"))


def test_version_5_changes_no_row() -> None:
    rows = pa.table({"prompt_set": ["s"], "text": ["a cat"]})
    assert v5.migrate("prompts", rows, lambda folder, name: None) is rows


# The command.


def engram(*words: str) -> list[str]:
    found = CliRunner().invoke(app, ["migrate", *words])
    assert found.exit_code == 0, found.output
    return found.stdout.splitlines()


def test_the_command_says_what_it_does(old: Path) -> None:
    at = ("--store", str(old))
    (said,) = engram("--dry-run", *at)
    assert said == "would have migrated 343 parts of version 3 (2.0 MB) to version 5"
    done, stays = engram(*at)
    assert done == "migrated 343 parts of version 3 (2.0 MB) to version 5" and "engram migrate --gc" in stays
    assert engram(*at) == ["the store is of version 5 already"]
    assert engram("--gc", "--dry-run", *at) == ["would have removed 343 parts of version 3 (2.0 MB)"]
    assert engram("--gc", *at) == ["removed 343 parts of version 3 (2.0 MB)"]
    assert engram("--gc", *at) == ["there are no former parts to remove"]
    refused = CliRunner().invoke(app, ["migrate", "--gc", "--lost", "a", *at])
    assert isinstance(refused.exception, InputError) and "exclude each other" in str(refused.exception)
