"""Weights as people have them: in half precision or eight bits, as a variant alone, in several files, behind links."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline
from safetensors.torch import load_file, save_file

from tasks.diffusion.files import stem_of, weight_files
from tasks.diffusion.folder import notes_of, problems_of
from tasks.diffusion.model import fingerprint, load_model
from tasks.mitigate.prune import Card, save_pipeline

PARTS = ("text_encoder", "text_encoder_2", "unet", "vae")


def cast(folder: Path, dtype: torch.dtype) -> None:
    """Stores the weights of every component in another number format."""
    for part in PARTS:
        (path,) = weight_files(folder / part, stem_of(part))
        save_file({name: value.to(dtype) for name, value in load_file(path).items()}, path, {"format": "pt"})


def as_variant(folder: Path) -> None:
    """Stores the weights as a variant alone, as published folders of half precision have them."""
    for part in PARTS:
        (path,) = weight_files(folder / part, stem_of(part))
        path.rename(path.with_name(f"{path.stem}.fp16.safetensors"))


@pytest.fixture
def folder(xl_folder: Path, tmp_path: Path) -> Path:
    return shutil.copytree(xl_folder, tmp_path / "model")


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    """All weights that are loaded of a folder, by component and name."""
    model = load_model(folder, "cpu")
    parts = {"unet": model.denoiser, "vae": model.vae, "text": model.text_encoder}
    return {f"{part} {name}": value for part, module in parts.items() for name, value in module.state_dict().items()}


@pytest.mark.parametrize(
    ("dtype", "said"), [(torch.float16, False), (torch.bfloat16, False), (torch.float8_e4m3fn, True)]
)
def test_fewer_digits_are_widened_as_they_stand(folder: Path, dtype: torch.dtype, said: bool) -> None:
    known = tensors(folder)
    cast(folder, dtype)
    assert problems_of(folder) == []
    notes = notes_of(folder, "float32")
    if said:
        (note,) = notes
        named = note.removeprefix("weights of ").partition(" are stored in eight bits (float8); they are computed")[0]
        assert sorted(named.split(", ")) == [*PARTS]
    else:  # nothing is lost, and half of all models are so
        assert notes == []
    for name, value in tensors(folder).items():
        if value.is_floating_point():
            assert value.dtype == torch.float32
            assert torch.equal(value, known[name].to(dtype).float()), name


def test_a_variant_alone_is_the_model(folder: Path) -> None:
    cast(folder, torch.float16)
    known = tensors(folder)
    as_variant(folder)
    assert problems_of(folder) == []
    assert (
        "are the variant fp16, as there are no others; they are computed with in float32"
        in notes_of(folder, "mixed")[0]
    )
    found = tensors(folder)
    assert all(torch.equal(found[name], value) for name, value in known.items())
    # It is what the fingerprint is of.
    before = fingerprint(folder)
    path = folder / "unet" / "diffusion_pytorch_model.fp16.safetensors"
    save_file({name: value + 1 for name, value in load_file(path).items()}, path, {"format": "pt"})
    assert fingerprint(folder) != before


def test_a_variant_in_several_files_is_the_model(folder: Path) -> None:
    known = tensors(folder)
    pipeline = DiffusionPipeline.from_pretrained(folder)
    pipeline.unet.save_pretrained(folder / "new", variant="fp16", max_shard_size="20KB")
    shutil.rmtree(folder / "unet")
    (folder / "new").rename(folder / "unet")
    assert len(weight_files(folder / "unet", "diffusion_pytorch_model")) > 1
    assert problems_of(folder) == []
    found = tensors(folder)
    assert all(torch.equal(found[name], value) for name, value in known.items())


def test_a_plain_file_counts_before_a_variant(folder: Path) -> None:
    known, before = tensors(folder), fingerprint(folder)
    (path,) = weight_files(folder / "unet", "diffusion_pytorch_model")
    save_file({"other": torch.ones(1)}, path.with_name("diffusion_pytorch_model.fp16.safetensors"))
    assert problems_of(folder) == notes_of(folder, "float32") == []
    assert fingerprint(folder) == before
    assert tensors(folder).keys() == known.keys()


def test_a_snapshot_of_links_is_a_folder_like_others(folder: Path, tmp_path: Path) -> None:
    """As the Hub's cache has them: names are links to files that are called by their digests."""
    known, before = tensors(folder), fingerprint(folder)
    blobs = tmp_path / "blobs"
    blobs.mkdir()
    for number, path in enumerate(sorted(path for path in folder.rglob("*") if path.is_file())):
        path.rename(blobs / str(number))
        path.symlink_to(blobs / str(number))
    assert problems_of(folder) == []
    assert fingerprint(folder) == before
    assert tensors(folder).keys() == known.keys()


@pytest.mark.parametrize("change", [as_variant, lambda folder: cast(folder, torch.float16)], ids=["variant", "half"])
def test_what_is_exported_of_it_loads_anywhere(folder: Path, tmp_path: Path, change: Callable[[Path], None]) -> None:
    change(folder)
    model = load_model(folder, "cpu")
    card = Card("pruned", "base", "0123", "NeMo", "audit-7", "value", pruned=1, total=2)
    save_pipeline(folder, model.denoiser, tmp_path / "whole", card)
    pipeline = DiffusionPipeline.from_pretrained(tmp_path / "whole")
    for name, value in model.text_encoder.state_dict().items():
        assert torch.equal(pipeline.text_encoder.state_dict()[name], value), name
    assert json.loads((tmp_path / "whole" / "model_index.json").read_text())["unet"]
