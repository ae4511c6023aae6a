"""Questions look for parts where they ask, and nowhere else."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from storage import Store, StoreError, mark_lost, query, run_sql
from storage.backend import Entry
from storage.catalog import connect_guarded
from storage.checked import Checked, Counted

VARIANTS = ("original", "nemo")


def put_nights(store: Store, count: int) -> None:
    for number in range(count):
        name, began = f"A{number}", datetime(2024, 1, 1 + number, tzinfo=UTC)
        row = {"audit_id": name, "model_id": "m", "prompt_set": "s", "params": '{"model": "x"}', "code_version": "1"}
        store.write("audits", f"{name}-begun", [row | {"started_at": began, "state": "running"}])
        ended = row | {"started_at": began, "finished_at": began + timedelta(hours=1), "state": "completed"}
        store.write("audits", f"{name}-ended", [ended])
        for variant in VARIANTS:
            figure = {"variant": variant, "metric": "mr", "value": number / 10}
            store.write("metrics", f"{name}-{variant}", [figure], audit_id=name)
    store.write("accepted", "A0", [{"audit_id": "A0", "accepted_at": datetime(2024, 1, 1, tzinfo=UTC)}])


@pytest.fixture
def folders(store: Store, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The folders that are listed from now on."""
    seen: list[str] = []
    kind = type(store.backend)
    real = kind.files

    def files(backend: Any, prefix: str) -> Iterator[Entry]:
        seen.append(prefix)
        return real(backend, prefix)

    monkeypatch.setattr(kind, "files", files)
    return seen


def test_a_question_lists_what_it_asks_about(store: Store, folders: list[str]) -> None:
    put_nights(store, 4)
    for model in ("m", "n"):
        trial = {"phase": "gate", "prompt_id": "p", "params_id": "q", "step_number": 0}
        store.write("nemo_traces", model, [trial], model_id=model, variant="original")
    folders.clear()
    con, _ = connect_guarded(store)
    for statement, listed in (
        ("SELECT 1", []),
        ("DESCRIBE metrics", []),
        ("SELECT comment FROM duckdb_views() WHERE view_name = 'metrics'", []),
        ("FROM nemo_traces WHERE model_id = 'm'", ["nemo_traces/model_id=m"]),
        ("FROM nemo_traces WHERE 'm' = model_id AND score > 0", []),  # it was listed before
        ("FROM nemo_traces WHERE model_id = 'm' AND variant = 'original'", []),
        ("FROM nemo_traces WHERE model_id = 'nobody'", ["nemo_traces/model_id=nobody"]),
        ("FROM nemo_traces WHERE model_id IN ('m', 'n')", ["nemo_traces"]),
        ("FROM nemo_traces WHERE model_id = 'o'", []),
        ("SELECT count(*) FROM drift", ["accepted", "audits", "metrics"]),
    ):
        folders.clear()
        con.sql(statement).fetchall()
        assert sorted(folders) == sorted(listed), statement


@pytest.mark.parametrize(
    ("name", "params", "listed", "read"),
    [
        ("audit_metrics", {"audit_id": "A1"}, ["metrics"], ["A1"]),
        ("audit_metrics", {}, ["audits", "metrics"], ["A3"]),
        ("drift_from_accepted", {"audit_id": "A2"}, ["accepted", "audits", "metrics"], ["A0", "A2"]),
        ("baseline_audits", {"audit_id": "A2"}, ["accepted", "audits"], []),
    ],
)
def test_a_question_about_one_audit_opens_no_other(
    store: Store,
    folders: list[str],
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    params: dict[str, str],
    listed: list[str],
    read: list[str],
) -> None:
    """Once the parts were checked, that is, whereupon it is known which audits are in which."""
    put_nights(store, 4)
    monkeypatch.setattr("storage.checked._SETTLED", -60)  # what was found of parts that were just put is remembered
    store.read("metrics")
    chosen: list[str] = []
    real = Checked.counted

    def counted(checked: Checked, entries: Iterable[Entry]) -> Counted:
        some = list(entries)
        chosen.extend(entry.path for entry in some)
        return real(checked, some)

    monkeypatch.setattr(Checked, "counted", counted)
    folders.clear()
    assert query(store, name, **params).num_rows == 2
    assert sorted(folders) == listed
    of_audits = {path for path in chosen if path.startswith("metrics/")}
    assert of_audits == {f"metrics/{one}-{variant}.parquet" for one in read for variant in VARIANTS}


