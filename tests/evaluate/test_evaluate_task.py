"""The door of evaluation: estimates rest on what this audit asked, whatever else the store knows."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from storage import content_key
from tasks import methods
from tasks.conditions import EXTRACTION, ORDINARY, PROMPT, Condition, dori
from tasks.diffusion.sampling import SamplingParams, to_png
from tasks.errors import InputError
from tasks.evaluate import confirmation, copying, extraction, quality, seed_similarity, ssim
from tasks.evaluate import task as door
from tasks.evaluate.estimates import Estimate, gathered, over_units
from tasks.evaluate.extraction import ExtractionParams
from tasks.evaluate.quality import LEAST
from tasks.evaluate.seen import Pair, Seen
from tasks.evaluate.task import Shot, StoredSeen, Trial
from tasks.evaluate.task import seen as stored
from tasks.evaluate.task.seen import made_for
from tasks.methods import Column, NoParams, metric
from tasks.report.markdown import estimates_text
from tasks.report.standing import standings
from tasks.report.task import rows_of
from tasks.scorers.clip import ClipParams
from tasks.scorers.sscd import SscdParams, scorer_of
from tasks.subject import Prompt, Subject, units_of
from tests.support.seen import HandMade

NONE = NoParams()
SCORING = door.Scoring(SamplingParams(), SscdParams(), ClipParams(model="none"), {}, "none")


def prompt_of(name: str, *images: str, kind: str | None = None) -> Prompt:
    return Prompt(name, name, "memorized", kind, None, images)


@pytest.fixture
def subject(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Subject:
    monkeypatch.setattr(Subject, "model_id", property(lambda self: self.model))
    return Subject(store=str(tmp_path / "store"), model=str(tmp_path), prompt_set="none", device="cpu")


def seen_of(subject: Subject, prompts: list[Prompt], seeds: int = 1, condition: Condition = PROMPT) -> StoredSeen:
    """These prompts asked of the original, as metrics see it."""
    trial = Trial("original", "original", condition, prompts, seeds)
    return StoredSeen(subject, trial, door.shots(prompts, seeds), SCORING)


def of(subject: Subject, shots: Sequence[Shot]) -> dict[str, str]:
    """What counts once, as the prompt set has it."""
    return units_of(subject, [shot.prompt for shot in shots])


def table_of(subject: Subject) -> str:
    return estimates_text(rows_of(subject.open(), "audit"), standings())


def scored(subject: Subject, kind: str, values: dict[Pair, float]) -> None:
    rows = [
        {"generation_id": name, "reference_id": other, "scorer": scorer_of(SscdParams()), "value": value}
        for (name, other), value in values.items()
    ]
    subject.open().write("scores", content_key(kind, sorted(values)), rows, metric=kind)


@pytest.fixture
def brightness() -> Iterator[list[str]]:
    """A metric of somebody else, in one piece; gives the generations that it was computed of."""
    looked_at: list[str] = []

    @metric(
        name="brightness",
        title="Brightness",
        paper="A test",
        words="Brightness is the mean of all pixels, the mean over images.",
        control="The original model.",
        applies=lambda condition, variant: condition.is_attack,
        columns=(Column("brightness", "Brightness", ".1%"),),
    )
    def brightness(seen: Seen, params: NoParams) -> list[Estimate]:
        def means(missing: Sequence[Pair]) -> list[float]:
            looked_at.extend(name for name, _ in missing)
            images = seen.pixels([name for name, _ in missing])
            return [images[name].mean() / 255 for name, _ in missing]

        known = seen.scored("brightness", "none", [(one.id, one.prompt_id) for one in seen.generations], means)
        of_units = gathered(seen.generations, list(known.values()))
        return [over_units("brightness", np.array([values.mean() for values in of_units.values()]), np.mean)]

    yield looked_at
    del methods._FOUND["metric", "brightness"]


def test_a_newcomers_metric_is_one_function(
    subject: Subject, brightness: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Subject, "load", lambda self: None)
    monkeypatch.setattr(stored, "image_size", lambda model: (8, 8))
    prompts, condition = [prompt_of("p"), prompt_of("q")], dori("noise")
    trial, shots = Trial("wanda", "original", condition, prompts, 1), door.shots(prompts, 1)
    ids = door.generation_ids(subject, "original", condition, shots, SCORING.sampling)
    rows = [
        {"prompt_id": name, "seed": 0, "generation_id": one, "bytes": to_png(np.full((8, 8, 3), grey, np.uint8))}
        for name, one, grey in zip("pq", ids, (51, 102), strict=True)
    ]
    place = {"model_id": subject.model_id, "variant": "original", "condition": condition.name}
    subject.open().write("generations", content_key(ids), rows, **place)
    for _ in range(2):  # the second time from what the store keeps
        door.measure(subject, "audit", trial, shots, SCORING)
    assert brightness == ids
    (row,) = subject.open().read("metrics").to_pylist()
    assert (row["variant"], row["metric"], row["n"], row["value"]) == ("wanda", "brightness", 2, pytest.approx(0.3))
    assert "| variant | condition | n | Brightness |" in table_of(subject) and "| 30.0 % (" in table_of(subject)


def test_scores_against_images_of_another_set_do_not_count(subject: Subject) -> None:
    one, both = seen_of(subject, [prompt_of("p", "right")]), seen_of(subject, [prompt_of("p", "right", "wrong")])
    (generation,) = one.generations
    scored(subject, "sscd", {(generation.id, "right"): 0.2, (generation.id, "wrong"): 0.9})
    assert [copying.copying(seen, NONE)[0].value for seen in (one, both)] == [0, 1]


def test_a_training_image_is_seen_cropped_as_it_was_trained_on(
    subject: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    wide = np.random.default_rng(0).integers(0, 255, (64, 128, 3), np.uint8)
    files = {"image": to_png(wide), "generation": to_png(wide[:, 32:96])}
    monkeypatch.setattr(StoredSeen, "files", lambda self, names: {name: files[name] for name in names})
    of = {"square": (64, 64), "wide": (128, 64)}
    monkeypatch.setattr(stored, "image_size", of.__getitem__)
    monkeypatch.setattr(Subject, "load", lambda self: self.model)
    square, other = (seen_of(subject.model_copy(update={"model": name}), []) for name in of)
    found = square.sscd.images(list(files))
    assert found["image"] @ found["generation"] > 0.999
    assert np.array_equal(square.pixels(["image"])["image"], wide[:, 32:96])
    # A model of another size that is audited by the same process sees another crop.
    assert other.sscd.images(["image"])["image"] @ found["image"] < 0.95


def test_verbatim_and_template_memories_stand_apart(subject: Subject) -> None:
    scores = {("g", "i"): 0.9, ("h", "j"): 0.1, ("h", "k"): 0.3}
    shots = [Shot(prompt_of("p", "i", kind="VM"), None, 0), Shot(prompt_of("q", "j", "k", kind="TM"), None, 0)]
    found = copying.copying(HandMade(made_for(of(subject, shots), shots, ["g", "h"]), {"sscd": scores}), NONE)
    figures = {one.metric: one for one in found}
    assert figures["mr_generations"].value == 0.5
    assert (figures["mr"].value, figures["mr_vm"].value, figures["mr_tm"].value) == (0.5, 1, 0)
    assert (figures["mr"].n, figures["mr_vm"].n, figures["mr_tm"].n) == (2, 1, 1)
    assert figures["sscd_orig_max_tm"].value == pytest.approx(0.3)
    one_kind = copying.copying(HandMade(made_for(of(subject, shots), shots[:1], ["g"]), {"sscd": scores}), NONE)
    assert not any(figure.metric.endswith(("_vm", "_tm")) for figure in one_kind)


def test_confirmed_prompts_and_others_stand_apart(subject: Subject) -> None:
    """Two captions of one image, of which one is confirmed, and a prompt without an image, confirmed by detection."""
    scores = {("a", "i"): 0.9, ("b", "i"): 0.2, ("c", "j"): 0.1}
    shots = [Shot(one, None, 0) for one in (prompt_of("p", "i"), prompt_of("q", "i"), prompt_of("r", "j"))]
    shots.append(Shot(prompt_of("s"), None, 0))
    for row in (prompt_of("p", "i"), prompt_of("q", "i"), prompt_of("r", "j"), prompt_of("s")):
        own = {"prompt_id": row.prompt_id, "text": row.text, "kind": "memorized", "image_ids": list(row.image_ids)}
        subject.open().write("prompts", row.prompt_id, [own], prompt_set="none")
    seen = HandMade(made_for(of(subject, shots), shots, ["a", "b", "c", "d"], {"p", "s"}), {"sscd": scores})
    found = {one.metric: one for one in copying.copying(seen, NONE)}
    assert (found["mr"].value, found["mr"].n) == (0.5, 2)
    assert (found["mr_confirmed"].value, found["mr_confirmed"].n) == (1, 1)
    # The image's other caption counts with those that are not confirmed, and brings nothing back.
    assert (found["mr_unconfirmed"].value, found["mr_unconfirmed"].n) == (0, 2)
    assert found["sscd_orig_max_unconfirmed"].value == pytest.approx(0.15)
    (share,) = confirmation.confirmation(seen, NONE)
    assert (share.metric, share.n, share.prompts) == ("confirmed", 3, 4)
    assert share.value == pytest.approx(2 / 3)
    for confirmed in ({"p", "q", "r"}, set[str]()):
        alike = copying.copying(
            HandMade(made_for(of(subject, shots), shots, ["a", "b", "c", "d"], confirmed), {"sscd": scores}), NONE
        )
        assert not [one.metric for one in alike if one.metric.endswith("confirmed")]


def test_how_near_a_prompt_comes_is_known_once_all_was_scored(subject: Subject) -> None:
    prompts = [prompt_of("p", "i", "j"), prompt_of("q", "k"), prompt_of("r")]
    given = subject, prompts, 2, SCORING.sampling, SCORING.sscd
    ids = door.generation_ids(subject, "original", PROMPT, door.shots(prompts, 2), SCORING.sampling)
    first = {(ids[0], "i"): 0.1, (ids[0], "j"): 0.3, (ids[1], "i"): 0.2, (ids[2], "k"): 0.8, (ids[3], "k"): 0.4}
    scored(subject, "sscd", first)
    assert door.nearest(*given) == {"q": pytest.approx(0.8)}
    scored(subject, "sscd", {(ids[1], "j"): 0.25, (ids[0], "an image of an earlier set"): 0.9})
    assert door.nearest(*given) == {"p": pytest.approx(0.3), "q": pytest.approx(0.8)}


def test_a_trigger_counts_where_any_generation_of_it_is_a_copy(subject: Subject) -> None:
    scores = {("a", "i"): 0.2, ("b", "i"): 0.9, ("c", "i"): 0.7, ("d", "j"): 0.1, ("d", "k"): 0.71}
    one, two = prompt_of("p", "i"), prompt_of("q", "j", "k")
    shots = [Shot(one, "t", 0), Shot(one, "t", 1), Shot(one, "u", 0), Shot(two, "v", 0)]
    seen = HandMade(made_for(of(subject, shots), shots, ["a", "b", "c", "d"]), {"sscd": scores})
    assert copying.triggers_that_copy(copying.similarities(seen)) == {"t", "v"}


def test_structure_is_of_the_nearest_training_image(subject: Subject) -> None:
    draw = np.random.default_rng(0)
    copied, other = (draw.integers(0, 255, (32, 32, 3), np.uint8) for _ in range(2))
    images = {"copied": copied, "other": other, "third": other, "copy": copied, "new": 255 - other}
    shots = [
        Shot(prompt_of("p", "other", "copied"), None, 0),
        Shot(prompt_of("q", "third"), None, 0),
        Shot(prompt_of("r"), None, 0),
    ]
    seen = HandMade(made_for(of(subject, shots), shots, ["copy", "new", "none"]), images=images)
    best, _ = ssim.measured(seen, NONE)
    assert (best.metric, best.n, best.prompts) == ("ssim_orig_max", 2, 2)
    assert best.value == pytest.approx((1 + ssim.ssim(images["new"], other)) / 2)
    kept = HandMade(seen.generations, {"ssim": {("copy", "other"): 0, ("copy", "copied"): 1, ("new", "third"): 0}})
    assert ssim.measured(kept, NONE)[0].value == 0.5  # what is kept is not computed again
    assert ssim.measured(HandMade(seen.generations[2:]), NONE) == []


def test_seeds_beyond_this_audits_do_not_count(subject: Subject) -> None:
    many, two, lone = (seen_of(subject, [prompt_of("p")], seeds) for seeds in (3, 2, 1))
    first, second, third = (one.id for one in many.generations)
    scored(subject, "sscd_pair", {(first, second): 0.1, (first, third): 0.9, (second, third): 0.9})
    (figure,) = seed_similarity.measured(two, NONE)
    assert figure.value == pytest.approx(0.1)
    assert seed_similarity.measured(lone, NONE) == []


def test_metrics_are_taken_where_they_apply(subject: Subject) -> None:
    names = {one.name: one for one in methods.metrics()}
    taken = {
        (variant, condition.name): {name for name, one in names.items() if one.applies(condition, variant)}
        for variant in ("original", "wanda")
        for condition in (PROMPT, ORDINARY, EXTRACTION, dori("noise"))
    }
    always = {"copying", "seed-similarity", "ssim"}
    assert taken["original", "prompt"] == always | {"confirmation", "detection", "shared"}
    assert taken["wanda", "prompt"] == always | {"change", "shared"}
    assert taken["wanda", "ordinary"] == always | {"change", "clip", "quality"}
    assert taken["original", "ordinary"] == always | {"clip", "quality"}
    assert taken["wanda", "extraction"] == {"extraction"}
    assert taken["wanda", "dori-noise"] == always


def test_what_was_not_generated_is_missed_in_a_line(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Subject, "load", lambda self: None)
    seen = seen_of(subject, [prompt_of("p", "i")])
    with pytest.raises(InputError, match="generate first"):
        copying.copying(seen, NONE)


def test_quality_is_of_prompts_that_have_images(subject: Subject) -> None:
    """Images of other prompts differ from the training images because they show something else."""
    images = [f"i{n}" for n in range(LEAST)]
    near = {name: np.eye(LEAST + 1)[n] for n, name in enumerate(images)}
    near |= {f"g{n}": near[name] for n, name in enumerate(images)}
    # A second caption, whose images show something else, does not count: its image has one already.
    near |= {"elsewhere": np.eye(LEAST + 1)[-1], "second": np.eye(LEAST + 1)[-1]}
    shots = [Shot(prompt_of(f"p{n}", name), None, 0) for n, name in enumerate(images)]
    shots += [Shot(prompt_of("r"), None, 0), Shot(prompt_of("q", "i0"), None, 0)]
    ids = [*(f"g{n}" for n in range(LEAST)), "elsewhere", "second"]
    seen = HandMade(made_for(of(subject, shots), shots, ids), vectors=near)
    found = {one.metric: one for one in quality.quality(seen, NONE)}
    assert found["fid"].value == pytest.approx(0, abs=1e-6)
    assert (found["fid"].n, found["kid"].n) == (LEAST, LEAST)
    assert quality.quality(HandMade(seen.generations[LEAST:-1]), NONE) == []


def test_distances_of_too_few_images_have_no_value(subject: Subject) -> None:
    """Two images of each of five images, which nine prompts share: ten images are five images."""
    prompts = [prompt_of(f"p{n}", f"i{n % (LEAST - 1)}") for n in range(9)]
    shots = [Shot(prompt, None, seed) for prompt in prompts for seed in range(2)]
    ids = [f"g{n}" for n in range(len(shots))]
    found = quality.quality(HandMade(made_for(of(subject, shots), shots, ids)), NONE)
    assert [(one.metric, math.isnan(one.value), one.n) for one in found] == [("fid", True, 10), ("kid", True, 10)]
    door.write_estimates(subject, "audit", "original", ORDINARY, found)
    rows = subject.open().read("metrics").to_pylist()
    assert {row["metric"]: (row["value"], row["n"]) for row in rows} == {"fid": (None, 10), "kid": (None, 10)}
    assert "too few" in table_of(subject)


def test_an_image_that_always_comes_back_is_no_memory_unless_it_was_trained_on(subject: Subject) -> None:
    # Of p its image comes again and again, of q always another, as surrogates may teach it, of r ever new ones.
    directions = {"p": (0, 0, 0), "i": (0,), "q": (1, 1, 1), "j": (2,), "r": (3, 4, 5), "k": (6,)}
    names = {name: [f"{name}{n}" for n in range(len(of))] if len(of) > 1 else [name] for name, of in directions.items()}
    vectors = {one: np.eye(7)[of[n]] for name, of in directions.items() for n, one in enumerate(names[name])}
    prompts = [prompt_of("p", "i"), prompt_of("q", "j"), prompt_of("r", "k")]
    shots = [Shot(prompt, None, seed) for prompt in prompts for seed in range(3)]
    params = ExtractionParams(clique=3, measure="sscd", distance=0.3)
    ids = [name for prompt in prompts for name in names[prompt.prompt_id]]
    found = extraction.extraction(HandMade(made_for(of(subject, shots), shots, ids), vectors=vectors), params)
    assert {one.metric: (one.value, one.n) for one in found} == {
        "extraction_precision": (0.5, 2),
        "extraction_recall": (pytest.approx(1 / 3), 3),
    }
    # Without training images a claim can only be compared with what the prompt is said to be.
    shots = [Shot(replace(shot.prompt, image_ids=()), None, shot.seed) for shot in shots]
    found = extraction.extraction(HandMade(made_for(of(subject, shots), shots, ids), vectors=vectors), params)
    assert [(one.value, one.n) for one in found] == [(1, 2), (pytest.approx(2 / 3), 3)]
