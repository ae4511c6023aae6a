"""Comparing audits that lie in a store, by function and from the command line; the rows are made by hand."""

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from flows.cli.commands import app
from storage import Store, content_key, verify
from tasks.errors import InputError
from tasks.intervals import clopper_pearson
from tasks.report.task import accept, audits_named, baseline_of, brought_back, compare, words_of_brought
from tests.support.world import tiny_world

CLAIMS = ("original", "nemo-union", "wanda")
SEEDS = 4
QUIET = {("original", "prompt", f"p{n}"): 0 for n in range(6)} | {
    ("nemo-union", "prompt", f"p{n}"): 0 for n in range(6)
}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    opened = Store.open(tmp_path / "store")
    names = {f"p{n}": f"image {n}" for n in range(6)} | {"q": "another"}
    for prompt_set in ("p", "q"):
        prompts: list[dict[str, Any]] = [
            {"prompt_id": name, "text": text, "kind": "memorized", "image_ids": [f"{name} x", f"{name} y"]}
            for name, text in names.items()
        ]
        opened.write("prompts", prompt_set, prompts, prompt_set=prompt_set)
    # In a third set five captions are of one image.
    shared = [row | {"image_ids": ["p0 x", "p0 y"] if row["prompt_id"] < "p5" else row["image_ids"]} for row in prompts]
    opened.write("prompts", "shared", shared, prompt_set="shared")
    return opened


def put(
    store: Store,
    audit_id: str,
    day: int,
    copied: Mapping[tuple[str, str, str], int] = QUIET,
    clip: float | None = None,
    model_id: str = "m",
    scorer: str = "sscd",
    state: str = "completed",
    settings: Mapping[str, Any] | None = None,
    prompt_set: str = "p",
    with_images: bool = True,
) -> None:
    """An audit in which so many of each variant's images of a condition and prompt are copies; ordinary prompts may
    have no training images."""
    when = datetime(2024, 1, day, tzinfo=UTC)
    params = {"model": "/models/m", "settings": {"seeds": SEEDS} | dict(settings or {})}
    row = {
        "audit_id": audit_id,
        "model_id": model_id,
        "prompt_set": prompt_set,
        "params": json.dumps(params),
        "code_version": "1",
        "started_at": when,
    }
    store.write("audits", f"{audit_id}-begun", [row | {"state": "running"}])
    if state != "running":
        store.write("audits", f"{audit_id}-ended", [row | {"state": state, "finished_at": when}])
    model = {"model_id": model_id, "source": "/elsewhere", "family": "sd1", "created_at": when}
    store.write("models", model_id, [model])
    places = dict.fromkeys((variant, condition) for variant, condition, _ in copied)
    for variant, condition in places:
        counts = {prompt: n for (v, p, prompt), n in copied.items() if (v, p) == (variant, condition)}
        ids: list[str] = []
        for prompt, count in counts.items():
            names = [content_key(model_id, variant, condition, prompt, seed, settings or {}) for seed in range(SEEDS)]
            made = [
                {"prompt_id": prompt, "seed": seed, "generation_id": name, "bytes": b""}
                for seed, name in enumerate(names)
            ]
            place = {"model_id": model_id, "variant": f"{variant}-0", "condition": condition}
            store.write("generations", content_key(names), made, **place)
            # Two training images: the nearer one counts.
            scores = [
                {"generation_id": name, "reference_id": image, "scorer": scorer, "value": value}
                for seed, name in enumerate(names)
                for image, value in (("x", 0.9 if seed < count else 0.3), ("y", 0.1))
                for image in {f"{prompt} {image}", f"p0 {image}"}
            ]
            store.write("scores", content_key(scorer, names), scores, metric="sscd")
            ids += names
        rate = sum(n > 0 for n in counts.values())
        low, high = clopper_pearson(rate, len(counts))
        estimates = [{"metric": "mr", "value": rate / len(counts), "low": low, "high": high, "n": len(counts)}]
        evidence = [{"metric": "sscd", "scorer": scorer, "generation_ids": ids}]
        if condition == "ordinary" and not with_images:
            estimates, evidence = [], []
        if clip is not None:
            rows = [{"generation_id": name, "scorer": "clip", "value": clip + 0.001 * n} for n, name in enumerate(ids)]
            store.write("scores", content_key("clip", ids), rows, metric="clip")
            estimates.append({"metric": "clip", "value": clip, "low": clip, "high": clip, "n": len(counts)})
            evidence.append({"metric": "clip", "scorer": "clip", "generation_ids": ids})
        place = {"variant": variant, "condition": condition}
        store.write(
            "metrics", content_key(audit_id, variant, condition), [f | place for f in estimates], audit_id=audit_id
        )
        for one in evidence:
            key = content_key(audit_id, variant, condition, one["metric"])
            store.write("evidence", key, [one | place], audit_id=audit_id)


