"""The verdict: no claim without its control."""

from dataclasses import replace

import pytest

from tasks.conditions import ORDINARY, PROMPT, Condition
from tasks.intervals import clopper_pearson
from tasks.report import verdict as method
from tasks.report.standing import standings
from tasks.report.verdict import Control, Row, effort_words


def mr(variant: str, condition: str, copied: int, n: int = 20) -> Row:
    return Row(variant, Condition.parse(condition), "mr", copied / n, *clopper_pearson(copied, n), n)


def verdict(rows: list[Row]) -> str:
    return method.verdict(rows, standings())


def controls(rows: list[Row]) -> list[Control]:
    return method.controls(rows, standings())


ORIGINAL = [mr("original", "prompt", 19), mr("original", "dori-noise", 20), mr("original", "dori-noise-control", 0)]


def test_hidden_not_gone() -> None:
    text = verdict([*ORIGINAL, mr("nemo-union", "prompt", 1), mr("nemo-union", "dori-noise", 20)])
    assert "For 19 of 20 memorized prompts the original model reproduces a training image (95 %, interval" in text
    assert "After nemo-union, 1 of 20 come back from their prompts" in text
    assert "an attack from noise brings back 20 of 20" in text and "20 of 20 on the original" in text
    assert "they are hidden, not gone" in text


def test_a_cut_that_removes_next_to_nothing_hides_nothing() -> None:
    text = verdict([*ORIGINAL, mr("nemo", "prompt", 18), mr("nemo", "dori-noise", 20)])
    assert "they are neither gone nor hidden" in text and "hidden, not gone" not in text


def test_what_some_prompts_still_bring_back_is_hidden_only_from_others() -> None:
    words = "they are not gone, only hidden from prompts that no longer bring them back"
    assert words in verdict([*ORIGINAL, mr("nemo-union", "prompt", 8), mr("nemo-union", "dori-noise", 20)])
    # 4 of 8 where the original has 7 may be chance (p = 0.14), but is not next to nothing.
    few = [mr("original", "prompt", 7, 8), mr("original", "dori-noise", 3, 3), mr("original", "dori-noise-control", 0)]
    assert words in verdict([*few, mr("wanda", "prompt", 4, 8), mr("wanda", "dori-noise", 3, 3)])
    assert "not gone, only hidden from prompts, if at all" in verdict([*ORIGINAL, mr("nemo-union", "dori-noise", 20)])


def test_what_does_not_come_back_is_not_called_hidden() -> None:
    text = verdict([*ORIGINAL, mr("tuned", "prompt", 0), mr("tuned", "dori-noise", 4)])
    assert "brings back 4 of 20" in text and "these 4 are hidden, not gone" in text


def test_gone_by_this_audit() -> None:
    text = verdict([*ORIGINAL, mr("tuned", "prompt", 0), mr("tuned", "dori-noise", 1)])
    assert "by this audit the others are gone" in text
    assert "1 of 20 (5 %" in text and "20 of 20 on the original" in text
    assert "the others are gone" in verdict([*ORIGINAL, mr("tuned", "prompt", 1), mr("tuned", "dori-noise", 0)])
    text = verdict([*ORIGINAL, mr("tuned", "prompt", 0), mr("tuned", "dori-noise", 0)])
    assert "by this audit they are gone" in text


def test_attacks_that_each_bring_back_little_may_bring_back_much_together() -> None:
    rows = [*ORIGINAL, mr("original", "dori-prompt", 20), mr("original", "dori-prompt-control", 0)]
    rows += [mr("tuned", "prompt", 0), mr("tuned", "dori-noise", 1), mr("tuned", "dori-prompt", 1)]
    text = verdict(rows)
    assert "all attacks together may bring back 2: too many to call them gone" in text and "are gone" not in text


def test_an_attack_that_is_no_stronger_on_the_original_proves_nothing() -> None:
    # Memorized images come back more often than others, 5 of 20 against 0 of 20 (p = 0.024, by hand: 20 choose 5 of
    # 40 choose 5), but not surely more often than after training, 1 of 20 (p = 0.091).
    rows = [mr("original", "prompt", 19), mr("original", "dori-noise", 5), mr("original", "dori-noise-control", 0)]
    text = verdict([*rows, mr("tuned", "prompt", 0), mr("tuned", "dori-noise", 1)])
    assert "too few to call them gone (p = 0.09)" in text
    assert "by this audit they are gone" not in text


def test_what_still_comes_from_its_prompt_is_not_gone() -> None:
    text = verdict([*ORIGINAL, mr("wanda", "prompt", 5), mr("wanda", "dori-noise", 0)])
    assert "they still come back from their prompts" in text
    assert "gone" not in text
    assert "gone" not in verdict([*ORIGINAL, mr("wanda", "dori-noise", 0)])


