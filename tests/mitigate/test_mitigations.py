"""The specs of mitigations: what follows from them holds together."""

from dataclasses import replace

import pytest

from flows.settings import PROFILES, Settings
from tasks.diffusion.outline import Outline
from tasks.errors import InputError
from tasks.methods import Mitigation, method, mitigations, variants, variants_of
from tasks.mitigate.finetune import FineTuneParams


@pytest.mark.parametrize("mitigation", mitigations(), ids=[one.name for one in mitigations()])
def test_a_spec_fits_its_parameters(mitigation: Mitigation) -> None:
    own = mitigation.changed(mitigation.params())
    assert mitigation.changed(own) == own
    assert all(getattr(own, name) == value for name, value in mitigation.change.items())
    assert mitigation.acts == "training" or not (mitigation.change or mitigation.reads_surrogates(own))
    assert mitigation.gradients or mitigation.acts == "inference"
    assert variants_of(mitigation) == (mitigation.name,)
    Settings.model_validate({"mitigations": [mitigation.name]})


def test_trainings_differ_by_what_one_of_them_lacks() -> None:
    params = FineTuneParams(epochs=3)
    ids = {one.id(one.changed(params)) for one in mitigations() if one.group == "finetune"}
    assert len(ids) == 4
    full, ordinary = (method("mitigation", f"{name}-finetune") for name in ("adversarial", "ordinary"))
    assert full.changed(params).lora_rank == 0 and full.reads_surrogates(params)
    assert not ordinary.reads_surrogates(ordinary.changed(params))
    assert not full.reads_surrogates(params.model_copy(update={"erase_weight": 0.0}))
    lora = method("mitigation", "lora-finetune")
    ranked = params.model_copy(update={"lora_rank": 8})
    assert lora.changed(ranked).lora_rank == 8 != lora.changed(params).lora_rank == 4
    assert full.changed(ranked) == full.changed(params)
    outline = Outline.__new__(Outline)
    with pytest.raises(InputError, match="trains changes of a rank of 1 or more"):
        lora.check(params.model_copy(update={"lora_rank": 0}), outline)
    # Speed determines nothing.
    assert full.id(params) == full.id(params.model_copy(update={"save_every": 1})) != full.id(FineTuneParams())


def test_what_can_be_chosen_are_variants_and_not_their_controls(monkeypatch: pytest.MonkeyPatch) -> None:
    assert {"nemo", "nemo-union", "wanda", "magnitude", "random", "random-tokens"} <= {*variants()}
    assert not {"original", "random-nemo", "random-wanda", "wanda-control"} & {*variants()}
    twin = replace(method("mitigation", "random-tokens"), name="random-wanda")
    monkeypatch.setattr("tasks.methods.mitigations", lambda: [twin])
    with pytest.raises(InputError, match="a localizer prunes 'random-wanda', and a mitigation has this name"):
        variants()


def test_settings_choose_methods() -> None:
    default = Settings()
    assert default.mitigations == ("nemo", "nemo-union", "wanda")
    assert [one.name for _, one in default.prunings()] == ["nemo-union", "nemo", "wanda", "wanda-control"]
    assert default.chosen("training") == default.chosen("inference") == []
    full = Settings.model_validate(PROFILES["full"])
    assert [one.name for one in full.chosen("training")] == [
        "adversarial-finetune",
        "surrogate-finetune",
        "ordinary-finetune",
    ]
    assert [one.name for one in full.chosen("inference")] == [
        "perturbed-embedding",
        "random-tokens",
        "reweighted-attention",
    ]
    # The published way to prune is in the quick profile, too.
    assert "nemo" in Settings.model_validate(PROFILES["quick"]).mitigations