def engram(store: Store, *words: str) -> Any:
    return CliRunner().invoke(app, [*words, "--store", store.url])


def test_a_planted_image_is_a_regression(store: Store) -> None:
    put(store, "a", 1)
    put(store, "b", 2, QUIET | {("original", "prompt", "p3"): 4}, model_id="retrained")
    found = compare(store, "a", "b", CLAIMS)
    words, p = found.regressions[0]
    assert words == "original, prompt: 'image 3': 4 of 4 images are copies, before 0 of 4"
    assert p == pytest.approx(1 / 70)
    assert found.verdict.startswith(f"Regression from a to b: {words}")
    (change,) = (one for one in found.differences if one.variant == "original")
    assert (change.before, change.after, change.change) == (0, 1 / 6, 1 / 6)
    assert found.prompts == 6
    assert compare(store, "b", "a", CLAIMS).regressions == []
    assert verify(store) == []


def test_what_an_adapter_brings_back_is_told_prompt_by_prompt(store: Store) -> None:
    before = {("original", "prompt", f"p{n}"): copies for n, copies in enumerate((0, 0, 1, 4, 2, 0))}
    after = {("original", "prompt", f"p{n}"): copies for n, copies in enumerate((0, 3, 4, 4, 0, 4))}
    put(store, "base", 1, before)
    put(store, "tuned", 2, after | {("original", "ordinary", "q"): 4}, model_id="tuned")
    found = brought_back(store, "base", "tuned")
    counts = [(one.prompt, one.copies_before, one.copies_after, one.images_after) for one in found]
    assert counts == [
        ("image 5", 0, 4, 4),
        ("image 1", 0, 3, 4),
        ("image 2", 1, 4, 4),
        ("image 0", 0, 0, 4),
        ("image 3", 4, 4, 4),
        ("image 4", 2, 0, 4),
    ]
    assert [found[1].best_before, found[1].best_after] == pytest.approx([0.3, 0.9])
    said = "Of 6 prompts, the training image of 2 comes back with the adapters and not without them, of 2 with and"
    assert words_of_brought(found).startswith(f"{said} without, of 1 only without (any")


def test_prompts_that_share_an_image_are_asked_about_together(store: Store) -> None:
    put(store, "a", 1, prompt_set="shared")
    four = QUIET | {("original", "prompt", f"p{n}"): 4 for n in range(4)}
    put(store, "b", 2, four, model_id="n", prompt_set="shared")
    found = compare(store, "a", "b", CLAIMS)
    assert (found.prompts, found.images) == (6, 2)
    words = [words for words, _ in found.regressions]
    said = "with 4 more prompts that count as one with it 16 of 20 images are copies, before 0 of 20"
    assert words[0] == f"original, prompt: 'image 0': {said}"
    # One image came, so one prompt is named, and the figure of all.
    assert len(words) == 2 and "16 of 24 images are copies" in words[1]
    assert "over 6 prompts of 2 images" in compare(store, "b", "a", CLAIMS).verdict
    assert not any("another n" in note for note in found.notes)
    # What one of the two sets says is enough.
    put(store, "c", 3)
    assert compare(store, "c", "b", CLAIMS).images == 2