def test_the_worst_sound_attack_decides() -> None:
    rows = [*ORIGINAL, mr("original", "dori-prompt", 18), mr("original", "dori-prompt-control", 0)]
    rows += [mr("nemo-union", "prompt", 0), mr("nemo-union", "dori-noise", 3), mr("nemo-union", "dori-prompt", 9)]
    assert "the strongest of 2 attacks, from the prompt, brings back 9 of 20" in verdict(rows)


@pytest.mark.parametrize("kind", ["control", "unseen"])
def test_an_attack_whose_control_fails_is_uninformative(kind: str) -> None:
    rows = [*ORIGINAL[:2], mr("nemo-union", "prompt", 2), mr("nemo-union", "dori-noise", 18)]
    rows += [mr("original", f"dori-noise-{kind}", 5)]
    text = verdict(rows)
    assert "uninformative, because its control failed" in text
    assert "hidden" not in text
    assert f"Mind the failed control: dori-noise{'-unseen' if kind == 'unseen' else ''}." in text
    (control,) = controls(rows)
    assert control.state == "fails"
    assert "5 of 20" in control.words
    assert "uninformative" in control.words


@pytest.mark.parametrize(
    ("memorized", "other", "n", "state"),
    # By hand: 3 of 3 against none, 1 in (6 choose 3) = 0.05; 2 of 3, 4 in 20; 1 of 16 is above 5 %, but may be chance.
    [(3, 0, 3, "holds"), (2, 0, 3, "open"), (16, 1, 16, "open"), (16, 5, 16, "fails")],
)
def test_few_controls_leave_an_attack_open(memorized: int, other: int, n: int, state: str) -> None:
    rows = [mr("original", "prompt", n, n), mr("original", "dori-noise", memorized, n)]
    rows += [
        mr("original", "dori-noise-control", other, n),
        mr("nemo-union", "prompt", 0, n),
        mr("nemo-union", "dori-noise", 1, n),
    ]
    (control,) = controls(rows)
    assert control.state == state
    text = verdict(rows)
    assert ("hidden" in text) == (state == "holds")
    assert ("too few images were attacked" in text) == (state == "open" and other == 0)
    assert ("may bring back more than 5 % of images that were never memorized" in text) == (
        state == "open" and other == 1
    )


def test_both_controls_must_hold() -> None:
    rows = [
        *ORIGINAL,
        mr("original", "dori-noise-unseen", 1),
        mr("nemo-union", "prompt", 0),
        mr("nemo-union", "dori-noise", 18),
    ]
    assert [(it.name, it.state) for it in controls(rows)] == [("dori-noise", "holds"), ("dori-noise-unseen", "holds")]
    assert "hidden" in verdict(rows)
    rows[3] = mr("original", "dori-noise-unseen", 5)
    assert [it.state for it in controls(rows)] == ["holds", "fails"]
    assert "hidden" not in verdict(rows)


def test_without_a_control_nothing_is_claimed() -> None:
    rows = [mr("original", "prompt", 19), mr("nemo-union", "prompt", 2), mr("nemo-union", "dori-other", 0)]
    assert "because it has no control" in verdict(rows)
    assert [control.state for control in controls(rows)] == ["missing"]


def test_how_many_steps_bring_back_what_was_never_memorized() -> None:
    never = [mr("original", "effort-50-control", 0, 8), mr("original", "effort-200-control", 0, 8)]
    words = "Of images that were never memorized, attacks of up to 200 steps from noise bring back 0 of 8"
    assert words in verdict([*ORIGINAL, *never])
    assert "interval 0 to 37 %" in effort_words(never)
    words = effort_words([*never, mr("original", "effort-1000-control", 3, 8), mr("original", "effort-50", 8, 8)])
    assert words.startswith("Attacks from noise of 1000 steps bring back 3 of 8 images")
    few = effort_words([*never, mr("original", "effort-1000-control", 1, 8)])  # interval 0 to 53 %
    assert "too few to tell whether it is more than 5 %" in few and "can draw" not in few
    falls = [mr("original", "effort-50-control", 1, 8), mr("original", "effort-500-control", 0, 8)]
    assert effort_words(falls).startswith("Attacks from noise of 50 steps bring back 1 of 8")
    sure = [mr("original", "effort-200-control", 1, 8), mr("original", "effort-500-control", 8, 8)]
    assert effort_words(sure).startswith("Attacks from noise of 500 steps bring back 8 of 8")
    assert effort_words(ORIGINAL) == ""


def test_an_attack_that_finds_nothing_on_the_original_says_nothing() -> None:
    rows = [mr("original", "prompt", 0), mr("original", "dori-noise", 0), mr("original", "dori-noise-control", 0)]
    text = verdict([*rows, mr("nemo-union", "prompt", 0), mr("nemo-union", "dori-noise", 0)])
    assert "uninformative, because such attacks bring next to nothing back on the original either" in text


