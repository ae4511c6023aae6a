"""The queries against plain Python and NumPy."""

from __future__ import annotations

import itertools
import math
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from storage import Store, connect, content_key, iou, query
from tasks.units import units
from tests.support.rows import SET, activation, neuron_set, prompt, put_sets

UNIVERSE = 1000
SPELLINGS = ("a", "b", "c", "d", "\u00e9", "e\u0301", "\u00c9", "\u00a0f", "f\u3000 \x0b", "a\u200b")
"""Of texts: composed and decomposed letters, and spaces of all kinds; the last is none."""
few_sets = st.lists(st.sets(st.integers(0, UNIVERSE - 1), max_size=30), min_size=2, max_size=5)


def test_iou_is_the_set_definition(tmp_path_factory: pytest.TempPathFactory) -> None:
    @settings(max_examples=15, deadline=None)
    @given(steps=st.lists(few_sets, min_size=1, max_size=3), timeless=few_sets)
    def check(steps: list[list[set[int]]], timeless: list[set[int]]) -> None:
        store = Store.open(tmp_path_factory.mktemp("store"))
        expected: dict[tuple[int | None, str, str], tuple[set[int], set[int]]] = {}
        for step, sets in [*enumerate(steps), (None, timeless)]:
            named = {f"s{number}": members for number, members in enumerate(sets)}
            put_sets(store, named, step)
            expected |= {(step, *pair): (named[pair[0]], named[pair[1]]) for pair in itertools.combinations(named, 2)}
        rows = iou(store).to_pylist()
        assert len(rows) == len(expected)
        for row in rows:
            one, two = expected[row["step"], row["scope_id_1"], row["scope_id_2"]]
            assert (row["size_1"], row["size_2"]) == (len(one), len(two))
            assert (row["intersection"], row["union"]) == (len(one & two), len(one | two))
            assert row["iou"] == (len(one & two) / len(one | two) if one | two else None)

    check()


@pytest.mark.parametrize("scopes", [32, 33, 64, 70])
def test_iou_of_many_scopes(local: Store, scopes: int) -> None:
    choose = np.random.default_rng(0)
    sets = {f"s{n:03}": set(choose.choice(UNIVERSE, 40, replace=False).tolist()) for n in range(scopes)}
    put_sets(local, sets)
    rows = query(local, "iou_pairs").to_pylist()
    assert len(rows) == math.comb(scopes, 2)
    for row in rows:
        one, two = sets[row["scope_id_1"]], sets[row["scope_id_2"]]
        assert (row["size_1"], row["size_2"], row["intersection"]) == (40, 40, len(one & two))


def test_iou_keeps_apart_what_is_not_the_same(local: Store) -> None:
    places: list[dict[str, Any]] = [{"model_id": "n"}, {"method": "nemo"}, {"site": "value"}, {"layer": "other"}, {}]
    for place in places:
        put_sets(local, {"a": {1, 2}, "b": {2, 3}}, **place)
    assert [row["iou"] for row in iou(local).to_pylist()] == [1 / 3] * 5
    assert iou(local, model_id="n").num_rows == iou(local, layer="other").num_rows == 1
    assert iou(local, step=7).num_rows == 0 and iou(local, layer="none").schema == iou(local).schema


def test_iou_of_random_sets_is_what_chance_says(local: Store) -> None:
    choose = np.random.default_rng(0)
    put_sets(local, {f"s{n:02}": set(choose.choice(UNIVERSE, 300, replace=False).tolist()) for n in range(20)})
    rows = iou(local)
    assert rows["iou_chance"].to_pylist() == [pytest.approx(90 / 510)] * 190
    assert np.mean(rows["iou"]) == pytest.approx(90 / 510, abs=0.003)


def test_figures_over_layers_and_steps_are_means_of_pairs(local: Store) -> None:
    for layer, step in itertools.product(("x", "y"), (0, 1)):
        put_sets(local, {"a": {1, 2}, "b": {2, 3 + step}, "c": {1, 2, 3}}, step, layer=layer)
    pairs = iou(local).to_pylist()
    for name in ("layer", "step"):
        for row in query(local, f"iou_by_{name}").to_pylist():
            values = [pair["iou"] for pair in pairs if pair[name] == row[name]]
            assert row["pairs"] == len(values) == 6
            assert row["iou"] == pytest.approx(np.mean(values)) and row["std"] == pytest.approx(np.std(values, ddof=1))


