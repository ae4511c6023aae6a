"""Prompts are split by name or by kind, and controls have the same sizes."""

from dataclasses import dataclass

from tasks.localize.subsets import control_subsets, subsets_of


@dataclass(frozen=True)
class Sorted:
    prompt_id: str
    memorization: str | None = None
    subset: str | None = None


def test_named_subsets_are_those_of_the_file() -> None:
    prompts = [Sorted("b", "VM", "birds"), Sorted("a", "VM", "cars"), Sorted("c", "TM", "birds"), Sorted("d")]
    found = subsets_of(prompts)
    assert {name: [p.prompt_id for p in members] for name, members in found.items()} == {
        "birds": ["b", "c"],
        "cars": ["a"],
    }


def test_without_names_verbatim_and_template_prompts_are_split_apart() -> None:
    verbatim, template = (
        [Sorted(f"{kind}{n:02}", kind) for n in range(count)] for kind, count in (("VM", 23), ("TM", 5))
    )
    found = subsets_of([*verbatim, *template])
    assert list(found) == ["TM 1", "TM 2", "VM 1", "VM 2", "VM 3", "VM 4", "VM 5"]
    assert [len(members) for members in found.values()] == [3, 2, 5, 5, 5, 4, 4]
    assert sorted(p.prompt_id for members in found.values() for p in members) == sorted(
        p.prompt_id for p in (*verbatim, *template)
    )
    assert subsets_of([*template, *reversed(verbatim)]) == found  # whatever the order


def test_too_few_prompts_are_in_no_part() -> None:
    assert subsets_of([Sorted("a", "VM")]) == {}
    assert list(subsets_of([Sorted("a"), Sorted("b")])) == ["part 1"]


def test_controls_have_the_sizes_of_the_subsets_and_share_nothing() -> None:
    found = control_subsets([[1, 2, 3], [4], [5, 6]], list("abcdefgh"))
    assert found == {"control 1": ["a", "b", "c"], "control 2": ["d"], "control 3": ["e", "f"]}
    assert control_subsets([[1, 2, 3], [4], [5, 6]], list("abcd")) == {"control 1": ["a", "b", "c"], "control 2": ["d"]}
    assert control_subsets([], list("abc")) == control_subsets([[1, 2]], ["a"]) == {}
