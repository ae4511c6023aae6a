"""A contact sheet: training images and what each variant makes of them, as one PNG."""

import io
from collections.abc import Sequence
from itertools import zip_longest

from PIL import Image, ImageDraw, ImageFont

from tasks.report.report import Strip, StripImage

CELL, GAP, HEAD, SIZE = 112, 6, 34, 11
COPY, OTHER = (190, 40, 40), (90, 90, 90)


def sheet(strips: Sequence[Strip], threshold: float = 0.7) -> bytes:
    """A row a training image, a column a variant under a condition; copies are framed. Below an image that several
    prompts share stands how many.

    Raises:
        ValueError: there are no strips.
    """
    if not strips:
        raise ValueError("a contact sheet needs at least one training image")
    labels = list(dict.fromkeys(one.label for strip in strips for one in (strip.original, *strip.generated)))
    width = GAP + len(labels) * (CELL + GAP)
    canvas = Image.new("RGB", (width, HEAD + len(strips) * (CELL + SIZE + 2 * GAP)), "white")
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(SIZE)
    for column, label in enumerate(labels):
        draw.multiline_text((GAP + column * (CELL + GAP), 4), label.replace(", ", ",\n"), "black", font, spacing=2)
    for row, strip in enumerate(strips):
        top = HEAD + row * (CELL + SIZE + 2 * GAP)
        shown = {one.label: one for one in (strip.original, *strip.generated)}
        for column, label in enumerate(labels):
            if label in shown:
                left = GAP + column * (CELL + GAP)
                _place(canvas, draw, font, shown[label], left, top, threshold, strip.prompts)
    stream = io.BytesIO()
    canvas.save(stream, "PNG", optimize=True)
    return stream.getvalue()


def grid(images: Sequence[bytes], columns: int) -> bytes:
    """Images row by row, twice their size when they are small."""
    opened = [Image.open(io.BytesIO(data)).convert("RGB") for data in images]
    side = max(CELL, opened[0].width)
    rows = list(zip_longest(*[iter(opened)] * columns))
    canvas = Image.new("RGB", (columns * (side + GAP) + GAP, len(rows) * (side + GAP) + GAP), "white")
    for row, line in enumerate(rows):
        for column, image in enumerate(line):
            if image is not None:
                corner = (GAP + column * (side + GAP), GAP + row * (side + GAP))
                canvas.paste(image.resize((side, side), Image.Resampling.LANCZOS), corner)
    stream = io.BytesIO()
    canvas.save(stream, "PNG", optimize=True)
    return stream.getvalue()


def _place(
    canvas: Image.Image,
    draw: ImageDraw.ImageDraw,
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
    one: StripImage,
    left: int,
    top: int,
    threshold: float,
    prompts: int,
) -> None:
    image = Image.open(io.BytesIO(one.data)).convert("RGB").resize((CELL, CELL), Image.Resampling.LANCZOS)
    canvas.paste(image, (left, top))
    if one.sscd is None:
        if prompts > 1:
            draw.text((left, top + CELL + 2), f"{prompts} prompts", OTHER, font)
        return
    copied = one.sscd > threshold
    if copied:
        draw.rectangle((left, top, left + CELL - 1, top + CELL - 1), outline=COPY, width=3)
    draw.text((left, top + CELL + 2), f"SSCD {one.sscd:.2f}", COPY if copied else OTHER, font)
