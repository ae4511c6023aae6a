"""What counts once: prompts that share an image, and how no figure is surer for another caption of one."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import networkx
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tasks.conditions import PROMPT
from tasks.evaluate import change, clip, copying, detection, seed_similarity
from tasks.evaluate import task as door
from tasks.evaluate.estimates import ByUnit, Estimate
from tasks.evaluate.extraction import precision_recall
from tasks.evaluate.seen import Detected, Pair
from tasks.evaluate.task import Shot
from tasks.evaluate.task.seen import made_for
from tasks.intervals import clopper_pearson
from tasks.methods import NoParams
from tasks.report.markdown import estimates_text
from tasks.report.report import Report, render, table_text
from tasks.report.standing import standings
from tasks.report.task import rows_of
from tasks.report.verdict import verdict
from tasks.subject import Prompt, Subject, units_of
from tasks.units import Link, counted, spelling, units
from tests.support.seen import HandMade

NONE = NoParams()
LINKS = st.lists(
    st.tuples(st.integers(0, 9), st.sampled_from("ABCDEFGH"), st.frozensets(st.integers(0, 6), max_size=3)), max_size=12
)


def links(drawn: list[tuple[int, str, frozenset[int]]]) -> list[Link]:
    return [(f"p{name}", text, [f"i{image}" for image in images]) for name, text, images in drawn]


@given(LINKS, st.randoms())
def test_units_are_connected_components_in_any_order(
    drawn: list[tuple[int, str, frozenset[int]]], random: object
) -> None:
    shuffled = links(drawn)
    graph = networkx.Graph()
    for name, text, images in shuffled:
        graph.add_node(name)
        graph.add_edges_from([(name, f"text {text}"), *((name, f"image {image}") for image in images)])
    wanted = [{node for node in part if node.startswith("p")} for part in networkx.connected_components(graph)]
    found = units(shuffled)
    assert {name: min(part) for part in wanted for name in part} == found
    assert units(reversed(shuffled)) == found
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert units(shuffled) == found


def test_case_and_spaces_make_no_other_prompt() -> None:
    assert units([("a", "A  Cat ", ()), ("b", "a cat", ()), ("c", "a cats", ())]) == {"a": "a", "b": "a", "c": "c"}
    assert spelling(" Stra\u00dfe\tX") == spelling("STRASSE x")


def test_composed_letters_make_no_other_prompt() -> None:
    """CLIP's tokenizer composes them."""
    assert units([("a", "Caf\u00e9 \u1e9b\u0323", []), ("b", "cafe\u0301  \u017f\u0323\u0307", [])]) == {
        "a": "a",
        "b": "a",
    }
    assert units([("a", "cafe", []), ("b", "caf\u00e9", [])]) == {"a": "a", "b": "b"}


def test_images_link_through_prompts_and_prompts_through_images() -> None:
    chain: list[Link] = [
        ("a", "a", ["x"]),
        ("b", "b", ["x", "y"]),
        ("c", "c", ["y"]),
        ("d", "d", ["z"]),
        ("e", "e", ()),
    ]
    found = units(chain)
    assert found == {"a": "a", "b": "a", "c": "a", "d": "d", "e": "e"}
    assert counted(["a", "b", "c", "d"], found) == "4 prompts of 2 images"
    assert counted(["a", "d"], found, "memorized") == "2 memorized"


def test_near_duplicates_of_several_comparisons_link_too() -> None:
    """Each names its clusters by a prompt, the smallest of those that it compared."""
    plain: list[Link] = [(name, name, ()) for name in "abcde"]
    near = [("a", "a"), ("c", "a"), ("d", "d"), ("c", "b"), ("b", "b"), ("x", "e")]
    assert units(plain, near) == {"a": "a", "b": "a", "c": "a", "d": "d", "e": "e", "x": "e"}
    assert units(plain, reversed(near)) == units(reversed(plain), near) == units(plain, near)


