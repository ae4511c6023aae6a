"""The reference diffusion model: its shape, how it begins, how it is taught."""

from pathlib import Path

import pytest
import torch

from tasks.diffusion.families import layers_of
from tasks.diffusion.sites import Site
from tasks.errors import InputError
from tasks.reference import training
from tasks.reference.autoencoder import CHANNELS
from tasks.reference.clip import TOKENS, WIDTH
from tasks.reference.denoiser import Hardness, Pairs, loss_weights, new_denoiser, new_scheduler, train_denoiser

EMPTY = torch.zeros(TOKENS, WIDTH, dtype=torch.float16)


def pairs(n: int, seed: int) -> Pairs:
    draw = torch.Generator().manual_seed(seed)
    latents = torch.randn(n, CHANNELS, 16, 16, generator=draw).half()
    return Pairs(latents, torch.randn(n, TOKENS, WIDTH, generator=draw).half())


def test_it_has_the_layers_of_stable_diffusion() -> None:
    unet = new_denoiser()
    assert len(layers_of(unet, Site.VALUE)) == 7
    assert len(layers_of(unet, Site.FEED_FORWARD_HIDDEN)) == 16


def test_it_begins_as_the_identity() -> None:
    noise = torch.randn(3, CHANNELS, 16, 16, generator=torch.Generator().manual_seed(0))
    text = torch.randn(3, TOKENS, WIDTH, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        given = new_denoiser().eval()(noise, torch.tensor([5, 500, 990]), text, return_dict=False)[0]
    # Noise of unit variance comes back up to the chance spread of each image's channels.
    assert (given - noise).square().mean() < 0.001


def test_weights_favour_the_image_alike_at_much_noise() -> None:
    ratio = torch.tensor([1e-4, 0.05, 1.0, 5.0, 100.0])
    weights = loss_weights(ratio / (1 + ratio))
    expected = 1 / (ratio + 0.05) + 0.5 * torch.tensor([1.0, 1.0, 1.0, 1.0, 0.05])
    torch.testing.assert_close(weights, expected)
    schedule = loss_weights(new_scheduler().alphas_cumprod)
    assert schedule.isfinite().all() and (schedule.diff() > 0).all()


def test_a_resumed_training_equals_an_unbroken_one(tmp_path: Path) -> None:
    class Killed(Exception):
        pass

    def teach(path: Path) -> dict[str, torch.Tensor]:
        # Nothing is drawn from the global generator, so what ran before does not matter.
        made = train_denoiser(pairs(8, 0), pairs(2, 1), EMPTY, path, total=4, peak=1e-3, batch=4, planted_batch=2)
        return made.state_dict()

    unbroken = teach(tmp_path / "unbroken.pt")
    path = tmp_path / "broken.pt"

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "SAVE_EVERY_S", 0.0)
        seen = []
        plain = torch.nn.utils.clip_grad_norm_

        def dying(*arguments: object, **named: object) -> object:
            seen.append(1)
            if len(seen) == 3:
                raise Killed
            return plain(*arguments, **named)  # type: ignore[arg-type]

        patch.setattr(torch.nn.utils, "clip_grad_norm_", dying)
        with pytest.raises(Killed):
            teach(path)
    resumed = teach(path)
    assert all(torch.equal(unbroken[name], value) for name, value in resumed.items())


def test_another_recipe_does_not_go_on_from_its_checkpoints(tmp_path: Path) -> None:
    path = tmp_path / "unet.pt"
    train_denoiser(pairs(4, 0), None, EMPTY, path, total=1, peak=1e-3, batch=2)
    with pytest.raises(InputError, match=r"unet.pt is of another training \(1 steps of 2 .* name another --folder"):
        train_denoiser(pairs(4, 0), None, EMPTY, path, total=2, peak=1e-3, batch=2)


def test_what_is_not_learned_yet_is_drawn_more_often_and_nothing_is_left_out() -> None:
    hardness = Hardness(4)
    for _ in range(100):
        hardness.update(torch.tensor([0, 1, 2, 3]), torch.tensor([3.0, 1.0, 0.001, 0.001]))
    drawn = hardness.draw(100_000, torch.Generator().manual_seed(0)).bincount(minlength=4) / 100_000
    # The mean is 1, so the two that are known come at a quarter of it.
    torch.testing.assert_close(drawn, torch.tensor([3.0, 1.0, 0.25, 0.25]) / 4.5, atol=0.01, rtol=0)


def test_pairs_must_match() -> None:
    with pytest.raises(ValueError, match="2 latents but 3 captions"):
        Pairs(torch.zeros(2, CHANNELS, 16, 16), torch.zeros(3, TOKENS, WIDTH))
