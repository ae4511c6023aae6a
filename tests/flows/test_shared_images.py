"""A whole audit in which three of four memorized prompts are captions of one image."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from flows.audit import AuditParams, audit
from flows.facts import facts_of
from flows.run.spec import resolve
from flows.settings import Settings
from storage import Store
from tasks.report.task import compare, record_of, write_results
from tests.flows.test_audit import SETTINGS
from tests.support.world import tiny_world

pytestmark = [pytest.mark.server, pytest.mark.filterwarnings("ignore")]


@pytest.fixture
def params(tmp_path: Path) -> AuditParams:
    """Prompts 0 and 2 have an image in common with prompt 1, not with each other; 3 has its own."""
    model = tiny_world(tmp_path / "world")
    file = tmp_path / "world" / "prompts.parquet"
    rows: list[dict[str, Any]] = pq.read_table(file).to_pylist()
    rows[1]["image_ids"] = rows[0]["image_ids"] + rows[2]["image_ids"]
    pq.write_table(pa.Table.from_pylist(rows), file)
    settings = Settings.model_validate(
        SETTINGS | {"mitigations": ("nemo", "nemo-union", "wanda"), "attacked": 4, "extracted": 4, "efforts": ()}
    )
    settings = settings.model_copy(
        update={"extraction": settings.extraction.model_copy(update={"generations": 3, "clique": 3, "distance": 2.0})}
    )
    return AuditParams(model=str(model), store=str(tmp_path / "store"), device="cpu", settings=settings)


def test_an_attack_has_one_prompt_of_each_image(params: AuditParams) -> None:
    spec = resolve(params)
    assert [len(spec.chosen.memorized), len(spec.chosen.attacked)] == [4, 2]
    assert len({spec.chosen.units[prompt.prompt_id] for prompt in spec.chosen.attacked}) == 2
    assert len({spec.chosen.units[prompt.prompt_id] for prompt in spec.chosen.memorized}) == 2


@pytest.mark.slow
@pytest.mark.usefixtures("prefect")
def test_an_audit_counts_images_and_says_their_prompts(params: AuditParams, tmp_path: Path) -> None:
    audited = audit(params)
    store = Store.open(params.store)
    rows = store.read("metrics", audit_id=audited.audit_id).to_pylist()
    found = {
        (row["condition"], row["metric"]): (row["value"], row["n"]) for row in rows if row["variant"] == "original"
    }
    for metric in ("mr", "mr_generations", "sscd_orig_max", "seed_similarity"):
        assert found["prompt", metric][1] == 2 and found["prompt", f"{metric}_prompts"] == (4, 2)
    assert found["dori-noise", "mr"][1] == 2 and ("dori-noise", "mr_prompts") not in found
    assert found["prompt", "auc"][1] == 2 + 2 and found["prompt", "auc_prompts"] == (4 + 2, 2 + 2)
    assert found["extraction", "extraction_recall"][1] == 2
    assert found["extraction", "extraction_recall_prompts"] == (4, 2)
    # Two ordinary images are too few for a distance of features.
    assert found["ordinary", "fid"] == found["ordinary", "kid"] == (None, 4)
    spec, page = resolve(params), Path(audited.report).read_text()
    assert "of 2 (4 prompts)" in page and "too few" in page and "and 2 more prompts of this image" in page
    assert "2 (4 prompts)" in audited.written.table
    assert "of 2 different memorized images, which 4 prompts share," in audited.written.verdict
    facts = dict(facts_of(spec, record_of(store, audited.audit_id), audited.variants))
    assert facts["prompts"].startswith("4 memorized of 2 images, 2 ordinary")
    same = compare(store, audited.audit_id, audited.audit_id, ("original", "nemo-union", "wanda"))
    assert same.verdict.startswith("No regression") and "prompts of" in same.verdict
    assert {one.prompts_after for one in same.differences if (one.condition, one.metric) == ("prompt", "mr")} == {4}
    page_file, data = write_results(store, audited.audit_id, tmp_path / "results", "engram audit")
    assert "2 (4 prompts)" in page_file.read_text() and "too few" in page_file.read_text()
    assert {"mr", "mr_prompts"} <= {row["metric"] for row in json.loads(data.read_text())}
