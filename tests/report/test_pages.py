"""Where pages lie: one answer, in a local store and on S3, and for those of earlier releases."""

import webbrowser
from datetime import UTC, datetime
from pathlib import Path

import pytest
from typer.testing import CliRunner

from flows.cli.commands import app
from storage import Store
from tasks.errors import InputError
from tasks.report.task import page_here, page_place
from tasks.report.task.pages import page_file


@pytest.fixture(params=["local", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    """Both kinds in turn, with two audits that have ended."""
    opened = Store.open(tmp_path / "here" / "store" if request.param == "local" else request.getfixturevalue("s3_url"))
    for day, name in enumerate(("before", "last"), 1):
        when = datetime(2024, 1, day, tzinfo=UTC)
        row = {"audit_id": name, "model_id": "m", "params": "{}", "state": "completed", "code_version": "1"}
        opened.write("audits", f"{name}-ended", [row | {"started_at": when, "finished_at": when}])
    return opened


def put(store: Store, audit_id: str, words: str) -> None:
    store.put_file(page_file(audit_id), words.encode())
    store.put_file(page_file(audit_id, "locality-1.svg"), b"<svg/>")


def test_a_page_is_found_by_whoever_has_the_store(store: Store) -> None:
    put(store, "last", "a page")
    assert page_place(store, "last") == f"{store.home.place('reports')}/last/report.html"
    here = page_here(Store.open(store.url), "last")
    assert here.read_text() == "a page"
    assert (here.parent / "locality-1.svg").read_bytes() == b"<svg/>"
    put(store, "last", "written anew")
    assert page_here(store, "last").read_text() == "written anew"


def test_pages_of_earlier_releases_are_still_found(tmp_path: Path) -> None:
    store, former = Store.open(tmp_path / "a store"), tmp_path / "reports" / "a" / "report.html"
    assert page_place(store, "a") == str(tmp_path / "a store" / "reports" / "a" / "report.html")
    with pytest.raises(InputError, match="the audit a has no page: run `engram report`"):
        page_here(store, "a")
    former.parent.mkdir(parents=True)
    former.write_text("of an earlier release")
    assert page_here(store, "a") == former and page_place(store, "a") == str(former)
    put(store, "a", "made anew")
    assert page_here(store, "a").read_text() == "made anew"
    assert page_place(store, "a") == str(page_here(store, "a"))


def test_engram_open(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    able = True

    def open_in_browser(url: str) -> bool:
        opened.append(url)
        return able

    def run(*arguments: str) -> list[str]:
        found = CliRunner().invoke(app, ["open", *arguments, "--store", store.url])
        assert found.exit_code == 0, found.output
        return [found.stdout.strip(), found.stderr.strip()]

    monkeypatch.setattr(webbrowser, "open", open_in_browser)
    for name in ("before", "last"):
        put(store, name, f"of {name}")
    path, said = run()
    assert Path(path).read_text() == "of last" and opened == [Path(path).as_uri()] and said == ""
    path, said = run("before", "--path")
    assert Path(path).read_text() == "of before" and len(opened) == 1 and said == ""
    able = False
    path, said = run("before")
    assert (
        Path(path).read_text() == "of before" and said == "engram: no browser is to be had here: open that file in one"
    )
    refused = CliRunner().invoke(app, ["open", "another", "--store", store.url])
    assert isinstance(refused.exception, InputError) and "no audit 'another'" in str(refused.exception)
