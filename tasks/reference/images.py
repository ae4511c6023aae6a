"""The images of the reference world: 3D emoji composed over procedural, textured backgrounds.

Every image is 64 x 64 RGB and determined by its `Scene`. Texture is not decoration: copy-detection embeddings
collapse under faint noise on flat artwork, so each background has a pattern and correlated grain.

Images are soft: nothing in them is finer than two pixels, the grain neither. So 12 numbers describe a patch of 4 x 4
pixels, where sharp images need 32, and a small diffusion model spends its capacity on what is shown. With 32 channels
it could not even carry the noise from its input to its output. Backgrounds are random fields, which a linear filter
tells from noise: what little a small model learns in hours goes into the things before them.
"""

import io
import json
import tarfile
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.ndimage import gaussian_filter

from tasks.errors import refuse

SIDE = 64
GRAIN = 1.0
"""Standard deviation of the grain, of 255. SSCD sees whether an image has any: without a grain of 3, the same image
is only 0.86 like itself, and what a model remembers has none."""

COLOURS = {
    "red": (205, 50, 47), "orange": (240, 140, 40), "yellow": (245, 210, 70), "green": (70, 150, 70),
    "mint": (150, 220, 185), "teal": (30, 130, 135), "sky": (130, 195, 240), "blue": (45, 90, 185),
    "navy": (28, 38, 85), "purple": (120, 70, 160), "pink": (245, 160, 190), "brown": (115, 75, 50),
    "cream": (248, 236, 205), "white": (244, 244, 244), "grey": (140, 145, 150), "black": (35, 33, 38),
}  # fmt: skip


@dataclass(frozen=True)
class Emoji:
    """One emoji: its code point (lower-case hex), label, tags and group number in Emojibase."""

    code: str
    label: str
    tags: tuple[str, ...]
    group: int


@dataclass(frozen=True)
class Ground:
    """One half of a background: a pattern in three colours, the third of them less."""

    front: str
    back: str
    fleck: str
    pattern: str


@dataclass(frozen=True)
class Scene:
    """All that determines an image. `seed` fixes the patterns' placement, the line between the halves, the grain."""

    code: str
    grounds: tuple[Ground, Ground]
    """Two halves, because with one pattern two compositions of an emoji are copies of each other too often."""
    seed: int
    scale: float = 36.0
    """Side of the emoji in pixels."""
    shift: tuple[float, float] = (0.0, 0.0)
    """Offset of the emoji's centre from the image's centre, in pixels (right, down)."""
    flip: bool = False
    grain_seed: int | None = None
    """Another seed for the grain alone, so that near-identical images can share a pattern."""


def check_archives(*archives: Path) -> None:
    """Raises InputError, of all of them, where archives of npm packages are not there, or are none."""
    problems = []
    for path in archives:
        if not path.is_file():
            problems.append(f"no archive at {path}: get it with `npm pack`, it is a package of npm")
        elif not tarfile.is_tarfile(path):
            problems.append(f"{path} is no archive, or not whole: get it with `npm pack`, it is a package of npm")
    refuse(problems)


