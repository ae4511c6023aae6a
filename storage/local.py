"""The store in a folder of this machine, or of a file server."""

from __future__ import annotations

import errno
import itertools
import os
import shutil
import socket
import stat
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from pyarrow import fs

from storage.backend import ASIDE, HOUR, MANIFEST, Entry
from storage.errors import StoreError
from storage.folders import check_files, read_manifest, write_manifest

_number = itertools.count()


class LocalBackend:
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

    def below(self, folder: str) -> LocalBackend:
        return LocalBackend(self.path / folder) if folder else self

    def exists(self, path: str) -> bool:
        return (self.path / path).is_file()

    def find(self, path: str) -> Entry | None:
        try:
            return self._entry(os.path.join(self.root, path))
        except (FileNotFoundError, NotADirectoryError):
            return None

    def files(self, prefix: str) -> Iterator[Entry]:
        folders = [os.path.join(self.root, prefix)]
        while folders:
            folder = folders.pop()
            try:
                with os.scandir(folder) as found:
                    items = list(found)
            except FileNotFoundError:
                continue
            except OSError as error:  # its parts would seem not to be there
                yield self._fault(f"{folder}/", f"cannot be listed: {error.strerror}; see to it that you may read it")
                continue
            for item in items:
                if item.is_dir(follow_symlinks=False):
                    if item.name.endswith(".parquet"):
                        yield self._fault(item.path, "is a folder with the name of a part; move it out of the store")
                    else:
                        folders.append(item.path)
                    continue
                try:
                    yield self._entry(item.path)
                except FileNotFoundError:  # removed since the folder was listed
                    continue

    def _entry(self, path: str) -> Entry:
        try:
            status = os.stat(path)
        except FileNotFoundError:
            if not stat.S_ISLNK(os.lstat(path).st_mode):  # nothing there at all, or it came since
                return self._entry(path)
            return self._fault(path, f"is a link to {os.readlink(path)}, where nothing is; remove it")
        except PermissionError as error:
            return self._fault(path, f"cannot be read: {error.strerror}")
        except OSError as error:
            if error.errno != errno.ELOOP:
                raise
            return self._fault(path, "is a link to itself; remove it")
        if stat.S_ISDIR(status.st_mode):
            hides = path if path.endswith(".parquet") else f"{path}/"
            return self._fault(hides, "is a link to a folder, which is not followed; put the folder itself here")
        if not stat.S_ISREG(status.st_mode):
            return self._fault(path, "is no file but a pipe, a socket or a device; remove it")
        stamp = f"{status.st_size} {status.st_mtime_ns} {status.st_ctime_ns} {status.st_ino} {status.st_dev}"
        changed = max(status.st_mtime, status.st_ctime)
        return Entry(self._relative(path), status.st_size, status.st_mtime, changed, stamp)

    def _fault(self, path: str, reason: str) -> Entry:
        return Entry(self._relative(path), 0, 0.0, fault=reason)

    def _relative(self, path: str) -> str:
        return path[len(self.root) :].lstrip("/")

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

    def replace(self, path: str, data: bytes) -> None:
        with self.writing(path) as aside:
            aside.write_bytes(data)

    @contextmanager
    def writing(self, path: str) -> Iterator[Path]:
        final, aside = self.path / path, self._aside()
        try:
            yield aside
            _flush(aside)
            _make_folders(final.parent)
            os.rename(aside, final)
        finally:
            aside.unlink(missing_ok=True)
        _flush_folder(final.parent)

    @contextmanager
    def reading(self, path: str) -> Iterator[Path]:
        os.stat(self.path / path)  # it is there, or this says that it is not
        yield self.path / path

    def place(self, path: str) -> str:
        return str(self.path / path)

    def copied(self, folder: str) -> Path:
        return self.path / folder

    def remove(self, paths: Iterable[str]) -> None:
        folders = set()
        for path in paths:
            (self.path / path).unlink(missing_ok=True)
            folders |= {folder for folder in Path(path).parents if folder.name}
        for folder in sorted(folders, key=lambda one: len(one.parts), reverse=True):
            try:
                os.rmdir(self.path / folder)
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOENT):
                    raise

    def put_folder(self, path: str, source: Path, table: str) -> None:
        manifest = write_manifest(table, source, path)
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

    def remove_folder(self, path: str) -> None:
        aside = self._aside()
        try:
            os.rename(self.path / path, aside)
        except FileNotFoundError:
            return
        shutil.rmtree(aside)

    def get_folder(self, path: str) -> Path:
        manifest = read_manifest(self.read(f"{path}/{MANIFEST}"), path)
        folder = self.path / path / manifest.below  # what was copied here from S3 lies where that upload went to
        check_files(folder, manifest)
        return folder

    def litter(self) -> Mapping[str, float]:
        now, found = time.time(), {}
        for item in (self.path / ASIDE).iterdir() if (self.path / ASIDE).is_dir() else ():
            try:
                age = now - item.stat().st_mtime
            except FileNotFoundError:  # its writer has just put it in place
                continue
            if age > HOUR or is_dead(item.name):
                found[f"{ASIDE}/{item.name}"] = age
        return found

    def remove_litter(self, name: str) -> None:
        path = self.path / name
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)

    def _aside(self) -> Path:
        # Who writes it and when are in the name, so that whoever finds it later can tell whether it is abandoned.
        folder = self.path / ASIDE
        _make_folders(folder)
        return folder / f"{machine()}~{os.getpid()}~{time.time_ns()}~{next(_number)}"


@cache
def machine() -> str:
    """Where a process number means something: containers and clones of machines may share a host's name."""
    name = socket.gethostname()
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{name}.{boot[:8]}.{os.stat('/proc/self/ns/pid').st_ino}"
    except OSError:  # not Linux
        return name


def is_dead(name: str) -> bool:
    """Whether the process in a name that begins with MACHINE~PROCESS~ ran on this machine and is gone."""
    host, pid, *_ = [*name.split("~"), "", ""]
    if host != machine() or not pid.isdigit():
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
        if not final.is_file():  # else what was written would be lost without a word
            raise OSError(errno.EEXIST, "something else lies there; engram verify says what") from None
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
