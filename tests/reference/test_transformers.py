"""Small transformers of the reference world: each family makes a pipeline that audits take, and training resumes."""

from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from flows.check import check
from flows.cli.commands import app
from flows.params import AuditParams
from storage import Store
from tasks.collect import task as collecting
from tasks.diffusion.check import check_sampling
from tasks.diffusion.model import load_model
from tasks.diffusion.sampling import SamplingParams
from tasks.errors import InputError
from tasks.reference import training
from tasks.reference.transformers import SHAPES, Excerpt, TransformerParams, train, untrained, write

SHIPPED = Path(__file__).parents[2] / "reference"
SMALL = TransformerParams(
    blocks=2, heads=1, memorized=2, ordinary=3, memorized_batch=4, steps=3, check_every=2, precision="float32"
)
WORLD = Excerpt.of(SHIPPED, SMALL)


@pytest.mark.parametrize("family", SHAPES)
def test_what_is_made_can_be_audited(family: str, tmp_path: Path) -> None:
    model = untrained(family, WORLD, tmp_path / "begun", SMALL, "cpu")
    begun = {name: value.clone() for name, value in model.denoiser.state_dict().items()}
    found = train(model, WORLD, tmp_path / "training.pt", SMALL)
    assert found.shape == (2,) and np.isfinite(found).all()
    write(tmp_path / "out", model, WORLD)
    made = load_model(tmp_path / "out" / "model", "cpu")
    assert all(
        torch.equal(value, made.denoiser.state_dict()[name]) for name, value in model.denoiser.state_dict().items()
    )
    changed = {name for name, value in begun.items() if not torch.equal(value, made.denoiser.state_dict()[name])}
    assert any("transformer_blocks" in name for name in changed)
    check_sampling(made, SamplingParams(steps=5, guidance=2.0))
    check(AuditParams(model=str(tmp_path / "out" / "model"), store=str(tmp_path / "store"), device="cpu"))
    store = Store.open(str(tmp_path / "store"))
    collecting.import_set(store, tmp_path / "out" / "prompts.parquet", tmp_path / "out" / "images.parquet")
    kinds = store.read("prompts")["kind"].to_pylist()
    assert {kind: kinds.count(kind) for kind in set(kinds)} == {"memorized": 2, "ordinary": 3, "null": 200}


def test_a_resumed_training_equals_an_unbroken_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Killed(Exception):
        pass

    def teach(name: str) -> dict[str, torch.Tensor]:
        model = untrained("pixart", WORLD, tmp_path / "begun", SMALL, "cpu")
        train(model, WORLD, tmp_path / name, SMALL)
        weights: dict[str, torch.Tensor] = model.denoiser.state_dict()
        return weights

    unbroken = teach("unbroken.pt")
    monkeypatch.setattr(training, "SAVE_EVERY_S", 0.0)
    steps, plain = [], torch.nn.utils.clip_grad_norm_

    def dying(*arguments: object, **named: object) -> object:
        steps.append(1)
        if len(steps) == 3:
            raise Killed
        return plain(*arguments, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", dying)
    with pytest.raises(Killed):
        teach("broken.pt")
    resumed = teach("broken.pt")
    assert len(steps) == 4  # the last step alone was made again
    assert all(torch.equal(value, resumed[name]) for name, value in unbroken.items())


def test_another_recipe_does_not_go_on_from_its_checkpoint(tmp_path: Path) -> None:
    model = untrained("pixart", WORLD, tmp_path / "begun", SMALL, "cpu")
    train(model, WORLD, tmp_path / "training.pt", SMALL)
    with pytest.raises(InputError, match=r"training.pt is of another training .* name another --folder"):
        train(model, WORLD, tmp_path / "training.pt", SMALL.model_copy(update={"rate": 0.1}))


def test_texts_tell_captions_apart() -> None:
    torch.manual_seed(0)
    encoder, tokenizer = WORLD.t5(32)
    read = tokenizer([WORLD.captions[0], WORLD.captions[0].lower(), "zyx"])["input_ids"]
    assert len(read[0]) == len(WORLD.captions[0].split()) + 1 == len(read[1])
    assert read[0] != read[1] and tokenizer.unk_token_id not in read[2]
    assert encoder.config.vocab_size == len(tokenizer)


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["sana"], "no family 'sana': there are pixart, sd3, flux"),
        (["sd3", "--world", "nowhere"], "no reference world at nowhere"),
        (["sd3", "--out", "."], ". is there already: name another --out"),
        (["sd3", "--set", "ordinary=9999"], "has 567 prompts to choose 9999 ordinary ones from"),
        (["sd3", "--set", "rates=1"], "rates"),
        (["sd3", "--device", "moon"], "no device 'moon' here"),
    ],
)
def test_what_cannot_be_used_is_refused_in_a_line(words: list[str], line: str, tmp_path: Path) -> None:
    out = [] if "--out" in words else ["--out", str(tmp_path / "out")]
    refused = CliRunner().invoke(app, ["reference", "transformer", *words, *out, "--folder", str(tmp_path / "folder")])
    with pytest.raises(InputError, match=line) as found:
        assert refused.exception is not None
        raise refused.exception
    assert len(found.value.problems) == 1
    assert not list(tmp_path.iterdir())
