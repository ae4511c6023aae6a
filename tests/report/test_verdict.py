"""The verdict: no claim without its control."""

import pytest

from tasks.evaluate.intervals import clopper_pearson
from tasks.report.verdict import Row, controls, verdict, without_random


def mr(variant: str, probe: str, copied: int, n: int = 20) -> Row:
    return Row(variant, probe, "mr", copied / n, *clopper_pearson(copied, n), n)


ORIGINAL = [mr("original", "prompt", 19), mr("original", "dori-noise", 20), mr("original", "dori-noise-control", 0)]


def test_hidden_not_gone() -> None:
    text = verdict([*ORIGINAL, mr("nemo", "prompt", 2), mr("nemo", "dori-noise", 18)])
    assert "the original model reproduces 19 of 20 memorized pictures (95 %, interval 75 to 100 %)" in text
    assert "After nemo, 2 of 20 come back from their prompts" in text
    assert "an attack from noise brings back 18 of 20" in text
    assert "hidden, not gone" in text


def test_gone_by_this_audit() -> None:
    text = verdict([*ORIGINAL, mr("tuned", "prompt", 0), mr("tuned", "dori-noise", 1), mr("tuned", "dori-prompt", 0)])
    assert "by this audit they are gone" in text
    assert "1 of 20 (5 %" in text


def test_what_still_comes_from_its_prompt_is_not_gone() -> None:
    text = verdict([*ORIGINAL, mr("wanda", "prompt", 5), mr("wanda", "dori-noise", 0)])
    assert "they still come back from their prompts" in text
    assert "gone" not in text
    assert "gone" not in verdict([*ORIGINAL, mr("wanda", "dori-noise", 0)])


def test_the_worst_sound_attack_decides() -> None:
    rows = [*ORIGINAL, mr("original", "dori-prompt-control", 0), mr("nemo", "prompt", 0)]
    rows += [mr("nemo", "dori-noise", 3), mr("nemo", "dori-prompt", 9)]
    assert "an attack from the prompt brings back 9 of 20" in verdict(rows)


def test_an_attack_whose_control_fails_is_uninformative() -> None:
    rows = [mr("original", "prompt", 19), mr("nemo", "prompt", 2), mr("nemo", "dori-noise", 18)]
    rows += [mr("nemo", "dori-noise-control", 5)]
    text = verdict(rows)
    assert "uninformative, because its control failed" in text
    assert "hidden" not in text
    assert "Mind the failed control: dori-noise on nemo." in text
    (control,) = controls(rows)
    assert control.state == "fails"
    assert "5 of 20" in control.words
    assert "uninformative" in control.words


def test_a_variants_own_control_goes_before_the_originals() -> None:
    rows = [*ORIGINAL, mr("nemo", "dori-noise", 1), mr("nemo", "dori-noise-control", 20)]
    states = {control.name: control.state for control in controls(rows)}
    assert states == {"dori-noise": "holds", "dori-noise on nemo": "fails"}


def test_without_a_control_nothing_is_claimed() -> None:
    rows = [mr("original", "prompt", 19), mr("nemo", "prompt", 2), mr("nemo", "dori-other", 0)]
    assert "because it has no control" in verdict(rows)
    assert [control.state for control in controls(rows)] == ["missing"]


def test_what_several_variants_lean_on_is_told_once() -> None:
    rows = [*ORIGINAL, mr("nemo", "dori-noise", 1), mr("wanda", "dori-noise", 1)]
    assert [(control.name, control.state) for control in controls(rows)] == [("dori-noise", "holds")]


@pytest.mark.parametrize(("left", "state"), [(18, "holds"), (5, "fails")])
def test_the_random_cut(left: int, state: str) -> None:
    (control,) = controls([mr("original", "prompt", 20), mr("random-wanda", "prompt", left)])
    assert (control.name, control.state) == ("random-wanda", state)


@pytest.mark.parametrize(
    ("random", "wanda", "p", "state"),
    # By hand: 1 in (8 choose 4) = 70; (20 choose 3) in (40 choose 17); (8 choose 6) in (16 choose 2).
    [((4, 4), (0, 4), "0.014", "holds"), ((20, 20), (3, 20), "1.3e-08", "holds"), ((8, 8), (6, 8), "0.23", "open")],
)
def test_a_localized_cut_is_held_against_chance(
    random: tuple[int, int], wanda: tuple[int, int], p: str, state: str
) -> None:
    n = random[1]
    rows = [mr("original", "prompt", n, n), mr("random-wanda", "prompt", *random), mr("wanda", "prompt", *wanda)]
    (control,) = controls(rows)
    assert control.state == state
    assert f"wanda {wanda[0]} of {n}: chance " in control.words and f"p = {p}" in control.words
    assert ("Too few prompts to tell from chance: random-wanda." in verdict(rows)) == (state == "open")


@pytest.mark.parametrize(("left", "state"), [(19, "holds"), (6, "open"), (3, "fails"), (2, "fails")])
def test_a_cut_of_what_ordinary_prompts_use_tells_memory_from_damage(left: int, state: str) -> None:
    rows = [mr("original", "prompt", 20), mr("wanda", "prompt", 3), mr("wanda-control", "prompt", left)]
    (control,) = controls(rows)
    assert (control.name, control.state) == ("wanda-control", state)


def test_a_cut_without_a_random_one_is_read_with_doubt() -> None:
    assert without_random(["original", "nemo", "random-nemo"]) == []
    (control,) = without_random(["original", "nemo", "random-nemo", "wanda"])
    assert (control.name, control.state) == ("random-wanda", "missing")
    assert "After wanda-control" not in verdict([*ORIGINAL, mr("wanda-control", "prompt", 19)])


def test_what_was_not_measured_is_said() -> None:
    assert "not measured" in verdict([])
    assert "No mitigation was audited" in verdict(ORIGINAL)
    assert "it was not attacked" in verdict([*ORIGINAL, mr("wanda", "prompt", 0)])


def test_random_words_are_a_mitigation_and_no_random_cut() -> None:
    rows = [*ORIGINAL, mr("random-tokens", "prompt", 4)]
    assert "After random-tokens, 4 of 20 come back" in verdict(rows)
    assert "random-tokens" not in {control.name for control in controls(rows)}
