"""The door of localization, on a model of random weights: controls, other scores, published statistics, traces."""

import importlib
import shutil
from collections.abc import Iterator
from dataclasses import replace
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
from tasks.localize.importance import GradientParams
from tasks.localize.nemo import NemoParams
from tasks.localize.statistics import Moments
from tasks.localize.wanda import WandaParams
from tasks.methods import Localizer, NoParams, method
from tasks.mitigate import task as mitigating
from tasks.pruned import Pruned
from tasks.subject import Prompt, Subject, prompts_of
from tests.support.world import tiny_world

SAMPLING = SamplingParams(steps=3)
WANDA = WandaParams(sparsity=0.1, tau=2)
NEMO = NemoParams(seeds=3, threshold=0.0, theta=1.5, theta_min=1.0)
SITE = Site.FEED_FORWARD_HIDDEN
NEMO_SPEC: Localizer = method("localizer", "nemo")
WANDA_SPEC: Localizer = method("localizer", "wanda")


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
def given(subject: Subject, memorized: list[Prompt], nulls: list[Prompt]) -> door.Given:
    """What an audit would give; the scores that follow Wanda's numbers follow those of all memorized prompts."""
    alone = door.Given(nulls, nulls, empty_prompts(3), prompts_of(subject, "ordinary"), SAMPLING)
    wanda_id = door.sets_id(WANDA_SPEC, WANDA, door.groups_of(WANDA_SPEC, memorized), alone)
    names = tuple(prompt.prompt_id for prompt in memorized)
    return replace(alone, budgets={"wanda": Pruned(WANDA_SPEC, WANDA_SPEC.prunings[0], WANDA, wanda_id, names)})


@pytest.fixture(scope="module")
def wanda_id(subject: Subject, memorized: list[Prompt], given: door.Given) -> str:
    return door.localize(subject, WANDA_SPEC, WANDA, door.groups_of(WANDA_SPEC, memorized), given)


@pytest.fixture(scope="module")
def nemo_id(subject: Subject, memorized: list[Prompt], given: door.Given) -> str:
    return search(subject, memorized, given)


def search(subject: Subject, prompts: list[Prompt], given: door.Given, params: NemoParams = NEMO) -> str:
    return door.localize(subject, NEMO_SPEC, params, door.groups_of(NEMO_SPEC, prompts), given)


@pytest.fixture
def passes(subject: Subject) -> Iterator[list[int]]:
    """How many samples the denoiser has seen, pass by pass."""
    seen: list[int] = []
    handle = subject.load().denoiser.register_forward_pre_hook(lambda module, inputs: seen.append(len(inputs[0])))
    yield seen
    handle.remove()


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
    subject: Subject, memorized: list[Prompt], nulls: list[Prompt], given: door.Given, wanda_id: str
) -> None:
    control = door.control_of(WANDA_SPEC, memorized, nulls)
    control_id = door.localize(subject, WANDA_SPEC, WANDA, control, given)
    found = sets(subject, control_id, "wanda-control")
    assert {row["scope_id"] for row in found} == {"all", "control 1", "control 2"}
    assert {row["scope_id"] for row in sets(subject, wanda_id, "wanda")} == {"all", "subset 0", "subset 1"}
    con = connect(subject.open())
    pairs = "scope_id_1 = 'control 1' AND scope_id_2 = 'control 2'"
    rows = con.execute(f"SELECT size_1, iou FROM iou WHERE method = 'wanda-control' AND {pairs}").fetchall()
    assert len(rows) == 2 * len(layers_of(subject.load().denoiser, SITE))
    assert all(size > 0 and 0 <= iou <= 1 for size, iou in rows)
    with pytest.raises(InputError, match="needs ordinary prompts"):
        door.control_of(WANDA_SPEC, memorized, [])


