"""The specs of localizers: what follows from them holds together."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from flows.settings import Settings
from tasks.diffusion.detection import DetectionParams
from tasks.diffusion.sites import Site
from tasks.errors import InputError
from tasks.localize.ground import NormsParams
from tasks.localize.nemo import NemoParams
from tasks.localize.wanda import WandaParams
from tasks.methods import Localizer, localizer_of, method, methods, names, prunings
from tasks.params import determining

OURS: list[Any] = methods("localizer")


@pytest.mark.parametrize("localizer", OURS, ids=[one.name for one in OURS])
def test_a_spec_gives_what_it_reads_the_parameters_for(localizer: Localizer) -> None:
    params = localizer.params()
    reads = localizer.reads_of(params)
    assert isinstance(params, NormsParams) == ("norms" in reads)
    assert not {"null scores"} & set(reads) or isinstance(params, DetectionParams)
    assert isinstance(localizer.site_of(params), Site)
    assert localizer.gradients == ("images" in reads)
    assert not localizer.budget or not localizer_of(localizer.budget).budget
    for pruning in localizer.prunings:
        assert pruning.card and bool(pruning.control_of) == bool(pruning.words)
        assert not pruning.claims or pruning.random  # a claim has its control


def test_variants_go_by_one_name_each(monkeypatch: pytest.MonkeyPatch) -> None:
    known = {pruning.name for _, pruning in prunings()}
    assert known >= {"nemo", "nemo-union", "wanda", "wanda-control", *names("localizer")}
    with pytest.raises(InputError, match="no localizer prunes 'nobody'; there are gradient, magnitude, nemo"):
        localizer_of("nobody")
    monkeypatch.setattr("tasks.methods._FOUND", {number: replace(OURS[0], name=f"one {number}") for number in "ab"})
    with pytest.raises(InputError, match="localizers 'one a' and 'one b' both prune"):
        list(prunings())


def test_a_pruning_must_suit_the_scopes_of_its_localizer() -> None:
    nemo, wanda = (method("localizer", name) for name in ("nemo", "wanda"))
    with pytest.raises(InputError, match="nemo finds no sets that 'wanda' could prune"):
        replace(nemo, prunings=wanda.prunings)
    with pytest.raises(InputError, match="over 'union' does not go with scopes 'subsets'"):
        replace(wanda, prunings=nemo.prunings)


@pytest.mark.parametrize(
    ("budget", "change", "why"),
    [
        ("nobody", {}, "there is none of this name, only "),
        ("nemo", {}, "it prunes each prompt's own members"),
        ("magnitude", {}, "magnitude has a budget itself"),
        ("nemo-union", {}, "nemo looks at other members, or elsewhere"),
        ("wanda", {"site": Site.FEED_FORWARD_INPUT}, "wanda looks at other members, or elsewhere"),
    ],
)
def test_a_budget_must_be_one(monkeypatch: pytest.MonkeyPatch, budget: str, change: Any, why: str) -> None:
    random = replace(method("localizer", "random"), budget=budget, **change)
    known = {(one.kind, one.name): random if one.name == "random" else one for one in methods()}
    monkeypatch.setattr("tasks.methods._FOUND", known)
    with pytest.raises(
        InputError, match=f"localizer 'random' cannot have the pruning '{budget}' for its budget: {why}"
    ):
        list(prunings())


def test_words_of_a_spec_are_those_that_there_are() -> None:
    upper, wanda = method("mitigation", "random-tokens"), method("localizer", "wanda")
    with pytest.raises(
        InputError, match="acts of mitigation 'random-tokens' is 'inferance': it may be 'training', 'inf"
    ):
        replace(upper, acts="inferance")
    with pytest.raises(InputError, match="over of the pruning 'wanda' is 'every': it may be 'each', 'union', 'all'"):
        replace(wanda, prunings=(replace(wanda.prunings[0], over="every"),))
    with pytest.raises(InputError, match="localizer 'wanda' reads 'norm': it may read values, null values"):
        replace(wanda, reads=("norm",))


def test_single_triggers_have_neither_budget_nor_images() -> None:
    with pytest.raises(InputError, match="random is asked about single triggers, of which there is no 'wanda'"):
        replace(method("localizer", "random"), on_triggers="found")
    with pytest.raises(InputError, match="gradient is asked about single triggers, which have none of the images"):
        replace(method("localizer", "gradient"), on_triggers="found", budget="", reads=("images",))


def test_settings_are_groups_of_the_methods_own() -> None:
    settings = Settings.model_validate(
        {"wanda": {"tau": 3}, "mitigations": ["taylor", "magnitude", "nemo"], "taylor": {"timesteps": 4}}
    )
    assert settings.of(method("localizer", "wanda")) == WandaParams(tau=3)
    assert settings.of(method("localizer", "taylor")).timesteps == 4
    assert settings.of(method("localizer", "gradient")).timesteps == 10
    assert settings.of(method("localizer", "magnitude")) == method("localizer", "magnitude").params()
    # Wanda's budget is what the scores are compared with, though no variant of its own is chosen.
    assert [one.name for one in settings.localizers()] == ["wanda", "magnitude", "nemo", "taylor"]
    assert [one.name for _, one in settings.prunings()] == ["magnitude", "nemo", "taylor"]
    assert settings.files() == {}
    assert Settings.model_validate({"nemo": {"statistics": "x.pt"}}).files() == {"nemo": {"statistics": Path("x.pt")}}


def test_ids_are_of_what_determines_sets(tmp_path: Path) -> None:
    nemo, wanda = (method("localizer", name) for name in ("nemo", "wanda"))
    assert nemo.id(NemoParams()) == nemo.id(NemoParams(batch=7)) != nemo.id(NemoParams(seeds=4))
    assert wanda.id(WandaParams()) == wanda.id(WandaParams(share=0.5)) != wanda.id(WandaParams(sparsity=0.5))
    assert determining(WandaParams(share=0.5))["share"] == 0.5
    for name in ("one", "two"):
        (tmp_path / name).write_text("the same")
    one, two = (NemoParams(statistics=tmp_path / name) for name in ("one", "two"))
    assert nemo.id(one) == nemo.id(two) != nemo.id(NemoParams())
    (tmp_path / "two").write_text("something else")
    assert nemo.id(one) != nemo.id(two)
    with pytest.raises(InputError, match=r"cannot read .*three: No such file"):
        nemo.id(NemoParams(statistics=tmp_path / "three"))
