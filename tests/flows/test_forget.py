"""`engram forget`."""

from pathlib import Path

from typer.testing import CliRunner, Result

from flows.cli.commands import app
from storage import Store, verify
from tasks.errors import InputError
from tests.storage.test_forget import everything, put_audit


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
