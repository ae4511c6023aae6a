"""`engram forget`, and the rule by which nights keep their images."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from flows.cli.commands import app
from flows.nightly import NightlyParams, thin
from storage import Store, compact, verify
from tasks.errors import InputError
from tests.storage.test_forget import everything, put_audit

FIRST = datetime(2024, 1, 1, tzinfo=UTC)


def engram(store: Store, *words: str) -> Result:
    return CliRunner().invoke(app, ["forget", *words, "--store", store.url])


def put_page(store: Store, audit_id: str) -> Path:
    folder = Path(store.backend.root).parent / "reports" / audit_id
    folder.mkdir(parents=True)
    (folder / "report.html").write_bytes(b"0" * 1000)
    return folder


def test_the_command_says_what_goes_and_needs_a_yes(tmp_path: Path) -> None:
    store = Store.open(tmp_path / "store")
    put_audit(store, "A", 1, "m", "s", {0, 1}, tmp_path, "completed")
    kept = put_audit(store, "B", 2, "n", "s", {0}, tmp_path, "completed")
    pages = {name: put_page(store, name) for name in "AB"}
    before = everything(store)
    dry = engram(store, "A", "--dry-run")
    assert dry.exit_code == 0 and dry.output.startswith("1 audit: ")
    assert "  generations: 2\n" in dry.output and "  weights: 1\n" in dry.output and "  pages: 1\n" in dry.output
    unasked = engram(store, "A")
    assert isinstance(unasked.exception, InputError) and "say --yes" in str(unasked.exception)
    assert everything(store) == before and pages["A"].is_dir()
    done = engram(store, "A", "--yes")
    assert done.exit_code == 0 and "removed " in done.output
    assert everything(store).keys() == kept and not pages["A"].exists() and pages["B"].is_dir()
    images = engram(store, "B", "--images", "--yes")
    assert images.exit_code == 0 and images.output.startswith("the images of 1 audit: ")
    assert not pages["B"].exists() and store.read("generations").num_rows == 0
    assert store.read("metrics").num_rows == 1 and verify(store) == []


def test_the_command_says_what_goes_of_merged_parts(tmp_path: Path) -> None:
    store = Store.open(tmp_path / "store")
    for name in "AB":
        put_audit(store, name, 1, "m", "s", {0}, tmp_path, "completed")
    compact(store)
    dry = engram(store, "A", "--dry-run")
    assert "  rows of metrics, taken out of parts that have others\n" in dry.output
    assert engram(store, "A", "--yes").exit_code == 0
    assert store.read("metrics")["audit_id"].to_pylist() == ["B"] and verify(store) == []


def test_nights_keep_the_images_of_the_last_and_of_accepted_ones(tmp_path: Path) -> None:
    store = Store.open(tmp_path / "store")
    for number in range(6):  # other weights each night
        put_audit(store, f"A{number}", number, f"m{number}", "s", {0, 1}, tmp_path, "completed")
        night = {"name": "shop", "audit_id": f"A{number}", "outcome": "first", "told_at": FIRST + timedelta(number)}
        store.write("nights", f"shop-A{number}", [night])
    # Of nights under other names nobody is asked to remove anything.
    store.backend.remove([path for path in store.parts("nights") if not path.startswith("nights/shop")])
    pages = {number: put_page(store, f"A{number}") for number in range(6)}
    store.write("accepted", "A1", [{"audit_id": "A1", "accepted_at": FIRST}])
    estimates = store.read("metrics")
    assert thin(store, ["other"], 1).startswith("removed 0 parts")
    assert thin(store, ["shop"], 2).startswith("removed 6 parts of images of earlier nights")
    left = {row["model_id"] for row in store.read("generations", columns=["model_id"]).to_pylist()}
    assert left == {"m1", "m4", "m5"} and {number for number in pages if pages[number].exists()} == {1, 4, 5}
    assert store.read("metrics").equals(estimates) and verify(store) == []
    assert thin(store, ["shop"], 2).startswith("removed 0 parts")


def test_the_last_night_always_keeps_its_images() -> None:
    assert NightlyParams().keep_images is None
    with pytest.raises(ValueError, match="keep_images cannot be 0"):
        NightlyParams(keep_images=0)
