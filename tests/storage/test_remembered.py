"""What this machine remembers of files holds as long as they do not change."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from storage import remembered, sha256_of


@pytest.fixture
def reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Files that are read from now on; as if all had changed long ago, by a process that has just begun."""
    monkeypatch.setenv("ENGRAM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(remembered, "SETTLED", -60)
    seen: list[str] = []
    real = hashlib.file_digest

    def digest(stream: object, name: str) -> object:
        seen.append(str(getattr(stream, "name")))  # noqa: B009
        return real(stream, name)  # type: ignore[arg-type]

    monkeypatch.setattr(hashlib, "file_digest", digest)
    return seen


def test_a_file_is_read_again_once_it_has_changed(tmp_path: Path, reads: list[str]) -> None:
    path = tmp_path / "weights"
    for number, content in enumerate((b"one", b"two"), 1):
        path.write_bytes(content)
        for _ in range(3):
            assert sha256_of(path) == hashlib.sha256(content).hexdigest()
            remembered._files.cache_clear()  # as another process
        assert reads == [str(path)] * number
    os.utime(path, (1, 1))
    assert sha256_of(path) == hashlib.sha256(b"two").hexdigest() and len(reads) == 3


def test_links_are_the_file_that_they_lead_to(tmp_path: Path, reads: list[str]) -> None:
    (tmp_path / "blob").write_bytes(b"one")
    (tmp_path / "link").symlink_to("blob")
    assert sha256_of(tmp_path / "link") == sha256_of(tmp_path / "blob") and reads == [str(tmp_path / "blob")]
    (tmp_path / "other").write_bytes(b"two")
    (tmp_path / "link").unlink()
    (tmp_path / "link").symlink_to("other")
    assert sha256_of(tmp_path / "link") == hashlib.sha256(b"two").hexdigest()


def test_what_others_could_have_written_is_not_believed(tmp_path: Path, reads: list[str]) -> None:
    path = tmp_path / "weights"
    path.write_bytes(b"one")
    sha256_of(path)
    (log,) = (tmp_path / "cache").rglob("files")
    log.chmod(0o666)
    remembered._files.cache_clear()
    assert sha256_of(path) == hashlib.sha256(b"one").hexdigest() and len(reads) == 2


def test_what_has_just_changed_is_not_remembered(
    tmp_path: Path, reads: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remembered, "SETTLED", 60)
    (tmp_path / "weights").write_bytes(b"one")
    sha256_of(tmp_path / "weights")
    assert sha256_of(tmp_path / "weights") == hashlib.sha256(b"one").hexdigest() and len(reads) == 2