@pytest.mark.parametrize("score", ["magnitude", "taylor", "gradient", "random"])
def test_other_scores_take_as_many_of_each_layer(
    subject: Subject,
    memorized: list[Prompt],
    given: door.Given,
    wanda_id: str,
    score: str,
    passes: list[int],
) -> None:
    localizer: Localizer = method("localizer", score)
    params = localizer.params(**{"timesteps": 2} if localizer.gradients else {})
    groups = door.groups_of(localizer, memorized)
    found_id = door.localize(subject, localizer, params, groups, given)
    members = given.budgets["wanda"].members(subject)["all"]
    layers = subject.load().layers(SITE)
    numbers = {layer.name: set(members[layer.index].tolist()) for layer in layers}
    found = {row["layer"]: row["members"] for row in sets(subject, found_id, score)}
    assert {name: len(some) for name, some in found.items()} == {n: len(m) for n, m in numbers.items()}
    assert any(set(some) != numbers[name] for name, some in found.items())
    before = len(passes), subject.open().parts("neuron_sets")
    assert door.localize(subject, localizer, params, groups, given) == found_id
    assert (len(passes), subject.open().parts("neuron_sets")) == before  # what is in the store is not computed again


def test_gradients_need_images(subject: Subject, memorized: list[Prompt], given: door.Given, wanda_id: str) -> None:
    taylor: Localizer = method("localizer", "taylor")

    def localize(prompts: list[Prompt], params: GradientParams, **changes: Any) -> str:
        groups = door.groups_of(taylor, prompts)
        return door.localize(subject, taylor, params, groups, replace(given, **changes))

    with pytest.raises(InputError, match="taylor needs ordinary prompts with training images"):
        localize(memorized, GradientParams(), ordinary=[])
    assert localize(memorized, GradientParams(timesteps=1, contrast=False), ordinary=[])
    with pytest.raises(InputError, match="taylor needs memorized prompts with training images"):
        localize([replace(one, image_ids=()) for one in memorized], GradientParams())
    elsewhere = replace(given.budgets["wanda"], sets_id="nobody's")
    with pytest.raises(InputError, match="no wanda sets of 'all'"):
        localize(memorized, GradientParams(timesteps=3), budgets={"wanda": elsewhere})


def test_ids_are_known_before_anything_has_run(memorized: list[Prompt], given: door.Given) -> None:
    def nemo(prompts: list[Prompt], **changes: Any) -> str:
        params = NEMO.model_copy(update=changes.pop("params", {"threshold": None}))
        return door.sets_id(NEMO_SPEC, params, door.groups_of(NEMO_SPEC, prompts), replace(given, **changes))

    def wanda(prompts: list[Prompt], **changes: Any) -> str:
        params = WANDA.model_copy(update=changes.pop("params", {}))
        return door.sets_id(WANDA_SPEC, params, door.groups_of(WANDA_SPEC, prompts), replace(given, **changes))

    fewer = given.nulls[1:]
    assert nemo(memorized) == nemo(memorized[:2])  # each prompt's search is its own
    assert nemo(memorized) == nemo(memorized, ordinary=[], contrast=fewer, params={"threshold": None, "batch": 3})
    assert len({nemo(memorized), nemo(memorized, nulls=fewer), nemo(memorized, threshold_nulls=fewer)}) == 3
    assert nemo(memorized, params={}, threshold_nulls=fewer) == nemo(memorized, params={})  # the threshold is given
    assert wanda(memorized) == wanda(memorized, nulls=fewer, ordinary=[], params={"share": 0.5})
    others = wanda(memorized[:3]), wanda(memorized, contrast=fewer), wanda(memorized, sampling=SamplingParams(steps=4))
    assert len({wanda(memorized), wanda(memorized, params={"tau": 1}), *others}) == 5
    one, other = (
        replace(given.budgets["wanda"], params=WANDA.model_copy(update={"share": share})) for share in (0, 0.5)
    )
    assert one.id != other.id  # fewer weights are pruned, of the same sets
    magnitude: Localizer = method("localizer", "magnitude")
    ids = [
        door.sets_id(
            magnitude, NoParams(), door.groups_of(magnitude, memorized), replace(given, budgets={"wanda": budget})
        )
        for budget in (one, other)
    ]
    assert ids[0] != ids[1]


