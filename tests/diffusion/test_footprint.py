"""What a model takes in memory is counted without computing, and a processor is given batches that fit."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tasks.collect.norms import norms_by_prompt
from tasks.diffusion import footprint
from tasks.diffusion.families import Model
from tasks.diffusion.families.pieces.published import write_configuration
from tasks.diffusion.footprint import (
    bytes_of,
    bytes_of_model,
    bytes_of_training,
    bytes_of_work,
    counted,
    fitting,
    on_meta,
)
from tasks.diffusion.model import load_model
from tasks.diffusion.outline import weightless
from tasks.diffusion.sampling import SamplingParams, generate, image_size
from tasks.diffusion.sites import Site
from tasks.dori import DoriParams, search
from tests.support.denoisers import TOKENS, WIDTH, tiny_model
from tests.support.pipelines import write_pixart, write_v, write_xl

FLOAT = 4


def test_what_is_alive_together_is_counted() -> None:
    with counted() as tally:
        one = torch.zeros(100, device="meta")  # 400 bytes
        view = one.view(10, 10).t()  # shares them
        two = view + 1
        assert tally.now == 800
        del one, view
        assert tally.now == 400
        three = two * 2
        two.add_(three)
    assert (tally.now, tally.peak) == (800, 800)


def test_what_was_there_before_does_not_count() -> None:
    layer = nn.Linear(100, 10, bias=False, device="meta")
    with counted() as tally, torch.no_grad():
        layer(torch.zeros(5, 100, device="meta"))
    assert tally.peak == FLOAT * (5 * 100 + 5 * 10)


def test_attention_keeps_no_scores() -> None:
    query, key, value = (torch.zeros(1, 2, 1000, 4, device="meta", requires_grad=True) for _ in range(3))
    with counted() as tally:
        out = nn.functional.scaled_dot_product_attention(query, key, value=value)
        assert out.shape == query.shape
        torch.autograd.grad(out.sum(), (query, key, value))
    assert tally.peak < FLOAT * 8 * 10_000 < FLOAT * 2 * 1000**2


def test_a_copy_on_meta_has_the_shapes_and_no_numbers() -> None:
    denoiser = tiny_model().denoiser
    empty = on_meta(denoiser)
    assert bytes_of(empty) == bytes_of(denoiser) == FLOAT * sum(one.numel() for one in denoiser.parameters())
    assert {one.device.type for one in empty.parameters()} == {"meta"}
    assert {one.device.type for one in denoiser.parameters()} == {"cpu"}
    assert [tuple(one.shape) for one in empty.parameters()] == [tuple(one.shape) for one in denoiser.parameters()]


@pytest.mark.parametrize("write", [write_v, write_xl, write_pixart])
def test_a_folder_tells_what_its_model_takes(tmp_path: Path, write: Callable[[Path], Path]) -> None:
    folder = write(tmp_path / "model")
    model, empty = load_model(folder, "cpu"), weightless(folder)
    assert bytes_of_model(empty) == bytes_of_model(model)
    for work in ("evaluation", "gradient", "text", "decoder", "encoder"):
        one, two = bytes_of_work(model, work), bytes_of_work(model, work, 2)
        assert 0 < one < two <= 2 * one
        assert bytes_of_work(empty, work) == one
    assert bytes_of_work(model, "gradient") > bytes_of_work(model, "evaluation")
    assert image_size(empty) == image_size(model)


def test_a_published_model_takes_what_is_known_of_it(tmp_path: Path) -> None:
    write_configuration(tmp_path, "sd1")
    model = weightless(tmp_path)
    assert sum(one.numel() for one in model.denoiser.parameters()) == 859_520_964
    weights = [one.requires_grad_(True) for one in model.denoiser.parameters()]
    kept, again = bytes_of_training(model, weights, False), bytes_of_training(model, weights, True)
    # The gradients themselves, and what is kept of the way forward.
    assert bytes_of(model.denoiser) < again < kept < 1.3 * bytes_of(model.denoiser)
    assert 100e6 < bytes_of_work(model, "evaluation") < 200e6
    assert image_size(model) == (512, 512)


def test_a_processor_is_given_what_fits_and_others_halve(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model()
    each = bytes_of_work(model, "evaluation")
    monkeypatch.setattr(footprint, "ROOM", 3.5 * each)
    assert [fitting(model, "evaluation", batch) for batch in (1, 2, 3, 4, 32)] == [1, 2, 3, 3, 3]
    monkeypatch.setattr(footprint, "ROOM", 1.0)
    assert fitting(model, "evaluation", 32) == 1
    assert fitting(replace(model, device=torch.device("mps")), "evaluation", 32) == 1
    assert fitting(replace(model, device=torch.device("cuda")), "evaluation", 32) == 32


def test_what_cannot_be_counted_is_said_once(capsys: pytest.CaptureFixture[str]) -> None:
    model = tiny_model()
    model.denoiser.register_forward_pre_hook(lambda module, given: given[0].sum().item())  # meta has no numbers
    assert [fitting(model, "gradient", batch) for batch in (8, 8, 1, 4)] == [8, 8, 1, 4]
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith("note: how much memory a sample takes is not known (gradient: Tensor.item()")
    assert first.endswith(": 8 are taken at a time") and second.endswith(": 4 are taken at a time")


def test_what_is_computed_again_is_counted_so() -> None:
    model = tiny_model()
    kept = bytes_of_work(model, "gradient", 2)
    model.denoiser.enable_gradient_checkpointing()
    assert bytes_of_work(model, "gradient", 2) < kept
    model.denoiser.disable_gradient_checkpointing()
    assert bytes_of_work(model, "gradient", 2) == kept


def seen(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The batches that the denoiser is given from now on; none on the meta device."""
    sizes: list[int] = []
    output = Model.output

    def noted(model: Model, latents: torch.Tensor, *rest: Any) -> torch.Tensor:
        if latents.device.type != "meta":
            sizes.append(len(latents))
        return output(model, latents, *rest)

    monkeypatch.setattr(Model, "output", noted)
    return sizes


