"""The store in a folder of this machine, or of a file server."""

from __future__ import annotations

import errno
import itertools
import os
import shutil
import socket
import time
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

from pyarrow import fs

from storage.errors import StoreError
from storage.folders import read_manifest, write_manifest
from storage.place import ASIDE, HOUR, MANIFEST, Entry

_number = itertools.count()


class LocalPlace:
    """Files are written under `.aside/`, flushed to the disk, then linked to their name, which happens or does not."""

    def __init__(self, root: Path) -> None:
        self.path = root
        self.root = str(root)
        self.url = root.as_uri()
        self.filesystem: fs.FileSystem = fs.LocalFileSystem()
        if set(self.root) & set("*?[]{}"):
            raise StoreError(
                f"{self.root}: a store's path must not contain any of * ? [ ] {{ }}, which SQL reads as patterns"
            )

    def exists(self, path: str) -> bool:
        return (self.path / path).is_file()

    def files(self, prefix: str) -> Iterator[Entry]:
        for folder, _, names in os.walk(self.path / prefix, onerror=_raise_unless_missing):
            for name in names:
                whole = Path(folder, name)
                status = whole.stat()
                yield Entry(whole.relative_to(self.path).as_posix(), status.st_size, status.st_mtime)

    def read(self, path: str) -> bytes:
        return (self.path / path).read_bytes()

    def put(self, path: str, data: bytes) -> None:
        final, aside = self.path / path, self._aside()
        try:
            _write(aside, data)
            _make_folders(final.parent)
            _link(aside, final)
        finally:
            aside.unlink(missing_ok=True)
        _flush_folder(final.parent)

    def put_folder(self, path: str, source: Path, table: str) -> None:
        manifest = write_manifest(table, source)
        final, aside = self.path / path, self._aside()
        try:
            aside.mkdir()
            for item in sorted(source.rglob("*")):
                target = aside / item.relative_to(source)
                if item.is_dir():
                    target.mkdir(parents=True, exist_ok=True)
                else:
                    target.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(item, target)
                    _flush(target)
            _write(aside / MANIFEST, manifest)
            for folder, _, _ in os.walk(aside):
                _flush_folder(Path(folder))
            _make_folders(final.parent)
            try:
                os.rename(aside, final)
            except OSError as error:
                # Another writer of the same key came first; folders of one key are equal, so theirs stays.
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
                if not (final / MANIFEST).is_file():  # a remnant that nobody takes for whole
                    os.rename(final, self._aside())
                    os.rename(aside, final)
        finally:
            shutil.rmtree(aside, ignore_errors=True)
        _flush_folder(final.parent)

    def get_folder(self, path: str) -> Path:
        # What was copied here from S3 lies where that upload went to.
        return self.path / path / read_manifest(self.read(f"{path}/{MANIFEST}")).below

    def litter(self) -> Mapping[str, float]:
        now, found = time.time(), {}
        for item in (self.path / ASIDE).iterdir() if (self.path / ASIDE).is_dir() else ():
            try:
                age = now - item.stat().st_mtime
            except FileNotFoundError:  # its writer has just put it in place
                continue
            if age > HOUR or _writer_is_dead(item.name):
                found[f"{ASIDE}/{item.name}"] = age
        return found

    def remove_litter(self, name: str) -> None:
        path = self.path / name
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)

    def _aside(self) -> Path:
        # Who writes it and when are in the name, so that whoever finds it later can tell whether it is abandoned.
        folder = self.path / ASIDE
        _make_folders(folder)
        return folder / f"{_machine()}~{os.getpid()}~{time.time_ns()}~{next(_number)}"


def _raise_unless_missing(error: OSError) -> None:
    # os.walk would pass over a folder it may not read, and its parts would seem not to be there.
    if not isinstance(error, FileNotFoundError):
        raise error


@cache
def _machine() -> str:
    """Where a process number means something: containers and clones of machines may share a host's name."""
    name = socket.gethostname()
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{name}.{boot[:8]}.{os.stat('/proc/self/ns/pid').st_ino}"
    except OSError:  # not Linux
        return name


def _writer_is_dead(name: str) -> bool:
    host, pid, *_ = [*name.split("~"), "", ""]
    if host != _machine() or not pid.isdigit():
        return False
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass
    return False


def _write(path: Path, data: bytes) -> None:
    with open(path, "xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _link(aside: Path, final: Path) -> None:
    # A link, unlike a rename, never replaces: of two writers of one key the first stays, byte for byte.
    try:
        os.link(aside, final)
    except FileExistsError:
        pass
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS):  # macOS has both
            raise
        # A file system without hard links: a rename is atomic too, only that the last of two racing writers stays.
        os.rename(aside, final)


def _make_folders(folder: Path) -> None:
    """Make a folder and its parents, and flush each new name, so that a part does not vanish with its folder."""
    missing = []
    while not folder.is_dir():
        missing.append(folder)
        folder = folder.parent
    for folder in reversed(missing):
        folder.mkdir(exist_ok=True)
        _flush_folder(folder.parent)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


_flush_folder = _flush
