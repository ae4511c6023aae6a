"""How far long work is, in a log and to whoever watches."""

import time

import pytest

from tasks import progress as showing


def test_what_is_not_announced_says_nothing_unless_it_takes_long(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with showing.stage("check", lambda: "the model", announced=False):
        pass
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(showing, "SECONDS_BETWEEN_LINES", 0.05)
    with showing.stage("check", lambda: "the model", announced=False):
        time.sleep(0.3)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "check: at work, 0 s so far" and lines[-1] == "check: done after 0 s: the model"


def test_a_stage_says_in_a_log_that_it_begins_how_far_it_is_and_what_it_did(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(showing, "SECONDS_BETWEEN_LINES", 0.2)
    with showing.stage("localize", lambda: "8 nemo_traces"):
        with showing.progress(8, "noise differences", "prompt") as done:
            done(2)
            time.sleep(0.5)
        time.sleep(0.3)
    first, *between, last = capsys.readouterr().err.splitlines()
    assert first == "localize: begins"
    assert between[0] == "localize: noise differences, 2 of 8 prompts, 0 s so far"
    assert last in ("localize: done after 1 s: 8 nemo_traces", "localize: done after 2 s: 8 nemo_traces")
    time.sleep(0.5)
    assert capsys.readouterr().err == ""


def test_between_loops_a_stage_is_still_heard_of(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(showing, "SECONDS_BETWEEN_LINES", 0.1)
    with showing.stage("mitigate", str), showing.progress(2, "cuts", "cut") as done:
        done(2)
        time.sleep(0.4)
    assert "mitigate: at work, 0 s so far" in capsys.readouterr().err


def test_a_stage_that_fails_says_so_and_the_next_one_is_heard(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="no"), showing.stage("attack", str):
        raise ValueError("no")
    with showing.stage("evaluate", str):
        pass
    lines = capsys.readouterr().err.splitlines()
    assert lines[1].startswith("attack: ended early after 0 s") and lines[2] == "evaluate: begins"


def test_a_stage_within_another_adds_no_lines(capsys: pytest.CaptureFixture[str]) -> None:
    with showing.stage("check", str), showing.stage("collect", str):
        pass
    assert [line.split(":")[0] for line in capsys.readouterr().err.splitlines()] == ["check", "check"]


def test_whoever_watches_hears_of_every_step() -> None:
    heard: list[tuple[str, int, int]] = []
    with showing.watching(lambda *now: heard.append(now)), showing.progress(5, "NeMo", "prompt") as done:
        done(2)
        done(3)
    assert heard == [("NeMo", 2, 5), ("NeMo", 5, 5)]


def test_what_steers_a_terminal_is_not_sent_to_it(capsys: pytest.CaptureFixture[str]) -> None:
    showing.say("\x1b[2Jx.png\r is left out")
    assert capsys.readouterr().err == "note: \\x1b[2Jx.png\\r is left out\n"