@settings(max_examples=15, deadline=None)
@given(sets=few_sets)
def test_kwise_intersections(tmp_path_factory: pytest.TempPathFactory, sets: list[set[int]]) -> None:
    store = Store.open(tmp_path_factory.mktemp("store"))
    put_sets(store, {f"s{number}": members for number, members in enumerate(sets)})
    rows = query(store, "iou_kwise").to_pylist()
    held = [sum(member in one for one in sets) for member in set().union(*sets)]
    assert [row["k"] for row in rows] == (list(range(1, len(sets) + 1)) if held else [])
    for row in rows:
        common = [len(set.intersection(*some)) for some in itertools.combinations(sets, row["k"])]
        assert row["exactly"] == held.count(row["k"]) and row["at_least"] == sum(c >= row["k"] for c in held)
        assert row["mean_intersection"] == pytest.approx(np.mean(common), abs=1e-9)
        assert row["chance"] == pytest.approx(UNIVERSE * (np.mean([len(s) for s in sets]) / UNIVERSE) ** row["k"])


@settings(max_examples=10, deadline=None)
@given(data=st.data())
def test_sharded_statistics_equal_unsharded_ones(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    choose = np.random.default_rng(data.draw(st.integers(0, 1000)))
    prompts, neurons = data.draw(st.integers(2, 12)), 5
    values = choose.random((prompts, neurons), dtype=np.float32)
    kinds = ["null"] * (prompts - 1) + ["memorized"]
    where = {"model_id": "m", "variant": "original", "site": "value", "layer": "l"}
    answers = []
    for shards in (1, data.draw(st.integers(2, prompts))):
        store = Store.open(tmp_path_factory.mktemp("store"))
        store.write("prompts", "k", [prompt(str(i), kinds[i], "s") for i in range(prompts)], prompt_set="set")
        for shard in range(shards):
            rows = [activation(str(i), values[i].tolist(), values[i].tolist()) for i in range(shard, prompts, shards)]
            store.write("activations", f"k{shard}", rows, **where)
        con = connect(store)
        answers.append(
            (
                query(con, "nemo_statistics", model_id="m").to_pylist(),
                query(con, "nemo_zscores", model_id="m").to_pylist(),
                query(con, "wanda_norms", model_id="m", subset="s").to_pylist(),
            )
        )
    plain = values.astype(np.float64)
    mean, std = plain[:-1].mean(axis=0), plain[:-1].std(axis=0, ddof=1) if prompts > 2 else np.full(neurons, np.nan)
    for statistics, scores, norms in answers:
        assert [row["prompts"] for row in statistics] == [prompts - 1] * neurons
        np.testing.assert_allclose([row["mean"] for row in statistics], mean, rtol=1e-12)
        np.testing.assert_allclose([row["norm"] for row in norms], np.sqrt(plain.sum(axis=0)), rtol=1e-12)
        if prompts > 2:
            np.testing.assert_allclose([row["std"] for row in statistics], std, rtol=1e-9)
            expected = np.abs(plain[-1] - mean) / std
            for row in scores:
                assert row["z"] == pytest.approx(expected[row["neuron"]], rel=1e-6)


def test_zscores_above_theta_of_one_prompt(local: Store) -> None:
    where = {"model_id": "m", "variant": "original", "site": "value", "layer": "l"}
    local.write("prompts", "k", [prompt("a", "null"), prompt("b", "null"), prompt("c", "memorized")], prompt_set="p")
    rows = [activation("a", [1.0, 5.0]), activation("b", [2.0, 5.0]), activation("c", [9.0, 5.0])]
    local.write("activations", "k", rows, **where)
    scored = query(local, "nemo_zscores", model_id="m", prompt_id="c", theta=5.0).to_pylist()
    assert [(row["neuron"], round(row["z"], 2)) for row in scored] == [(0, 10.61)]
    unmoved = query(local, "nemo_zscores", model_id="m").to_pylist()[-1]
    assert unmoved["neuron"] == 1 and unmoved["z"] is None


def test_collections_are_not_mixed(local: Store) -> None:
    where = {"model_id": "m", "variant": "original", "site": "ff", "layer": "l"}
    local.write("prompts", "k", [prompt(name, "null", "s") for name in "ab"], prompt_set="p")
    for collection, scale in (("cond", 1.0), ("uncond", 10.0)):
        rows = [
            activation(name, [scale * one], [scale * one]) | {"params_id": collection}
            for name, one in (("a", 1.0), ("b", 3.0))
        ]
        local.write("activations", collection, rows, **where)
    statistics = query(local, "nemo_statistics", model_id="m").to_pylist()
    assert [(row["params_id"], row["prompts"], row["mean"]) for row in statistics] == [
        ("cond", 2, 2.0),
        ("uncond", 2, 20.0),
    ]
    norms = query(local, "wanda_norms", model_id="m", subset="s").to_pylist()
    assert [(row["params_id"], row["sum_sq"], row["norm"]) for row in norms] == [
        ("cond", 4.0, 2.0),
        ("uncond", 40.0, pytest.approx(math.sqrt(40))),
    ]
    scores = query(local, "nemo_zscores", model_id="m", prompt_id="a").to_pylist()
    assert [(row["params_id"], row["mean"]) for row in scores] == [("cond", 2.0), ("uncond", 20.0)]
    for name, params in (("nemo_statistics", {}), ("nemo_zscores", {"prompt_id": "a"}), ("wanda_norms", {})):
        found = query(local, name, model_id="m", params_id="uncond", **params).to_pylist()
        assert found and {row["params_id"] for row in found} == {"uncond"}


def test_neurons_of_prompts(local: Store) -> None:
    local.write("prompts", "k", [prompt(name, "memorized") for name in "abc"], prompt_set="p")
    for layer, sets in {"x": {"a": [1, 2], "b": [2], "c": []}, "y": {"a": [7], "b": [], "c": []}}.items():
        for name, members in sets.items():
            row = {"params_id": "p", "scope": "prompt", "scope_id": name, "members": members, "universe": 10}
            local.write("neuron_sets", name, [row], **(SET | {"layer": layer, "method": "nemo"}))
    most = query(local, "prompts_with_most_neurons").to_pylist()
    assert [(row["prompt_id"], row["neurons"], row["layers"], row["text"]) for row in most] == [
        ("a", 3, 2, "text of a"),
        ("b", 1, 1, "text of b"),
        ("c", 0, 0, "text of c"),
    ]
    shared = query(local, "shared_by_prompts").to_pylist()
    assert [(row["layer"], row["member"], row["prompts"], row["prompt_ids"]) for row in shared] == [
        ("x", 2, 2, ["a", "b"])
    ]
    assert query(local, "shared_by_prompts", at_least=3).num_rows == 0


def test_drift_is_against_the_previous_and_the_accepted_audit(local: Store) -> None:
    times = [datetime(2024, 1, day, tzinfo=UTC) for day in range(1, 5)]
    for number, (when, model, state) in enumerate(zip(times, "mnmm", ["completed"] * 4, strict=True)):
        name = f"audit{number}"
        params = f'{{"model": "hub/{model}@{number}"}}'
        row = {"audit_id": name, "prompt_set": "p", "params": params, "code_version": "1", "started_at": when}
        local.write("audits", f"{name}-start", [row | {"model_id": model, "state": "running"}])
        local.write("audits", f"{name}-end", [row | {"model_id": model, "state": state, "finished_at": when}])
        figure = {"variant": "original", "metric": "mr", "value": number / 10, "low": number / 10, "high": number / 10}
        local.write("metrics", name, [figure], audit_id=name)
    con = connect(local)
    assert con.sql("SELECT count(*), count(finished_at) FROM audits").fetchall() == [(4, 4)]
    drift = con.sql("SELECT audit_id, previous_id, previous_accepted, change, apart FROM drift ORDER BY 1").fetchall()
    assert drift == [
        ("audit0", None, False, None, None),
        ("audit1", None, False, None, None),
        ("audit2", "audit0", False, 0.2, True),
        ("audit3", "audit2", False, pytest.approx(0.1), True),
    ]
    local.write("accepted", "k", [{"audit_id": "audit0", "accepted_at": times[3]}])
    con = connect(local)
    latest = query(con, "drift_from_accepted").to_pylist()
    assert [(row["audit_id"], row["accepted_id"], row["change"]) for row in latest] == [
        ("audit3", "audit0", pytest.approx(0.3))
    ]
    assert query(con, "drift_from_accepted", audit_id="audit1").to_pylist()[0]["accepted_id"] is None
    # A later audit that was accepted before an older one was accepted again does not count, nor does a failed audit.
    local.write("accepted", "k2", [{"audit_id": "audit2", "accepted_at": times[2]}])
    row = {"audit_id": "audit4", "prompt_set": "p", "params": "{}", "code_version": "1", "model_id": "m"}
    failed = row | {"state": "failed", "started_at": datetime(2024, 1, 5, tzinfo=UTC)}
    local.write("audits", "audit4-end", [failed])
    (latest,) = query(local, "drift_from_accepted").to_pylist()
    assert (latest["audit_id"], latest["accepted_id"]) == ("audit3", "audit0")
    assert query(con, "audit_metrics").to_pylist()[0]["audit_id"] == "audit3"


def test_copies_are_counted_verbatim_and_template_apart(local: Store) -> None:
    prompts = [prompt("a", "memorized") | {"memorization": "VM"}, prompt("b", "memorized") | {"memorization": "TM"}]
    local.write("prompts", "k", prompts, prompt_set="p")
    made = [("a", 0, 0.9), ("a", 1, 0.2), ("b", 0, 0.6)]
    where = {"model_id": "m", "variant": "nemo-union", "condition": "prompt"}
    rows = [{"prompt_id": p, "seed": s, "generation_id": f"{p}{s}", "bytes": b""} for p, s, _ in made]
    local.write("generations", "k", rows, **where)
    scores = [{"generation_id": f"{p}{s}", "reference_id": "x", "value": value} for p, s, value in made]
    local.write("scores", "k", scores, metric="sscd")
    counted = query(local, "copies").to_pylist()
    assert [
        (r["memorization"], r["generations"], r["asked"], r["copied"], r["share_of_generations"]) for r in counted
    ] == [
        ("TM", 1, 1, 0, 0.0),
        ("VM", 2, 1, 1, 0.5),
    ]
    local.write("scores", "other", [{"generation_id": "a0", "scorer": "other", "value": 0.1}], metric="sscd")
    apart = query(local, "copies").to_pylist()
    assert [(r["memorization"], r["scorer"], r["copied"]) for r in apart] == [
        ("TM", None, 0),
        ("VM", "other", 0),
        ("VM", None, 1),
    ]
    assert [r["copied"] for r in query(local, "copies", scorer="other").to_pylist()] == [0]


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.tuples(st.sampled_from(SPELLINGS), st.frozensets(st.integers(0, 9), max_size=2)), max_size=9, min_size=1
    ),
    st.lists(st.tuples(st.sampled_from("xy"), st.integers(0, 8), st.integers(0, 8)), max_size=4),
)
def test_copies_count_images_as_figures_do(
    tmp_path: Path, drawn: list[tuple[str, frozenset[int]]], alike: list[tuple[str, int, int]]
) -> None:
    store = Store.open(tmp_path / content_key(*map(str, drawn), *map(str, alike)))
    rows: list[dict[str, Any]] = [
        {
            "prompt_id": f"p{n}",
            "text": f" {text}  x" if n % 2 else f"{text} X",
            "kind": "memorized",
            "image_ids": images,
        }
        for n, (text, shared) in enumerate(drawn)
        for images in [[f"i{image}" for image in shared]]
    ]
    store.write("prompts", "k", rows, prompt_set="p")
    near = {(by, f"p{max(pair)}", f"p{min(pair)}") for by, *pair in alike if max(pair) < len(rows)}
    for number, (by, *pair) in enumerate(sorted(near)):
        found = [{"prompt_id": name, "cluster": pair[-1], "params_id": f"{by}-{number}"} for name in {*pair}]
        store.write("clusters", f"{by}-{number}", found, prompt_set=by)
    made = [{"prompt_id": row["prompt_id"], "seed": 0, "generation_id": row["prompt_id"], "bytes": b""} for row in rows]
    store.write("generations", "k", made, model_id="m", variant="original", condition="prompt")
    scores = [{"generation_id": f"p{n}", "reference_id": "x", "value": 0.9 * (n == 0)} for n in range(len(rows))]
    store.write("scores", "k", scores, metric="sscd")
    links = ((row["prompt_id"], row["text"], row["image_ids"]) for row in rows)
    of = units(links, [(one, other) for _, one, other in near])
    (found,) = query(store, "copies").to_pylist()
    assert (found["prompts"], found["asked"], found["copied"]) == (len(rows), len(set(of.values())), 1)
    first = [name for name in of if of[name] == of["p0"]]
    assert found["share_of_generations"] == pytest.approx(1 / len(first) / len(set(of.values())))


