"""Charts: what is drawn, for whoever reads it, and nothing that reaches out of it."""

import re
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from xml.etree import ElementTree

import matplotlib
import numpy as np
import pytest

from tasks.report.charts import HUES, VARIABLES, Chart, Curve, Drawing, Map, Matrix, drawn, inline, running_mean

EVIL = '<script>alert(1)</script> "quoted" & $x_1$ \x1b'
SEEN = EVIL.replace("\x1b", r"\x1b")
SVG = "{http://www.w3.org/2000/svg}"


def chart(*curves: Curve, smooth: int = 1, x_marks: tuple[str, ...] = ()) -> Chart:
    return Chart("Loss", "step", "loss", curves, "a note", smooth, x_marks)


LONG = np.linspace(1, 0.1, 50).tolist()
DRAWINGS: list[Drawing] = [
    chart(Curve("a", LONG), Curve("b", LONG[:20]), smooth=5),
    Matrix("Overlap", ["one", "two"], [[1, 0.4], [0.4, 1]], "a note"),
    Map("Triggers", {"starts": np.eye(2), "triggers": np.zeros((1, 2))}, "a note"),
]


def texts(root: ElementTree.Element) -> list[str | None]:
    return [element.text for element in root.iter(f"{SVG}text")]


def lines(root: ElementTree.Element) -> list[tuple[str, list[tuple[float, float]]]]:
    """Style and points of every curve."""
    found = []
    for path in root.iter(f"{SVG}path"):
        points = re.findall(r"[ML] (\S+) (\S+)", path.attrib["d"])
        if "stroke-width: 2" in path.attrib.get("style", "") and len(points) > 3:  # those of the legend have 3
            found.append((path.attrib["style"], [(float(x), float(y)) for x, y in points]))
    return found


@pytest.mark.parametrize("it", DRAWINGS)
def test_a_drawing_is_told_in_words_too(it: Drawing) -> None:
    root = ElementTree.fromstring(drawn(it))
    title, description = root[0], root[1]
    assert (title.tag, title.text) == (f"{SVG}title", it.title)
    assert description.tag == f"{SVG}desc" and (description.text or "").endswith("a note")
    assert root.attrib["role"] == "img" and it.title in texts(root) and "a note" in texts(root)


def test_the_words_say_what_is_seen() -> None:
    said = [ElementTree.fromstring(drawn(it))[1].text for it in DRAWINGS]
    assert said == [
        "loss by step. a: 1 at step 1, 0.1 at step 50; b: 1 at step 1, 0.651 at step 20. a note",
        "one and two: 0.40. a note",
        "2 starts, 1 triggers. a note",
    ]


def test_names_stand_as_they_are() -> None:
    drawings: list[Drawing] = [
        Chart(EVIL, "step", "loss", [Curve(EVIL, [1, 2])], x_marks=[EVIL, "2"]),
        Matrix("t", ["one", "$2"], [[1, 0.4], [0.4, 1]]),
        Map("t", {EVIL: np.eye(2)}),
    ]
    found = [texts(ElementTree.fromstring(drawn(it))) for it in drawings]
    assert [each.count(SEEN) for each in found] == [3, 0, 1]
    assert "$2\u20032" in found[1]


def test_no_two_lines_look_alike_to_those_who_see_no_colours_beside_each_other() -> None:
    root = ElementTree.fromstring(drawn(chart(*[Curve(f"{n}", LONG) for n in range(30)])))
    styles = [style for style, _ in lines(root)]
    assert len(set(styles)) == 30
    strokes = [re.sub(r"stroke: #\w+", "", style) for style in styles]
    assert all(one != other for one, other in pairwise(strokes))


def test_curves_go_where_their_values_are() -> None:
    values = [0.0, 0.5, 1.0, 0.25] * 6
    ((_, points),) = lines(ElementTree.fromstring(drawn(chart(Curve("a", values)))))
    steps, heights = zip(*points, strict=True)
    assert np.corrcoef(steps, range(len(values)))[0, 1] == pytest.approx(1, abs=1e-4)
    assert np.corrcoef(heights, values)[0, 1] == pytest.approx(-1, abs=1e-4)  # down is more


def test_a_single_point_is_seen_and_points_may_have_names() -> None:
    root = ElementTree.fromstring(drawn(chart(Curve("a", [0.5]), Curve("b", [0.5, 1, 0.1]), x_marks=("1", "2", "4"))))
    marks = [one for one in root.iter(f"{SVG}use") if "stroke: #1f5f8b" in one.attrib["style"]]
    assert len(marks) == 2  # the point, and that of the legend
    assert {"1", "2", "4"} <= set(texts(root)) and "3" not in texts(root)


@pytest.mark.parametrize("it", DRAWINGS)
def test_a_part_of_the_page_reaches_out_of_nothing(it: Drawing) -> None:
    text = inline(it)
    assert text.startswith("<svg ") and "xmlns" not in text and "<style" not in text and "http" not in text
    assert set(re.findall(r'id="(\w+)"', text)) <= set(re.findall(r"#(\w+)", text))
    assert "a note" not in re.sub("<desc>.*</desc>", "", text)  # the page says it
    assert not re.search('#[0-9a-f]{6}[;"]', text)
    assert set(re.findall(r"var\(--(\w+)\)", text)) <= set(VARIABLES.values())


def test_equal_drawings_are_equal_files_in_any_thread_and_settings_stay() -> None:
    before = dict(matplotlib.rcParams)
    expected = [drawn(it) for it in DRAWINGS]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(drawn, DRAWINGS * 4)) == expected * 4
    assert dict(matplotlib.rcParams) == before
    assert HUES[0] in expected[0]


def test_running_mean_by_hand() -> None:
    assert running_mean([1, 2, 3, 6], 2) == [1, 1.5, 2.5, 4.5]
    assert running_mean([1, 2], 1) == [1, 2]


@pytest.mark.parametrize("curves", [[], [Curve("a", [])], [Curve("a", [float("nan")])]])
def test_refuses_what_cannot_be_drawn(curves: list[Curve]) -> None:
    with pytest.raises(ValueError, match="finite values"):
        drawn(chart(*curves))
    with pytest.raises(ValueError, match="needs points"):
        drawn(Map("t", {"none": np.zeros((0, 2))}))
