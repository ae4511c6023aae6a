"""The door of mitigation: what is pruned lies in the store, says so, and can be taken out as a pipeline."""

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline, StableDiffusionPipeline, UNet2DConditionModel

from storage import Store, content_key, verify
from tasks.diffusion.families import layers_of
from tasks.diffusion.model import load_model
from tasks.diffusion.sampling import SamplingParams, generate
from tasks.diffusion.sites import Site
from tasks.errors import InputError
from tasks.methods import prunings
from tasks.mitigate import task as door
from tasks.pruned import Pruned
from tasks.subject import Subject
from tests.support.world import tiny_world

SITE = Site.FEED_FORWARD_HIDDEN


@pytest.fixture(scope="module")
def subject(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    """A store with sets as the localization leaves them."""
    folder = tmp_path_factory.mktemp("mitigated")
    subject = Subject(
        store=str(folder / "store"), model=str(tiny_world(folder / "world")), prompt_set="none", device="cpu"
    )
    store, unet = subject.open(), subject.load().denoiser

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


def pruned(name: str, *prompt_ids: str, **params: Any) -> Pruned:
    """What a variant prunes of the sets above."""
    localizer, pruning = next((one, pruning) for one, pruning in prunings() if pruning.name == name)
    chosen = localizer.params(**({"tau": 2} if localizer.name == "wanda" else {}) | params)
    return Pruned(localizer, pruning, chosen, "p", prompt_ids)


def prune(
    subject: Subject, name: str, *prompt_ids: str, audit_id: str = "audit-7", seed: int = 0, **params: Any
) -> dict[str, str]:
    return door.prune(subject, pruned(name, *prompt_ids, **params), audit_id, seed)


def weights(unet: Any) -> dict[str, torch.Tensor]:
    return {name: weight.detach().clone() for name, weight in unet.named_parameters()}


def zeroed(subject: Subject, variant: str) -> dict[str, list[int]]:
    """By layer name, weights that a variant has lost."""
    before = weights(subject.load().denoiser)
    with subject.loaded(variant) as model:
        after = weights(model.denoiser)
    lost = {
        name.removesuffix(".weight"): ((weight != 0) & (after[name] == 0)).flatten().nonzero().flatten().tolist()
        for name, weight in before.items()
    }
    assert all(torch.equal(after[name][after[name] != 0], weight[after[name] != 0]) for name, weight in before.items())
    return {name: found for name, found in lost.items() if found}


def copied(subject: Subject, variant: str) -> Any:
    """A copy of the denoiser of which a variant's weights are zero: the variant as it was once stored."""
    row, unet = subject.row(variant), copy.deepcopy(subject.load().denoiser)
    place = {"method": row["sets_method"], "params_id": row["sets_id"], "scope_id": row["sets_scopes"]}
    for one in subject.open().read("neuron_sets", model_id=subject.model_id, **place).to_pylist():
        weight = unet.get_submodule(one["layer"]).weight.data
        (weight if row["rule"] == "neurons" else weight.view(-1))[one["members"]] = 0
    return unet


def test_every_kind_of_pruning_takes_what_was_found(subject: Subject) -> None:
    names = [layer.name for layer in subject.load().layers(SITE)]
    cut = prune(subject, "wanda")
    assert list(cut) == ["wanda", "random-wanda"]
    assert zeroed(subject, cut["wanda"]) == {name: [1, 2, 9] for name in names}
    random = zeroed(subject, cut["random-wanda"])
    assert [len(random[name]) for name in names] == [3] * 7
    assert not any({1, 2, 9} & set(found) for found in random.values())
    control = prune(subject, "wanda-control")
    assert list(control) == ["wanda-control"]
    assert zeroed(subject, control["wanda-control"]) == {name: [31, 32, 39] for name in names}
    scored = prune(subject, "taylor")
    assert zeroed(subject, scored["taylor"]) == {name: [5, 6, 7] for name in names}
    shared = prune(subject, "wanda", share=0.5)
    assert zeroed(subject, shared["wanda"]) == {name: [2] for name in names}
    first = prune(subject, "wanda", tau=1)
    assert zeroed(subject, first["wanda"]) == {name: [1, 2] for name in names}


def test_a_variant_goes_by_what_determines_it(subject: Subject) -> None:
    first = prune(subject, "wanda", seed=0)
    again = prune(subject, "wanda", audit_id="audit-8", seed=1)
    assert again["wanda"] == first["wanda"] and again["random-wanda"] != first["random-wanda"]
    for seed, expected in ((0, first), (1, again)):
        found, drawn = (door.prune_id(pruned("wanda"), of) for of in (None, seed))
        assert door.known(subject, {"wanda": found, "random-wanda": drawn}) == expected
    assert zeroed(subject, first["random-wanda"]) != zeroed(subject, again["random-wanda"])
    assert door.shares_pruned(subject, again)["wanda"] == door.shares_pruned(subject, first)["wanda"] > 0


def test_pruned_variants_hold_sets_and_no_weights(subject: Subject) -> None:
    store = subject.open()
    found = prune(subject, "nemo-union", "first", "second")
    found |= prune(subject, "nemo", "first", "second")
    found |= prune(subject, "wanda")
    found |= prune(subject, "taylor")
    layers = {rule: len(subject.load().layers(site)) for rule, site in (("weights", SITE), ("", Site.VALUE))}
    for method, variant in found.items():
        row = subject.row(variant)
        assert row["weights"] is None and json.loads(row["card"])["audit_id"] == "audit-7"
        place = {"method": row["sets_method"], "params_id": row["sets_id"], "site": row["site"]}
        sets = store.read("neuron_sets", model_id=subject.model_id, scope_id=row["sets_scopes"], **place).to_pylist()
        assert len(sets) == len(row["sets_scopes"]) * layers.get(row["rule"], layers[""])
        own = row["sets_method"] == method and row["sets_id"] == row["params_id"]
        assert own == (method not in ("nemo", "taylor"))  # these are the localizer's own sets
        assert {one["scope"] for one in sets} == {
            "nemo": {"prompt"},
            "random-nemo": {"prompt"},
            "taylor": {"subset"},
        }.get(method, {"variant"})
        if row["rule"] != "prompt-neurons":
            assert row["pruned"] == sum(len(one["members"]) for one in sets)
            assert row["total"] == sum(one["universe"] for one in sets)
    assert not (Path(subject.store) / "weights").exists()


def test_sets_that_were_deleted_are_missed_and_made_anew(subject: Subject) -> None:
    found = prune(subject, "wanda", share=0.25)
    before, store = zeroed(subject, found["random-wanda"]), subject.open()
    zeroed(subject, found["wanda"])  # what is read last is kept in memory
    row = subject.row(found["random-wanda"])
    key = content_key(subject.model_id, "random-wanda", row["params_id"])
    address = store.parts("neuron_sets", key)[3]
    (Path(subject.store) / address).unlink()
    with pytest.raises(InputError, match="no random-wanda sets of"), subject.loaded(found["random-wanda"]):
        pass
    (damage,) = verify(store)
    assert damage.address == address.rsplit("/", 2)[0]
    assert f"lacks sets that the variant {found['random-wanda']} is pruned by" in damage.reason
    assert prune(subject, "wanda", share=0.25) == found
    assert zeroed(subject, found["random-wanda"]) == before and verify(store) == []


def test_neurons_are_pruned_by_rows(subject: Subject) -> None:
    cut = prune(subject, "nemo-union", "all")
    layers = subject.load().layers(Site.VALUE)
    rows = {layer.name: list(range(n * layer.inputs, (n + 1) * layer.inputs)) for n, layer in enumerate(layers)}
    assert zeroed(subject, cut["nemo-union"]) == rows
    assert len(zeroed(subject, cut["random-nemo-union"])) == len(layers)


def test_each_prompt_is_asked_without_its_own_neurons(subject: Subject) -> None:
    prompts = ["first", "second", "third"]
    cut = prune(subject, "nemo", *prompts)
    assert list(cut) == ["nemo", "random-nemo"]
    layers = layers_of(subject.load().denoiser, Site.VALUE)
    before = weights(subject.load().denoiser)

    def lost(variant: str, prompt: str) -> dict[str, list[int]]:
        with subject.loaded(cut[variant], prompt) as model:
            after = weights(model.denoiser)
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
    assert all(torch.equal(value, before[name]) for name, value in subject.load().denoiser.named_parameters())
    assert prune(subject, "nemo", *prompts, audit_id="audit-8") == cut
    work = ["first", "first", "second", "first"]
    apart = [("first", ["first"] * 2), ("second", ["second"]), ("first", ["first"])]
    assert list(subject.by_model(cut["nemo"], work, str)) == apart
    assert list(subject.by_model("original", work, str)) == [(None, work)]
    assert list(subject.by_model("original", [], str)) == list(subject.by_model(cut["nemo"], [], str)) == []
    # On average, of three prompts: 2 of each layer, 2 in all, none.
    share = round((2 * len(layers) + 2) / 3) / sum(layer.outputs for layer in layers)
    assert door.shares_pruned(subject, cut)["nemo"] == pytest.approx(share)
    assert door.shared_members(subject, cut["random-nemo"])[0] == 0
    with pytest.raises(InputError, match="pruned anew for each prompt"), subject.loaded(cut["nemo"]):
        pass
    assert prune(subject, "nemo", "third") == {}


@pytest.mark.parametrize(("method", "words"), [("wanda", "that Wanda found to hold"), ("random-wanda", "a control")])
def test_a_variant_leaves_the_store_as_a_pipeline(subject: Subject, tmp_path: Path, method: str, words: str) -> None:
    variant = prune(subject, "wanda")[method]
    door.export_variant(subject, variant, tmp_path / "whole")
    loaded = DiffusionPipeline.from_pretrained(tmp_path / "whole")
    expected = subject.load()
    for one, two in ((loaded.unet, copied(subject, variant)), (loaded.vae, expected.vae)):
        assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    assert load_model(tmp_path / "whole", "cpu").encode(["picture"]).equal(expected.encode(["picture"]))
    card = (tmp_path / "whole" / "README.md").read_text()
    layer = layers_of(expected.denoiser, SITE)[0].name
    total = sum(weight.numel() for weight in expected.denoiser.parameters())
    for fact in (words, f"pruned: 21 of {total:,} weights", "audit-7", f"`{layer}` | 3", "sparsity: `0.01`"):
        assert fact in card
    assert (
        "from_pretrained" in card
        and "audit" in json.loads((tmp_path / "whole" / "variant.json").read_text())["audit_id"]
    )
    assert not list((tmp_path / "whole").rglob("*.bin"))


def test_only_what_changed_leaves_the_store_when_asked(subject: Subject, tmp_path: Path) -> None:
    variant = prune(subject, "wanda")["wanda"]
    door.export_variant(subject, variant, tmp_path / "changed", changed_only=True)
    assert not (tmp_path / "changed" / "model_index.json").exists()
    unet = UNet2DConditionModel.from_pretrained(tmp_path / "changed", use_safetensors=True)
    pipeline = StableDiffusionPipeline.from_pretrained(subject.model, unet=unet)
    expected = copied(subject, variant)
    assert all(torch.equal(a, b) for a, b in zip(pipeline.unet.parameters(), expected.parameters(), strict=True))
    card = (tmp_path / "changed" / "README.md").read_text()
    assert "Only the denoiser lies here" in card and f'from_pretrained("{subject.model}", unet=unet)' in card


@pytest.mark.parametrize("method", ["nemo-union", "random-wanda"])
def test_a_variants_images_are_those_of_a_copy_with_zeros(subject: Subject, method: str) -> None:
    found = prune(subject, "nemo-union", "first", "second")
    found |= prune(subject, "wanda")
    model, keys, sampling = subject.load(), [("first", 0), ("first", 1)], SamplingParams(steps=2)
    text = model.encode(["picture 0", "picture 1"])
    expected = generate(model.with_denoiser(copied(subject, found[method])), text, keys, sampling)
    with subject.loaded(found[method]) as without:
        assert np.array_equal(generate(without, text, keys, sampling), expected)
    assert not np.array_equal(generate(subject.load(), text, keys, sampling), expected)


def test_what_cannot_be_taken_out_is_refused(subject: Subject, tmp_path: Path) -> None:
    variant = prune(subject, "wanda")["wanda"]
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
        prune(subject, "gradient")
    assert Store.open(subject.store).read("variants", method="gradient").num_rows == 0
