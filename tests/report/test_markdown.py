"""Figures for those who do not have the store."""

from pathlib import Path

import pytest

from tasks.conditions import ORDINARY
from tasks.errors import InputError
from tasks.report.markdown import effort_text, estimates_text, put_between
from tasks.report.standing import standings
from tasks.report.verdict import Row
from tests.report.test_verdict import ORIGINAL, mr


def test_every_line_of_the_table_has_as_many_cells() -> None:
    rows = [*ORIGINAL, mr("nemo-union", "prompt", 2), Row("nemo-union", ORDINARY, "clip", 0.31, 0.29, 0.33, 20)]
    text = estimates_text(rows, standings())
    table = [line for line in text.splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in table}) == 1
    assert "| nemo-union | ordinary | 20 |  | 0.310 (0.290–0.330) |" in table
    assert text.startswith("For 19 of 20 memorized prompts the original model reproduces")
    assert "**dori-noise**" in text


def test_effort_is_in_order_of_numbers() -> None:
    names = {"effort-100": 8, "effort-20": 1, "effort-100-control": 2, "dori-noise": 9}
    lines = effort_text([mr("original", name, copied) for name, copied in names.items()]).splitlines()
    assert [line.split("|")[1].strip() for line in lines[4:]] == ["20", "100"]
    assert lines[4].endswith("|  |")
    assert effort_text(ORIGINAL) == ""


def test_what_a_person_wrote_stays(tmp_path: Path) -> None:
    page = tmp_path / "RESULTS.md"
    put_between(page, "figures", "one")
    assert page.read_text() == "# Results\n\n<!-- figures -->\none\n<!-- /figures -->\n"
    page.write_text("Before.\n" + page.read_text() + "\nAfter.\n")
    put_between(page, "figures", "two\n")
    put_between(page, "gates", "three")
    text = page.read_text()
    assert text.startswith("Before.\n# Results\n\n<!-- figures -->\ntwo\n<!-- /figures -->\n")
    assert text.endswith("\nAfter.\n\n<!-- gates -->\nthree\n<!-- /gates -->\n")
    assert "one" not in text


def test_half_a_pair_of_marks_costs_nothing(tmp_path: Path) -> None:
    page = tmp_path / "RESULTS.md"
    page.write_text("Before.\n<!-- figures -->\nWhat a person wrote.\n")
    with pytest.raises(InputError, match="no <!-- /figures --> after it"):
        put_between(page, "figures", "two")
    assert "What a person wrote." in page.read_text()


def test_a_cut_without_its_random_one_is_told() -> None:
    assert "**random-nemo-union** missing" in estimates_text([*ORIGINAL, mr("nemo-union", "prompt", 2)], standings())
