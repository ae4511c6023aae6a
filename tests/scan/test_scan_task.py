"""The door of the scan, on a model of random weights: what is kept, what is not computed again, what is found."""

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from storage import Store, query, verify
from tasks.diffusion.families import Model
from tasks.errors import InputError
from tasks.keys import prompt_id
from tasks.methods import method, names
from tasks.prompt_files import PromptEntry
from tasks.scan import task as door
from tasks.scan.task import ScanParams
from tasks.subject import Subject
from tests.support.prompts import read_prompts
from tests.support.world import tiny_world

SEEDS = 2
PARAMS = ScanParams.model_validate({"alpha": 0.25} | {name: {"seeds": SEEDS} for name in ("norm", "ssim", "entropy")})
PROMPTS = [PromptEntry(f"a thing {n}", "memorized") for n in range(5)]
NULLS = [PromptEntry(f"another {n}", "null") for n in range(3)]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_world(tmp_path_factory.mktemp("world"))


@pytest.fixture
def subject(model: Path, tmp_path: Path) -> Subject:
    store = Store.open(str(tmp_path / "store"))
    return Subject(store=store.url, model=str(model), prompt_set="", device="cpu")


@pytest.fixture
def passes(subject: Subject) -> Iterator[list[int]]:
    """How many samples the UNet has seen, pass by pass."""
    seen: list[int] = []
    handle = subject.load().denoiser.register_forward_pre_hook(lambda module, inputs: seen.append(len(inputs[0])))
    yield seen
    handle.remove()


def kept(subject: Subject, **where: Any) -> dict[str, float]:
    rows = subject.open().read("detections", **where).to_pylist()
    assert len({row["prompt_id"] for row in rows}) == len(rows)
    return {row["prompt_id"]: row["score"] for row in rows}


def scores(model: Model, name: str, embeddings: torch.Tensor, prompt_ids: list[str]) -> torch.Tensor:
    detector = method("detector", name)
    found: torch.Tensor = detector.score(model, embeddings, prompt_ids, PARAMS.of(detector), 32)
    return found


def score_prompts(
    subject: Subject, prompts: list[PromptEntry], name: str, params: ScanParams = PARAMS, batch: int = 32
) -> None:
    detector = method("detector", name)
    door.score_prompts(subject, prompts, detector, params.of(detector), batch)


def put(subject: Subject, detector: str, found: dict[PromptEntry, float], params: ScanParams = PARAMS) -> None:
    """Scores as if they had been taken."""
    one = method("detector", detector)
    params_id = one.id(params.of(one))
    rows = [
        {"prompt_id": prompt_id(prompt.text), "params_id": params_id, "score": score} for prompt, score in found.items()
    ]
    place = {"model_id": subject.model_id, "variant": "original", "detector": detector}
    subject.open().write("detections", params_id, rows, **place)


def test_scores_are_those_of_the_detector(subject: Subject) -> None:
    model, texts = subject.load(), [prompt.text for prompt in PROMPTS]
    ids = [prompt_id(text) for text in texts]
    for detector in ("norm", "entropy"):
        score_prompts(subject, PROMPTS, detector)
        found = scores(model, detector, model.encode(texts), ids)
        assert kept(subject, detector=detector) == pytest.approx(dict(zip(ids, found.tolist(), strict=True)), rel=1e-5)
    assert verify(subject.open()) == []


def test_only_what_is_new_is_computed(subject: Subject, passes: list[int]) -> None:
    score_prompts(subject, PROMPTS[:3], "norm")
    assert sum(passes) == 2 * 3 * SEEDS  # with text and without, for each seed
    passes.clear()
    other = PARAMS.model_copy(update={"alpha": 0.5, "detectors": ("ssim", "norm")})
    score_prompts(subject, PROMPTS[:3], "norm", other, batch=1)
    assert passes == []
    score_prompts(subject, PROMPTS, "norm")
    assert sum(passes) == 2 * 2 * SEEDS
    passes.clear()
    score_prompts(subject, PROMPTS[:1], "norm", ScanParams.model_validate({"norm": {"seeds": SEEDS, "steps": 10}}))
    assert sum(passes) == 2 * SEEDS


