"""The door of collection: what is there is neither computed nor written again, whatever is lacking beside it."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from storage import Store
from tasks.collect import task as door
from tasks.collect.task import collecting
from tasks.diffusion.sampling import SamplingParams
from tasks.diffusion.sites import Site
from tasks.subject import Prompt, Subject, prompts_of
from tests.support.world import tiny_world

GUIDED, PLAIN = SamplingParams(steps=3), SamplingParams(steps=3, guidance=0)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_world(tmp_path_factory.mktemp("collected") / "world")


@pytest.fixture
def subject(world: Path, tmp_path: Path) -> Subject:
    store = Store.open(str(tmp_path / "store"))
    name = door.import_set(store, world.parent / "prompts.parquet", world.parent / "images.parquet")
    return Subject(store=store.url, model=str(world), prompt_set=name, device="cpu")


def rows(subject: Subject) -> Counter[tuple[Any, ...]]:
    columns = ["prompt_id", "site", "layer", "step", "params_id"]
    return Counter(tuple(row.values()) for row in subject.open().read("activations", columns=columns).to_pylist())


def both(subject: Subject, prompts: list[Prompt], sampling: SamplingParams) -> None:
    door.collect_values(subject, prompts, Site.VALUE)
    door.collect_norms(subject, prompts, sampling, 2)


@pytest.mark.parametrize("sampling", [GUIDED, PLAIN])
def test_what_a_killed_worker_left_is_completed_and_not_doubled(
    subject: Subject, tmp_path: Path, sampling: SamplingParams
) -> None:
    prompts = prompts_of(subject, "null")[:3]
    both(subject, prompts, sampling)
    whole = rows(subject)
    for site in ("value", "ff-hidden"):  # a layer of each is lost: parts appear one by one
        lost = next(path for path in (tmp_path / "store").rglob("*.parquet") if f"site={site}" in str(path))
        lost.unlink()
    assert rows(subject).total() < whole.total()
    both(subject, prompts[:2], sampling)  # in other company than before
    both(subject, prompts, sampling)
    assert rows(subject) == whole and set(whole.values()) == {1}


@pytest.mark.parametrize("sampling", [GUIDED, PLAIN])
def test_what_is_there_is_not_computed_again(
    subject: Subject, monkeypatch: pytest.MonkeyPatch, sampling: SamplingParams
) -> None:
    prompts = prompts_of(subject, "null")[:2]
    both(subject, prompts, sampling)
    for name in ("norms_by_prompt", "value_activations"):
        monkeypatch.setattr(collecting, name, None)
    both(subject, prompts, sampling)


def test_a_few_prompts_are_read_at_a_time_and_values_stay_the_same(
    subject: Subject, world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def values(of: Subject) -> dict[tuple[str, str], list[float]]:
        door.collect_values(of, prompts_of(of, "memorized"), Site.VALUE)
        found = of.open().read("activations", site="value").to_pylist()
        return {(row["prompt_id"], row["layer"]): row["mean_abs"] for row in found}

    whole = values(subject)
    other = subject.model_copy(update={"store": Store.open(str(tmp_path / "other")).url})
    door.import_set(other.open(), world.parent / "prompts.parquet", world.parent / "images.parquet")
    embed, sizes = Subject.embed, []

    def noted(of: Subject, prompts: list[Prompt]) -> Any:
        sizes.append(len(prompts))
        return embed(of, prompts)

    monkeypatch.setattr(Subject, "embed", noted)
    monkeypatch.setattr(collecting, "READ", 3)
    few = values(other)
    assert sizes == [3, 1] and few.keys() == whole.keys() != set()
    assert all(few[name] == pytest.approx(found, rel=1e-5) for name, found in whole.items())