def test_memorization_left_carries_short_curves_on(local: Store) -> None:
    curves = {
        ("a", "curve"): {1: 0.9, 2: 0.5, 4: 0.1},
        ("b", "curve"): {1: 0.3},
        ("a", "curve-control"): {1: 0.9, 2: 0.8, 4: 0.7},
    }
    for prompt_id in "ab":
        rows = [
            {"prompt_id": name, "params_id": "p", "phase": phase, "step_number": n, "candidates": size, "score": score}
            for (name, phase), points in curves.items()
            for n, (size, score) in enumerate(points.items())
            if name == prompt_id
        ]
        local.write("nemo_traces", prompt_id, rows, model_id="m", variant="original")
    found = {(row["control"], row["neurons"]): row for row in query(local, "memorization_left").to_pylist()}
    assert {key: row["prompts"] for key, row in found.items()} == {
        **{(False, size): 2 for size in (1, 2, 4)},
        **{(True, size): 1 for size in (1, 2, 4)},
    }
    means = [found[False, size]["score"] for size in (1, 2, 4)]
    assert means == [pytest.approx(0.6), pytest.approx(0.4), pytest.approx(0.2)]
    assert found[True, 4]["score"] == 0.7
    assert found[False, 2]["lowest"] == 0.3 and found[False, 2]["highest"] == 0.5


