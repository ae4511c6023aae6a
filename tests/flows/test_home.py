"""The home of a server is its owner's alone."""

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from flows import home as homes
from flows.home import lock, private
from tasks.errors import InputError


def modes(folder: Path) -> set[tuple[bool, int]]:
    """Of all that lies in a folder and is no link: whether it is a folder, and its mode."""
    everything = [folder, *(path for path in folder.rglob("*") if not path.is_symlink())]
    return {(path.is_dir(), stat.S_IMODE(path.stat().st_mode)) for path in everything}


CLOSED = {(True, 0o700), (False, 0o600)}


def test_what_is_open_is_closed(tmp_path: Path) -> None:
    home, outside = tmp_path / "home", tmp_path / "outside"
    (home / "ui" / "v1").mkdir(parents=True)
    outside.write_text("of somebody else's")
    outside.chmod(0o644)
    for name in ("prefect.db", "prefect.db-wal", "profiles.toml", "ui/v1/index.html"):
        (home / name).write_text("")
        (home / name).chmod(0o755)
    (home / "link").symlink_to(outside)
    (home / "nowhere").symlink_to(tmp_path / "nowhere")
    (home / "ui").chmod(0o777)
    assert private(home) == home
    assert modes(home) == CLOSED
    assert stat.S_IMODE(outside.stat().st_mode) == 0o644


def test_a_new_home_is_closed_and_so_is_one_behind_a_link_of_ones_own(tmp_path: Path) -> None:
    assert private(tmp_path / "a" / "home") == tmp_path / "a" / "home"
    assert modes(tmp_path / "a" / "home") == CLOSED
    (tmp_path / "link").symlink_to(tmp_path / "a" / "home")
    assert private(tmp_path / "link") == tmp_path / "a" / "home"


def test_a_home_whose_database_lies_elsewhere_is_known_again(tmp_path: Path) -> None:
    home = private(tmp_path / "home")
    (home / "ui").mkdir()  # all that a server leaves there in its first seconds
    (home / "ui").chmod(0o755)
    assert private(home) == home
    assert modes(home) == CLOSED


def test_a_folder_of_other_things_is_left_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "program").write_text("#!/bin/sh")
    (tmp_path / "program").chmod(0o755)
    with pytest.raises(InputError, match="holds other things"):
        private(tmp_path)
    assert stat.S_IMODE((tmp_path / "program").stat().st_mode) == 0o755


def test_what_belongs_to_somebody_else_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = private(tmp_path / "home")
    (tmp_path / "link").symlink_to(home)
    monkeypatch.setattr(os, "geteuid", lambda: home.stat().st_uid + 1)
    with pytest.raises(InputError, match=r"home belongs to .*, not to you: choose another folder with --home"):
        private(home)
    if home.stat().st_uid != 0:  # a link of root's is the machine's own
        with pytest.raises(InputError, match="link is a link of"):
            private(tmp_path / "link")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_links_and_homes_of_other_users(tmp_path: Path) -> None:
    home = private(tmp_path / "home")
    (tmp_path / "link").symlink_to(home)
    os.lchown(tmp_path / "link", 12345, 12345)
    with pytest.raises(InputError, match="link is a link of user 12345"):
        private(tmp_path / "link")
    os.chown(home, 12345, 12345)
    with pytest.raises(InputError, match="belongs to user 12345"):
        private(home)


def test_where_no_folder_can_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "home"):
        with pytest.raises(InputError, match=r"cannot write into .*; choose another folder with --home"):
            private(path)
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(InputError, match="loop"):
        private(tmp_path / "loop")


def test_one_process_has_a_home_until_it_ends_in_whatever_way(tmp_path: Path) -> None:
    home = private(tmp_path / "home")
    code = f"import time; from pathlib import Path; from flows.home import lock; kept = lock(Path({str(home)!r}))"
    command = [sys.executable, "-c", f"{code}; print('locked', flush=True); time.sleep(600)"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None and other.stdout.readline() == "locked\n"
        with pytest.raises(InputError, match=f"in use by another `engram serve`, process {other.pid}: stop that one"):
            lock(home)
        other.kill()
    with lock(home), pytest.raises(InputError, match=f"process {os.getpid()}"):
        lock(home)
    assert (home / homes.LOCK).read_text() == f"{os.getpid()}\n"
    assert private(home) == home