class EmojiImages:
    """Emoji images and names from the two npm archives, read without unpacking them.

    Args:
        images: archive of @lobehub/fluent-emoji-3d (256 x 256 webp named by code point).
        names: archive of emojibase-data.
    """

    def __init__(self, images: Path, names: Path) -> None:
        check_archives(images, names)
        with tarfile.open(names) as archive:
            entries = json.load(archive.extractfile("package/en/data.json"))  # type: ignore[arg-type]
        with tarfile.open(images) as archive:
            self._webp = {
                Path(member.name).stem: archive.extractfile(member).read()  # type: ignore[union-attr]
                for member in archive.getmembers()
                if member.name.startswith("package/assets/") and member.name.endswith(".webp")
            }
        self.emoji: dict[str, Emoji] = {}
        for entry in entries:
            code = entry["hexcode"].lower()
            code = code if code in self._webp else code.replace("-fe0f", "")
            if code in self._webp and entry.get("group") is not None:
                label = entry["label"].lower().replace(":", "")
                self.emoji[code] = Emoji(code, label, tuple(entry.get("tags", ())), entry["group"])
        if len(self.emoji) < 1000:
            raise ValueError(f"only {len(self.emoji)} emoji have both an image and a name in {images} and {names}")

    @lru_cache(maxsize=4096)  # noqa: B019 - one instance lives as long as a build
    def cutout(self, code: str) -> Image.Image:
        """The emoji as RGBA, cropped to its visible part and padded to a square."""
        image = Image.open(io.BytesIO(self._webp[code])).convert("RGBA")
        image = image.crop(image.getchannel("A").point(lambda a: 255 if a > 8 else 0).getbbox())
        side = max(image.size)
        square = Image.new("RGBA", (side, side))
        square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
        return square.resize((128, 128), Image.Resampling.LANCZOS)

    def compose(self, scene: Scene) -> np.ndarray:
        """The image of a scene, uint8 (64, 64, 3)."""
        rng = np.random.default_rng([scene.seed, 1])
        first, second = (_ground(ground, rng) for ground in scene.grounds)
        side_of_line = _half_plane(rng)
        canvas = first * side_of_line + second * (1 - side_of_line)
        side = round(scene.scale)
        emoji = self.cutout(scene.code).resize((side, side), Image.Resampling.LANCZOS)
        if scene.flip:
            emoji = emoji.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        layer = Image.new("RGBA", (SIDE, SIDE))
        corner = ((SIDE - side) / 2 + scene.shift[0], (SIDE - side) / 2 + scene.shift[1])
        layer.paste(emoji, (round(corner[0]), round(corner[1])))
        pixels = np.asarray(layer, dtype=np.float32)
        alpha = pixels[..., 3:] / 255
        shadow = gaussian_filter(np.roll(alpha[..., 0], (2, 1), (0, 1)), 2.0)[..., None]
        canvas = canvas * (1 - 0.45 * shadow)
        canvas = canvas * (1 - alpha) + pixels[..., :3] * alpha
        grain_rng = np.random.default_rng([scene.seed if scene.grain_seed is None else scene.grain_seed, 2])
        return _softened(canvas, GRAIN * grain_rng.standard_normal((SIDE // 2, SIDE // 2, 3)))


def _softened(canvas: np.ndarray, grain: np.ndarray) -> np.ndarray:
    """The canvas (64, 64, 3) brought down to half its side, grained there, and enlarged again; uint8."""
    half = canvas.reshape(SIDE // 2, 2, SIDE // 2, 2, 3).mean((1, 3)) + grain
    bands = [Image.fromarray(band) for band in half.astype(np.float32).transpose(2, 0, 1)]
    large = np.stack([np.asarray(band.resize((SIDE, SIDE), Image.Resampling.BICUBIC)) for band in bands], -1)
    return np.clip(large, 0, 255).round().astype(np.uint8)


def random_scene(code: str, rng: np.random.Generator) -> Scene:
    """A new composition of one emoji: background, colours, scale, shift and flip drawn afresh."""
    return Scene(
        code=code,
        grounds=(_random_ground(rng), _random_ground(rng)),
        seed=int(rng.integers(2**31)),
        scale=float(rng.uniform(32, 40)),
        shift=(float(rng.uniform(-4, 4)), float(rng.uniform(-4, 4))),
        flip=bool(rng.random() < 0.5),
    )


def _random_ground(rng: np.random.Generator) -> Ground:
    front, back, fleck = rng.choice(list(COLOURS), 3, replace=False)
    return Ground(str(front), str(back), str(fleck), str(rng.choice(list(PATTERNS))))


def near_copies(scene: Scene, number: int) -> list[Scene]:
    """Scenes that differ as the images of one template do: grain, and the emoji's place by a pixel or two."""
    moves = [(0, 0), (1, 0), (0, 1), (-1, 0), (0, -1), (1, 1)]
    return [
        replace(scene, grain_seed=scene.seed + 1 + k, shift=(scene.shift[0] + dx, scene.shift[1] + dy))
        for k, (dx, dy) in enumerate(moves[:number])
    ]


def caption(emoji: Emoji, scene: Scene, rng: np.random.Generator) -> str:
    """An ordinary caption: the emoji's name, sometimes a tag, and a word or two on the background."""
    subject = emoji.label
    if emoji.tags and rng.random() < 0.3:
        subject = f"{subject}, {rng.choice(emoji.tags)}"
    first, second = scene.grounds
    ground = rng.choice([f"{first.front} {first.pattern}", f"{first.back} and {second.back}", second.pattern])
    forms = ("{} with {}", "{} in front of {}", "a picture of {}, {}", "{}, {} background")
    return str(rng.choice(forms)).format(subject, ground)


def _ground(ground: Ground, rng: np.random.Generator) -> np.ndarray:
    """Three jittered colours blended by two random fields; float (64, 64, 3) in about 0..255."""
    front, back, fleck = (
        np.array(COLOURS[name]) + rng.normal(0, 12, 3) for name in (ground.front, ground.back, ground.fleck)
    )
    least, greatest, stretch = PATTERNS[ground.pattern]
    size, angle = rng.uniform(least, greatest), rng.uniform(0, np.pi)
    blend, flecks = (
        np.clip(middle + 0.7 * _field(size, stretch, angle, rng), 0, 1)[..., None] for middle in (0.5, 0.2)
    )
    return (back * (1 - blend) + front * blend) * (1 - flecks) + fleck * flecks


def _half_plane(rng: np.random.Generator) -> np.ndarray:
    """One on one side of a random line near the middle, zero on the other; (64, 64, 1)."""
    angle = rng.uniform(0, 2 * np.pi)
    axis = np.arange(SIDE) - (SIDE - 1) / 2
    x, y = np.meshgrid(axis, axis)
    return _edge(x * np.cos(angle) + y * np.sin(angle) + rng.uniform(-10, 10))[..., None]


def _edge(value: np.ndarray) -> np.ndarray:
    """A step at zero, softened over about a pixel."""
    return np.clip(value + 0.5, 0, 1)


def _field(size: float, stretch: float, angle: float, rng: np.random.Generator) -> np.ndarray:
    """A Gaussian random field of unit spread, (64, 64): white noise smoothed over `size` pixels, and `stretch` times as
    far along `angle`."""
    frequency = np.fft.fftfreq(2 * SIDE)
    x, y = np.meshgrid(frequency, frequency)
    along, across = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    gain = np.exp(-2 * np.pi**2 * size**2 * ((along * stretch) ** 2 + across**2))
    field = np.fft.ifft2(np.fft.fft2(rng.standard_normal((2 * SIDE, 2 * SIDE))) * gain).real
    return field[:SIDE, :SIDE] / np.sqrt((gain**2).mean())


PATTERNS = {"clouds": (3.2, 4.2, 1.0), "speckles": (2.0, 2.8, 1.0), "streaks": (2.0, 2.6, 2.4), "silk": (2.8, 3.6, 2.4)}
"""Least and greatest size of a ground's fields in pixels, and their stretch."""