def test_results_are_the_same_in_batches_that_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    model, draw = tiny_model(), torch.Generator().manual_seed(0)
    texts, keys = torch.randn(6, TOKENS, WIDTH, generator=draw), [(str(n), 0) for n in range(6)]
    latents, params = torch.randn(6, *model.latent_shape, generator=draw), SamplingParams(steps=2, scheduler="ddim")
    layers = model.layers(Site.FEED_FORWARD_HIDDEN)
    dori = DoriParams(steps=2, batch=2, images_at_once=6)

    def norms() -> torch.Tensor:
        blocks = list(norms_by_prompt(model, layers, texts, keys, params))
        return torch.cat([block.conditional[1, 0] for block in blocks])

    def attacked() -> torch.Tensor:
        return torch.stack([one.embedding for one in search(model, latents, texts, keys, dori)])

    sizes = seen(monkeypatch)
    whole = norms(), attacked()
    assert sizes == [12, 12, 12, 12]
    sizes.clear()
    monkeypatch.setattr(footprint, "ROOM", 4.0 * bytes_of_work(model, "evaluation"))
    few = norms(), attacked()
    assert max(sizes) <= 4 and sizes.count(4) == 6  # two prompts at a time, with both halves of guidance
    for one, other in zip(whole, few, strict=True):
        torch.testing.assert_close(one, other.to(one), rtol=1e-4, atol=1e-6)


def test_prompts_are_encoded_in_batches_that_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load_model(write_pixart(tmp_path / "model"), "cpu")
    prompts = ["a cat", "two dogs", "", "a b c", "sun"]
    whole = model.encode(prompts)
    family: Any = type(model)
    sizes, encoded = [], family._encoded

    def noted(model: Any, some: list[str]) -> torch.Tensor:
        sizes.append(len(some))
        return encoded(model, some)

    monkeypatch.setattr(family, "_encoded", noted)
    monkeypatch.setattr(footprint, "ROOM", 2.5 * bytes_of_work(model, "text"))
    torch.testing.assert_close(model.encode(prompts), whole)
    assert sizes[-3:] == [2, 2, 1]


def test_the_size_of_images_costs_no_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load_model(write_v(tmp_path / "model"), "cpu")
    made = generate(model, model.encode(["a"]), [("a", 0)], SamplingParams(steps=1))
    devices, decode = [], type(model.vae).decode

    def noted(vae: Any, latents: torch.Tensor, **how: Any) -> Any:
        devices.append(latents.device.type)
        return decode(vae, latents, **how)

    monkeypatch.setattr(type(model.vae), "decode", noted)
    height, width = made.shape[1:3]
    assert image_size(model) == (width, height)
    assert devices == ["meta"]
