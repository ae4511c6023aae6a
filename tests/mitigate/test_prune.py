"""Controls match in number, and a variant that is taken out loads anywhere."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from hypothesis import given
from hypothesis import strategies as st

from tasks.diffusion.families import layers_of
from tasks.diffusion.masks import without_neurons
from tasks.diffusion.sites import Site
from tasks.errors import InputError
from tasks.mitigate.prune import Card, random_like, save_pipeline, save_variant, shared
from tests.support.hand_made import WIDTH, random_unet

UNET = random_unet().to(memory_format=torch.channels_last)
CARD = Card(
    title="Hand-made, pruned",
    base="hand-made",
    base_id="0123",
    method="NeMo",
    audit_id="audit-7",
    site="value",
    pruned=24,
    total=2400,
    members={"mid_block.attn2.to_v": 3},
    params={"theta": 5.0},
)


def run(unet: Any) -> torch.Tensor:
    draw = torch.Generator().manual_seed(0)
    latents, text = torch.randn(2, 4, 16, 16, generator=draw), torch.randn(2, 3, WIDTH, generator=draw)
    output: torch.Tensor = unet(latents, 500, text, return_dict=False)[0]
    return output


@given(universe=st.integers(1, 60), share=st.floats(0, 0.5), seed=st.integers(0, 1000))
def test_the_control_has_as_many_members_and_none_of_them(universe: int, share: float, seed: int) -> None:
    chosen = torch.randperm(universe)[: int(share * universe)].sort().values.to(torch.uint32)
    control = random_like({4: chosen}, {4: universe}, seed)[4]
    assert len(control) == len(chosen) and control.dtype == chosen.dtype
    assert not set(control.tolist()) & set(chosen.tolist())
    assert control.tolist() == sorted(set(control.tolist()))
    assert torch.equal(control.long(), random_like({4: chosen}, {4: universe}, seed)[4].long())


def test_controls_differ_by_seed_and_by_whose_they_are() -> None:
    chosen = {0: torch.arange(20)}
    assert random_like(chosen, {0: 1000}, 0)[0].tolist() != random_like(chosen, {0: 1000}, 1)[0].tolist()
    assert random_like(chosen, {0: 1000}, 0, "a")[0].tolist() != random_like(chosen, {0: 1000}, 0, "b")[0].tolist()


def test_a_variant_loads_and_says_what_was_pruned(tmp_path: Path) -> None:
    folder = tmp_path / "variants" / "nemo"
    with without_neurons(UNET, layers_of(UNET, Site.VALUE), {0: torch.tensor([1])}):
        save_variant(UNET, folder, CARD)
        expected = run(UNET)
    assert (folder / "diffusion_pytorch_model.safetensors").is_file()
    loaded = UNet2DConditionModel.from_pretrained(folder, use_safetensors=True).eval()
    torch.testing.assert_close(run(loaded), expected, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(expected, run(UNET), atol=1e-5)
    text = (folder / "README.md").read_text()
    for fact in (
        "Hand-made, pruned",
        "24 of 2,400",
        "1.0000%",
        "audit-7",
        "`mid_block.attn2.to_v` | 3",
        "theta: `5.0`",
    ):
        assert fact in text
    assert json.loads((folder / "variant.json").read_text())["base_id"] == "0123"
    assert [path.name for path in folder.parent.iterdir()] == ["nemo"]
    with pytest.raises(InputError, match="exists already"):
        save_variant(UNET, folder, CARD)


def test_nothing_is_left_of_a_variant_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object, **kwargs: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(UNet2DConditionModel, "save_pretrained", full)
    with pytest.raises(OSError, match="disk full"):
        save_variant(UNET, tmp_path / "nemo", CARD)
    assert list(tmp_path.iterdir()) == []


def test_a_base_that_cannot_be_loaded_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot load the pipeline at"):
        save_pipeline(tmp_path / "nowhere", UNET, tmp_path / "pruned", CARD)
    assert list(tmp_path.iterdir()) == []


@given(taken=st.integers(1, 10), universe=st.integers(1, 10), seed=st.integers(0, 10))
def test_where_most_was_found_the_control_is_as_unlike_it_as_can_be(taken: int, universe: int, seed: int) -> None:
    members = {0: torch.arange(min(taken, universe))}
    control = random_like(members, {0: universe}, seed)
    found = len(members[0])
    assert len(set(control[0].tolist())) == found
    both = set(control[0].tolist()) & set(members[0].tolist())
    assert len(both) == max(0, 2 * found - universe)
    assert shared(control, members) == len(both) / found


def test_a_card_says_what_is_needed_at_inference() -> None:
    pruned, trained = CARD.markdown(whole=False), replace(CARD, done="the UNet was trained").markdown(whole=False)
    defended = replace(CARD, done="random words are added to prompts", site="inference").markdown(whole=False)
    assert "are set to zero" in pruned and "members pruned" in pruned
    assert "the UNet was trained. Nothing is needed at inference" in trained and "members pruned" not in trained
    assert "random words are added to prompts." in defended and "from_pretrained" not in defended
    assert "Nothing is needed" not in defended