def test_subspace_tells_kinds_of_pairs_apart(local: Store) -> None:
    kinds = {"shops": "VM", "news": "VM", "rugs": "TM", "mugs": "TM"}
    rows = [prompt(f"p-{name}", "memorized", name) | {"memorization": kind} for name, kind in kinds.items()]
    local.write("prompts", "all", rows, prompt_set="world")
    for step in (0, 1):
        sets = {"shops": {1, 2}, "news": {2, 3 + step}, "rugs": {7, 8}, "mugs": {8, 9}, "all": {1, 2, 3, 7, 8, 9}}
        put_sets(local, sets, step)
    put_sets(local, {"c1": {1, 2, 3}, "c2": {3, 4, 5}}, method="wanda-control")
    found = query(local, "subspace").to_pylist()
    whole = {row["pair"]: row for row in found if row["layer"] is None and row["step"] is None}
    assert {pair: row["pairs"] for pair, row in whole.items()} == {"VM": 1, "TM": 1, "VM with TM": 4, "control": 1}
    assert whole["VM"]["iou"] == pytest.approx(1 / 3) and whole["TM"]["iou"] == pytest.approx(1 / 3)
    assert whole["VM with TM"]["iou"] == 0 and whole["control"]["iou"] == pytest.approx(1 / 5)
    assert {row["step"] for row in found if row["pair"] == "VM" and row["step"] is not None} == {0, 1}
    assert {row["layer"] for row in found if row["layer"] is not None} == {"down.0/ff net"}


