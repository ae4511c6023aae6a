"""The attack: it finds the optimum where that is known, and neither batching nor the attack itself changes anything."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from tasks.diffusion.families import Model, StableDiffusion
from tasks.dori import DoriParams, attack, search, start_embeddings
from tasks.errors import InputError
from tests.support.denoisers import TOKENS, WIDTH, tiny_model

SHAPE = (4, 8, 8)
KEYS = [("a", 0), ("b", 0), ("c", 7)]


@pytest.fixture(scope="module")
def model() -> Model:
    return tiny_model()


class Recaller(nn.Module):
    """Knows that z_t = sqrt(a) x + sqrt(1 - a) eps, and reads x, one number a channel, off the first token.

    So eps = (z_t - sqrt(a) x(y)) / sqrt(1 - a), the loss is a / (1 - a) |x - x(y)|^2, and 0 exactly where x(y) = x.
    """

    def __init__(self, signal: torch.Tensor, prediction: str = "epsilon") -> None:
        super().__init__()
        self.signal, self.prediction = signal, prediction
        self.weight = nn.Parameter(torch.eye(4, WIDTH))
        self.dtype = torch.float32
        self.config = SimpleNamespace(sample_size=8, in_channels=4)

    def forward(self, latents, steps, text, added_cond_kwargs=None, return_dict=False):  # type: ignore[no-untyped-def]
        a = self.signal[steps].view(-1, 1, 1, 1)
        clean = (text[:, 0] @ self.weight.T)[:, :, None, None]
        noise = (latents - a.sqrt() * clean) / (1 - a).sqrt()
        return (noise if self.prediction == "epsilon" else a.sqrt() * noise - (1 - a).sqrt() * clean,)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_finds_the_optimum_that_is_known(model: Model, prediction: str) -> None:
    known = tiny_model(Recaller(model.schedule.own.alphas_cumprod, prediction), prediction_type=prediction)
    wanted = torch.tensor([[1.0, -0.5, 0.25, 0.0], [-1.0, 0.5, 0.75, -0.25]])
    images = wanted[:, :, None, None].expand(2, *SHAPE)
    found = search(known, images, torch.zeros(2, TOKENS, WIDTH), KEYS[:2], DoriParams(steps=300, learning_rate=0.05))
    for trigger, image in zip(found, wanted, strict=True):
        assert torch.allclose(trigger.embedding[0, :4], image, atol=0.02)
        assert trigger.losses[-1] < 1e-2 * trigger.losses[0]
        # Nothing else was given a gradient, so nothing else moved, and the way is the length of the image's numbers.
        assert torch.equal(trigger.embedding[1:], torch.zeros(TOKENS - 1, WIDTH))
        assert trigger.distance(len(trigger.losses)) == pytest.approx(image.norm().item(), abs=0.05)


def test_the_first_step_of_adam_is_the_learning_rate(model: Model) -> None:
    start = torch.randn(1, TOKENS, WIDTH)
    (trigger,) = search(model, torch.randn(1, *SHAPE), start, KEYS[:1], DoriParams(steps=1, learning_rate=0.1))
    moved = (trigger.embedding - start[0]).abs()
    assert moved.max() == pytest.approx(0.1, rel=1e-3)


def test_weights_stay_bit_equal_and_keep_no_gradient(model: Model) -> None:
    unet = model.denoiser
    before = {name: value.clone() for name, value in unet.state_dict().items()}
    unet.train().requires_grad_(True)
    try:
        search(model, torch.randn(1, *SHAPE), torch.randn(1, TOKENS, WIDTH), KEYS[:1], DoriParams(steps=2))
        assert unet.training
        assert all(weight.requires_grad for weight in unet.parameters())
        assert all(weight.grad is None for weight in unet.parameters())
    finally:
        unet.eval().requires_grad_(False)
    assert all(torch.equal(value, before[name]) for name, value in unet.state_dict().items())


@pytest.mark.parametrize("start", ["prompt", "noise", "other"])
def test_images_attacked_together_go_the_way_they_go_alone(model: Model, start: str) -> None:
    images = torch.randn(3, *SHAPE)
    params = DoriParams(steps=20, batch=2, start=start, restarts=2, images_at_once=4)
    prompts = ["cat", "dog", "sun"]
    together = attack(model, images, prompts, KEYS, params)
    single = params.model_copy(update={"images_at_once": 1})
    alone = [
        trigger
        for row in (2, 0, 1)
        for trigger in attack(model, images[[row]], [prompts[row]], [KEYS[row]], single, pool=prompts)
    ]
    by_key = {(trigger.key, trigger.restart): trigger for trigger in alone}
    assert [(t.key, t.restart) for t in together] == [(key, restart) for key in KEYS for restart in (0, 1)]
    for trigger in together:
        other = by_key[trigger.key, trigger.restart]
        assert torch.allclose(torch.tensor(trigger.losses), torch.tensor(other.losses), rtol=1e-4)
        assert (trigger.embedding - other.embedding).norm() < 1e-4 * trigger.distance(len(trigger.losses))
    first, second = together[:2]
    assert not torch.equal(first.embedding, second.embedding)


def test_noises_that_do_not_fit_together_go_one_after_the_other(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    images, starts, params = torch.randn(2, *SHAPE), torch.randn(2, TOKENS, WIDTH), DoriParams(steps=5, batch=3)
    whole = search(model, images, starts, KEYS[:2], params)
    errors, sizes = StableDiffusion.training_loss, []

    def short_of_memory(model: StableDiffusion, clean: torch.Tensor, *rest: torch.Tensor) -> torch.Tensor:
        sizes.append(len(clean))
        if len(clean) > 2:
            raise torch.OutOfMemoryError
        return errors(model, clean, *rest)

    monkeypatch.setattr(StableDiffusion, "training_loss", short_of_memory)
    pieces = search(model, images, starts, KEYS[:2], params)
    assert sizes == [6, 3, 2, 2, 2, *[2, 2, 2] * 4]  # what memory holds is found out once
    for one, other in zip(whole, pieces, strict=True):
        assert torch.allclose(torch.tensor(one.losses), torch.tensor(other.losses), rtol=1e-4)
        assert (one.embedding - other.embedding).norm() < 1e-4 * one.distance(5)


def test_snapshots_end_with_the_result(model: Model) -> None:
    params, start = DoriParams(steps=4, batch=2, also_at=(0, 2, 4)), torch.randn(1, TOKENS, WIDTH)
    (trigger,) = search(model, torch.randn(1, *SHAPE), start, KEYS[:1], params)
    assert list(trigger.snapshots) == [0, 2, 4]
    assert torch.equal(trigger.after(0), start[0]) and trigger.distance(0) == 0
    assert torch.equal(trigger.snapshots[4], trigger.embedding)
    assert not torch.equal(trigger.snapshots[2], trigger.embedding)
    assert torch.equal(trigger.after(2), trigger.snapshots[2]) and torch.equal(trigger.after(4), trigger.embedding)
    assert 0 < trigger.distance(2) != trigger.distance(4) > 0


def test_a_smaller_budget_is_the_beginning_of_a_larger_one(model: Model) -> None:
    latents, starts = torch.randn(2, *SHAPE), torch.randn(2, TOKENS, WIDTH)
    large = search(model, latents, starts, KEYS[:2], DoriParams(steps=4, batch=2, also_at=(2,)))
    small = search(model, latents, starts, KEYS[:2], DoriParams(steps=2, batch=2))
    for one, other in zip(large, small, strict=True):
        assert torch.equal(one.snapshots[2], other.embedding)
        assert one.losses[:2] == other.losses


def test_progress_adds_up(model: Model) -> None:
    seen: list[int] = []
    attack(
        model, torch.randn(3, *SHAPE), ["a", "b", "c"], KEYS, DoriParams(steps=2, batch=1, restarts=2), done=seen.append
    )
    assert sum(seen) == 3 * 2 * 2


def test_starts(model: Model) -> None:
    params = DoriParams()
    prompts = ["cat", "dog"]
    assert torch.equal(start_embeddings(model, "prompt", prompts, KEYS[:2], params), model.encode(prompts))
    assert torch.equal(start_embeddings(model, "other", prompts, KEYS[:2], params), model.encode(prompts[::-1]))
    with pytest.raises(InputError, match="two different prompts"):
        start_embeddings(model, "other", ["cat", "cat"], KEYS[:2], params)
    keys = [(str(n), 0) for n in range(500)]
    pool = ["cat", "dog", "sun", "moon"]
    real = model.encode(pool).flatten(0, 1)
    matched = start_embeddings(model, "noise", ["cat"] * 500, keys, params, pool).flatten(0, 1)
    assert torch.allclose(matched.std(0), real.std(0), rtol=0.1)
    assert torch.allclose(matched.mean(0), real.mean(0), atol=0.1)
    unit = start_embeddings(model, "noise", ["cat"] * 500, keys, DoriParams(noise_scale="unit"), pool)
    assert unit.std().item() == pytest.approx(1, rel=0.02)
    again = start_embeddings(model, "noise", ["cat"], keys[3:4], DoriParams(noise_scale="unit"), pool)
    assert torch.equal(again[0], unit[3])


def test_a_diverging_attack_names_the_image(model: Model) -> None:
    images = torch.randn(2, *SHAPE)
    images[1, 0, 0, 0] = float("nan")
    with pytest.raises(InputError, match="attack on b diverged at step 1"):
        search(model, images, torch.randn(2, TOKENS, WIDTH), KEYS[:2], DoriParams(steps=2))


def test_half_precision_is_refused(model: Model) -> None:
    half = replace(model, denoiser=SimpleNamespace(dtype=torch.float16))
    with pytest.raises(InputError, match="float32 or bfloat16"):
        search(half, torch.randn(1, *SHAPE), torch.randn(1, TOKENS, WIDTH), KEYS[:1], DoriParams())