def near(store: Store, prompt_set: str, params_id: str, **cluster: str) -> None:
    """What an audit of this set found alike."""
    rows = [{"prompt_id": name, "cluster": of, "params_id": params_id} for name, of in cluster.items()]
    store.write("clusters", params_id, rows, prompt_set=prompt_set)


def test_near_duplicates_count_once_by_what_either_audit_found(store: Store) -> None:
    came = {("nemo-union", "dori-noise", f"p{n}"): 0 for n in range(6)}
    put(store, "a", 1, came)
    put(store, "b", 2, dict.fromkeys(came, 4), model_id="n", prompt_set="q")
    apart = compare(store, "a", "b", CLAIMS)
    assert (apart.prompts, apart.images) == (6, 6) and apart.regressions[0][1] <= 0.05
    assert "of 6 attacked images 6 come back" in apart.regressions[0][0]
    near(store, "p", "one-audit", p0="p0", p1="p0", p2="p2", p3="p3", p4="p4", p5="p5")
    near(store, "q", "the-other", p1="p1", p2="p1", p3="p3", p4="p3", q="q")
    together = compare(store, "a", "b", CLAIMS)
    # 0, 1 and 2 by both audits, 3 and 4 by one: three coins that fell so are no proof.
    assert (together.prompts, together.images) == (6, 3) and together.regressions == []
    assert "over 6 prompts of 3 images" in together.verdict
    near(store, "elsewhere", "another-set", p0="p0", p5="p0")
    assert compare(store, "a", "b", CLAIMS).images == 3


def test_near_duplicates_that_an_adapter_brings_back_are_one_image(store: Store) -> None:
    places = [("original", "prompt", f"p{n}") for n in range(6)]
    put(store, "base", 1, dict(zip(places, (0, 1, 0, 0, 0, 2), strict=True)))
    put(store, "tuned", 2, dict(zip(places, (4, 4, 4, 4, 0, 0), strict=True)), model_id="tuned")
    near(store, "p", "both", p0="p0", p1="p0", p2="p2", p3="p2", p4="p4", p5="p5")
    found = brought_back(store, "base", "tuned")
    assert {one.prompt: one.unit for one in found}["image 3"] == "p2" and len(found) == 6
    words = words_of_brought(found)
    assert words.startswith("Of 6 prompts of 4 images, the training image of 1 comes back with the adapters and not")
    assert "of 1 with and without, of 1 only without (any" in words


def test_an_audit_that_counted_prompts_is_told_from_one_that_counts_images(store: Store) -> None:
    for day, name in enumerate("ab", 1):
        put(store, name, day)
    row = {"variant": "original", "condition": "ordinary", "metric": "clip", "value": 0.5}
    store.write("metrics", "a-more", [row | {"n": 6}], audit_id="a")
    store.write("metrics", "b-more", [row | {"n": 2}], audit_id="b")
    said = "estimates count the same prompts as 6 and 2: earlier versions counted prompts, or knew no near-duplicates"
    assert said in compare(store, "a", "b", CLAIMS).notes
    # Of too few there is nothing to compare.
    store.write("metrics", "a-fid", [row | {"metric": "fid", "value": None, "n": 2}], audit_id="a")
    store.write("metrics", "b-fid", [row | {"metric": "fid", "value": 0.5, "n": 2}], audit_id="b")
    assert "fid" not in {one.metric for one in compare(store, "a", "b", CLAIMS).differences}


def test_a_condition_without_training_images_was_looked_at_all_the_same(store: Store) -> None:
    both = QUIET | {("original", "ordinary", f"p{n}"): 0 for n in range(6)}
    for day, name in enumerate("ab", 1):
        put(store, name, day, both, clip=0.3, with_images=False)
    assert [note for note in compare(store, "a", "b", CLAIMS).notes if "not looked at again" in note] == []
    put(store, "c", 3, clip=0.3)
    assert "original, ordinary was not looked at again" in compare(store, "b", "c", CLAIMS).notes