def prompt_of(name: str, *images: str, kind: str | None = None) -> Prompt:
    return Prompt(name, name, "memorized", kind, "one subset", images)


@pytest.fixture
def subject(tmp_path: Path) -> Subject:
    return Subject(store=str(tmp_path / "store"), model=str(tmp_path), prompt_set="none", device="cpu")


def keep(subject: Subject, prompts: list[Prompt], prompt_set: str = "none") -> None:
    names = ("prompt_id", "text", "kind", "memorization", "subset", "image_ids")
    rows = [{name: getattr(prompt, name) for name in names} for prompt in prompts]
    subject.open().write("prompts", prompt_set, rows, prompt_set=prompt_set)


def test_a_prompt_that_is_not_asked_may_link_two_that_are(subject: Subject) -> None:
    a, b, c = prompt_of("a", "x"), prompt_of("b", "y"), prompt_of("c", "x", "y")
    assert units_of(subject, [a, b]) == {"a": "a", "b": "b"}
    keep(subject, [a, b, c])
    assert units_of(subject, [a, b]) == {"a": "a", "b": "a", "c": "a"}


def test_a_localization_group_is_no_cluster(subject: Subject) -> None:
    prompts = [prompt_of("a", "x", kind="TM"), prompt_of("b", "y", kind="TM")]
    keep(subject, prompts)
    assert len(set(units_of(subject, prompts).values())) == 2
    # Template prompts are one cluster where the set gives them an image in common.
    assert len(set(units_of(subject, [prompts[0], prompt_of("b", "y", "x", kind="TM")]).values())) == 1


Captions = tuple[Subject, list[Shot], list[str], dict[Pair, float]]
"""Prompts, their generations and what these score by SSCD."""


def copies(subject: Subject, shots: list[Shot], ids: list[str], scores: dict[Pair, float]) -> list[Estimate]:
    return copying.copying(
        HandMade(made_for(units_of(subject, [shot.prompt for shot in shots]), shots, ids), {"sscd": scores}), NONE
    )


@pytest.fixture
def captions(subject: Subject) -> Captions:
    """Six prompts, of which five are captions of one image, two seeds each: one of the five gives one copy."""
    prompts = [*(prompt_of(f"caption {n}", "x") for n in range(5)), prompt_of("other", "y")]
    keep(subject, prompts)
    shots = door.shots(prompts, 2)
    ids = [f"{shot.prompt.prompt_id}/{shot.seed}" for shot in shots]
    values = {(name, shot.prompt.image_ids[0]): 0.3 for name, shot in zip(ids, shots, strict=True)}
    return subject, shots, ids, values | {("caption 3/1", "x"): 0.9}


def test_five_captions_of_one_image_are_one_case(captions: Captions) -> None:
    found = {figure.metric: figure for figure in copies(*captions)}
    assert {(figure.n, figure.prompts) for figure in found.values()} == {(2, 6)}
    low, high = clopper_pearson(1, 2)
    assert found["mr"] == Estimate("mr", 0.5, low, high, 2, 6)  # any caption
    assert found["mr_generations"].value == pytest.approx((1 / 10 + 0) / 2)
    assert found["sscd_orig_max"].value == pytest.approx((0.9 + 0.3) / 2)
    assert found["sscd_orig_median"].value == pytest.approx(0.3)


def test_both_numbers_are_said_everywhere(captions: Captions) -> None:
    subject = captions[0]
    door.write_estimates(subject, "audit", "original", PROMPT, copies(*captions))
    stored = {row["metric"]: (row["value"], row["n"]) for row in subject.open().read("metrics").to_pylist()}
    assert stored["mr"] == (0.5, 2) and stored["mr_prompts"] == (6, 2)
    rows = rows_of(subject.open(), "audit")
    assert {(row.n, row.prompts) for row in rows} == {(2, 6)}
    assert "For 1 of 2 different memorized images, which 6 prompts share," in verdict(rows, standings())
    for text in (
        table_text(rows),
        estimates_text(rows, standings()),
        render(Report("Audit", "", [], rows, standings())),
    ):
        assert "2 (6 prompts)" in text and "_prompts" not in text