def test_what_attacks_bring_back_of_the_original_is_said() -> None:
    rows = [mr("original", "prompt", 0), mr("original", "dori-noise", 20), mr("original", "dori-noise-control", 0)]
    text = verdict(rows)
    assert text.startswith("For 0 of 20 memorized prompts the original model reproduces a training image (0 %")
    assert "interval 0 to 17 %). An attack from noise brings back 20 of 20" in text


def test_a_loud_attack_without_a_sound_control_forbids_gone() -> None:
    rows = [*ORIGINAL, mr("original", "dori-prompt", 20), mr("original", "dori-prompt-control", 2)]
    rows += [mr("tuned", "prompt", 0), mr("tuned", "dori-noise", 0)]
    assert "by this audit they are gone" in verdict(rows)
    text = verdict([*rows, mr("tuned", "dori-prompt", 12)])
    assert "but an attack from the prompt brings back 12 of 20" in text and "this stays open" in text
    assert "by this audit they are gone" not in text


def test_what_a_mitigation_costs_is_said() -> None:
    kept = Row("tuned", ORDINARY, "clip_kept", 0.928, 0.876, 0.982, 24)
    text = verdict([*ORIGINAL, mr("tuned", "prompt", 0), mr("tuned", "dori-noise", 0), kept])
    assert "0 of 20 come back from their prompts, at 92.8 % (87.6 to 98.2) of the CLIP score" in text


def test_a_random_cut_that_is_mostly_the_same_is_no_control() -> None:
    rows = [mr("original", "prompt", 20), mr("nemo-union", "prompt", 2), mr("random-nemo-union", "prompt", 4)]
    assert [control.state for control in controls(rows)] == ["fails"]
    rows.append(Row("random-nemo-union", PROMPT, "shared", 0.81, None, None, 800))
    (control,) = controls(rows)
    assert control.state == "missing" and "81 % of them are the ones that nemo-union found" in control.words


def test_what_several_variants_lean_on_is_told_once() -> None:
    rows = [*ORIGINAL, mr("nemo-union", "dori-noise", 1), mr("wanda", "dori-noise", 1)]
    assert [(control.name, control.state) for control in controls(rows)] == [("dori-noise", "holds")]


@pytest.mark.parametrize(
    ("left", "n", "state"),
    # By hand: 3 of 3 against 2 of 3, 1/2; of 20, 20 against 15, (20 choose 5) in (40 choose 5) = 0.024.
    [(18, 20, "holds"), (5, 20, "fails"), (15, 20, "fails"), (2, 3, "open")],
)
def test_the_random_cut(left: int, n: int, state: str) -> None:
    (control,) = controls([mr("original", "prompt", n, n), mr("random-wanda", "prompt", left, n)])
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
    assert method.without_random(["original", "nemo-union", "random-nemo-union"], standings()) == []
    (control,) = method.without_random(["original", "nemo-union", "random-nemo-union", "wanda"], standings())
    assert (control.name, control.state) == ("random-wanda", "missing")
    assert "After wanda-control" not in verdict([*ORIGINAL, mr("wanda-control", "prompt", 19)])


def test_what_was_not_measured_is_said() -> None:
    assert "not measured" in verdict([])
    assert "No mitigation was audited" in verdict(ORIGINAL)
    assert "it was not attacked" in verdict([*ORIGINAL, mr("wanda", "prompt", 0)])


def test_random_words_are_a_mitigation_and_no_random_cut() -> None:
    rows = [*ORIGINAL, mr("random-tokens", "prompt", 4)]
    assert "After random-tokens, 4 of 20 come back" in verdict(rows)
    for copied in (0, 20):  # triggers found without it say nothing of an attack that knows of it
        text = verdict([*rows, mr("random-tokens", "dori-noise", copied)])
        assert "it leaves the weights as they are, so nothing is gone" in text
    assert "random-tokens" not in {control.name for control in controls(rows)}


def test_where_some_prompts_are_not_confirmed_the_verdict_is_about_the_others() -> None:
    def split(variant: str, confirmed: int, unconfirmed: int = 0) -> list[Row]:
        parts = (
            ("mr", confirmed + unconfirmed, 20),
            ("mr_confirmed", confirmed, 8),
            ("mr_unconfirmed", unconfirmed, 12),
        )
        return [replace(mr(variant, "prompt", copied, n), metric=metric) for metric, copied, n in parts]

    attacks = [mr("original", "dori-noise", 8, 8), mr("original", "dori-noise-control", 0)]
    text = verdict([*split("original", 8), *attacks, *split("wanda", 6), mr("wanda", "dori-noise", 8, 8)])
    assert "For 8 of 20 memorized prompts the original model reproduces" in text
    assert "What follows is about the 8 that are confirmed so" in text
    assert "After wanda, 6 of 8 come back from their prompts" in text
