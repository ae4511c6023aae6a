"""Geometry of charts."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.report.charts import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, Chart, Curve, drawn, running_mean, ticks


@given(st.floats(-1e4, 1e4), st.floats(1e-3, 1e4))
def test_ticks_enclose_in_even_round_steps(low: float, span: float) -> None:
    marks = ticks(low, low + span)
    assert marks[0] <= low + 1e-6 * span
    assert marks[-1] >= low + span - 1e-6 * span
    assert 2 <= len(marks) <= 8


def test_ticks_by_hand() -> None:
    assert ticks(0, 1) == [0, 0.2, 0.4, 0.6, 0.8, 1.0]
    assert ticks(0, 0.37) == [0, 0.1, 0.2, 0.3, 0.4]
    assert len(ticks(2, 2)) >= 2


def test_lines_fill_the_frame() -> None:
    chart = Chart("t", "step", "loss", [Curve("a", [0.0, 1.0]), Curve("b", [0.5])])
    first, second = drawn(chart).lines
    assert first.raw == f"{LEFT:.1f},{HEIGHT - BOTTOM:.1f} {WIDTH - RIGHT:.1f},{TOP:.1f}"
    assert second.raw.startswith(f"{LEFT:.1f},")


def test_points_may_have_names() -> None:
    chart = Chart("t", "neurons", "SSIM", [Curve("a", [1.0, 0.5, 0.1])], x_marks=["1", "2", "4"])
    assert [text for _, text in drawn(chart).x_ticks] == ["1", "2", "4"]
    places = [place for place, _ in drawn(chart).x_ticks]
    assert places == [LEFT, (LEFT + WIDTH - RIGHT) / 2, WIDTH - RIGHT]


def test_running_mean_by_hand() -> None:
    assert running_mean([1, 2, 3, 6], 2) == [1, 1.5, 2.5, 4.5]
    assert running_mean([1, 2], 1) == [1, 2]


@pytest.mark.parametrize("curves", [[], [Curve("a", [])], [Curve("a", [float("nan")])]])
def test_refuses_what_cannot_be_drawn(curves: list[Curve]) -> None:
    with pytest.raises(ValueError, match="finite values"):
        drawn(Chart("t", "x", "y", curves))