def test_an_unchanged_model_with_the_same_images_is_silent(store: Store) -> None:
    half = {place: n % (SEEDS + 1) for n, place in enumerate(QUIET)}
    put(store, "a", 1, half)
    put(store, "b", 2, half)
    found = compare(store, "a", "b", CLAIMS, alpha=0.99)
    assert found.regressions == [] and found.verdict.startswith("No regression from a to b, over 6 prompts")
    assert {one.change for one in found.differences} == {0}
    assert found.notes == ["a prompt that the original never copied would be noticed from 1 copies in 4 images on"]


def test_controls_do_not_regress(store: Store) -> None:
    control = {("random-nemo-union", "prompt", f"p{n}"): 0 for n in range(6)}
    put(store, "a", 1, QUIET | control)
    put(store, "b", 2, QUIET | dict.fromkeys(control, 4), model_id="retrained")
    found = compare(store, "a", "b", CLAIMS)
    assert found.regressions == []
    assert next(one for one in found.differences if one.variant == "random-nemo-union").change == 1


def test_quality_is_that_of_ordinary_prompts(store: Store) -> None:
    seen = {("original", condition, f"p{n}"): 0 for condition in ("prompt", "ordinary") for n in range(12)}
    put(store, "a", 1, seen, clip=0.3)
    put(store, "b", 2, seen, clip=0.2, model_id="retrained")
    ((words, _),) = compare(store, "a", "b", CLAIMS).regressions
    assert words.startswith("original, ordinary: CLIP score 0.2")
    assert compare(store, "a", "b", CLAIMS, margin=0.5).regressions == []


def test_other_settings_and_prompts_are_told(store: Store) -> None:
    put(store, "a", 1)
    fewer = {place: n for place, n in QUIET.items() if place[2] != "p5" and place[0] == "original"}
    put(store, "b", 2, fewer, settings={"sampling": {"steps": 9}}, prompt_set="q")
    found = compare(store, "a", "b", CLAIMS)
    assert found.prompts == 5
    assert found.notes[:-1] == [
        "sampling.steps was None, is 9",
        "5 prompts in common, of 6 and 5: estimates are over all",
        "nemo-union, prompt was not looked at again",
    ]


def test_what_cannot_be_compared_is_refused(store: Store) -> None:
    put(store, "a", 1)
    put(store, "other-prompts", 2, {("original", "prompt", "q"): 0})
    put(store, "other-scorer", 3, scorer="another", model_id="n")
    put(store, "running", 4, state="running")
    put(store, "failed", 5, state="failed")
    put(store, "no-images", 6, {})
    for after, said in {
        "none": "no audit 'none'",
        "other-prompts": "no prompt in common",
        "other-scorer": "different SSCD models",
        "running": "the audit running is running",
        "failed": "the audit failed is failed",
        "no-images": "does not say which images",
    }.items():
        with pytest.raises(InputError, match=said):
            compare(store, "a", after, CLAIMS)


def test_the_baseline_of_a_night(store: Store) -> None:
    def baseline(audit_id: str, known: set[str]) -> str | None:
        return baseline_of(store, audit_id, known, {"sampling.batch"})

    for day, name in enumerate("abcd", start=1):
        put(store, name, day, model_id=name, settings={"sampling": {"batch": day}})
    put(store, "faster", 5, settings={"sampling": {"batch": 1, "steps": 20}})
    put(store, "e", 6, settings={"sampling": {"batch": 1, "steps": 50}})
    assert baseline("a", set("abcd")) is None
    assert baseline("d", set("abcd")) == "c"
    # Nobody heard of b and c, whatever they were: the night's is compared with what somebody knows.
    assert baseline("d", {"a", "d"}) == "a"
    assert baseline("d", set()) is None
    # Settings that both know must be the same.
    assert baseline("e", {"a", "faster"}) == "a"
    assert baseline("e", {"faster"}) is None
    # A person's word counts most, but for that of other settings where there is one of the same.
    accept(store, "b")
    accept(store, "a")
    assert baseline("d", set("abcd")) == "a"
    accept(store, "b")
    assert baseline("d", set("abcd")) == "b"
    accept(store, "faster")
    assert baseline("e", set()) == "b"


