"""What this machine remembers of files for this user, so that they need not be read again: lines in a file of its own.

It lies in `$ENGRAM_CACHE` or `~/.cache/engram`, in a folder that nobody else can enter or write to. Losing it costs
another look, nothing else.
"""

from __future__ import annotations

import hashlib
import os
import stat
import time
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path

from storage.s3 import cache as cache_folder

SETTLED = 2.0
"""Seconds. A file may change twice within one tick of a file system's clock, so what was found of one that has just
changed is not remembered."""


def log(name: str) -> Path | None:
    """Where lines on some files are kept; None where that would not be this user's alone."""
    folder = private_folder("checked")
    return folder and folder / name


def private_folder(name: str) -> Path | None:
    """A folder of this machine's cache that nobody else can enter; None where there can be none."""
    try:
        folder = cache_folder() / f"{name}-{os.getuid()}"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        return folder if _is_private(folder.lstat(), stat.S_ISDIR) else None
    except (OSError, RuntimeError):  # no home, or none that can be written to
        return None


def lines(log: Path | None) -> list[str]:
    """The lines that are there, in the order in which they were appended; some may be cut off."""
    try:
        if log is None or not _is_private(log.lstat(), stat.S_ISREG):
            return []
        return log.read_text("utf-8", "replace").splitlines()
    except OSError:
        return []


def append(log: Path | None, line: str) -> None:
    """Adds a line."""
    if log is None:
        return
    try:
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW
        descriptor = os.open(log, flags, 0o600)
        try:
            if _is_private(os.fstat(descriptor), stat.S_ISREG):
                os.write(descriptor, f"\n{line}\n".encode())
        finally:
            os.close(descriptor)
    except OSError:  # it is known until this process ends
        pass


def rewrite(log: Path, lines: Iterable[str]) -> None:
    """Replaces all lines by these, in a file that is this user's alone. What others append meanwhile may be lost."""
    aside = log.with_name(f".new-{log.name}-{os.getpid()}")
    try:
        descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
        with open(descriptor, "w", encoding="utf-8") as new:
            new.write("".join(f"\n{line}\n" for line in lines))
        os.replace(aside, log)
    except OSError:  # it stays as it is
        aside.unlink(missing_ok=True)


def _is_private(status: os.stat_result, kind: Callable[[int], bool]) -> bool:
    return kind(status.st_mode) and status.st_uid == os.getuid() and not status.st_mode & 0o077


def sha256_of(path: Path) -> str:
    """The sha256 of a file in hexadecimal digits, which is read again only when it has changed.

    Raises:
        OSError: it cannot be read.
    """
    real = path.resolve()
    status, now = real.stat(), time.time()
    stamp = f"{status.st_dev} {status.st_ino} {status.st_size} {status.st_mtime_ns} {status.st_ctime_ns}"
    known, kept = _files(place := log("files")), str(real)
    if known.get(kept, ("", ""))[0] != stamp:
        with real.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        if now - max(status.st_mtime, status.st_ctime) < SETTLED or "\n" in kept:
            return digest
        known[kept] = (stamp, digest)
        append(place, f"{stamp}\t{digest}\t{kept}")
    return known[kept][1]


@cache
def _files(log: Path | None) -> dict[str, tuple[str, str]]:
    """By path, the stamp of a file and its digest."""
    found = {}
    for line in lines(log):
        match line.split("\t", 2):
            case [stamp, digest, path] if len(digest) == 64:  # else it was cut off by a full disk
                found[path] = (stamp, digest)
    return found