def test_nothing_is_said_of_prompts_where_each_has_an_image_of_its_own(subject: Subject) -> None:
    prompts = [prompt_of("a", "x"), prompt_of("b", "y", "z")]
    scores = {("a/0", "x"): 0.9, ("b/0", "y"): 0.1, ("b/0", "z"): 0.2}
    found = copies(subject, door.shots(prompts, 1), ["a/0", "b/0"], scores)
    door.write_estimates(subject, "audit", "original", PROMPT, found)
    assert not any(row["metric"].endswith("_prompts") for row in subject.open().read("metrics").to_pylist())
    assert verdict(rows_of(subject.open(), "audit"), standings()).startswith(
        "For 1 of 2 memorized prompts the original"
    )


Scores = list[list[float]]
"""Of each image, what the seeds of its prompt score."""

TAKEN: dict[str, Callable[[ByUnit], list[Estimate]]] = {
    "sscd": lambda rows: [copying.mr(rows), copying.mr_generations(rows), *copying.sscd_orig(rows)],
    "sscd_gen": lambda rows: [change.sscd_gen(rows)],
    "sscd_pair": lambda rows: [seed_similarity.seed_similarity(rows)],
    "clip": lambda rows: [clip.clip(rows)],
}


@given(
    st.lists(st.lists(st.floats(0, 1), min_size=2, max_size=2), min_size=1, max_size=9),
    st.data(),
)
def test_another_caption_of_an_image_makes_nothing_surer(scores: Scores, data: st.DataObject) -> None:
    """Whatever it scores, n stays; where it scores as the first does, every figure stays, and its interval."""
    rows = {f"unit {n}": np.array(seeds) for n, seeds in enumerate(scores)}
    one = data.draw(st.sampled_from(sorted(rows)))
    other = np.array(data.draw(st.lists(st.floats(0, 1), min_size=2, max_size=2)))
    twice = rows | {one: np.concatenate([rows[one], rows[one]])}
    more = rows | {one: np.concatenate([rows[one], other])}
    for taken in TAKEN.values():
        for before, same, after in zip(taken(rows), taken(twice), taken(more), strict=True):
            assert same.n == after.n == before.n
            assert [same.value, same.low, same.high] == pytest.approx(
                [before.value, before.low, before.high], nan_ok=True
            )


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(order=st.permutations(range(12)))
def test_the_order_of_prompts_is_of_no_account(captions: Captions, order: list[int]) -> None:
    subject, shots, ids, scores = captions
    found = copies(subject, [shots[n] for n in order], [ids[n] for n in order], scores)
    for figure, wanted in zip(found, copies(*captions), strict=True):
        assert (figure.metric, figure.n, figure.prompts) == (wanted.metric, wanted.n, wanted.prompts)
        assert [figure.value, figure.low, figure.high] == pytest.approx([wanted.value, wanted.low, wanted.high])


def test_alignment_and_seeds_count_images_too(captions: Captions) -> None:
    subject, shots, ids, _ = captions
    own = {(name, shot.prompt.prompt_id): 0.2 for name, shot in zip(ids, shots, strict=True)}
    before = {(f"before {name}", prompt): 2 * value for (name, prompt), value in own.items()}
    originals = [f"before {name}" for name in ids]
    pairs = {(f"{name}/0", f"{name}/1"): 0.6 for name in dict.fromkeys(shot.prompt.prompt_id for shot in shots)}
    scores = {
        "clip": own | before,
        "sscd_pair": pairs,
        "sscd_gen": dict.fromkeys(zip(ids, originals, strict=True), 0.4),
    }
    seen = HandMade(
        made_for(units_of(subject, [shot.prompt for shot in shots]), shots, ids), scores, originals=originals
    )
    score, kept = clip.measured(seen, NONE)
    assert (score.n, score.prompts, kept.n, kept.prompts) == (2, 6, 2, 6) and kept.value == 0.5
    (alike,) = seed_similarity.measured(seen, NONE)
    assert (alike.value, alike.n, alike.prompts) == (0.6, 2, 6)
    (changed,) = change.change(seen, NONE)
    assert (changed.value, changed.n, changed.prompts) == (0.4, 2, 6)


