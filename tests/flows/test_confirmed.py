"""Which memorized prompts the model brings back is asked first, and what follows is done for these."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from flows.audit import audit
from flows.facts import confirmed_words, near_duplicates
from flows.params import AuditParams
from flows.run import ids, work
from flows.run.outlook import outlook
from flows.run.spec import Spec, resolve, spec_of
from flows.settings import Settings
from storage import Store, run_sql
from tasks.diffusion.sampling import to_png
from tasks.evaluate import task as evaluating
from tests.flows.test_run import SETTINGS, do
from tests.support.drawings import drawings
from tests.support.world import tiny_world

CONFIRMED = SETTINGS | {"examined": "confirmed"}
THRESHOLD = "flows.run.confirmed.COPY_THRESHOLD"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_world(tmp_path_factory.mktemp("world"))


def params_of(model: Path, store: Path, **changed: Any) -> AuditParams:
    prompts = changed.pop("prompts", None)
    images = {"images": str(model.parent / "images.parquet")} if prompts else {}
    settings = Settings.model_validate(CONFIRMED | changed)
    return AuditParams(model=str(model), store=str(store), device="cpu", settings=settings, prompts=prompts, **images)


def asked(params: AuditParams) -> tuple[Spec, dict[str, float]]:
    """The spec after the confirmation, and how near each prompt comes to its image."""
    spec = resolve(params)
    do(spec, "confirm")
    given = spec.subject, spec.chosen.memorized, spec.settings.seeds, spec.settings.sampling, spec.settings.sscd
    return spec, evaluating.nearest(*given)


@pytest.mark.parametrize("examined", ["all", "confirmed"])
def test_what_does_not_follow_from_the_confirmation_need_not_wait_for_it(
    model: Path, tmp_path: Path, examined: str
) -> None:
    spec = resolve(params_of(model, tmp_path / "store", examined=examined, mitigations=("wanda", "random-tokens")))
    assert spec.chosen.known is None and spec.chosen.examined == spec.chosen.memorized
    early = list(work.work(spec))
    assert not [item for item in early if item.anew and item.stage != "confirm"]
    whatever = {"register model", "ask the model", "near-duplicates", "noise differences", "defend", "generate"}
    assert {item.method for item in early} == whatever
    assert {item.condition for item in early if item.method == "generate"} == {"ordinary"}
    do(spec, "confirm")
    later = {item.id for item in work.work(spec_of(spec.run))}
    assert {item.id for item in early} < later
    foreseen = [item for item in work.work(spec, foreseen=True) if not item.anew]
    assert {item.stage for item in foreseen} > {"confirm", "collect", "localize", "mitigate", "evaluate"}
    # The images of the confirmation are those of the evaluation, so a dry run counts them once.
    made = [item for item in foreseen if (item.variant, item.condition) == ("original", "prompt")]
    assert {item.stage for item in made} == {"confirm"} and sum(item.size for item in made) == 4


def test_only_what_is_confirmed_is_examined(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    params = params_of(model, tmp_path / "store")
    spec, near = asked(params)
    order = sorted(near, key=lambda name: near[name])
    assert len(order) == 4
    monkeypatch.setattr(THRESHOLD, near[order[1]])  # which is no copy of itself: it has to be above
    some = spec_of(spec.run)
    assert some.chosen.confirmed == {*order[2:]}
    assert {one.prompt_id for one in some.chosen.examined} == {*order[2:]}
    assert {one.prompt_id for one in some.chosen.attacked} <= {*order[2:]}
    assert {one.prompt_id for one in some.chosen.erasable} == {*order[2:]}
    assert {one.prompt_id for one in some.chosen.unconfirmed} == {*order[:2]}
    assert [one.prompt_id for one in some.chosen.examined_first][:2] == [one.prompt_id for one in some.chosen.examined]
    assert len(some.chosen.control_prompts) == len(some.contrast) == 2
    assert resolve(params).chosen.confirmed == some.chosen.confirmed
    words = confirmed_words(some)
    assert words.startswith("2 of 4 memorized prompts, 2 prompts by a copy among 2 generations; the others are not")
    assert all(one.text in words for one in some.chosen.unconfirmed)
    do(some, "collect", "localize")
    sets = Store.open(some.subject.store).read("neuron_sets", method="nemo").to_pylist()
    assert {row["scope_id"] for row in sets} == {*order[2:]}
    everything = spec_of(resolve(params_of(model, tmp_path / "store", examined="all")).run)
    assert everything.chosen.confirmed == some.chosen.confirmed
    assert everything.chosen.examined == everything.chosen.memorized
    assert "are examined, too" in confirmed_words(everything)


def test_prompts_without_images_are_confirmed_by_detection(model: Path, tmp_path: Path) -> None:
    rows = pq.read_table(model.parent / "prompts.parquet").to_pylist()
    bare = [row["prompt_id"] for row in rows if row["kind"] == "memorized"][:2]
    rows = [row | {"image_ids": [] if row["prompt_id"] in bare else row["image_ids"]} for row in rows]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "prompts.parquet")
    prompts = str(tmp_path / "prompts.parquet")
    for threshold, found in ((0.0, {*bare}), (1.0, set()), (None, None)):
        nemo = CONFIRMED["nemo"] | {"threshold": threshold}
        spec = resolve(params_of(model, tmp_path / str(threshold), prompts=prompts, nemo=nemo))
        listed = [item for item in work.work(spec, "confirm") if item.method == "noise differences"]
        assert sum(item.size for item in listed) == len(bare) + (2 if threshold is None else 0)  # null prompts
        for item in work.work(spec, "confirm"):
            if item.method != "noise differences":
                item.do()
        assert spec_of(spec.run).chosen.known is None  # they were not asked yet
        do(spec, "confirm")
        chosen = spec_of(spec.run).chosen
        assert chosen.known is not None and chosen.confirmed <= {*bare}  # random weights copy nothing
        assert found is None or chosen.confirmed == found
    assert "by detection, for want of images" in confirmed_words(
        spec_of(resolve(params_of(model, tmp_path / "0.0", prompts=prompts)).run)
    )


def test_where_nothing_is_confirmed_little_is_left_to_do(model: Path, tmp_path: Path) -> None:
    spec, _ = asked(params_of(model, tmp_path / "store", mitigations=("nemo", "wanda", "random-tokens")))
    none = spec_of(spec.run)
    assert none.chosen.confirmed == frozenset() and none.chosen.examined == []
    assert list(ids.variants(none)) == ["random-tokens"] and none.chosen.attacked == []
    assert "--set examined=all trains on all" in none.chosen.why_not_erasable
    assert "nothing is localized, attacked or trained away: --set examined=all" in confirmed_words(none)
    assert {row.stage for row in outlook(none).rows} == {"confirm", "localize", "mitigate", "evaluate"}


def test_near_duplicates_count_once_and_are_no_controls(tmp_path: Path) -> None:
    """A memorized image is another one, scaled; an ordinary one is a third, darker; two captions say the same."""
    model = tiny_world(tmp_path)
    tables = {name: pq.read_table(tmp_path / f"{name}.parquet").to_pylist() for name in ("prompts", "images")}
    by_text = {row["text"]: row for row in tables["prompts"]}
    first, second, third, fourth = (one.text for one in resolve(params_of(model, tmp_path / "before")).chosen.memorized)
    ordinary = [row["text"] for row in tables["prompts"] if row["kind"] == "ordinary"][:3]
    drawn = drawings(7)
    looks = dict(zip((first, second, third, *ordinary), drawn, strict=False))
    looks |= {fourth: np.asarray(Image.fromarray(drawn[0]).resize((48, 48)))}
    looks |= {ordinary[0]: (0.9 * drawn[1]).astype(np.uint8)}
    for text, look in looks.items():
        give(by_text[text], look, tables["images"])
    words = {third: "A cup, red!", ordinary[1]: "a CUP red"}
    for text, other in words.items():
        by_text[text] |= {"text": other, "prompt_id": hashlib.sha256(other.encode()).hexdigest()[:32]}
    for name, rows in tables.items():
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / f"{name}.parquet")
    spec = resolve(params_of(model, tmp_path / "store", ordinary=3, controls=3))
    before = spec.chosen
    assert len({before.units[one.prompt_id] for one in before.memorized}) == 4 and len(before.controls) == 3
    do(spec, "confirm")
    spec = spec_of(spec.run)
    chosen = spec.chosen
    of = {one.text: chosen.units[one.prompt_id] for one in (*chosen.memorized, *chosen.ordinary)}
    assert of[first] == of[fourth] and len({of[first], of[second], of[words[third]]}) == 3
    assert of[second] == of[ordinary[0]] and of[words[third]] == of[words[ordinary[1]]]
    assert [one.text for one in chosen.controls] == [ordinary[2]]
    near = near_duplicates(spec)
    assert near.startswith("4 memorized prompts are 3 cases; each counts once: ")
    assert near.endswith((f'"{first}" = "{fourth}"', f'"{fourth}" = "{first}"'))
    rows = run_sql(Store.open(spec.subject.store), "SELECT count(DISTINCT cluster) AS n FROM clusters").to_pylist()
    assert rows == [{"n": 4}]


def give(row: dict[str, Any], look: np.ndarray, images: list[dict[str, Any]]) -> None:
    """Gives a prompt another image."""
    data = to_png(look)
    row["image_ids"] = [hashlib.sha256(data).hexdigest()]
    size = {"width": look.shape[1], "height": look.shape[0]}
    images.append({"image_id": row["image_ids"][0], "bytes": data, "caption": row["text"], **size})


@pytest.mark.slow
@pytest.mark.usefixtures("prefect")
@pytest.mark.parametrize("copies", ["none", "some"])
def test_an_audit_says_what_is_confirmed(
    model: Path, tmp_path: Path, copies: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    params = params_of(model, tmp_path / "store", mitigations=("wanda",))
    _, near = asked(params)
    if copies == "some":
        middle = sorted(near.values())[1]
        monkeypatch.setattr(THRESHOLD, middle)
        monkeypatch.setattr("tasks.evaluate.copying.mr.__defaults__", (middle,))
    found = audit(params)
    store = Store.open(params.store)
    rows = store.read("metrics", audit_id=found.audit_id).to_pylist()
    known = {(row["variant"], row["condition"], row["metric"]): (row["value"], row["n"]) for row in rows}
    page = Path(found.report).read_text()
    assert known["original", "prompt", "confirmed"] == ((0.5, 4) if copies == "some" else (0.0, 4))
    if copies == "none":
        assert {row["variant"] for row in rows} == {"original"} and not store.parts("neuron_sets")
        assert "0 of 4 memorized prompts" in page and "--set examined=all examines them nevertheless" in page
        assert not any(metric.startswith("mr_confirmed") for _, _, metric in known)
        return
    assert known["original", "prompt", "mr_confirmed"] == (1.0, 2)
    assert known["original", "prompt", "mr_unconfirmed"] == (0.0, 2)
    assert known["wanda", "prompt", "mr_confirmed"][1] == known["wanda", "prompt", "mr_unconfirmed"][1] == 2
    assert known["original", "dori-noise", "mr"][1] == 2 and ("original", "dori-noise", "mr_confirmed") not in known
    assert "What follows is about the 2 that are confirmed so" in found.written.verdict
    assert "2 of 4 memorized prompts" in page


@pytest.mark.slow
@pytest.mark.usefixtures("prefect")
def test_without_any_image_there_is_detection_localization_and_pruning(model: Path, tmp_path: Path) -> None:
    rows = pq.read_table(model.parent / "prompts.parquet").to_pylist()
    bare = pa.Table.from_pylist([row | {"image_ids": []} for row in rows])
    pq.write_table(bare, tmp_path / "prompts.parquet")
    params = params_of(model, tmp_path / "store", mitigations=("nemo-union", "wanda", "adversarial-finetune"))
    found = audit(params.model_copy(update={"prompts": str(tmp_path / "prompts.parquet")}))
    assert {"original", "nemo-union", "wanda"} <= found.variants.keys()
    assert "adversarial-finetune" not in found.variants
    rows = Store.open(params.store).read("metrics", audit_id=found.audit_id).to_pylist()
    known = {(row["variant"], row["condition"], row["metric"]): row["value"] for row in rows}
    assert known["original", "prompt", "confirmed"] == 1.0  # the gate is open: nemo.threshold is 0
    assert ("original", "prompt", "auc") in known and ("wanda", "ordinary", "clip_kept") in known
    assert not any(metric.startswith("mr") for _, _, metric in known)
    assert found.written.verdict.startswith(
        "Detection flags 2 of 2 memorized prompts"
    )  # CLIP of random weights finds captions alike
    page = Path(found.report).read_text()
    assert "4 of 4 memorized prompts" in page and "by detection, for want of images" in page
    assert "memorized prompts have no training images: give --images" in page
