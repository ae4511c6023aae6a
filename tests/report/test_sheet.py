import io
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from tasks.diffusion.sampling import to_png
from tasks.report.report import Strip, StripImage
from tasks.report.sheet import CELL, COPY, GAP, HEAD, grid, sheet
from tasks.report.task.page import SHOWN, _small


def image(grey: int) -> bytes:
    return to_png(np.full((8, 8, 3), grey, np.uint8))


def test_copies_are_framed_and_others_are_not() -> None:
    strip = Strip(
        "rug",
        StripImage("training", image(0)),
        [StripImage("a", image(100), 0.9), StripImage("b", image(200), 0.1)],
    )
    pixels = np.asarray(Image.open(io.BytesIO(sheet([strip]))))
    corner = [tuple(pixels[HEAD + 1, GAP + column * (CELL + GAP) + 1].tolist()) for column in range(3)]
    assert corner == [(0, 0, 0), COPY, (200, 200, 200)]


def test_below_an_image_of_several_prompts_stands_how_many() -> None:
    strip = Strip("rug", StripImage("training", image(0)), [])
    lone, shared = (
        np.asarray(Image.open(io.BytesIO(sheet([replace(strip, prompts=prompts)])))).astype(int) for prompts in (1, 5)
    )
    below = slice(HEAD + CELL, None)
    assert (lone[below] == 255).all() and (shared[below] < 255).any()
    assert (lone[: HEAD + CELL] == shared[: HEAD + CELL]).all()


def test_large_images_are_shown_small_and_small_ones_as_they_are() -> None:
    assert _small(image(10)) == image(10)
    large = Image.open(io.BytesIO(_small(to_png(np.full((200, 800, 3), 9, np.uint8)))))
    assert large.size == (SHOWN, SHOWN // 4) and large.format == "PNG"
    stream = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(stream, "WEBP", lossless=True)
    assert np.asarray(Image.open(io.BytesIO(_small(stream.getvalue()))))[0, 0].tolist() == [255, 0, 0]


def test_no_images_no_sheet() -> None:
    with pytest.raises(ValueError, match="at least one"):
        sheet([])


def test_a_grid_leaves_the_last_places_empty() -> None:
    pixels = np.asarray(Image.open(io.BytesIO(grid([image(10)] * 3, 2))))
    assert pixels.shape == (2 * (CELL + GAP) + GAP, 2 * (CELL + GAP) + GAP, 3)
    assert pixels[GAP + 1, GAP + 1, 0] == 10
    assert pixels[-GAP - 2, -GAP - 2, 0] == 255