def test_an_interrupted_scan_goes_on(subject: Subject, passes: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(door, "SHARD", 2)
    write = Store.write

    def interrupted(*args: Any, **where: Any) -> None:
        write(*args, **where)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Store, "write", interrupted)
        with pytest.raises(KeyboardInterrupt):
            score_prompts(subject, PROMPTS, "norm")
    before = kept(subject)
    assert before.keys() == {prompt_id(prompt.text) for prompt in PROMPTS[:2]}
    passes.clear()
    score_prompts(subject, PROMPTS, "norm")
    assert sum(passes) == 2 * 3 * SEEDS
    assert before.items() < kept(subject).items() and len(kept(subject)) == 5


def test_ids_are_of_a_detectors_own_parameters_and_not_of_those_of_speed() -> None:
    detectors = [method("detector", name) for name in names("detector")]
    ids = {one.name: one.id(PARAMS.of(one)) for one in detectors}
    assert len(set(ids.values())) == len(detectors)
    other = ScanParams.model_validate({"anisotropy": {"cosine": 0.1}, "batch": 1, "alpha": 0.5})
    before = ScanParams()
    changed = {one.name for one in detectors if one.id(other.of(one)) != one.id(before.of(one))}
    assert changed == {"anisotropy"}


def test_findings_by_hand(subject: Subject, tmp_path: Path) -> None:
    params = PARAMS.model_copy(update={"detectors": ("norm", "entropy")})
    with_images = [
        PromptEntry('a, "quoted" thing;\ttwice', "memorized", "VM", "beds", ("1.png", "2.png")),
        *PROMPTS[:3],
    ]
    nulls = dict(zip(NULLS, (1.0, 2.0, 3.0), strict=True))
    put(subject, "norm", nulls | dict(zip(with_images, (9.0, 3.0, 2.5, 0.0), strict=True)), params)
    put(subject, "entropy", nulls | dict(zip(with_images, (0.0, 4.0, 2.5, 5.0), strict=True)), params)
    scan_id = door.write_findings(subject, "mine", with_images, NULLS, params)
    assert scan_id.startswith("mine-") and verify(subject.open()) == []
    rows = query(subject.open(), "suspects", scan_id=scan_id).to_pylist()
    assert query(subject.open(), "suspects").to_pylist() == rows  # the last scan, where none is named
    found = {(row["prompt"], row["detector"]): (row["p_value"], row["flagged"]) for row in rows}
    by_detector = {
        "norm": [(0.25, True), (0.5, False), (0.5, False), (1.0, False)],
        "entropy": [(1.0, False), (0.25, True), (0.5, False), (0.25, True)],
    }
    assert found == {
        (prompt.text, detector): result
        for detector, results in by_detector.items()
        for prompt, result in zip(with_images, results, strict=True)
    }
    # Whatever ranks highest by either comes first; what neither flags comes last.
    assert {row["prompt"] for row in rows[:4]} == {with_images[0].text, with_images[3].text}
    assert [row["prompt"] for row in rows[4:]] == [prompt.text for prompt in with_images[1:3] for _ in range(2)]
    held = "compared with 3 null prompts at a false-alarm rate of 25 %; if none were memorized, it would flag about 1"
    assert door.verdict(subject.open(), scan_id).splitlines() == [
        f"norm flags 1 of 4 prompts, {held}",
        f"entropy flags 2 of 4 prompts, {held}",
        "3 prompts are flagged by one or more: of those not memorized at most 50 % are",
    ]
    assert door.write_flagged(subject.open(), scan_id, with_images, tmp_path / "flagged.csv") == 3
    back = read_prompts(tmp_path / "flagged.csv")
    assert sorted(back, key=lambda prompt: prompt.text) == sorted(
        [with_images[0], with_images[1], with_images[3]], key=lambda prompt: prompt.text
    )
    assert back[-1] == with_images[1]
    assert [path.name for path in tmp_path.glob("flagged*")] == ["flagged.csv"]