def test_prunings_unite_sets_as_their_spec_says(
    subject: Subject, memorized: list[Prompt], given: door.Given, nemo_id: str, wanda_id: str
) -> None:
    names = tuple(prompt.prompt_id for prompt in memorized)
    union, each = (Pruned(NEMO_SPEC, pruning, NEMO, nemo_id, names) for pruning in NEMO_SPEC.prunings)
    assert (union.pruning.name, each.pruning.name, union.pruning.control) == ("nemo-union", "nemo", "random-nemo-union")
    together, own = union.members(subject)["all"], each.members(subject)
    assert own.keys() == set(names) and sum(map(len, together.values())) > 0
    for index, members in together.items():
        assert members.tolist() == sorted({neuron for some in own.values() for neuron in some[index].tolist()})
    steps = given.budgets["wanda"].members(subject)["all"]
    numbers = {layer.name: layer.index for layer in subject.load().layers(SITE)}
    rows = [row for row in sets(subject, wanda_id, "wanda") if row["scope_id"] == "all"]
    for name, index in numbers.items():
        assert steps[index].tolist() == sorted({one for row in rows if row["layer"] == name for one in row["members"]})
    with pytest.raises(InputError, match="no nemo sets of 'nobody'"):
        replace(union, prompt_ids=("nobody",)).members(subject)


def test_a_newcomer_is_one_file_that_is_localized_and_pruned(
    subject: Subject, memorized: list[Prompt], given: door.Given, monkeypatch: pytest.MonkeyPatch
) -> None:
    registered: dict[Any, Any] = {}
    monkeypatch.setattr("tasks.methods._FOUND", registered)
    newcomer = importlib.import_module("tests.support.newcomer")
    (strongest,) = registered.values()
    assert strongest == method("localizer", "strongest")
    params = strongest.params(count=2)
    groups = door.groups_of(strongest, memorized)
    found_id = door.localize(subject, strongest, params, groups, given)
    assert found_id == door.sets_id(strongest, params, groups, given)
    rows = sets(subject, found_id, "strongest")
    assert {row["scope_id"] for row in rows} == {prompt.prompt_id for prompt in memorized}
    model = subject.load()
    layers = model.layers(Site.VALUE)
    values = value_activations(layers, model.encode([memorized[0].text]))
    own = {row["layer"]: row["members"] for row in rows if row["scope_id"] == memorized[0].prompt_id}
    assert own == {
        layer.name: sorted(value[0].topk(2).indices.tolist()) for layer, value in zip(layers, values, strict=True)
    }
    names = tuple(prompt.prompt_id for prompt in memorized)
    pruned = Pruned(strongest, strongest.prunings[0], params, found_id, names)
    variants = mitigating.prune(subject, pruned, "audit-7")
    members = pruned.members(subject)["all"]
    with subject.loaded(variants["strongest"]) as without:
        for layer in layers:
            weight: Any = without.denoiser.get_submodule(layer.name).weight
            assert (weight == 0).all(1).nonzero().flatten().tolist() == members[layer.index].tolist() != []
    assert subject.card(variants["strongest"])["pruned_words"] == "the neurons that prompts activate most"

    def undeclared(ground: Any, params: Any) -> Any:
        return ground.norms

    spec = replace(strongest, find=undeclared, name="undeclared")
    with pytest.raises(InputError, match="undeclared reads 'norms': name it among"):
        door.localize(subject, spec, params, groups, given)
    too_far = replace(strongest, find=newcomer.beyond, name="beyond")
    with pytest.raises(InputError, match="neurons, beyond found number 10000"):
        door.localize(subject, too_far, params, groups, given)


def test_published_statistics_stand_for_null_prompts(
    subject: Subject, memorized: list[Prompt], nulls: list[Prompt], given: door.Given, nemo_id: str, tmp_path: Path
) -> None:
    model = subject.load()
    layers = model.layers(Site.VALUE)
    same = Moments.of(value_activations(layers, model.encode([prompt.text for prompt in nulls]))).statistics()
    torch.save((list(same.means), list(same.stds)), tmp_path / "one.pt")
    shutil.copy(tmp_path / "one.pt", tmp_path / "two.pt")
    unneeded = replace(given, nulls=(), threshold_nulls=())
    ids = [
        search(subject, memorized, unneeded, NEMO.model_copy(update={"statistics": tmp_path / name}))
        for name in ("one.pt", "two.pt")
    ]
    assert ids[0] == ids[1] != nemo_id  # what is in the file counts, not where it lies
    assert set(door.agreement(subject, NEMO_SPEC, NEMO, ids[0], nemo_id).values()) == {1.0}
    torch.save((list(same.means), [10 * std for std in same.stds]), tmp_path / "two.pt")
    wider = NEMO.model_copy(update={"statistics": tmp_path / "two.pt"})
    assert search(subject, memorized, unneeded, wider) != ids[0]
    with pytest.raises(InputError, match=r"cannot read .*none.pt: No such file"):
        search(subject, memorized, unneeded, NEMO.model_copy(update={"statistics": tmp_path / "none.pt"}))


