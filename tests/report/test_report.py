"""The page: whole, self-contained, and safe whatever stands in a prompt."""

import io
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tasks.conditions import ORDINARY, PROMPT, dori
from tasks.errors import InputError
from tasks.methods import columns, metrics
from tasks.report.charts import Chart, Curve, Matrix
from tasks.report.report import Report, Strip, StripImage, data_uri, render, table_text
from tasks.report.standing import standings
from tasks.report.verdict import Row
from tests.report.test_verdict import ORIGINAL, mr

EVIL = "<script>alert(1)</script> \"quoted\" & 'more'"


def png(seed: int = 0) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(stream, "PNG")
    return stream.getvalue()


def whole() -> Report:
    rows = [*ORIGINAL, mr("nemo-union", "prompt", 2), Row("nemo-union", PROMPT, "clip", 0.31, 0.29, 0.33, 20)]
    rows += [Row("nemo-union", ORDINARY, "fid", 12.345, None, None, 200), mr("nemo-union", "dori-noise", 18)]
    strips = [
        Strip(
            EVIL,
            StripImage("training image", png()),
            [StripImage(EVIL, png(1), 0.91), StripImage("nemo-union", png(2), 0.2)],
        )
    ]
    return Report(
        title=EVIL,
        subtitle="quick profile",
        facts=[("model", EVIL)],
        rows=rows,
        standings=standings(),
        strips=strips,
        attacks=[Chart("Loss", "step", "loss", [Curve(EVIL, np.linspace(1, 0.1, 50).tolist())] * 8, smooth=5)],
        matrices=[Matrix("Wanda", ["one", EVIL], [[1, 0.4], [0.4, 1]], note="By chance: 0.01.")],
        curves=[Chart("IOU", "step", "IOU", [Curve("a", [0.5])])],
    )


class Tags(HTMLParser):
    """Checks that tags nest, and gathers them."""

    VOID = ("meta", "img", "br", "link", "input")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_is_whole_and_needs_nothing_else() -> None:
    page = render(whole())
    tags = Tags()
    tags.feed(page)
    assert page.startswith("<!doctype html>")
    assert not tags.open
    names = [name for name, _ in tags.seen]
    assert "script" not in names
    assert "link" not in names
    assert all(attrs["src"].startswith("data:image/png;base64,") for name, attrs in tags.seen if name == "img")  # type: ignore[union-attr]
    assert not re.search(r"(https?:)?//[a-z]", re.sub(r"data:[^\"]*", "", page))
    assert all(attrs.get("alt") for name, attrs in tags.seen if name == "img")
    targets = {attrs.get("id") for _, attrs in tags.seen}
    assert all(attrs["href"][1:] in targets for name, attrs in tags.seen if name == "a")  # type: ignore[index]


def test_everything_is_escaped() -> None:
    page = render(whole())
    assert "<script" not in page
    assert page.count("&lt;script&gt;") >= 5


def test_copies_are_named_in_words_not_by_colour_alone() -> None:
    page = render(whole())
    assert "0.91 copy" in page
    assert "0.20 copy" not in page


def test_variants_keep_their_order_and_figures_their_intervals() -> None:
    page = render(whole())
    assert page.index('rowspan="3">original') < page.index('rowspan="3">nemo-union')
    assert "0.310<small>0.290–0.330" in page
    assert "12.345<small>" in page
    assert "10 %<small>1–32 % of 20" in page


def test_a_report_of_figures_alone() -> None:
    page = render(Report("Audit", "", [], ORIGINAL, standings()))
    assert "Images</h2>" not in page
    assert "No mitigation was audited" in page


def test_images_are_png_or_jpeg() -> None:
    with pytest.raises(InputError, match="neither PNG nor JPEG"):
        data_uri(b"<svg onload=alert(1)>")


def test_the_table_for_the_terminal() -> None:
    text = table_text(whole().rows)
    assert "95 %" in text
    assert "75–100 %" in text
    assert "FID" not in text  # for the page, which is wider
    assert max(map(len, text.splitlines())) <= 120
    assert text.count("nemo-union") == 1
    assert table_text([Row("[red]x", PROMPT, "mr", 1.0, None, None, 1)]).count("[red]x") == 1


def test_the_widest_names_and_counts_fit_on_a_terminal() -> None:
    metrics = [name for name, column in columns().items() if column.narrow]
    places = (("adversarial-finetune", PROMPT), ("original", dori("noise", "control")))
    rows = [Row(*place, metric, 1.0, 0.25, 1.0, 2, 4) for place in places for metric in metrics]
    text = table_text(rows)
    assert text.count("2 (4 prompts)") == 2 and text.count("0.250–1.000") == 2
    assert "adversarial-finetune" in text and "dori-noise-control" in text


def test_the_docs_explain_every_column() -> None:
    page = (Path(__file__).parents[2] / "docs" / "report.md").read_text()
    table = page.partition("## The columns")[2].partition("\n\nVariants")[0]
    cells = [line.split("|") for line in table.splitlines() if line.startswith("| ") and "`" in line]
    headings = {
        metric.strip(" `"): heading.strip()
        for _, headings, metrics, *_ in cells
        for heading, metric in zip(headings.split(";"), metrics.split("`, `"), strict=False)
    }
    own = {column.metric: column.heading for one in metrics() for column in one.columns}
    assert own.items() <= headings.items()