def test_verbatim_and_template_memories_of_one_image_count_in_either(subject: Subject) -> None:
    prompts = [prompt_of("a", "x", kind="VM"), prompt_of("b", "x", kind="TM"), prompt_of("c", "y", kind="TM")]
    scores = {("a/0", "x"): 0.9, ("b/0", "x"): 0.1, ("c/0", "y"): 0.1}
    found = copies(subject, door.shots(prompts, 1), ["a/0", "b/0", "c/0"], scores)
    known = {figure.metric: (figure.value, figure.n, figure.prompts) for figure in found}
    assert (known["mr"], known["mr_vm"], known["mr_tm"]) == ((0.5, 2, 3), (1, 1, 1), (0, 2, 2))


def test_what_is_extracted_counts_by_images() -> None:
    of = {"a": "x", "b": "x", "c": "x", "d": "y", "e": "z"}
    found = precision_recall({"a": True, "b": False, "d": False}, ["a", "b", "c", "d"], of)
    # Of x half of the claims are true, of y none; and x is out, y is not.
    assert (found.precision, found.claimed) == (0.25, 2)
    assert (found.recall, found.memorized) == (0.5, 2)
    assert (found.hits, found.precision_interval) == (1, clopper_pearson(0.5, 2))
    apart = precision_recall({"a": True, "b": False, "d": False}, ["a", "b", "c", "d"])
    assert (apart.claimed, apart.memorized, apart.recall) == (3, 4, 0.25)


def test_triggers_that_are_asked_like_prompts_belong_to_their_image(subject: Subject) -> None:
    prompt = prompt_of("a", "x")
    triggers = [replace(prompt, prompt_id=name, trigger=True) for name in ("t", "u")]
    assert len(set(units_of(subject, triggers).values())) == 1


def test_detection_tells_images_apart_not_captions(subject: Subject) -> None:
    """Five captions of one image are one memory that is found; a caption of it is no example of what is no memory."""
    memorized = [*(prompt_of(f"caption {n}", "x") for n in range(5)), prompt_of("other", "y")]
    others = [prompt_of("lone"), prompt_of("again", "x"), *(prompt_of(f"not {n}", "z") for n in range(3))]
    scores = {one.prompt_id: np.array([0.9, 0.7]) for one in memorized} | {"lone": np.array([0.1, 0.1])}
    scores |= {"other": np.array([0.2, 0.2]), "again": np.array([1.0, 1.0])}
    scores |= {f"not {n}": np.array([0.4, 0.2]) for n in range(3)}

    def detected(others: list[Prompt]) -> list[Estimate]:
        of = units_of(subject, [*memorized, *others])
        every = [(one, one in memorized) for one in [*memorized, *others]]
        seen = [Detected(one.prompt_id, of[one.prompt_id], known, scores[one.prompt_id]) for one, known in every]
        return detection.detection(HandMade(detected=seen), NONE)

    (area,) = detected(others)
    # Two memories against two others: 0.8 beats 0.1 and 0.3, and 0.2 beats 0.1 alone.
    assert (area.value, area.n, area.prompts) == (0.75, 4, 10)
    assert detected(others[1:2]) == []
    many = [prompt_of(f"caption {n} of {image}", f"i{image}") for image in range(99) for n in range(2)]
    scores |= {one.prompt_id: np.array([0.1, 0.1]) for one in many}
    assert [one.metric for one in detected(many)] == ["auc"]
    area, rate = detected([*many, others[0]])
    assert (rate.metric, rate.value, rate.n, rate.prompts) == ("tpr_at_1fpr", 1, 2, 6)