@pytest.mark.parametrize("refinement", ["sequential", "chain", "group"])
def test_the_trace_leads_from_the_candidates_to_what_was_found(
    subject: Subject, memorized: list[Prompt], given: door.Given, refinement: str
) -> None:
    params = NemoParams.model_validate(NEMO.model_dump() | {"refinement": refinement})
    params_id = search(subject, memorized, given, params)
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
    subject: Subject, memorized: list[Prompt], given: door.Given, nemo_id: str
) -> None:
    group = NEMO.model_copy(update={"refinement": "group"})
    assert NEMO_SPEC.published is not None
    assert NEMO_SPEC.published(group) == NEMO and NEMO_SPEC.published(NEMO) is None
    group_id = search(subject, memorized, given, group)
    other_id = search(subject, memorized, given, NEMO.model_copy(update={"theta": 1.25}))
    assert set(door.agreement(subject, NEMO_SPEC, NEMO, nemo_id, nemo_id).values()) == {1.0}
    found = door.agreement(subject, NEMO_SPEC, NEMO, nemo_id, group_id)
    assert found.keys() == {prompt.prompt_id for prompt in memorized}
    assert all(0 <= value <= 1 for value in found.values())
    assert min(door.agreement(subject, NEMO_SPEC, NEMO, nemo_id, other_id).values()) < 1
    with pytest.raises(InputError, match="no prompt that both"):
        door.agreement(subject, NEMO_SPEC, NEMO, nemo_id, "nothing")


def test_values_of_all_blocks_are_searched_when_asked_for(
    subject: Subject, memorized: list[Prompt], nulls: list[Prompt], given: door.Given, nemo_id: str
) -> None:
    everywhere = NEMO.model_copy(update={"site": Site.VALUE_ALL})
    with pytest.raises(InputError, match="no activations at 'value-all'"):
        search(subject, memorized, given, everywhere)
    collect_values(subject, [*memorized, *nulls], Site.VALUE_ALL)
    all_id = search(subject, memorized, given, everywhere)
    assert {row["site"] for row in sets(subject, all_id, "nemo")} == {"value-all"}
    layers = {row["layer"] for row in sets(subject, all_id, "nemo")}
    assert layers == {layer.name for layer in layers_of(subject.load().denoiser, Site.VALUE_ALL)}
    assert layers > {row["layer"] for row in sets(subject, nemo_id, "nemo")}
    assert any(row["members"] for row in sets(subject, all_id, "nemo") if row["layer"].startswith("up_blocks"))


def test_memorization_left_is_beside_that_of_random_neurons(
    subject: Subject,
    memorized: list[Prompt],
    nulls: list[Prompt],
    given: door.Given,
    nemo_id: str,
    passes: list[int],
) -> None:
    curve_id = door.draw_curves(subject, NEMO_SPEC, NEMO, memorized, given)
    assert curve_id == door.curve_id(nemo_id)
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
    before = len(passes)
    assert door.draw_curves(subject, NEMO_SPEC, NEMO, memorized, given) == curve_id
    assert len(passes) == before
    with pytest.raises(InputError, match="were not searched"):
        door.draw_curves(subject, NEMO_SPEC, NEMO, nulls, given)


def test_a_search_that_was_interrupted_goes_on(
    subject: Subject, memorized: list[Prompt], given: door.Given, passes: list[int]
) -> None:
    params = NEMO.model_copy(update={"theta": 1.4})
    first = search(subject, memorized[:1], given, params)
    seen = len(passes)
    assert search(subject, memorized[:1], given, params) == first and len(passes) == seen
    assert search(subject, memorized, given, params) == first and len(passes) > seen
    scopes = [row["scope_id"] for row in sets(subject, first, "nemo")]
    assert len(scopes) == len(memorized) * len(subject.load().layers(Site.VALUE))
