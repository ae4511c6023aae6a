"""The first minute: what cannot be used is refused before any work, any server and any write to the store."""

import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq
import pytest
import torch

from flows.audit import audit
from flows.check import check
from flows.cli import main
from flows.params import AuditParams, clip_in_full
from flows.rules import notices, together, with_model, with_prompts
from flows.run.spec import resolve
from flows.scan import ScanRun, check_scan
from flows.selection import Selection
from flows.settings import Settings
from flows.stages import collect, localize, mitigate
from storage import Store
from tasks.diffusion.outline import Outline, outline_of
from tasks.errors import InputError
from tasks.scan.task import ScanParams
from tasks.subject import Kind, Prompt
from tests.support.world import SIDE, tiny_world

FITS: dict[str, Any] = {"wanda": {"sparsity": 0.1}, "sampling": {"steps": 2}, "attacked": 1, "controls": 1}
"""Settings that suit the small model."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_world(tmp_path_factory.mktemp("checked"))


@pytest.fixture(scope="module")
def outline(model: Path) -> Outline:
    return outline_of(model)


def params(model: Path, store: Path, **changed: Any) -> AuditParams:
    settings = Settings.model_validate(FITS | changed.pop("settings", {}))
    return AuditParams.model_validate(
        {"model": str(model), "store": str(store), "device": "cpu", "settings": settings} | changed
    )


def problems(model: Path, store: Path, **changed: Any) -> tuple[str, ...]:
    with pytest.raises(InputError) as refusal:
        check(params(model, store, **changed))
    assert not store.exists()
    return refusal.value.problems


def prompts(kind: Kind, n: int, *, with_images: bool = True) -> list[Prompt]:
    names = [f"{kind} {number}" for number in range(n)]
    return [Prompt(name, name, kind, None, None, (name,) if with_images else ()) for name in names]


def chosen(settings: Settings, memorized: int = 4, nulls: int = 4, ordinary: int = 4, **how: bool) -> Selection:
    counts: dict[Kind, int] = {"memorized": memorized, "null": nulls, "ordinary": ordinary}
    return Selection(settings, {kind: prompts(kind, n, **how) for kind, n in counts.items()})


def test_a_model_that_can_be_audited_is_not_refused(model: Path, tmp_path: Path) -> None:
    check(params(model, tmp_path / "store"))
    assert not (tmp_path / "store").exists()


def test_the_outline_is_that_of_the_model(outline: Outline) -> None:
    assert outline.latent == (8, 8) and outline.image == (SIDE, SIDE) and outline.trained == 1000
    assert all(weight.is_meta for weight in outline.denoiser.parameters())


def test_all_that_is_wrong_is_told_at_once(model: Path, tmp_path: Path) -> None:
    found = problems(
        model,
        tmp_path / "store",
        prompts=str(tmp_path / "none.csv"),
        clip="ViT-B-32",
        device="cuda:99",
        settings={
            "sampling": {"steps": 2, "guidance": 1},
            "wanda": {"sparsity": 0.001},
            "sscd": {"weights": "none.pt"},
        },
    )
    wanted = ("cuda:99", "none.pt", "--clip ViT-B-32=FILE", "none.csv", "without guidance", "selects no weight")
    assert len(found) == len(wanted)
    assert all(sum(words in sentence for sentence in found) == 1 for words in wanted)


def test_without_a_model_the_rest_is_looked_at_all_the_same(tmp_path: Path) -> None:
    found = problems(tmp_path / "nowhere", tmp_path / "store", clip="ViT-B-32", device="cuda:99")
    assert len(found) == 3 and any("nowhere" in sentence for sentence in found)


def test_what_was_looked_at_is_looked_at_anew_when_it_changed(model: Path, tmp_path: Path) -> None:
    shutil.copytree(model.parent, tmp_path / "world")
    given = params(tmp_path / "world" / "model", tmp_path / "store", clip=str(tmp_path / "world" / "clip"))
    check(given)
    weights = tmp_path / "world" / "clip" / "open_clip_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-9])
    with pytest.raises(InputError, match="damaged or not whole"):
        check(given)


def test_a_store_that_cannot_be_written_is_refused(model: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (found,) = problems(model, tmp_path / "file" / "store")
    assert f"{tmp_path}/file is no folder" in found


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({"precision": "float16", "attacked": 1}, "attacks need gradients"),
        ({"precision": "float16", "attacked": 0, "mitigations": ["taylor"]}, "taylor needs gradients, which vanish"),
        ({"precision": "float16", "attacked": 0, "mitigations": ["perturbed-embedding"]}, "perturbed-embedding needs"),
        ({"precision": "bfloat16", "mitigations": ["wanda", "lora-finetune"]}, "lora-finetune needs float32"),
        ({"mitigations": ["nemo", "lora-finetune"]}, "lora-finetune needs images of a model that was pruned"),
        ({"mitigations": ["random"]}, "random is a control of wanda: --set 'mitigations=[...]' with both"),
        ({"sampling": {"guidance": 1}}, "without guidance there is no half without text"),
        ({"extracted": 1, "extraction": {"generations": 5, "clique": 6}}, "5 images hold no clique of 6"),
        (
            {"mitigations": ["wanda", "lora-finetune"], "finetune": {"stop_at": 0.5}},
            "finetune.stop_at is looked at by held-out attacks",
        ),
        ({"dori": {"also_at": [5]}}, "dori.also_at would be ignored"),
    ],
)
def test_settings_that_cannot_work_together(changed: dict[str, Any], expected: str) -> None:
    (found,) = together(Settings.model_validate(changed))
    assert expected in found
    assert together(Settings()) == []


def test_settings_that_only_look_like_trouble() -> None:
    idle = {"extraction": {"generations": 5, "clique": 6}, "finetune": {"stop_at": 0.5, "check_every": 1}}
    free = {"sampling": {"guidance": 1}, "wanda": {"half": "conditional"}, "precision": "float16", "attacked": 0}
    assert together(Settings.model_validate(idle)) == together(Settings.model_validate(free)) == []


@pytest.mark.parametrize(
    ("changed", "counts", "expected"),
    [
        ({"threshold_nulls": 1, "nemo": {"seeds": 2}}, {}, "at least two pairwise scores of null prompts, there are 1"),
        ({"nemo": {"seeds": 2}}, {"nulls": 1}, "at least two pairwise scores"),
        ({}, {"nulls": 1}, "statistics need at least two prompts, there are 1"),
        ({"unseen": 5}, {}, "5 unseen images are to be attacked, but null prompts have 4"),
        (
            {"mitigations": ["taylor"]},
            {"with_images": False},
            "taylor needs training images of memorized and of ordinary",
        ),
    ],
)
def test_settings_that_prompts_are_too_few_for(changed: dict[str, Any], counts: dict[str, Any], expected: str) -> None:
    settings = Settings.model_validate(changed)
    assert any(expected in found for found in with_prompts(settings, chosen(settings, **counts)))
    assert with_prompts(Settings(), chosen(Settings())) == []


def test_what_is_given_needs_no_null_prompts() -> None:
    settings = Settings.model_validate({"nemo": {"threshold": 0.4, "seeds": 2, "statistics": "x"}})
    assert with_prompts(settings, chosen(settings, nulls=1)) == []


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({"wanda": {"sparsity": 0.01}}, "in rows of 32: --set wanda.sparsity=0.0313 or more"),
        ({"extracted": 1, "extraction": {"tiles": 7}}, "images of 32 x 32 cannot be cut into 7 x 7 equal tiles"),
        ({"nemo": {"statistics": __file__}}, "is no torch file of tensors alone"),
        ({"nemo": {"statistics": "nowhere.pt"}}, "cannot read statistics from nowhere.pt: No such file"),
        ({"nemo": {"statistics": "/dev/null"}}, "is no torch file of tensors alone"),
    ],
)
def test_settings_that_the_model_is_not_made_for(outline: Outline, changed: dict[str, Any], expected: str) -> None:
    (found,) = with_model(Settings.model_validate(FITS | changed), outline)
    assert expected in found
    idle = Settings.model_validate(FITS | {"extraction": {"tiles": 7}})
    assert with_model(idle, outline) == []


TRAINED: dict[str, Any] = {"mitigations": ["wanda", "adversarial-finetune"], "ordinary": 2}
"""Leaves ordinary prompts that are trained on."""


def test_a_training_that_cannot_fit_is_refused(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check(params(model, tmp_path / "store", settings=TRAINED))
    monkeypatch.setattr("tasks.mitigate.task.memory.memory_of", lambda device: 2_000_000)
    check(params(model, tmp_path / "store", settings=TRAINED | {"mitigations": ["wanda"]}))
    (found,) = problems(model, tmp_path / "store", settings=TRAINED | {"seeds": 2})
    assert "adversarial-finetune needs" in found and "cpu has 0.0 GB" in found
    # Workers of a pool look at their own memory.
    check(params(model, tmp_path / "store", settings=TRAINED | {"seeds": 2}, spread="gpu"))


def test_schedules_latents_and_statistics_of_the_model(outline: Outline, tmp_path: Path) -> None:
    few = replace(outline, latent=(2, 8), image=None, trained=40)
    settings = FITS | {"sampling": {"steps": 41}, "taylor": {"timesteps": 41}, "mitigations": ["taylor", "nemo"]}
    found = with_model(Settings.model_validate(settings), few)
    assert [sentence.split()[0] for sentence in found] == [
        "sampling.steps",
        "latents",
        "nemo.steps",
        "taylor.timesteps",
    ]
    torch.save(([torch.zeros(3)], [torch.zeros(3)]), tmp_path / "statistics.pt")
    own = Settings.model_validate(FITS | {"nemo": {"statistics": tmp_path / "statistics.pt"}})
    (problem,) = with_model(own, outline)
    assert "the means have shapes [(3,)], the model's layers have widths" in problem


def test_what_is_left_out_is_said() -> None:
    plenty = Settings.model_validate(
        {"mitigations": ["wanda", "lora-finetune"], "diagnosed": 3, "attacked": 2, "ordinary": 4, "seeds": 1}
    )
    found = notices(plenty, chosen(plenty, ordinary=4))
    assert [sentence.split(":")[0] for sentence in found] == [
        "nothing is fine-tuned",
        "2 images are diagnosed, not 3",
        "with one seed nothing says how alike the images of one prompt are",
    ]
    (bare,) = notices(Settings(), chosen(Settings(), with_images=False))
    assert bare.startswith("memorized prompts have no images: no copying is measured, and nothing is attacked")
    steps = Settings.model_validate({"sampling": {"steps": 4}})
    assert notices(steps, chosen(steps)) == ["wanda.tau is 4, as many as there are steps, not 10"]


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({"alpha": 0.02}, "4 null prompts are too few for a false-alarm rate of 2 %, which needs 49"),
        ({"alpha": 0.5, "detectors": ["entropy"]}, None),
        ({"alpha": 0.5, "norm": {"steps": 1000}}, None),
    ],
)
def test_a_scan_is_looked_at_before_it_begins(
    model: Path, tmp_path: Path, changed: dict[str, Any], expected: str | None
) -> None:
    given = ScanRun(
        model=str(model), store=str(tmp_path / "store"), device="cpu", scan=ScanParams.model_validate(changed)
    )
    if expected is None:
        check_scan(given)
    else:
        with pytest.raises(InputError, match=expected):
            check_scan(given)
    assert not (tmp_path / "store").exists()


def test_flows_look_first_themselves(model: Path, tmp_path: Path) -> None:
    """As where a run is triggered from the UI, past the commands."""
    given = params(model, tmp_path / "store", clip="ViT-B-32")
    with pytest.raises(InputError, match="ViT-B-32=FILE"):
        audit.fn(given)
    assert not (tmp_path / "store").exists()
    # Of a run that was resolved elsewhere a stage looks at what this machine must have.
    run = resolve(given).run
    for flow in (collect, localize, mitigate):
        with pytest.raises(InputError, match="ViT-B-32=FILE"):
            flow.fn(run)
    with pytest.raises(InputError, match="the store has no run 'mistyped'"):
        collect.fn(run.model_copy(update={"run_id": "mistyped"}))


@pytest.mark.parametrize(
    ("typed", "full"),
    [
        ("local-dir:clip", "local-dir:{here}/clip"),
        ("clip", "{here}/clip"),
        ("ViT-B-32=w.safetensors", "ViT-B-32={here}/w.safetensors"),
        ("laion/some", "laion/some"),
    ],
)
def test_what_is_registered_names_clip_in_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, typed: str, full: str
) -> None:
    (tmp_path / "clip").mkdir()
    monkeypatch.chdir(tmp_path)
    assert clip_in_full(typed) == full.format(here=tmp_path)


def no_child(*_: Any, **__: Any) -> None:
    pytest.fail("something was started")


STAGES = ("confirm", "collect", "localize", "mitigate", "attack", "diagnose", "evaluate", "report")
WRONG: list[tuple[tuple[str, ...], str]] = [
    *(
        ((command, *words), expected)
        for command in ("audit", *STAGES)
        for words, expected in ((("--set", "seeds=0"), "seeds"),)
    ),
    (("audit", "--model", "nowhere"), "nowhere"),
    (("audit", "--device", "cuda:99"), "cuda:99"),
    (("audit", "--prompts", "none.csv"), "none.csv"),
    (("audit", "--images", "none"), "images by their sha256"),
    (("audit", "--clip", "none"), "none"),
    (("audit", "--store", "/dev/null/store"), "/dev/null"),
    (("report", "--audit", "mistyped"), "there is no store"),
    (("scan", "--set", "seeds=1"), "seeds"),
    (("scan", "--model", "nowhere"), "nowhere"),
    (("scan", "--device", "cuda:99"), "cuda:99"),
    (("scan", "--alpha", "0"), "alpha"),
    (("scan", "--out", "none/flagged.csv"), "no folder none"),
    (("models", "add", "name", "--set", "seeds=0"), "seeds"),
    (("models", "add", "../name"), "is no name"),
    (("models", "remove", "name"), "there is no store"),
    (("reference", "check", "--only", "plated", "--only", "cliip"), "plated"),
    (("reference", "check", "--model", "nowhere"), "nowhere"),
    (("reference", "check", "--device", "cuda:99"), "cuda:99"),
    (("reference", "build", "--images", "none", "--names", "none", "--set", "seed=-1"), "seed cannot be -1"),
    (("query", "nothing"), "there is no store"),
    (("deploy",), "which server?"),
]


@pytest.mark.parametrize(("words", "expected"), WRONG, ids=[" ".join(words) for words, _ in WRONG])
def test_what_can_be_refused_starts_nothing(
    model: Path,
    tmp_path: Path,
    words: tuple[str, ...],
    expected: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    monkeypatch.setattr("prefect.flows.Flow.__call__", no_child)
    monkeypatch.setattr("subprocess.Popen", no_child)
    takes_a_model = words[0] in ("audit", "scan", "models", *STAGES) and words[1] not in ("remove",)
    own = ["--model", str(model)] if takes_a_model and "--model" not in words else []
    own += ["--set", "wanda.sparsity=0.1"] if own and words[0] != "scan" else []
    monkeypatch.setattr(sys, "argv", ["engram", *words, *own])
    before = psutil.Process().children(recursive=True)
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 2
    said = capsys.readouterr().err
    assert "engram: " in said and expected in said and "Traceback" not in said and "\x1b" not in said
    assert psutil.Process().children(recursive=True) == before
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("--set", "seeds=0"), "seeds cannot be 0"),
        (("--prompts", "none.csv", "--images", "none"), "there is no none.csv, which was given with --prompts"),
        (("--clip", "ViT-B-32"), "ViT-B-32=FILE"),
        (("--device", "cuda:99"), "cuda:99"),
        (("--store", "/dev/null/store"), "/dev/null is no folder"),
    ],
)
def test_nothing_is_fetched_for_what_is_refused(
    words: tuple[str, ...],
    expected: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("flows.params.hub_folder", no_child)
    monkeypatch.setattr(sys, "argv", ["engram", "audit", "--model", "owner/name", *words])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 2 and expected in capsys.readouterr().err


@pytest.mark.parametrize("name", ["mitigate", "diagnose", "evaluate", "report"])
def test_an_audit_that_there_is_not_starts_nothing(
    model: Path, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    store = Store.open(tmp_path / "store")
    monkeypatch.setattr("prefect.flows.Flow.__call__", no_child)
    settings = [word for key, value in FITS.items() for word in ("--set", f"{key}={json.dumps(value)}")]
    options = ["--model", str(model), "--store", str(tmp_path / "store"), "--device", "cpu", *settings]
    monkeypatch.setattr(sys, "argv", ["engram", name, "--audit", "mistyped", *options])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 2
    assert capsys.readouterr().err.strip().splitlines()[-1].startswith("engram: the store has no audit 'mistyped'")
    assert store.parts("prompts") == []


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("collect", "which memorized prompts the model brings back: run the confirmation first"),
        ("localize", "run the confirmation first"),
        ("mitigate", "first"),
        ("attack", "first"),
        ("evaluate", "with this model, these prompts and these settings: run `engram audit`"),
    ],
)
def test_a_stage_that_misses_what_comes_first_starts_nothing(
    model: Path,
    tmp_path: Path,
    name: str,
    expected: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("prefect.flows.Flow.__call__", no_child)
    monkeypatch.setattr("tasks.subject.load_model", no_child)
    settings = [word for key, value in FITS.items() for word in ("--set", f"{key}={json.dumps(value)}")]
    options = ["--model", str(model), "--store", str(tmp_path / "store"), "--device", "cpu", *settings]
    monkeypatch.setattr(sys, "argv", ["engram", name, *options])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 2
    assert expected in capsys.readouterr().err.strip().splitlines()[-1]


def damaged_index(model: Path) -> None:
    (model / "unet" / "config.json").write_text("{")


def no_unet(model: Path) -> None:
    (model / "unet" / "config.json").write_text(json.dumps({"block_out_channels": [7]}))


def one_null_prompt(model: Path) -> None:
    rows = pq.read_table(model.parent / "prompts.parquet")
    kinds = rows["kind"].to_pylist()
    kept = [n for n, kind in enumerate(kinds) if kind != "null"] + [kinds.index("null")]
    pq.write_table(rows.take(kept), model.parent / "prompts.parquet")


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (damaged_index, "unet/config.json is not JSON"),
        (no_unet, "unet/config.json has no sample_size"),
        (one_null_prompt, "statistics need at least two prompts, there are 1"),
        (lambda model: (model.parent / "images.parquet").write_bytes(b"x"), "images.parquet"),
        (lambda model: shutil.rmtree(model.parent / "clip"), "no open_clip model at"),
        (lambda model: shutil.rmtree(model / "tokenizer"), "tokenizer"),
    ],
)
def test_what_lies_in_the_folder_of_a_model(
    model: Path, tmp_path: Path, damage: Callable[[Path], object], expected: str
) -> None:
    shutil.copytree(model.parent, tmp_path / "world")
    damage(tmp_path / "world" / "model")
    found, *others = problems(tmp_path / "world" / "model", tmp_path / "store")
    assert expected in found
    assert len(others) == (damage is no_unet)  # what follows from one fault is no other
