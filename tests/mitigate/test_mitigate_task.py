"""The door of mitigation: what is cut lies in the store, says so, and can be taken out as a pipeline."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline, StableDiffusionPipeline, UNet2DConditionModel

from storage import Store
from tasks.diffusion.model import load_model
from tasks.diffusion.sites import Site, layers_of
from tasks.errors import InputError
from tasks.localize.wanda import WandaParams
from tasks.mitigate import task as door
from tasks.mitigate.task.variants import weights_in_store
from tasks.subject import Subject
from tests.support.world import tiny_world

PARAMS = WandaParams(tau=2)
SITE = Site.FEED_FORWARD_HIDDEN


@pytest.fixture(scope="module")
def subject(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    """A store with sets as the localization leaves them."""
    folder = tmp_path_factory.mktemp("mitigated")
    subject = Subject(
        store=str(folder / "store"), model=str(tiny_world(folder / "world")), prompt_set="none", device="cpu"
    )
    store, unet = subject.open(), subject.load().unet

    def write(
        method: str, scope: str, site: Site, layer: int, step: int | None, members: list[int], scope_id: str = "all"
    ) -> None:
        found = layers_of(unet, site)[layer]
        row: dict[str, Any] = {"params_id": "p", "scope": scope, "scope_id": scope_id, "layer": found.name}
        row |= {"step": step, "members": members, "universe": found.inputs * found.outputs}
        store.write_parts(
            "neuron_sets",
            f"{method}-{scope_id}-{layer}-{step}",
            [row],
            model_id=subject.model_id,
            method=method,
            site=site.value,
        )

    for layer in range(7):
        for step, members in ((0, [1, 2]), (1, [2, 9])):
            write("wanda", "subset", SITE, layer, step, members)
            write("wanda-control", "subset", SITE, layer, step, [member + 30 for member in members])
        write("taylor", "subset", SITE, layer, None, [5, 6, 7])
    for layer in range(len(layers_of(unet, Site.VALUE))):
        write("nemo", "prompt", Site.VALUE, layer, None, [layer])
        write("nemo", "prompt", Site.VALUE, layer, None, [layer, layer + 1], scope_id="first")
        write("nemo", "prompt", Site.VALUE, layer, None, [layer + 4] if layer < 2 else [], scope_id="second")
        write("nemo", "prompt", Site.VALUE, layer, None, [], scope_id="third")
    return subject


def zeroed(subject: Subject, variant: str) -> dict[str, list[int]]:
    """By layer name, weights that a variant has lost."""
    before = dict(subject.load().unet.named_parameters())
    after = dict(subject.load(variant).unet.named_parameters())
    lost = {
        name.removesuffix(".weight"): ((weight != 0) & (after[name] == 0)).flatten().nonzero().flatten().tolist()
        for name, weight in before.items()
    }
    assert all(torch.equal(after[name][after[name] != 0], weight[after[name] != 0]) for name, weight in before.items())
    return {name: found for name, found in lost.items() if found}


def test_every_kind_of_cut_takes_what_was_found(subject: Subject) -> None:
    names = [layer.name for layer in layers_of(subject.load().unet, SITE)]
    cut = door.cut_weights(subject, "p", "all", PARAMS, "audit-7")
    assert list(cut) == ["wanda", "random-wanda"]
    assert zeroed(subject, cut["wanda"]) == {name: [1, 2, 9] for name in names}
    random = zeroed(subject, cut["random-wanda"])
    assert [len(random[name]) for name in names] == [3] * 7
    assert not any({1, 2, 9} & set(found) for found in random.values())
    control = door.cut_weights(subject, "p", "all", PARAMS, "audit-7", method="wanda-control")
    assert list(control) == ["wanda-control"]
    assert zeroed(subject, control["wanda-control"]) == {name: [31, 32, 39] for name in names}
    scored = door.cut_scored(subject, "taylor", "p", "all", "audit-7")
    assert zeroed(subject, scored["taylor"]) == {name: [5, 6, 7] for name in names}
    shared = door.cut_weights(subject, "p", "all", WandaParams(tau=2, share=0.5), "audit-7")
    assert zeroed(subject, shared["wanda"]) == {name: [2] for name in names}
    first = door.cut_weights(subject, "p", "all", WandaParams(tau=1), "audit-7")
    assert zeroed(subject, first["wanda"]) == {name: [1, 2] for name in names}


def test_the_same_cut_is_found_again_under_other_settings(subject: Subject) -> None:
    first = door.cut_weights(subject, "p", "all", PARAMS, "audit-7", seed=0)
    again = door.cut_weights(subject, "p", "all", PARAMS, "audit-8", seed=1)
    assert again["wanda"] == first["wanda"] and again["random-wanda"] != first["random-wanda"]
    for seed, expected in ((0, first), (1, again)):
        key = door.cut_id("p", ["all"], PARAMS, seed)
        assert door.known(subject, {"wanda": key, "random-wanda": key}) == expected
    assert door.shares_cut(subject, again)["wanda"] == door.shares_cut(subject, first)["wanda"] > 0


def test_a_cut_whose_files_were_deleted_is_made_anew(subject: Subject) -> None:
    cut = door.cut_weights(subject, "p", "all", PARAMS, "audit-7")
    before = zeroed(subject, cut["wanda"])
    folder = subject.stored(cut["wanda"])[1]
    shutil.rmtree(folder)
    assert weights_in_store(subject, cut["wanda"]) is None and weights_in_store(subject, cut["random-wanda"])
    assert door.cut_weights(subject, "p", "all", PARAMS, "audit-7") == cut
    assert zeroed(subject, cut["wanda"]) == before


def test_neurons_are_cut_by_rows(subject: Subject) -> None:
    cut = door.cut_neurons(subject, "p", ["all"], "audit-7", Site.VALUE)
    layers = layers_of(subject.load().unet, Site.VALUE)
    rows = {layer.name: list(range(n * layer.inputs, (n + 1) * layer.inputs)) for n, layer in enumerate(layers)}
    assert zeroed(subject, cut["nemo-union"]) == rows
    assert len(zeroed(subject, cut["random-nemo-union"])) == len(layers)


def test_each_prompt_is_asked_with_its_own_neurons_cut(subject: Subject) -> None:
    prompts = ["first", "second", "third"]
    cut = door.cut_own(subject, "p", prompts, "audit-7", Site.VALUE)
    assert list(cut) == ["nemo", "random-nemo"]
    layers = layers_of(subject.load().unet, Site.VALUE)
    before = {name: value.clone() for name, value in subject.load().unet.named_parameters()}

    def lost(variant: str, prompt: str) -> dict[str, list[int]]:
        after = dict(subject.load(cut[variant], prompt).unet.named_parameters())
        rows = {
            layer.name: (after[f"{layer.name}.weight"] == 0).all(1).nonzero().flatten().tolist() for layer in layers
        }
        for name, weight in before.items():
            assert torch.equal(after[name][after[name] != 0], weight[after[name] != 0])
        return {name: found for name, found in rows.items() if found}

    names = [layer.name for layer in layers]
    first = {name: [n, n + 1] for n, name in enumerate(names)}
    assert lost("nemo", "first") == first
    assert lost("nemo", "second") == {names[0]: [4], names[1]: [5]}  # and what the first had lost is back
    assert lost("nemo", "third") == lost("nemo", "of others") == {}
    assert lost("nemo", "first") == first
    random = lost("random-nemo", "first")
    assert [len(random[name]) for name in names] == [2] * len(names)
    assert not any(set(random[name]) & set(first[name]) for name in names)
    assert all(torch.equal(value, before[name]) for name, value in subject.load().unet.named_parameters())
    assert door.cut_own(subject, "p", prompts, "audit-8", Site.VALUE) == cut
    assert subject.is_cut_anew(cut["nemo"]) and not subject.is_cut_anew("original")
    # On average, of three prompts: 2 of each layer, 2 in all, none.
    share = round((2 * len(layers) + 2) / 3) / sum(layer.outputs for layer in layers)
    assert door.shares_cut(subject, cut)["nemo"] == pytest.approx(share)
    assert door.shared_members(subject, cut["random-nemo"])[0] == 0
    with pytest.raises(InputError, match="cut anew for each prompt"):
        subject.load(cut["nemo"])
    assert door.cut_own(subject, "p", ["third"], "audit-7", Site.VALUE) == {}


@pytest.mark.parametrize(("method", "words"), [("wanda", "that Wanda found to hold"), ("random-wanda", "a control")])
def test_a_variant_leaves_the_store_as_a_pipeline(subject: Subject, tmp_path: Path, method: str, words: str) -> None:
    variant = door.cut_weights(subject, "p", "all", PARAMS, "audit-7")[method]
    door.export_variant(subject, variant, tmp_path / "whole")
    loaded = DiffusionPipeline.from_pretrained(tmp_path / "whole")
    expected = subject.load(variant)
    for one, two in ((loaded.unet, expected.unet), (loaded.vae, expected.vae)):
        assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    assert load_model(tmp_path / "whole", "cpu").embed(["picture"]).equal(expected.embed(["picture"]))
    card = (tmp_path / "whole" / "README.md").read_text()
    layer = layers_of(expected.unet, SITE)[0].name
    weights = sum(weight.numel() for weight in expected.unet.parameters())
    for fact in (words, f"cut: 21 of {weights:,} weights", "audit-7", f"`{layer}` | 3", "sparsity: `0.01`"):
        assert fact in card
    assert (
        "from_pretrained" in card
        and "audit" in json.loads((tmp_path / "whole" / "variant.json").read_text())["audit_id"]
    )
    assert not list((tmp_path / "whole").rglob("*.bin"))


def test_only_what_changed_leaves_the_store_when_asked(subject: Subject, tmp_path: Path) -> None:
    variant = door.cut_weights(subject, "p", "all", PARAMS, "audit-7")["wanda"]
    door.export_variant(subject, variant, tmp_path / "changed", changed_only=True)
    assert not (tmp_path / "changed" / "model_index.json").exists()
    unet = UNet2DConditionModel.from_pretrained(tmp_path / "changed", use_safetensors=True)
    pipeline = StableDiffusionPipeline.from_pretrained(subject.model, unet=unet)
    expected = subject.load(variant).unet
    assert all(torch.equal(a, b) for a, b in zip(pipeline.unet.parameters(), expected.parameters(), strict=True))
    card = (tmp_path / "changed" / "README.md").read_text()
    assert "Only the UNet lies here" in card and f'from_pretrained("{subject.model}", unet=unet)' in card


def test_what_cannot_be_taken_out_is_refused(subject: Subject, tmp_path: Path) -> None:
    variant = door.cut_weights(subject, "p", "all", PARAMS, "audit-7")["wanda"]
    with pytest.raises(InputError, match=f"no variant 'nobody' of this model; it has: .*{variant}"):
        door.export_variant(subject, "nobody", tmp_path / "out")
    with pytest.raises(InputError, match="has the weights of the model at"):
        door.export_variant(subject, "original", tmp_path / "out")
    (tmp_path / "out").mkdir()
    with pytest.raises(InputError, match="exists already"):
        door.export_variant(subject, variant, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_sets_that_are_not_there_are_asked_for(subject: Subject) -> None:
    with pytest.raises(InputError, match="no gradient sets of 'all'"):
        door.cut_scored(subject, "gradient", "p", "all", "audit-7")
    assert Store.open(subject.store).read("variants", method="gradient").num_rows == 0
