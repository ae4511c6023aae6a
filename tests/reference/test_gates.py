"""The table of gates that a world's README has."""

import re
from pathlib import Path

from tasks.reference.gates import GROUPS, Gate, pruning, table

README = Path(__file__).parents[2] / "reference" / "README.md"

CLIP = Gate("clip: right caption among 100", 0.7, ">=", 0.6)
PLANTED = Gate("planted: VM prompts reproduced", 0.9, ">=", 0.95)


def test_a_gate_is_a_row() -> None:
    lines = table([CLIP, PLANTED], "abc").splitlines()
    assert lines[2:4] == [
        "| clip: right caption among 100 | 0.700 | >= 0.6 | holds |",
        "| planted: VM prompts reproduced | 0.900 | >= 0.95 | misses |",
    ]
    assert lines[-1] == "Of the weights `abc`."


def test_what_was_measured_of_the_same_weights_stays() -> None:
    before = f"# A page\n\n| a table | elsewhere |\n\n{table([PLANTED], 'abc')}\n"
    better = Gate(PLANTED.name, 0.97, PLANTED.sense, PLANTED.limit)
    assert table([CLIP], "abc", before) == table([CLIP, PLANTED], "abc")
    assert table([CLIP, better], "abc", before) == table([better, CLIP], "abc")
    assert table([CLIP], "others", before) == table([CLIP], "others")


def test_gates_stand_in_the_order_of_the_build() -> None:
    every = [Gate(f"{group}: figure", 1.0, ">=", 0.5) for group in GROUPS]
    assert table(every[::-1], "abc") == table(every, "abc")


def test_the_page_that_ships_has_the_names_of_now() -> None:
    """A row of another group would be lost when some gates are measured anew, one of another name would stand twice."""
    page = README.read_text()
    (shipped,) = re.findall(r"<!-- gates -->\n(.*?)\n<!-- /gates -->", page, re.DOTALL)
    (weights,) = re.findall(r"Of the weights `(.*)`", shipped)
    assert table([], weights, page) == shipped
    names = [line.split("|")[1].strip() for line in shipped.splitlines() if line.startswith("| pruning: ")]
    assert names == [gate.name for gate in pruning([], {}, 0.1)]