def test_null_prompts_of_one_image_are_one_null_prompt(subject: Subject) -> None:
    captions = [PromptEntry(f"caption {n}", "null", images=("same.png",)) for n in range(5)]
    spelt = [PromptEntry("A  Word", "null"), PromptEntry("a word", "null")]
    numbered = [
        PromptEntry("by number", "null", numbers=("7",)),
        PromptEntry("by the same number", "null", numbers=("7",)),
    ]
    nulls = [*captions, *spelt, *numbered]
    assert door.different(nulls) == [captions[0], spelt[0], numbered[0]]
    put(subject, "norm", dict(zip([*nulls, PROMPTS[0]], [5.0] * 5 + [1.0, 9.0, 1.0, 9.0, 4.0], strict=True)))
    scan_id = door.write_findings(subject, "mine", PROMPTS[:1], nulls, PARAMS)
    (row,) = subject.open().read("findings", scan_id=scan_id).to_pylist()
    assert (row["nulls"], row["p_value"]) == (3, 2 / 4)
    with pytest.raises(InputError, match="1 null prompts are too few"):
        door.write_findings(subject, "mine", PROMPTS[:1], captions, PARAMS)


def test_the_file_of_a_scan_holds_no_formula_and_gives_back_every_text(subject: Subject, tmp_path: Path) -> None:
    texts = ["=cmd|' /C calc'!A0", "-rug", "+1", "@home", "'=x", "''-y", "'plain' text", "a\rb, c", "＝wide"]
    scanned = [PromptEntry(text, "memorized", subset="=s", images=("-1.png",)) for text in texts]
    put(subject, "norm", dict.fromkeys(NULLS, 0.0) | dict.fromkeys(scanned, 1.0))
    scan_id = door.write_findings(subject, "mine", scanned, NULLS, PARAMS)
    path = tmp_path / "flagged.csv"
    assert door.write_flagged(subject.open(), scan_id, scanned, path) == len(texts)
    with open(path, newline="", encoding="utf-8") as file:
        cells = [cell for row in csv.reader(file) for cell in row]
    assert not [cell for cell in cells if cell.startswith(("=", "+", "-", "@", "\t", "\r", "＝"))]
    assert sorted(read_prompts(path), key=str) == sorted(scanned, key=str)
    # A file of somebody's own means what it says.
    path.write_text("caption\n'=x\n")
    assert [prompt.text for prompt in read_prompts(path)] == ["'=x"]


def test_a_scan_is_what_was_asked(subject: Subject) -> None:
    put(subject, "norm", {prompt: float(n) for n, prompt in enumerate([*PROMPTS, *NULLS])})
    ids = [
        door.write_findings(subject, "mine", PROMPTS, NULLS, PARAMS),
        door.write_findings(subject, "mine", PROMPTS[:4], NULLS, PARAMS),
        door.write_findings(subject, "mine", PROMPTS, NULLS, PARAMS.model_copy(update={"alpha": 0.5})),
    ]
    assert len(set(ids)) == 3
    before = subject.open().parts("findings")
    assert door.write_findings(subject, "mine", PROMPTS[::-1], NULLS[::-1], PARAMS) == ids[0]
    assert subject.open().parts("findings") == before and len(before) == 3


def test_what_is_missing_is_said(subject: Subject, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="8 prompts have no score by norm"):
        door.write_findings(subject, "mine", PROMPTS, NULLS, PARAMS)
    with pytest.raises(InputError, match="2 null prompts are too few for a false-alarm rate of 25 %, which needs 3"):
        door.write_findings(subject, "mine", PROMPTS, NULLS[:2], PARAMS)
    with pytest.raises(InputError, match="no scan 'mine'"):
        door.verdict(subject.open(), "mine")
    with pytest.raises(InputError, match="cannot write"):
        door.write_flagged(subject.open(), "mine", [], tmp_path / "nowhere" / "flagged.csv")


def test_of_a_long_prompt_the_beginning_is_scored(subject: Subject) -> None:
    """By the same noise, which follows from the whole text, it scores as what the model reads of it."""
    model = subject.load()
    read = "a " * (model.tokens - 2)
    long = PromptEntry(f"{read} bed", "memorized")
    assert model.tokenizers.counts([read, long.text]) == [model.tokens, model.tokens + 3]
    for detector in ("norm", "entropy"):
        score_prompts(subject, [long], detector)
        expected = scores(model, detector, model.encode([read]), [prompt_id(long.text)])
        assert kept(subject, detector=detector) == pytest.approx({prompt_id(long.text): float(expected[0])}, rel=1e-5)
