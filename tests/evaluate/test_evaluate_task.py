"""The door of evaluation: figures rest on what this audit asked, whatever else the store knows."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tasks.attack.extraction import ExtractionParams
from tasks.conditions import EXTRACTION, ORDINARY, PROMPT
from tasks.diffusion.sampling import to_png
from tasks.evaluate import task as door
from tasks.evaluate.clip_score import ClipParams
from tasks.evaluate.quality import LEAST
from tasks.evaluate.sscd import SscdParams, scorer_of
from tasks.evaluate.task import Shot, scores
from tasks.evaluate.task.figures import triggers_that_copy
from tasks.report.markdown import figures_text
from tasks.report.standing import STANDINGS
from tasks.report.task import rows_of
from tasks.subject import Prompt, Subject

SSCD = SscdParams()


def asked(name: str, *images: str, kind: str | None = None) -> Prompt:
    return Prompt(name, name, "memorized", kind, None, images)


@pytest.fixture
def subject(tmp_path: Path) -> Subject:
    return Subject(store=str(tmp_path / "store"), model=str(tmp_path), prompt_set="none", device="cpu")


def table_of(subject: Subject) -> str:
    return figures_text(rows_of(subject.open(), "audit"), STANDINGS)


def scored(subject: Subject, metric: str, values: dict[tuple[str, str], float]) -> None:
    rows = [
        {"generation_id": name, "reference_id": other, "scorer": scorer_of(SSCD), "value": value}
        for (name, other), value in values.items()
    ]
    subject.open().write("scores", f"by-hand-{metric}", rows, metric=metric)


def test_scores_against_images_of_another_set_do_not_count(subject: Subject) -> None:
    scored(subject, "sscd", {("g", "right"): 0.2, ("g", "wrong"): 0.9})
    found = door.copy_figures(subject, [Shot(asked("p", "right"), None, 0)], ["g"], SSCD)
    assert {figure.metric: figure.value for figure in found}["mr"] == 0
    found = door.copy_figures(subject, [Shot(asked("p", "right", "wrong"), None, 0)], ["g"], SSCD)
    assert {figure.metric: figure.value for figure in found}["mr"] == 1


def test_a_training_image_is_seen_cropped_as_it_was_trained_on(
    subject: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    wide = np.random.default_rng(0).integers(0, 255, (64, 128, 3), np.uint8)
    files = {"image": to_png(wide), "generation": to_png(wide[:, 32:96])}
    monkeypatch.setattr(
        scores, "files_of", lambda subject, variant, condition, names: {name: files[name] for name in names}
    )
    of = {"square": (64, 64), "wide": (128, 64)}
    monkeypatch.setattr(scores, "picture_size", of.__getitem__)
    monkeypatch.setattr(Subject, "load", lambda self: self.model)
    monkeypatch.setattr(Subject, "model_id", property(lambda self: self.model))
    square, other = (subject.model_copy(update={"model": name}) for name in of)
    found = scores.sscd_vectors(square, "original", PROMPT, list(files), SSCD)
    assert found["image"] @ found["generation"] > 0.999
    # A model of another size that is audited by the same process sees another crop.
    assert scores.sscd_vectors(other, "original", PROMPT, ["image"], SSCD)["image"] @ found["image"] < 0.95


def test_verbatim_and_template_memories_stand_apart(subject: Subject) -> None:
    scored(subject, "sscd", {("g", "i"): 0.9, ("h", "j"): 0.1, ("h", "k"): 0.3})
    shots = [Shot(asked("p", "i", kind="VM"), None, 0), Shot(asked("q", "j", "k", kind="TM"), None, 0)]
    figures = {one.metric: one for one in door.copy_figures(subject, shots, ["g", "h"], SSCD)}
    assert figures["mr_generations"].value == 0.5
    assert (figures["mr"].value, figures["mr_vm"].value, figures["mr_tm"].value) == (0.5, 1, 0)
    assert (figures["mr"].n, figures["mr_vm"].n, figures["mr_tm"].n) == (2, 1, 1)
    assert figures["sscd_orig_max_tm"].value == pytest.approx(0.3)
    one_kind = door.copy_figures(subject, shots[:1], ["g"], SSCD)
    assert not any(figure.metric.endswith(("_vm", "_tm")) for figure in one_kind)


def test_a_trigger_counts_where_any_picture_of_it_is_a_copy(subject: Subject) -> None:
    scored(subject, "sscd", {("a", "i"): 0.2, ("b", "i"): 0.9, ("c", "i"): 0.7, ("d", "j"): 0.1, ("d", "k"): 0.71})
    one, two = asked("p", "i"), asked("q", "j", "k")
    shots = [Shot(one, "t", 0), Shot(one, "t", 1), Shot(one, "u", 0), Shot(two, "v", 0)]
    assert triggers_that_copy(subject, shots, ["a", "b", "c", "d"], SSCD) == {"t", "v"}


def test_structure_is_of_the_nearest_training_image_cropped_as_it_was_trained_on(
    subject: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    wide = np.random.default_rng(0).integers(0, 255, (32, 64, 3), np.uint8)
    other = np.random.default_rng(1).integers(0, 255, (32, 32, 3), np.uint8)
    files = {"wide": to_png(wide), "other": to_png(other), "copy": to_png(wide[:, 16:48]), "new": to_png(255 - other)}
    files["third"] = files["other"]
    monkeypatch.setattr(
        scores, "files_of", lambda subject, variant, condition, names: {name: files[name] for name in names}
    )
    monkeypatch.setattr(scores, "picture_size", lambda model: (32, 32))
    monkeypatch.setattr(Subject, "load", lambda self: None)
    one, two = asked("p", "other", "wide"), asked("q", "third")
    shots, ids = [Shot(one, None, 0), Shot(two, None, 0), Shot(asked("r"), None, 0)], ["copy", "new", "none"]
    door.score_structure(subject, "original", PROMPT, shots, ids)
    rows = subject.open().read("scores", metric="ssim").to_pylist()
    values = {(row["generation_id"], row["reference_id"]): row["value"] for row in rows}
    assert values.keys() == {("copy", "wide"), ("copy", "other"), ("new", "third")}
    assert values["copy", "wide"] == 1 and values["new", "third"] < values["copy", "other"] < 0.5
    best, _ = door.structure_figures(subject, shots, ids)
    assert (best.metric, best.n, best.prompts) == ("ssim_orig_max", 2, 2)
    assert best.value == pytest.approx((1 + values["new", "third"]) / 2)
    monkeypatch.setattr(scores, "ssim", None)  # what is in the store is not computed again
    door.score_structure(subject, "original", PROMPT, shots, ids)
    assert door.structure_figures(subject, shots[2:], ids[2:]) == []


def test_seeds_beyond_this_audits_do_not_count(subject: Subject) -> None:
    scored(subject, "sscd_pair", {("g0", "g1"): 0.1, ("g0", "g2"): 0.9, ("g1", "g2"): 0.9})
    prompt = asked("p")
    shots = [Shot(prompt, None, seed) for seed in range(2)]
    (figure,) = door.seed_similarity_figure(subject, shots, ["g0", "g1"], SSCD)
    assert figure.value == pytest.approx(0.1)
    assert door.seed_similarity_figure(subject, shots[:1], ["g0"], SSCD) == []


def test_quality_is_of_prompts_that_have_pictures(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures of other prompts differ from the training pictures because they show something else."""
    images = [f"i{n}" for n in range(LEAST)]
    near = {name: np.eye(LEAST + 1)[n] for n, name in enumerate(images)}
    near |= {f"g{n}": near[name] for n, name in enumerate(images)}
    # A second caption, whose pictures show something else, does not count: its image has one already.
    near |= {"elsewhere": np.eye(LEAST + 1)[-1], "second": np.eye(LEAST + 1)[-1]}
    monkeypatch.setattr(
        "tasks.evaluate.task.figures.clip_vectors",
        lambda subject, variant, condition, some, params: {name: near[name] for name in some},
    )
    shots = [Shot(asked(f"p{n}", name), None, 0) for n, name in enumerate(images)]
    shots += [Shot(asked("r"), None, 0), Shot(asked("q", "i0"), None, 0)]
    ids = [*(f"g{n}" for n in range(LEAST)), "elsewhere", "second"]
    place = (subject, "original", ORDINARY)
    found = {one.metric: one for one in door.quality_figures(*place, shots, ids, ClipParams(model="none"))}
    assert found["fid"].value == pytest.approx(0, abs=1e-6)
    assert (found["fid"].n, found["kid"].n) == (LEAST, LEAST)
    assert door.quality_figures(*place, shots[LEAST:-1], ids[LEAST:-1], ClipParams(model="none")) == []


