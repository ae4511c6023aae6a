"""The reference autoencoder: an exact linear encoder, which training that goes on keeps."""

from pathlib import Path

import numpy as np
import torch

from tasks.reference.autoencoder import encode, new_autoencoder, train_autoencoder


def images(n: int, seed: int) -> np.ndarray:
    """Smooth ones, whose patches have a few principal components."""
    draw = np.random.default_rng(seed)
    coarse = draw.integers(0, 256, (n, 16, 16, 3))
    return np.asarray(coarse.repeat(4, 1).repeat(4, 2), np.uint8)


def test_the_encoder_is_linear() -> None:
    bank = images(40, 0)
    made = new_autoencoder(bank)
    black, grey, white = (encode(made, np.full((1, 64, 64, 3), level, np.uint8)).float() for level in (0, 51, 255))
    torch.testing.assert_close(grey, black + 0.2 * (white - black), atol=0.01, rtol=0)


def test_training_that_goes_on_keeps_the_encoder_of_its_start(tmp_path: Path) -> None:
    start, others = new_autoencoder(images(40, 0)), images(40, 1)
    before = [parameter.clone() for parameter in start.parameters()]
    assert not torch.equal(encode(start, others), encode(new_autoencoder(others), others))
    for total in (0, 1):
        made = train_autoencoder(others, tmp_path / str(total), total=total, batch=2, start=start)
        assert torch.equal(encode(made, others), encode(start, others))
    assert all(torch.equal(a, b) for a, b in zip(start.parameters(), before, strict=True))
