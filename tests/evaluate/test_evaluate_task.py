"""The door of evaluation: figures rest on what this audit asked, whatever else the store knows."""

from pathlib import Path

import pytest

from tasks.evaluate import task as door
from tasks.evaluate.sscd import SscdParams, scorer_of
from tasks.evaluate.task import Shot
from tasks.subject import Asked, Subject

SSCD = SscdParams()


def asked(name: str, *images: str, kind: str | None = None) -> Asked:
    return Asked(name, name, "memorized", kind, None, images)


@pytest.fixture
def subject(tmp_path: Path) -> Subject:
    return Subject(store=str(tmp_path / "store"), model=str(tmp_path), prompt_set="none", device="cpu")


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


def test_verbatim_and_template_memories_stand_apart(subject: Subject) -> None:
    scored(subject, "sscd", {("g", "i"): 0.9, ("h", "j"): 0.1, ("h", "k"): 0.3})
    shots = [Shot(asked("p", "i", kind="VM"), None, 0), Shot(asked("q", "j", "k", kind="TM"), None, 0)]
    figures = {one.metric: one for one in door.copy_figures(subject, shots, ["g", "h"], SSCD)}
    assert (figures["mr"].value, figures["mr_vm"].value, figures["mr_tm"].value) == (0.5, 1, 0)
    assert (figures["mr"].n, figures["mr_vm"].n, figures["mr_tm"].n) == (2, 1, 1)
    assert figures["sscd_orig_max_tm"].value == pytest.approx(0.3)
    one_kind = door.copy_figures(subject, shots[:1], ["g"], SSCD)
    assert not any(figure.metric.endswith(("_vm", "_tm")) for figure in one_kind)


def test_seeds_beyond_this_audits_do_not_count(subject: Subject) -> None:
    scored(subject, "sscd_pair", {("g0", "g1"): 0.1, ("g0", "g2"): 0.9, ("g1", "g2"): 0.9})
    prompt = asked("p")
    shots = [Shot(prompt, None, seed) for seed in range(2)]
    (figure,) = door.diversity_figure(subject, shots, ["g0", "g1"], SSCD)
    assert figure.value == pytest.approx(0.1)
    assert door.diversity_figure(subject, shots[:1], ["g0"], SSCD) == []
