"""Images that are easy to tell apart, and folders of them as training sets have them."""

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw


def drawings(n: int, side: int = 64) -> np.ndarray:
    """Random rectangles, lines and ellipses on a coloured ground, uint8 (n, side, side, 3); the first are the same
    however many there are."""
    out = []
    for seed in range(n):
        rng = np.random.default_rng(seed)
        image = Image.new("RGB", (side, side), tuple(rng.integers(0, 256, 3).tolist()))
        draw = ImageDraw.Draw(image)
        for shape in (draw.ellipse, draw.rectangle, draw.line, draw.ellipse, draw.rectangle, draw.line):
            box = np.sort(rng.integers(0, side, (2, 2)), axis=0).flatten().tolist()
            shape(box, fill=tuple(rng.integers(0, 256, 3).tolist()))
        out.append(np.asarray(image))
    return np.stack(out)


def training_set(folder: Path) -> Path:
    """A folder of kohya's with what real ones have: an image twice, an image scaled down, a caption in capitals.

    `10_boat` has four images, `2_tree` five, of which one is an image of the first again, one an image of it at half
    the size, and one has a caption of it.
    """
    images = [Image.fromarray(one) for one in drawings(7, 96)]
    captions = [f"a boat on the {where}" for where in ("lake", "river", "sea", "canal")]
    held = {f"10_boat/{n}.png": (image, captions[n]) for n, image in enumerate(images[:4])}
    held |= {f"2_tree/{n}.png": (image, f"a tree, number {n}") for n, image in enumerate(images[4:6])}
    held |= {
        "2_tree/again.png": (images[0], captions[0]),
        "2_tree/small.png": (images[1].resize((48, 48)), "a tree by the water"),
        "2_tree/capitals.png": (images[6], "A Boat, on the Sea!"),
    }
    for name, (image, caption) in held.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        image.save(folder / name)
        (folder / name).with_suffix(".txt").write_text(f"{caption}\n")
    return folder