NAMES = st.sampled_from(["A0", "A1", "A2", "nobody"])
CONDITIONS = st.recursive(
    st.builds("audit_id = '{}'".format, NAMES)
    | st.builds("'{}' = audit_id".format, NAMES)
    | st.builds("audit_id <> '{}'".format, NAMES)
    | st.builds("audit_id IN ('{}', '{}')".format, NAMES, NAMES)
    | st.builds("audit_id > '{}'".format, NAMES)
    | st.builds("lower(audit_id) = lower('{}')".format, NAMES)
    | st.just("audit_id IS NULL")
    | st.just("audit_id = (SELECT max(audit_id) FROM audits)")
    | st.builds("variant = '{}'".format, st.sampled_from(VARIANTS))
    | st.just("value > 0.05"),
    lambda one: (
        st.builds("({} AND {})".format, one, one)
        | st.builds("({} OR {})".format, one, one)
        | st.builds("(NOT {})".format, one)
    ),
    max_leaves=4,
)


def test_whatever_is_asked_the_answer_is_that_over_all_rows(tmp_path_factory: pytest.TempPathFactory) -> None:
    store = Store.open(tmp_path_factory.mktemp("listed") / "store")
    put_nights(store, 3)
    whole = store.read("metrics")

    @settings(max_examples=150, deadline=None)
    @given(first=CONDITIONS, second=CONDITIONS)
    def check(first: str, second: str) -> None:
        con, _ = connect_guarded(store)
        con.register("every_row", whole)
        for condition in (first, second, first):  # what was listed for one question must be right for the next
            statement = f"SELECT audit_id, variant, value FROM {{}} WHERE {condition} ORDER BY ALL"
            assert con.sql(statement.format("metrics")).fetchall() == con.sql(statement.format("every_row")).fetchall()

    check()


def test_a_folder_that_cannot_be_listed_is_named_by_whoever_asks_about_it(
    local: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_nights(local, 1)
    real = type(local.backend).files

    def files(backend: Any, prefix: str) -> Iterator[Entry]:
        if prefix.startswith("metrics"):
            raise PermissionError(13, "Permission denied")
        return real(backend, prefix)

    monkeypatch.setattr(type(local.backend), "files", files)
    assert query(local, "baseline_audits", audit_id="A0").num_rows == 0
    with pytest.raises(StoreError, match=r"^cannot list metrics: .*Permission denied") as refused:
        query(local, "audit_metrics")
    assert "\n" not in str(refused.value)


def test_left_out_parts_are_told_of_once(local: Store) -> None:
    put_nights(local, 2)
    address = local.parts("metrics", "A1-nemo")[0]
    (local.backend.path / address).write_bytes(b"nothing")  # type: ignore[attr-defined]
    told: list[str] = []
    both = "SELECT (SELECT count(*) FROM metrics WHERE audit_id = 'A1') AS one, (SELECT count(*) FROM metrics) AS every"
    assert run_sql(local, both, on_damage=lambda name, _: told.append(name)).to_pylist() == [{"one": 1, "every": 3}]
    assert told == [address]


def test_whether_audits_have_ended_is_known_by_the_names_of_their_parts(
    local: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_nights(local, 3)
    opened: list[str] = []
    real = type(local.backend).read

    def read(backend: Any, path: str) -> bytes:
        opened.append(path)
        return real(backend, path)

    monkeypatch.setattr(type(local.backend), "read", read)
    assert mark_lost(local) == [] and opened == []
    row = {"audit_id": "B", "model_id": "m", "params": "{}", "code_version": "1", "started_at": 0, "state": "running"}
    local.write("audits", "B-begun", [row])
    assert mark_lost(local) == [] and set(opened) == {"audits/B-begun.parquet"}
    assert mark_lost(local, "B") == ["B"] and mark_lost(local) == []
