"""The whole audit on a transformer of random weights: nothing but its family knows that it is no UNet."""

from pathlib import Path
from typing import Any

import pytest

from flows.audit import AuditParams
from flows.check import check
from tasks.errors import InputError
from tasks.subject import Subject
from tests.support.exported import check_exported
from tests.support.families import audited_whole, small_params
from tests.support.pipelines import write_pixart
from tests.support.world import tiny_world

pytestmark = pytest.mark.filterwarnings("ignore")
MITIGATIONS = ("nemo", "wanda", "magnitude", "lora-finetune", "perturbed-embedding")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_world(tmp_path_factory.mktemp("world"), write_pixart)


def params(model: Path, store: Path, **changed: object) -> AuditParams:
    own: dict[str, Any] = {"mitigations": MITIGATIONS}
    return small_params(model, store, **(own | changed))


@pytest.mark.slow
@pytest.mark.usefixtures("prefect")
def test_every_stage_runs(model: Path, tmp_path: Path) -> None:
    prompted = {"original", "random-wanda", *MITIGATIONS}
    attacked = {"original", "nemo", "wanda", "lora-finetune"}
    audited, store = audited_whole(params(model, tmp_path / "store"), prompted, attacked)
    (family,) = {row["family"] for row in store.read("models").to_pylist()}
    assert family == "PixArtTransformer2DModel 16"
    layers = {row["layer"] for row in store.read("activations").to_pylist()}
    blocks = [f"transformer_blocks.{number}" for number in range(3)]
    assert layers == {f"{block}.{layer}" for block in blocks for layer in ("attn2.to_v", "ff.net.2")}
    # A variant leaves the store as a pipeline of the same family.
    subject = Subject(store=store.url, model=str(model), prompt_set="", device="cpu")
    check_exported(subject, audited.variants["wanda"], tmp_path)


def test_what_the_family_cannot_do_is_refused_before_any_work(model: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="prompts of PixArtAlpha begin with none: leave it out"):
        check(params(model, tmp_path / "store", mitigations=("reweighted-attention",)))
    assert not (tmp_path / "store").exists()
