"""How far long work is, in a log and to whoever watches."""

import pytest

from tasks import progress as showing


def test_a_log_gets_a_line_now_and_then(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    clock = iter([0.0, 59.0, 61.0, 100.0, 121.0])
    monkeypatch.setattr(showing, "monotonic", lambda: next(clock))
    with showing.progress(8, "noise differences", "prompt") as done:
        for _ in range(4):
            done(2)
    assert capsys.readouterr().err.splitlines() == [
        "noise differences: 4 of 8, 1 min",
        "noise differences: 8 of 8, 2 min",
    ]


def test_quick_work_says_nothing_in_a_log(capsys: pytest.CaptureFixture[str]) -> None:
    with showing.progress(2, "noise differences", "prompt") as done:
        done(2)
    assert capsys.readouterr().err == ""


def test_whoever_watches_hears_of_every_step() -> None:
    heard: list[tuple[str, int, int]] = []
    with showing.watching(lambda *told: heard.append(told)), showing.progress(5, "NeMo", "prompt") as done:
        done(2)
        done(3)
    assert heard == [("NeMo", 2, 5), ("NeMo", 5, 5)]