def test_the_set_of_all_subsets_is_no_subset(local: Store) -> None:
    for name, members in {"VM 1": [1, 2], "VM 2": [3, 4], "all": [1, 2, 3, 4]}.items():
        row = {"params_id": "p", "scope": "subset", "scope_id": name, "members": members, "universe": 10, "step": 0}
        local.write("neuron_sets", name.replace(" ", "-"), [row], **SET)
    for name in ("iou_by_layer", "iou_by_step"):
        (row,) = query(local, name).to_pylist()
        assert (row["pairs"], row["iou"]) == (1, 0)
    kwise = [(row["scopes"], row["k"], row["exactly"]) for row in query(local, "iou_kwise").to_pylist()]
    assert kwise == [(2, 1, 4), (2, 2, 0)]
    assert connect(local).sql("SELECT count(*) FROM shared_neurons").fetchall() == [(0,)]
    by_layer = [(row["scope"], row["sets"], row["members"]) for row in query(local, "neurons_by_layer").to_pylist()]
    assert by_layer == [("all", 1, 4), ("subset", 2, 4)]


def test_triggers_of_other_audits_do_not_count(local: Store) -> None:
    sets = {"a": {1, 2}, "b": {2, 3}, "foreign": {7}, "from a": {4, 5}, "from b": {4, 5}, "from elsewhere": {8}}
    for name, members in sets.items():
        row = neuron_set(name, members) | {"scope": "trigger"}
        local.write("neuron_sets", content_key(name), [row], **(SET | {"method": "nemo"}))
        loss = [] if name.startswith("from") else [1.0]
        trigger = {"image_id": "i", "trigger_id": name, "start": "noise", "restart": 0, "loss": loss}
        trigger |= {"embedding": [0.0], "shape": [1, 1], "distance": float(len(loss))}
        local.write("triggers", content_key(name), [trigger], model_id="m", variant="original")
    params = {"model_id": "m", "method": "nemo", "params_id": "p"}
    assert query(local, "trigger_agreement", **(params | {"method": "wanda"})).num_rows == 0
    rows = query(local, "trigger_agreement", **params, trigger_ids=["a", "b", "from a", "from b"]).to_pylist()
    assert {row["searched"]: (row["iou"], row["pairs"]) for row in rows} == {True: (1 / 3, 1), False: (1, 1)}
    assert query(local, "trigger_agreement", **params, trigger_ids=[]).num_rows == 0
    every = query(local, "trigger_agreement", **params).to_pylist()
    assert {row["searched"]: (row["iou"], row["pairs"]) for row in every} == {
        True: (pytest.approx(1 / 9), 3),
        False: (pytest.approx(1 / 3), 3),
    }
