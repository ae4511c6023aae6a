"""What a query computes again in SQL, beside the method that it mirrors."""

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from storage import Store, query
from tasks.collect.norms import FeatureNorms
from tasks.localize.search import out_of_distribution
from tasks.localize.statistics import Moments
from tests.support.rows import activation, prompt

NEURONS, INPUTS, STEPS, LAYERS = 4, 3, 2, ("down", "mid")
ACTIVATION = st.integers(0, 40).map(lambda eighths: eighths / 8)
SUMS = st.integers(0, 1000).map(lambda hundredths: hundredths / 100)


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_neurons_stand_out_in_sql_as_in_the_search(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    rows = data.draw(st.lists(st.lists(ACTIVATION, min_size=NEURONS, max_size=NEURONS), min_size=3, max_size=7))
    theta = data.draw(st.floats(0.5, 5))
    searched = torch.tensor(rows.pop())
    nulls = torch.tensor(rows)
    nulls[:, 0] = nulls[0, 0]  # a neuron that never varies
    nulls[:, 1] = 0.1 + 1e-8 * torch.arange(len(nulls))  # one that varies by its rounding
    statistics = Moments.of([nulls]).statistics()

    store = Store.open(tmp_path_factory.mktemp("store"))
    named = {f"null {number}": row for number, row in enumerate(nulls)} | {"asked": searched}
    prompts = [prompt(name, "memorized" if name == "asked" else "null") for name in named]
    store.write("prompts", "k", prompts, prompt_set="set")
    found = [activation(name, row.tolist()) for name, row in named.items()]
    store.write("activations", "k", found, model_id="m", variant="original", site="value", layer="l")

    mirrored = query(store, "nemo_statistics", model_id="m")
    assert mirrored["mean"].to_pylist() == pytest.approx(statistics.means[0].tolist(), rel=1e-6)
    assert mirrored["std"].to_pylist() == pytest.approx(statistics.stds[0].tolist(), rel=1e-6)
    scores = ((searched - statistics.means[0]).abs() / statistics.stds[0]).nan_to_num(0, 0, 0)
    assume(bool(((scores - theta).abs() > 1e-4).all()))  # rounding decides on which side a tie lies
    above = query(store, "nemo_zscores", model_id="m", prompt_id="asked", theta=theta)["neuron"].to_pylist()
    assert {(0, neuron) for neuron in above} == set(out_of_distribution([searched], statistics, theta, 0))


@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_feature_norms_add_up_in_sql_as_in_the_method(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    names = [f"prompt {number}" for number in range(data.draw(st.integers(1, 4)))]
    keys = [(step, index) for step in range(STEPS) for index in range(len(LAYERS))]
    drawn = st.lists(st.lists(SUMS, min_size=INPUTS, max_size=INPUTS), min_size=len(names), max_size=len(names))
    halves = [{key: torch.tensor(data.draw(drawn), dtype=torch.float64) for key in keys} for _ in range(2)]
    wanted = FeatureNorms(tuple(range(STEPS)), *halves).over_prompts().sums("both")

    store = Store.open(tmp_path_factory.mktemp("store"))
    store.write("prompts", "k", [prompt(name, "memorized", "shops") for name in names], prompt_set="set")
    for half, sums in zip(("cond", "uncond"), halves, strict=True):
        for (step, index), values in sums.items():
            rows = [
                activation(name, sum_sq=row.tolist()) | {"step": step, "params_id": f"p-{half}"}
                for name, row in zip(names, values, strict=True)
            ]
            place = {"model_id": "m", "variant": "original", "site": "ff", "layer": LAYERS[index]}
            store.write("activations", f"{half}-{step}", rows, **place)

    found = {key: np.zeros(INPUTS) for key in keys}
    for row in query(store, "wanda_norms", model_id="m", subset="shops").to_pylist():
        assert row["norm"] == pytest.approx(row["sum_sq"] ** 0.5)
        found[row["step"], LAYERS.index(row["layer"])][row["feature"]] += row["sum_sq"]
    for key, total in wanted.items():
        assert found[key] == pytest.approx(total.numpy(), rel=1e-6)
