"""The door of localization, on a model of random weights: controls, other scores, published statistics, traces."""

from pathlib import Path
from typing import Any

import pytest
import torch

from storage import Store, connect
from tasks.collect.task import collect_norms, collect_values, empty_prompts, import_set
from tasks.collect.values import value_activations
from tasks.diffusion.families import layers_of
from tasks.diffusion.sampling import SamplingParams
from tasks.diffusion.sites import Site
from tasks.errors import InputError
from tasks.localize import task as door
from tasks.localize.importance import ImportanceParams
from tasks.localize.nemo import NemoParams
from tasks.localize.statistics import Moments
from tasks.localize.wanda import WandaParams
from tasks.subject import Prompt, Subject, prompts_of
from tests.support.world import tiny_world

SAMPLING = SamplingParams(steps=3)
WANDA = WandaParams(sparsity=0.1, tau=2)
NEMO = NemoParams(seeds=3, threshold=0.0, theta=1.5, theta_min=1.0)
SITE = Site.FEED_FORWARD_HIDDEN


@pytest.fixture(scope="module")
def subject(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    folder = tmp_path_factory.mktemp("localized")
    model = tiny_world(folder / "world")
    store = Store.open(str(folder / "store"))
    name = import_set(store, folder / "world" / "prompts.parquet", folder / "world" / "images.parquet")
    found = Subject(store=store.url, model=str(model), prompt_set=name, device="cpu")
    everything = [p for kind in ("memorized", "null", "ordinary") for p in prompts_of(found, kind)]  # type: ignore[arg-type]
    collect_values(found, everything, Site.VALUE)
    collect_norms(found, [*everything, *empty_prompts(3)], SAMPLING, WANDA.tau)
    return found


@pytest.fixture(scope="module")
def memorized(subject: Subject) -> list[Prompt]:
    return prompts_of(subject, "memorized")


@pytest.fixture(scope="module")
def nulls(subject: Subject) -> list[Prompt]:
    return prompts_of(subject, "null")


@pytest.fixture(scope="module")
def wanda_id(subject: Subject, memorized: list[Prompt]) -> str:
    return door.localize_wanda(subject, door.by_subset(memorized), empty_prompts(3), WANDA, SAMPLING)


@pytest.fixture(scope="module")
def nemo_id(subject: Subject, memorized: list[Prompt], nulls: list[Prompt]) -> str:
    return door.localize_nemo(subject, memorized, nulls, nulls, NEMO)


def sets(subject: Subject, params_id: str, method: str) -> list[dict[str, Any]]:
    return subject.open().read("neuron_sets", params_id=params_id, method=method).to_pylist()


def test_empty_prompts_are_as_many_trajectories_of_their_own(subject: Subject, wanda_id: str) -> None:
    prompts = empty_prompts(3)
    assert {prompt.text for prompt in prompts} == {""}
    assert prompts == empty_prompts(4)[:3]
    rows = subject.open().read("activations", columns=["prompt_id", "sum_sq"], site=SITE.value, step=1).to_pylist()
    found = {tuple(row["sum_sq"]) for row in rows if row["prompt_id"] in {prompt.prompt_id for prompt in prompts}}
    # Of each layer; the halves of guidance are alike, as both read the empty text.
    assert len(found) == 3 * len(layers_of(subject.load().denoiser, SITE))


def test_only_the_steps_that_count_are_in_the_store(subject: Subject, wanda_id: str) -> None:
    rows = subject.open().read("activations", columns=["step"], site=SITE.value)["step"].to_pylist()
    assert set(rows) == {0, 1}
    assert {row["step"] for row in sets(subject, wanda_id, "wanda")} == {0, 1}


def test_ordinary_prompts_are_taken_for_memorized_ones_as_a_control(
    subject: Subject, memorized: list[Prompt], nulls: list[Prompt], wanda_id: str
) -> None:
    control = door.by_control(memorized, nulls)
    control_id = door.localize_wanda(subject, control, empty_prompts(3), WANDA, SAMPLING)
    found = sets(subject, control_id, "wanda-control")
    assert {row["scope_id"] for row in found} == {"all", "control 1", "control 2"}
    assert {row["scope_id"] for row in sets(subject, wanda_id, "wanda")} == {"all", "subset 0", "subset 1"}
    con = connect(subject.open())
    pairs = "scope_id_1 = 'control 1' AND scope_id_2 = 'control 2'"
    rows = con.execute(f"SELECT size_1, iou FROM iou WHERE method = 'wanda-control' AND {pairs}").fetchall()
    assert len(rows) == 2 * len(layers_of(subject.load().denoiser, SITE))
    assert all(size > 0 and 0 <= iou <= 1 for size, iou in rows)
    with pytest.raises(InputError, match="needs ordinary prompts"):
        door.by_control(memorized, [])


@pytest.mark.parametrize("score", ["magnitude", "taylor", "gradient", "random"])
def test_other_scores_take_as_many_of_each_layer(
    subject: Subject,
    memorized: list[Prompt],
    nulls: list[Prompt],
    wanda_id: str,
    score: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    params = ImportanceParams.model_validate({"score": score, "timesteps": 2})
    found_id = door.localize_importance(subject, memorized, nulls, params, wanda_id, WANDA)
    numbers: dict[str, set[int]] = {}
    for row in sets(subject, wanda_id, "wanda"):
        if row["scope_id"] == "all":
            numbers.setdefault(row["layer"], set()).update(row["members"])
    found = {row["layer"]: row["members"] for row in sets(subject, found_id, score)}
    assert {name: len(members) for name, members in found.items()} == {n: len(m) for n, m in numbers.items()}
    assert any(set(members) != numbers[name] for name, members in found.items())
    monkeypatch.setattr(
        "tasks.localize.task.scores.important_weights", None
    )  # what is in the store is not computed again
    assert door.localize_importance(subject, memorized, nulls, params, wanda_id, WANDA) == found_id


def test_gradients_need_pictures(subject: Subject, memorized: list[Prompt], wanda_id: str) -> None:
    with pytest.raises(InputError, match="ordinary ones unless contrast is off"):
        door.localize_importance(subject, memorized, [], ImportanceParams(), wanda_id, WANDA)
    with pytest.raises(InputError, match="4 prompts have no image"):
        without = [Prompt(p.prompt_id, p.text, p.kind, None, None, ()) for p in memorized]
        door.localize_importance(subject, without, [], ImportanceParams(), wanda_id, WANDA)
    with pytest.raises(InputError, match="no Wanda sets of 'nobody'"):
        door.localize_importance(subject, memorized, [], ImportanceParams(), wanda_id, WANDA, "nobody")


def test_published_statistics_stand_for_null_prompts(
    subject: Subject, memorized: list[Prompt], nulls: list[Prompt], nemo_id: str, tmp_path: Path
) -> None:
    model = subject.load()
    layers = layers_of(model.denoiser, Site.VALUE)
    same = Moments.of(value_activations(layers, model.encode([prompt.text for prompt in nulls]))).statistics()
    ids = []
    for name in ("one.pt", "two.pt"):
        torch.save((list(same.means), list(same.stds)), tmp_path / name)
        params = NEMO.model_copy(update={"statistics": tmp_path / name})
        ids.append(door.localize_nemo(subject, memorized, (), (), params))
    assert ids[0] == ids[1] != nemo_id  # what is in the file counts, not where it lies
    assert set(door.search_agreement(subject, ids[0], nemo_id, Site.VALUE).values()) == {1.0}
    torch.save((list(same.means), [10 * std for std in same.stds]), tmp_path / "two.pt")
    wider = NEMO.model_copy(update={"statistics": tmp_path / "two.pt"})
    assert door.localize_nemo(subject, memorized, (), (), wider) != ids[0]


@pytest.mark.parametrize("refinement", ["sequential", "chain", "group"])
def test_the_trace_leads_from_the_candidates_to_what_was_found(
    subject: Subject, memorized: list[Prompt], nulls: list[Prompt], refinement: str
) -> None:
    params = NemoParams.model_validate(NEMO.model_dump() | {"refinement": refinement})
    params_id = door.localize_nemo(subject, memorized, nulls, nulls, params)
    candidates, found = (
        {
            prompt.prompt_id: {
                (row["layer"], neuron)
                for row in sets(subject, params_id, method)
                if row["scope_id"] == prompt.prompt_id
                for neuron in row["members"]
            }
            for prompt in memorized
        }
        for method in ("nemo-candidates", "nemo")
    )
    assert sum(map(len, found.values())) > 0
    for prompt in memorized:
        trace = subject.open().read("nemo_traces", params_id=params_id, prompt_id=prompt.prompt_id).to_pylist()
        gate, *checks = sorted(trace, key=lambda row: row["step_number"])
        assert gate["phase"] == "gate" and {check["phase"] for check in checks} == {"select", "layer", "neuron"}
        end = [check for check in checks if check["phase"] == "select"][-1]
        assert end["candidates"] == len(candidates[prompt.prompt_id])
        assert found[prompt.prompt_id] <= candidates[prompt.prompt_id]
        # What the last check that found something not to be needed left blocked is what was found.
        last = [check for check in checks if check["phase"] != "select" and not check["kept"]]
        assert len(found[prompt.prompt_id]) == (last[-1] if last else end)["candidates"]


def test_two_searches_are_compared_prompt_by_prompt(
    subject: Subject, memorized: list[Prompt], nulls: list[Prompt], nemo_id: str
) -> None:
    group_id = door.localize_nemo(subject, memorized, nulls, nulls, NEMO.model_copy(update={"refinement": "group"}))
    other_id = door.localize_nemo(subject, memorized, nulls, nulls, NEMO.model_copy(update={"theta": 1.25}))
    assert set(door.search_agreement(subject, nemo_id, nemo_id, Site.VALUE).values()) == {1.0}
    found = door.search_agreement(subject, nemo_id, group_id, Site.VALUE)
    assert found.keys() == {prompt.prompt_id for prompt in memorized}
    assert all(0 <= value <= 1 for value in found.values())
    assert min(door.search_agreement(subject, nemo_id, other_id, Site.VALUE).values()) < 1
    with pytest.raises(InputError, match="no prompt that both"):
        door.search_agreement(subject, nemo_id, "nothing", Site.VALUE)


def test_values_of_all_blocks_are_searched_when_asked_for(
    subject: Subject, memorized: list[Prompt], nulls: list[Prompt], nemo_id: str
) -> None:
    everywhere = NEMO.model_copy(update={"site": Site.VALUE_ALL})
    with pytest.raises(InputError, match="no activations at 'value-all'"):
        door.localize_nemo(subject, memorized, nulls, nulls, everywhere)
    collect_values(subject, [*memorized, *nulls], Site.VALUE_ALL)
    all_id = door.localize_nemo(subject, memorized, nulls, nulls, everywhere)
    assert {row["site"] for row in sets(subject, all_id, "nemo")} == {"value-all"}
    layers = {row["layer"] for row in sets(subject, all_id, "nemo")}
    assert layers == {layer.name for layer in layers_of(subject.load().denoiser, Site.VALUE_ALL)}
    assert layers > {row["layer"] for row in sets(subject, nemo_id, "nemo")}
    assert any(row["members"] for row in sets(subject, all_id, "nemo") if row["layer"].startswith("up_blocks"))


def test_memorization_left_is_beside_that_of_random_neurons(
    subject: Subject, memorized: list[Prompt], nulls: list[Prompt], nemo_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    curve_id = door.memorization_left(subject, memorized, nemo_id, nulls, NEMO)
    rows = subject.open().read("nemo_traces", params_id=curve_id).to_pylist()
    numbers: dict[str, int] = {}
    for row in sets(subject, nemo_id, "nemo"):
        numbers[row["scope_id"]] = numbers.get(row["scope_id"], 0) + len(row["members"])
    for prompt in memorized:
        curves = {
            phase: [
                (r["candidates"], r["score"]) for r in rows if (r["prompt_id"], r["phase"]) == (prompt.prompt_id, phase)
            ]
            for phase in ("curve", "curve-control")
        }
        sizes = [size for size, _ in curves["curve"]]
        assert sizes == [size for size, _ in curves["curve-control"]]
        if numbers[prompt.prompt_id]:
            assert (sizes[0], sizes[-1]) == (0, numbers[prompt.prompt_id])
            assert curves["curve"][0][1] == curves["curve-control"][0][1] == 1.0
            assert curves["curve"][-1][1] < 1
        else:
            assert sizes == []
    monkeypatch.setattr("tasks.localize.task.neurons.gate", None)
    assert door.memorization_left(subject, memorized, nemo_id, nulls, NEMO) == curve_id
    with pytest.raises(InputError, match="were not searched"):
        door.memorization_left(subject, nulls, nemo_id, nulls, NEMO)
