"""What a set of prompts holds, by hand."""

from dataclasses import asdict
from typing import Any

from tasks.collect.summary import Listed, summarized
from tasks.prompt_files import Kind


def listed(name: str, text: str, kind: Kind = "memorized", *images: str, **more: Any) -> Listed:
    given: dict[str, Any] = {"memorization": None, "subset": None, "cluster": name, "tokens": None} | more
    return Listed(name, text, kind, image_ids=images, place=f"/data/{name}.csv:1", **given)


SET = [
    listed("a", "a cat", "memorized", "i1", memorization="VM", subset="s", tokens=4, exposures=3),
    listed("b", "A cat!", "memorized", "i2", memorization="TM", subset="s", cluster="a", tokens=5),
    listed("c", "a cow", "memorized", memorization="VM", tokens=9, exposures=20),
    listed("d", "a dog", "null", tokens=8),
    listed("e", "the dog", "null", "i2", cluster="a", tokens=12),
]
FILES = {"i1": ["1.png", "again.png"], "i2": ["2.png"]}


def test_a_set_by_hand() -> None:
    near = {"i1": "i1", "i2": "i1"}
    captions = {"a": "a", "b": "a", "c": "c", "d": "d", "e": "d"}
    found = summarized(SET, FILES, 8, ["/data/x.csv:7"], 3, near, captions)
    assert asdict(found) == {
        "prompts": {"memorized": 3, "null": 2, "ordinary": 0},
        "memorization": {"VM": 2, "TM": 1},
        "subsets": {"s": 2, "not said": 1},
        "exposures": {"prompts": 2, "lowest": 3, "median": 11.5, "highest": 20},
        "again": ["/data/x.csv:7"],
        "tokens": {
            "most": 8,
            "shortest": 4,
            "median": 8,
            "longest": 12,
            "longer": {"memorized": ["/data/c.csv:1"], "null": ["/data/e.csv:1"]},
        },
        "with_images": {"memorized": 2, "null": 1, "ordinary": 0},
        "bare": ["/data/c.csv:1"],
        "images": 2,
        "unreadable": 3,
        "same_captions": [["/data/a.csv:1", "/data/b.csv:1"]],
        "same_images": [["1.png", "again.png"]],
        # Captions of the same words are told of by themselves.
        "near_captions": [["/data/d.csv:1", "/data/e.csv:1"]],
        "near_images": [["1.png", "2.png"]],
        "clusters": 2,
        "mixed": [["/data/a.csv:1 (memorized)", "/data/b.csv:1 (memorized)", "/data/e.csv:1 (null)"]],
    }


def test_people_read_short_paths_and_all_counts() -> None:
    rows = {row["what"]: (row["number"], row["which"]) for row in summarized(SET, FILES, 8, (), 1, {}).rows()}
    assert rows["memorized prompts"] == ("3", "2 with images") and rows["  type VM"] == ("2", "")
    assert rows["  subset s"] == ("2", "") and rows["  clusters of near-duplicates"] == ("2", "each is one case")
    assert rows["exposures in an epoch"] == ("11.5", "the median of 3 to 20; known of 2 of 3 memorized prompts")
    assert rows["tokens of a prompt"] == ("8", "the median of 4 to 12; the model reads 8")
    assert rows["  too long, null"] == ("1", "data/e.csv:1")
    assert rows["captions of the same words"] == ("1", "data/a.csv:1 = data/b.csv:1")
    assert rows["images that cannot be read"] == ("1", "")
    assert rows["near-duplicate images (SSCD)"] == ("0", "")
    assert "near-duplicate captions (CLIP)" not in rows  # nobody asked


def test_nothing_is_said_of_what_is_not_there() -> None:
    bare = [listed("a", "a cat"), listed("b", "a dog", "null")]
    found = summarized(bare, {})
    assert found.tokens is None and found.memorization == {} == found.subsets and found.near_images is None
    assert found.exposures is None
    assert {row["what"] for row in found.rows()} == {
        "memorized prompts",
        "  clusters of near-duplicates",
        "null prompts",
        "ordinary prompts",
        "texts that stand again",
        "captions of the same words",
        "near-duplicates, memorized or not",
    }


def test_of_many_subsets_a_person_is_shown_the_largest() -> None:
    many = [listed(f"{n}", f"text {n}", subset=f"s{min(n, 14)}") for n in range(20)]
    rows = [row["what"] for row in summarized(many, {}).rows()]
    assert rows[1] == "  subset s14" and "  more subsets" in rows and sum("  subset" in row for row in rows) == 10
