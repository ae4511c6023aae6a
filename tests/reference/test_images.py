"""The images of the reference world: determined by their scene, soft, and named by their captions."""

import io
import json
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from tasks.reference import images as recipe
from tasks.reference.images import COLOURS, PATTERNS, SIDE, EmojiImages, caption, near_copies, random_scene

NUMBER = 1000
"""The fewest emoji that the recipe takes for a whole package."""


@pytest.fixture(scope="module")
def emoji(tmp_path_factory: pytest.TempPathFactory) -> EmojiImages:
    """Archives as the two npm packages have them, of coloured discs."""
    folder = tmp_path_factory.mktemp("packages")
    entries = [{"hexcode": f"{n:X}", "label": f"Disc: {n}", "tags": ["round"], "group": n % 10} for n in range(NUMBER)]
    with tarfile.open(folder / "names.tgz", "w:gz") as archive:
        _add(archive, "package/en/data.json", json.dumps(entries).encode())
    with tarfile.open(folder / "images.tgz", "w:gz") as archive:
        for n in range(NUMBER):
            disc = Image.new("RGBA", (16, 16))
            ImageDraw.Draw(disc).ellipse((1, 1, 14, 14), fill=(n % 256, 255 - n % 256, 80, 255))
            stream = io.BytesIO()
            disc.save(stream, "WEBP", lossless=True)
            _add(archive, f"package/assets/{n:x}.webp", stream.getvalue())
    return EmojiImages(folder / "images.tgz", folder / "names.tgz")


def _add(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    archive.addfile(member, io.BytesIO(data))


def test_a_scene_determines_its_image(emoji: EmojiImages) -> None:
    scene = random_scene("a", np.random.default_rng(0))
    first, again = emoji.compose(scene), emoji.compose(scene)
    assert first.shape == (SIDE, SIDE, 3) and first.dtype == np.uint8
    assert np.array_equal(first, again)
    assert not np.array_equal(first, emoji.compose(replace(scene, seed=scene.seed + 1)))


def test_nothing_is_finer_than_two_pixels(emoji: EmojiImages) -> None:
    for seed in range(5):
        image = emoji.compose(random_scene("b", np.random.default_rng(seed))).astype(np.float32)
        power = np.abs(np.fft.fft2(image - image.mean((0, 1)), axes=(0, 1))) ** 2
        frequency = np.abs(np.fft.fftfreq(SIDE))
        fine = np.maximum(*np.meshgrid(frequency, frequency)) > 0.25
        assert power[fine].sum() < 0.02 * power.sum()


def test_every_pattern_is_seen(emoji: EmojiImages) -> None:
    rng = np.random.default_rng(1)
    for name in PATTERNS:
        ground = recipe.Ground("red", "navy", "cream", name)
        image = emoji.compose(replace(random_scene("c", rng), grounds=(ground, ground)))
        assert image.std((0, 1)).max() > 20


def test_near_copies_differ_a_little(emoji: EmojiImages) -> None:
    scene = random_scene("d", np.random.default_rng(2))
    made = [emoji.compose(copy).astype(np.float32) for copy in near_copies(scene, 4)]
    other = emoji.compose(random_scene("d", np.random.default_rng(3))).astype(np.float32)
    apart = [np.abs(a - b).mean() for n, a in enumerate(made) for b in made[:n]]
    assert min(apart) > 0 and max(apart) < 0.5 * np.abs(made[0] - other).mean()


def test_a_caption_names_the_emoji_and_its_ground(emoji: EmojiImages) -> None:
    rng = np.random.default_rng(4)
    for _ in range(20):
        scene = random_scene("e", rng)
        text = caption(emoji.emoji["e"], scene, rng)
        assert "disc 14" in text
        assert any(word in text for word in (*COLOURS, *PATTERNS))


def test_half_a_package_is_refused(tmp_path: Path) -> None:
    for name in ("names", "images"):
        with tarfile.open(tmp_path / f"{name}.tgz", "w:gz") as archive:
            _add(archive, "package/en/data.json", b"[]")
    with pytest.raises(ValueError, match="only 0 emoji have both an image and a name"):
        EmojiImages(tmp_path / "images.tgz", tmp_path / "names.tgz")