def test_words_for_audits(store: Store) -> None:
    for day, (name, model_id) in enumerate({"a": "m", "b": "m", "c": "n", "d": "n"}.items(), start=1):
        put(store, name, day, model_id=model_id)
    put(store, "of-other-prompts", 20, prompt_set="q")
    put(store, "failed", 21, state="failed")
    with pytest.raises(InputError, match="no accepted audit"):
        audits_named(store, "accepted", "d")
    accept(store, "b")
    accept(store, "a")
    assert audits_named(store, "accepted", "d") == ("a", "d")
    accept(store, "b")
    assert accept(store, "latest") == "of-other-prompts"
    assert audits_named(store, "accepted", "d") == ("b", "d")
    assert audits_named(store, "previous", "d") == ("c", "d")
    assert audits_named(store, "a", "latest") == ("a", "of-other-prompts")
    with pytest.raises(InputError, match="previous of what"):
        audits_named(store, "previous", "accepted")
    with pytest.raises(InputError, match="failed is failed"):
        accept(store, "failed")


def test_the_command_line(store: Store) -> None:
    put(store, "a", 1)
    put(store, "b", 2, QUIET | {("original", "prompt", "p3"): 4}, model_id="retrained")
    found = engram(store, "compare")
    assert found.exit_code == 1
    lines = found.output.splitlines()
    assert lines[0].split() == ["variant", "condition", "metric", "before", "after", "change", "low", "high"]
    assert lines[2].split()[:6] == ["original", "prompt", "mr", "0", "0.1667", "0.1667"]
    assert lines[-1].startswith("Regression from a to b: original, prompt: 'image 3'")
    answer = engram(store, "compare", "a", "b", "--json")
    assert answer.exit_code == 1 and json.loads(answer.output)["regressions"][0][1] == pytest.approx(1 / 70)
    assert engram(store, "compare", "a", "b", "--alpha", "0.001").exit_code == 0
    assert engram(store, "accept", "latest").output == "accepted b\n"
    assert isinstance(engram(store, "accept", "none").exception, InputError)


def test_the_registry(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("prompts.csv").write_text("Caption,kind\na cat,memorized\na dog,null\na sea,null\na tree,null\na house,null\n")
    tiny_world(tmp_path / "world")
    options = ["--model", "world/model", "--prompts", "prompts.csv", "--clip", "local-dir:world/clip"]
    options += ["--set", "wanda.sparsity=0.1"]
    added = engram(store, "models", "add", "tiny", *options, "--set", "seeds=7")
    assert added.exit_code == 0, added.exception

    def listed() -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = json.loads(engram(store, "models", "list", "--format", "json").output)
        return rows

    (row,) = listed()
    assert (row["name"], row["model"]) == ("tiny", str(tmp_path / "world" / "model"))
    assert row["prompts"] == str(tmp_path / "prompts.csv")
    assert json.loads(row["params"])["settings"]["seeds"] == 7
    engram(store, "models", "add", "tiny", *options, "--set", "seeds=8")
    (row,) = listed()
    assert json.loads(row["params"])["settings"]["seeds"] == 8
    assert engram(store, "models", "remove", "tiny").exit_code == 0
    assert listed() == []
    for words in (
        ("remove", "tiny"),
        ("add", "a/b", "--model", "model"),
        ("add", "c", "--model", "gone"),
        ("add", "c", "--model", "model"),  # asked about nothing
        ("add", "c", "--model", "model", "--prompts", "prompts.csv"),  # nothing scores alignment
        ("add", "c", *options[:-1], "local-dir:gone"),
        ("add", "c", "--model", "model", "--nulls", "gone.txt"),
        ("add", "c", "--model", "model", "--set", "seeds=0"),
    ):
        assert isinstance(engram(store, "models", *words).exception, InputError), words
    assert verify(store) == []