def test_distances_of_too_few_images_have_no_value(subject: Subject) -> None:
    """Two pictures of each of five images, which nine prompts share: ten pictures are five images."""
    prompts = [asked(f"p{n}", f"i{n % (LEAST - 1)}") for n in range(9)]
    shots = [Shot(prompt, None, seed) for prompt in prompts for seed in range(2)]
    ids = [f"g{n}" for n in range(len(shots))]
    found = door.quality_figures(subject, "original", ORDINARY, shots, ids, ClipParams(model="none"))
    assert [(one.metric, math.isnan(one.value), one.n) for one in found] == [("fid", True, 10), ("kid", True, 10)]
    door.write_figures(subject, "audit", "original", ORDINARY, found)
    rows = subject.open().read("metrics").to_pylist()
    assert {row["metric"]: (row["value"], row["n"]) for row in rows} == {"fid": (None, 10), "kid": (None, 10)}
    assert "too few" in table_of(subject)


def test_a_picture_that_always_comes_back_is_no_memory_unless_it_was_trained_on(
    subject: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Of p its picture comes again and again, of q always another, as surrogates may teach it, of r ever new ones.
    directions = {"p": (0, 0, 0), "i": (0,), "q": (1, 1, 1), "j": (2,), "r": (3, 4, 5), "k": (6,)}
    names = {name: [f"{name}{n}" for n in range(len(of))] if len(of) > 1 else [name] for name, of in directions.items()}
    vectors = {one: np.eye(7)[of[n]] for name, of in directions.items() for n, one in enumerate(names[name])}
    monkeypatch.setattr(
        "tasks.evaluate.task.figures.sscd_vectors",
        lambda subject, variant, condition, some, params: {name: vectors[name] for name in some},
    )
    prompts = [asked("p", "i"), asked("q", "j"), asked("r", "k")]
    shots = [Shot(prompt, None, seed) for prompt in prompts for seed in range(3)]
    params = ExtractionParams(clique=3, measure="sscd", distance=0.3)
    ids = [name for prompt in prompts for name in names[prompt.prompt_id]]
    found = door.extraction_figures(subject, "original", EXTRACTION, shots, ids, params, SSCD)
    assert {one.metric: (one.value, one.n) for one in found} == {
        "extraction_precision": (0.5, 2),
        "extraction_recall": (pytest.approx(1 / 3), 3),
    }
    # Without training pictures a claim can only be held against what the prompt is said to be.
    shots = [Shot(replace(shot.prompt, image_ids=()), None, shot.seed) for shot in shots]
    found = door.extraction_figures(subject, "original", EXTRACTION, shots, ids, params, SSCD)
    assert [(one.value, one.n) for one in found] == [(1, 2), (pytest.approx(2 / 3), 3)]
